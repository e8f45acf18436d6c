"""What a context may ask of every decorated call made in it: `bypass()`, `refresh()`, `record_calls()`.

All three are context variables, so they hold for one task or one thread. The fast path reads none of
them: while any is in force anywhere, the gate is closed and calls take the long way, where they are read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar, Token
from dataclasses import dataclass
from typing import Any, Final, Literal

from aimemo.core.events import GATE, Tier

Mode = Literal["bypass", "refresh"]
Outcome = Literal["hit", "miss", "stale", "coalesced", "bypass", "refresh"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRecord:
    """One decorated call as `record_calls()` saw it.

    Attributes:
        digest: stands for the key.
        age: seconds since the answer was computed, where it was a stored one.
        seconds: how long the caller waited.
    """

    operation: str
    outcome: Outcome
    digest: str
    tier: Tier | None = None
    age: float | None = None
    seconds: float = 0.0
    tokens_saved: int | None = None
    cost_saved: float | None = None


@dataclass(slots=True)
class _Force:
    """What a context asks for, and for how long: a task that was started in it may outlive it."""

    mode: Mode | None = None
    calls: list[CallRecord] | None = None
    outer: _Force | None = None
    is_over: bool = False


_DISABLED: Final[list[None]] = []

_FORCE: Final[ContextVar[_Force | None]] = ContextVar("aimemo_force", default=None)


def _in_force() -> Iterator[_Force]:
    force = _FORCE.get()
    while force is not None:
        if not force.is_over:
            yield force
        force = force.outer


def current_mode() -> Mode | None:
    """What the innermost `bypass()` or `refresh()` in force asks for; read only behind the gate."""
    if _DISABLED:
        return "bypass"
    return next((force.mode for force in _in_force() if force.mode is not None), None) if GATE else None


def current_recorders() -> list[list[CallRecord]]:
    """The lists of every `record_calls()` in force; read only behind the gate."""
    return [force.calls for force in _in_force() if force.calls is not None] if GATE else []


@contextlib.contextmanager
def _enforced(mode: Mode | None = None, calls: list[CallRecord] | None = None) -> Iterator[None]:
    force = _Force(mode, calls, _FORCE.get())
    GATE.append(None)
    token = _FORCE.set(force)
    try:
        yield
    finally:
        force.is_over = True
        put_back(_FORCE, token)
        GATE.pop()


@contextlib.contextmanager
def bypass() -> Iterator[None]:
    """Every decorated call in the context calls its function and touches no cache."""
    with _enforced("bypass"):
        yield


@contextlib.contextmanager
def disabled() -> Iterator[None]:
    """As `bypass()`, for every thread and every task of the process."""
    GATE.append(None)
    _DISABLED.append(None)
    try:
        yield
    finally:
        _DISABLED.pop()
        GATE.pop()


@contextlib.contextmanager
def refresh() -> Iterator[None]:
    """Every decorated call in the context calls its function and replaces the stored answer."""
    with _enforced("refresh"):
        yield


@contextlib.contextmanager
def record_calls() -> Iterator[list[CallRecord]]:
    """Collect a record of every decorated call made in the context, in the order in which they ended."""
    calls: list[CallRecord] = []
    with _enforced(calls=calls):
        yield calls


def put_back(variable: ContextVar[Any], token: Token[Any] | None) -> None:
    """Reset a variable. What is left in another context, as fixtures and abandoned coroutines are, finds nothing."""
    try:
        if token is not None:
            variable.reset(token)
    except ValueError:
        pass
