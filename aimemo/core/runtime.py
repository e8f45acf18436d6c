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
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Protocol, TypeVar

T = TypeVar("T")

log = logging.getLogger("aimemo")
log.addHandler(logging.NullHandler())

HOOK_DEADLINE: Final = 0.1
"""Seconds that a hook may hold a caller up."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A computation gave a value."""

    value: Any


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


class Waiter(Protocol):
    """Something that one caller waits on and any thread may wake, once."""

    def wake(self) -> None: ...


class Runtime(Protocol):
    """What the body of a cached call asks of the world it runs in."""

    world: str

    def home(self) -> Any:
        """What the work of a leader that starts here depends on: an event loop, or nothing."""

    def waiter(self) -> Any: ...

    async def wait(self, waiter: Any, home: Any) -> bool:
        """Wait until woken. False if the waiter will never be woken, because `home` is no longer running."""

    async def attempt(self, thunk: Callable[[], Any]) -> Answer | Failure:
        """Run a user's function. An interruption from outside is raised, its own errors are returned."""

    async def launch(self, body: Coroutine[Any, Any, None]) -> None:
        """Run a leader's work so that it outlives the leader's caller, where a caller can be cancelled."""

    def spawn(self, body: Coroutine[Any, Any, None]) -> None:
        """Run work in the background; it deals with its own errors."""

    async def sleep(self, seconds: float) -> None: ...

    async def offload(self, function: Callable[..., T], *args: Any) -> T:
        """Call something that blocks for long."""

    async def within(self, seconds: float, awaitable: Awaitable[T]) -> T:
        """Await, for at most so long. Raises TimeoutError."""

    async def call_hook(self, function: Callable[..., Any], args: tuple[Any, ...]) -> bool:
        """Call a plain or async hook. False if it is async and still running after `HOOK_DEADLINE`."""

    def call_hook_beside(self, function: Callable[..., Any], args: tuple[Any, ...], done: Callable[[], None]) -> None:
        """Call a hook without waiting for it; `done` is called at its end, whatever that is."""


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

    def home(self) -> None:
        return None

    def waiter(self) -> _ThreadWaiter:
        return _ThreadWaiter()

    async def wait(self, waiter: _ThreadWaiter, home: None) -> bool:
        return waiter.event.wait()

    async def attempt(self, thunk: Callable[[], Any]) -> Answer | Failure:
        return _attempt(thunk)  # a plain call: a StopIteration must not pass through a coroutine

    async def launch(self, body: Coroutine[Any, Any, None]) -> None:
        await body

    def spawn(self, body: Coroutine[Any, Any, None]) -> None:
        context = contextvars.copy_context()
        threading.Thread(target=context.run, args=(drive, body), name="aimemo-background", daemon=True).start()

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251 - in this world waiting blocks the thread

    async def offload(self, function: Callable[..., T], *args: Any) -> T:
        return function(*args)

    async def within(self, seconds: float, awaitable: Awaitable[T]) -> T:
        return await awaitable

    async def call_hook(self, function: Callable[..., Any], args: tuple[Any, ...]) -> bool:
        result = function(*args)
        if inspect.isawaitable(result):
            from aimemo.core.aio import run_in_thread  # the world of tasks, only for an async hook

            return run_in_thread(result, HOOK_DEADLINE)
        return True

    def call_hook_beside(self, function: Callable[..., Any], args: tuple[Any, ...], done: Callable[[], None]) -> None:
        def call() -> None:
            try:
                drive(self.call_hook(function, args))
            except Exception:
                log.warning("a slow hook failed", exc_info=True)
            finally:
                done()

        threading.Thread(target=call, name="aimemo-hook", daemon=True).start()


def _attempt(thunk: Callable[[], Any]) -> Answer | Failure:
    try:
        return Answer(thunk())
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        return Failure.of(error)


_fork_locks: weakref.WeakSet[threading.Lock] = weakref.WeakSet()
_held_over_fork: list[threading.Lock] = []
_after_fork: weakref.WeakSet[Any] = weakref.WeakSet()


def fork_safe_lock() -> threading.Lock:
    """A lock around a data structure that both sides of a fork find whole and unlocked."""
    lock = threading.Lock()
    _fork_locks.add(lock)
    return lock


def forget_after_fork(thing: Any) -> None:
    """Have `thing.forget()` called in every forked child: drop, not close, what belongs to the parent."""
    _after_fork.add(thing)


def _before_fork() -> None:
    for lock in list(_fork_locks):
        lock.acquire()
        _held_over_fork.append(lock)


def _release_after_fork() -> None:
    while _held_over_fork:
        _held_over_fork.pop().release()


def _in_child() -> None:
    _release_after_fork()
    for thing in list(_after_fork):
        thing.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_release_after_fork, after_in_child=_in_child)
