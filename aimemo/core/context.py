"""What a context may ask of every decorated call made in it: `bypass()`, `refresh()`, `record_calls()`.

All three are context variables, so they hold for one task or one thread. The fast path reads none of
them: while any is in force anywhere, the gate is closed and calls take the long way, where they are read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
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


MODE: Final[ContextVar[Mode | None]] = ContextVar("aimemo_mode", default=None)
RECORDERS: Final[ContextVar[tuple[list[CallRecord], ...]]] = ContextVar("aimemo_recorders", default=())


@contextlib.contextmanager
def _in_force(variable: ContextVar[Any], value: Any) -> Iterator[None]:
    GATE.append(None)
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)
        GATE.pop()


@contextlib.contextmanager
def bypass() -> Iterator[None]:
    """Every decorated call in the context calls its function and touches no cache."""
    with _in_force(MODE, "bypass"):
        yield


@contextlib.contextmanager
def refresh() -> Iterator[None]:
    """Every decorated call in the context calls its function and replaces the stored answer."""
    with _in_force(MODE, "refresh"):
        yield


@contextlib.contextmanager
def record_calls() -> Iterator[list[CallRecord]]:
    """Collect a record of every decorated call made in the context, in the order in which they ended."""
    calls: list[CallRecord] = []
    with _in_force(RECORDERS, (*RECORDERS.get(), calls)):
        yield calls
