"""What happened, and who listens: one bus per cache.

Rich hooks receive one `CacheEvent`; seed callbacks receive `(key, value)` or `(key,)`. Either may be a
plain or an async function. Hooks run in order of registration, isolated from each other; a failing one
is logged and counted and never reaches the caller. One that takes longer than `HOOK_DEADLINE` counts as
failing too; from then on it runs beside the callers, and what happens while it is busy is not told to it.
"""

from __future__ import annotations

import functools
import inspect
import logging
import time
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final, Literal

from aimemo.core.runtime import HOOK_DEADLINE, Runtime, fork_safe_lock
from aimemo.core.stats import Stats
from aimemo.errors import ValidationError

log = logging.getLogger("aimemo")

Tier = Literal["l1", "l2"]

KINDS: Final = ("hit", "miss", "set", "delete", "stale", "coalesced", "invalidated", "evicted", "error", "not_kept")
SEED_EVENTS: Final = ("get_success", "get_miss", "set_success", "delete_success")
_OF_EVERY_HIT: Final = ("hit", "get_success")

_TELLING: Final[ContextVar[Callable[[BaseException], None] | None]] = ContextVar("aimemo_telling", default=None)
"""Counts a failure of the hook that this context is in."""

GATE: Final[list[None]] = []
"""Not empty while somebody has to see or steer every single call: the fast path then stands aside."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheEvent:
    """One thing that happened. `digest` stands for the key; prompts and values are never in an event.

    Attributes:
        seconds: how long the caller waited; for a `set`, how long the call had taken.
        age: seconds since the answer was computed.
        reason: why, in a word or two, for `not_kept`, `error`, `evicted`, `invalidated` and `stale`.
        error: the name of the exception's class, where there was one.
        count: how many entries an `invalidated` removed.
    """

    kind: str
    operation: str = ""
    digest: str = ""
    tier: Tier | None = None
    age: float | None = None
    seconds: float | None = None
    size_raw: int | None = None
    size_stored: int | None = None
    tokens: int | None = None
    cost: float | None = None
    reason: str = ""
    error: str = ""
    count: int | None = None


@dataclass(eq=False, slots=True)
class Hook:
    """One registration of a function for one kind of event."""

    kind: str
    function: Callable[..., Any]
    is_slow: bool = False
    is_busy: bool = False
    since: float | None = None
    """When a caller began to tell it, while it does."""

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise ValidationError(f"the hook for {self.kind!r} must be callable, not {type(self.function).__name__}")


class EventBus:
    """The hooks of one cache, and the events that wait to be told to them."""

    def __init__(self, stats: Stats) -> None:
        self.has_hooks = False
        self.pending: deque[tuple[Hook, str, tuple[Any, ...]]] = deque()
        self._stats = stats
        self._hooks: dict[str, tuple[Hook, ...]] = {}
        self._changing = fork_safe_lock()
        self._gate: weakref.finalize[Any, EventBus] | None = None

    def subscribe(self, kind: str, function: Callable[..., Any]) -> None:
        """Register a hook.

        Raises:
            ValidationError: for something that cannot be called.
        """
        hook = Hook(kind, function)
        with self._changing:
            self._hooks[kind] = (*self._hooks.get(kind, ()), hook)
            self._note_hooks()

    def unsubscribe(self, kind: str, function: Callable[..., Any]) -> bool:
        """Remove the first registration of `function`. Whether there was one."""
        with self._changing:
            hooks = self._hooks.get(kind, ())
            found = next((hook for hook in hooks if hook.function == function), None)
            if found is None:
                return False
            self._hooks[kind] = tuple(hook for hook in hooks if hook is not found)
            self._note_hooks()
        return True

    def _note_hooks(self) -> None:
        self.has_hooks = any(self._hooks.values())
        needed = any(self._hooks.get(kind) for kind in _OF_EVERY_HIT)
        if needed and self._gate is None:
            GATE.append(None)
            self._gate = weakref.finalize(self, GATE.pop)
            self._gate.atexit = False
        elif not needed and self._gate is not None:
            self._gate()
            self._gate = None

    def wants(self, kind: str) -> bool:
        return bool(self._hooks.get(kind))

    def post(self, kind: str, operation: str, args: tuple[Any, ...], own: Iterable[Hook] = ()) -> None:
        """Queue an event for the hooks of its kind and for a function's `own`; `deliver` tells them.

        What a hook itself does with caches is not told: it would call itself without end.
        """
        if _TELLING.get() is not None:
            return
        for hook in (*self._hooks.get(kind, ()), *own):
            self.pending.append((hook, operation, args))

    async def deliver(self, runtime: Runtime) -> None:
        """Tell the hooks what waits, oldest first."""
        started = time.perf_counter()
        while self.pending:
            try:
                hook, operation, args = self.pending.popleft()
            except IndexError:  # another thread told it
                return
            since = hook.since  # another thread may end its call meanwhile
            if since is not None and time.perf_counter() - since > HOOK_DEADLINE and not hook.is_slow:
                self._is_late(hook, operation)  # it holds another caller, who cannot say so
            if hook.is_slow or hook.is_busy or time.perf_counter() - started > HOOK_DEADLINE:
                self._tell_beside(hook, operation, args, runtime)
            else:
                await self._tell(hook, operation, args, runtime)

    async def _tell(self, hook: Hook, operation: str, args: tuple[Any, ...], runtime: Runtime) -> None:
        started = hook.since = time.perf_counter()
        token = _TELLING.set(functools.partial(self._failed, hook, operation))
        try:
            in_time = await runtime.call_hook(hook.function, args)
        except Exception as error:
            self._failed(hook, operation, error)
            return
        finally:
            _TELLING.reset(token)
            hook.since = None
        if not in_time or time.perf_counter() - started > HOOK_DEADLINE:
            self._is_late(hook, operation)

    def _is_late(self, hook: Hook, operation: str) -> None:
        hook.is_slow = True
        self._failed(hook, operation, TimeoutError(f"over {HOOK_DEADLINE} s; it will not be waited for again"))

    def _tell_beside(self, hook: Hook, operation: str, args: tuple[Any, ...], runtime: Runtime) -> None:
        if hook.is_busy:
            self._stats.tally(operation).callback_errors += 1
            return
        hook.is_busy = True

        def done(error: BaseException | None) -> None:
            hook.is_busy = False
            if error is not None:
                self._failed(hook, operation, error)

        token = _TELLING.set(functools.partial(self._failed, hook, operation))
        try:
            runtime.call_hook_beside(hook.function, args, done)
        finally:
            _TELLING.reset(token)

    def _failed(self, hook: Hook, operation: str, error: BaseException) -> None:
        self._stats.tally(operation).callback_errors += 1
        name = getattr(hook.function, "__qualname__", type(hook.function).__name__)
        log.warning("the %s hook %s failed (operation %r): %s", hook.kind, name, operation, type(error).__name__)
        log.debug("the %s hook %s failed at:\n%s", hook.kind, name, frames(error))


def frames(error: BaseException) -> str:
    """Where an error was raised, without its text: that may quote a prompt or an answer."""
    return "".join(traceback.format_tb(error.__traceback__))


def compose_callbacks(*functions: Callable[..., Any]) -> Callable[..., Any]:
    """One callback of many: calls each with the same arguments, in order, isolated from each other.

    The composed callback returns their results in that order (awaitable if any of them is), with the
    exception in the place of the result of a callback that raised.

    Raises:
        ValidationError: for something that cannot be called.
    """
    for function in functions:
        if not callable(function):
            raise ValidationError(f"a callback must be callable, not {type(function).__name__}")

    def composed(*args: Any, **kwargs: Any) -> Any:
        results: list[Any] = []
        for function in functions:
            try:
                results.append(function(*args, **kwargs))
            except Exception as error:
                results.append(_noted(error))
        return _finish(results) if any(map(inspect.isawaitable, results)) else results

    return composed


async def _finish(results: list[Any]) -> list[Any]:
    for at, result in enumerate(results):
        if inspect.isawaitable(result):
            try:
                results[at] = await result
            except Exception as error:
                results[at] = _noted(error)
    return results


def _noted(error: Exception) -> Exception:
    """An error of one of many callbacks, counted for the hook that they are."""
    failed = _TELLING.get()
    if failed is not None:
        failed(error)
    else:
        log.warning("a composed callback failed: %s", type(error).__name__)
    return error
