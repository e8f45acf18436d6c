"""The two worlds, and what differs between them.

The order of steps of a cached call is written once, as `async def`. Among tasks it runs as it is; among
threads the very same body is driven to its end by `drive`, because there nothing ever suspends: waiting
blocks the thread inside the call. This file holds the port and the world of threads, `core/aio.py` the
world of tasks.
"""

from __future__ import annotations

import contextvars
import inspect
import logging
import os
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Protocol, TypeVar

T = TypeVar("T")

HookDone = Callable[[BaseException | None], None]

log = logging.getLogger("aimemo")
log.addHandler(logging.NullHandler())

HOOK_DEADLINE: Final = 0.1
"""Seconds that a hook may hold a caller up."""


LATE: Final = 0.02
"""Seconds by which a timer may be late before something is said to have held the thread up."""


INTERRUPTIONS: Final = (KeyboardInterrupt, SystemExit, GeneratorExit)
"""What ends a user's function from outside. Whatever else it raises is its own."""


class HeldUp(TimeoutError):
    """A timer fired late, because something else held the thread: that says nothing about what was waited for."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A computation gave a value."""

    value: Any = field(repr=False)


@dataclass(frozen=True, slots=True)
class Failure:
    """A computation raised. The error travels as data through driven bodies and is raised outside them."""

    error: BaseException
    traceback: TracebackType | None

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        return cls(error, error.__traceback__)

    def throw(self) -> Any:
        raise self.error.with_traceback(self.traceback)


class Runtime(Protocol):
    """What the body of a cached call asks of the world it runs in."""

    world: str

    can_be_held_up: bool
    """Between the arrival of an answer and its receiver, others may run for long."""

    def home(self) -> Any:
        """What the work of a leader that starts here depends on: an event loop, or a thread."""

    def waiter(self) -> Any:
        """Something that one caller waits on and any thread may `wake()`, once."""

    async def wait(self, waiter: Any, home: Any) -> bool:
        """Wait until woken. False if the waiter will never be woken, because `home` is no longer running."""

    async def attempt(self, thunk: Callable[[], Any]) -> Answer | Failure:
        """Run a user's function. An interruption from outside is raised, its own errors are returned."""

    async def wait_at_most(self, seconds: float, waiter: Any) -> None:
        """Wait until woken, or no longer."""

    def is_running(self, home: Any) -> bool:
        """Whether work that depends on `home` can go on while somebody waits for it here."""

    def interruption(self) -> BaseException:
        """What a caller gets whose computation was cancelled."""

    async def launch(self, body: Coroutine[Any, Any, None], ended: Callable[[], None]) -> None:
        """Run a leader's work so that it outlives the leader's caller, where a caller can be cancelled.

        `ended` is called at its end, even if it was cancelled before it began.
        """

    def spawn(self, body: Coroutine[Any, Any, None]) -> None:
        """Run work in the background; it deals with its own errors."""

    async def sleep(self, seconds: float) -> None: ...

    async def offload(self, function: Callable[..., T], *args: Any) -> T:
        """Call something that blocks for long."""

    async def together(self, *bodies: Coroutine[Any, Any, T]) -> list[T]:
        """Run bodies at the same time where that is possible; the first error ends all."""

    async def within(self, seconds: float, awaitable: Awaitable[T]) -> T:
        """Await, for at most so long where something else can run meanwhile.

        Raises:
            TimeoutError: nothing came; `HeldUp` if others held the thread meanwhile.
        """

    async def call_hook(self, function: Callable[..., Any], args: tuple[Any, ...]) -> bool:
        """Call a plain or async hook. False if it is async and still running after `HOOK_DEADLINE`."""

    def call_hook_beside(self, function: Callable[..., Any], args: tuple[Any, ...], done: HookDone) -> None:
        """Call a hook without waiting for it; `done` is called at its end, with its error if it failed."""


def drive(body: Coroutine[Any, Any, T]) -> T:
    """Run a body of the world of threads to its end."""
    try:
        body.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    body.close()
    raise RuntimeError("a store or hook suspended in the blocking world; blocking stores must not await I/O")


class _ThreadWaiter:
    __slots__ = ("event",)

    def __init__(self) -> None:
        self.event = threading.Event()

    def wake(self) -> None:
        self.event.set()


class ThreadRuntime:
    """The world of threads: whatever waits blocks its thread."""

    world = "threads"
    can_be_held_up = False

    def home(self) -> int:
        return threading.get_ident()

    def waiter(self) -> _ThreadWaiter:
        return _ThreadWaiter()

    async def wait(self, waiter: _ThreadWaiter, home: int) -> bool:
        return waiter.event.wait()

    async def wait_at_most(self, seconds: float, waiter: _ThreadWaiter) -> None:
        waiter.event.wait(seconds)

    async def attempt(self, thunk: Callable[[], Any]) -> Answer | Failure:
        return _attempt(thunk)  # a plain call: a StopIteration must not pass through a coroutine

    def is_running(self, home: int) -> bool:
        return home != threading.get_ident()

    def interruption(self) -> BaseException:
        return KeyboardInterrupt()  # nothing else ends a computation here without a result

    async def launch(self, body: Coroutine[Any, Any, None], ended: Callable[[], None]) -> None:
        try:
            await body
        finally:
            ended()

    def spawn(self, body: Coroutine[Any, Any, None]) -> None:
        context = contextvars.copy_context()
        thread = threading.Thread(target=context.run, args=(drive, body), name="aimemo-background", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # too many threads, or the interpreter is shutting down
            body.close()
            log.warning("no thread could be started for work in the background")

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251 - in this world waiting blocks the thread

    async def offload(self, function: Callable[..., T], *args: Any) -> T:
        return function(*args)

    async def together(self, *bodies: Coroutine[Any, Any, T]) -> list[T]:
        try:
            return [await body for body in bodies]
        finally:
            for body in bodies:
                body.close()

    async def within(self, seconds: float, awaitable: Awaitable[T]) -> T:
        return await awaitable

    async def call_hook(self, function: Callable[..., Any], args: tuple[Any, ...]) -> bool:
        return _call_hook(function, args, HOOK_DEADLINE)

    def call_hook_beside(self, function: Callable[..., Any], args: tuple[Any, ...], done: HookDone) -> None:
        def call() -> None:
            error: BaseException | None = None
            try:
                _call_hook(function, args, None)
            except BaseException as raised:
                error = raised
            done(error)

        context = contextvars.copy_context()
        try:
            threading.Thread(target=context.run, args=(call,), name="aimemo-hook", daemon=True).start()
        except RuntimeError as error:
            done(error)


def _call_hook(function: Callable[..., Any], args: tuple[Any, ...], seconds: float | None) -> bool:
    try:
        result = function(*args)
        if inspect.isawaitable(result):
            from aimemo.core.aio import run_in_thread  # the world of tasks, only for an async hook

            return run_in_thread(result, seconds)
        return True
    except (Exception, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a CancelledError would look like the caller's own
        raise RuntimeError(f"the hook raised {type(error).__name__}") from error


def _attempt(thunk: Callable[[], Any]) -> Answer | Failure:
    try:
        return Answer(thunk())
    except INTERRUPTIONS:
        raise
    except BaseException as error:
        return Failure.of(error)


_fork_locks: weakref.WeakSet[threading.Lock] = weakref.WeakSet()
_held_over_fork: list[threading.Lock] = []
_before_forks: weakref.WeakSet[Any] = weakref.WeakSet()
_after_fork: weakref.WeakSet[Any] = weakref.WeakSet()


def fork_safe_lock() -> threading.Lock:
    """A lock around a data structure that both sides of a fork find whole and unlocked."""
    lock = threading.Lock()
    _fork_locks.add(lock)
    return lock


def release_before_fork(thing: Any) -> None:
    """Have `thing.before_fork()` called before every fork, while all fork-safe locks are held."""
    _before_forks.add(thing)


def forget_after_fork(thing: Any) -> None:
    """Have `thing.forget()` called in every forked child: what the parent is doing is not being done there."""
    _after_fork.add(thing)


def _before_fork() -> None:
    for lock in list(_fork_locks):
        lock.acquire()
        _held_over_fork.append(lock)
    for thing in list(_before_forks):
        thing.before_fork()


def _release_after_fork() -> None:
    while _held_over_fork:
        _held_over_fork.pop().release()


def _in_child() -> None:
    _release_after_fork()
    for thing in list(_after_fork):
        thing.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_release_after_fork, after_in_child=_in_child)
