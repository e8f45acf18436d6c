"""The world of tasks: the only file of the core that imports asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

from aimemo.core.runtime import (
    HOOK_DEADLINE,
    INTERRUPTIONS,
    LATE,
    Answer,
    Failure,
    HeldUp,
    HookDone,
    forget_after_fork,
    fork_safe_lock,
)

T = TypeVar("T")

log = logging.getLogger("aimemo")

WORKERS: Final = 4

_HOME_CHECK: Final = 0.5

# The event loop keeps only weak references to tasks.
_tasks: set[asyncio.Task[Any]] = set()


class _Workers:
    """Threads of our own for what blocks: the loop's default ones may all be busy with the user's work."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._lock = fork_safe_lock()
        forget_after_fork(self)

    def forget(self) -> None:
        self._pool = None

    def pool(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="aimemo-store")
            return self._pool


_workers = _Workers()


def _start(body: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    task = asyncio.get_running_loop().create_task(body)
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)
    return task


def _is_being_cancelled() -> bool:
    """Whether a CancelledError is about this task, and not about what it awaits."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class _TaskWaiter:
    __slots__ = ("future", "loop")

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[None] = self.loop.create_future()

    def wake(self) -> None:
        try:
            self.loop.call_soon_threadsafe(self._settle)
        except RuntimeError:
            pass  # the loop is closed: nobody waits there any more

    def _settle(self) -> None:
        if not self.future.done():
            self.future.set_result(None)


class TimeLimit:
    """Ends the block that it stands around at `until`, on the monotonic clock.

    A timer that fires late says that something held the loop: what is ready by then gets one more moment.

    Raises:
        TimeoutError: the time was over; `HeldUp` if the loop was held meanwhile.
    """

    def __init__(self, until: float) -> None:
        self._until = until
        self._has_cancelled = False
        self._was_held_up = False

    async def __aenter__(self) -> None:
        self._loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancellations = task.cancelling()
        self._timer = self._loop.call_later(self._until - time.monotonic(), self._end)

    def _end(self) -> None:
        if not self._was_held_up and time.monotonic() - self._until > LATE:
            self._was_held_up = True
            self._timer = self._loop.call_later(LATE, self._end)
        else:
            self._has_cancelled = True
            self._task.cancel()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        self._timer.cancel()
        is_ours = self._has_cancelled and self._task.uncancel() <= self._cancellations
        if is_ours and kind is asyncio.CancelledError:
            raise (HeldUp if self._was_held_up else TimeoutError)("no answer in time") from None


class TaskRuntime:
    """The world of tasks, on whichever event loop is running."""

    world = "tasks"
    can_be_held_up = True

    def home(self) -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    def waiter(self) -> _TaskWaiter:
        return _TaskWaiter()

    async def wait(self, waiter: _TaskWaiter, home: asyncio.AbstractEventLoop) -> bool:
        if home is waiter.loop:
            await waiter.future
            return True
        while not waiter.future.done():
            if not home.is_running():
                return False
            await asyncio.wait({waiter.future}, timeout=_HOME_CHECK)
        return True

    async def wait_at_most(self, seconds: float, waiter: _TaskWaiter) -> None:
        with contextlib.suppress(TimeoutError):
            await self.within(seconds, waiter.future)

    def is_running(self, home: asyncio.AbstractEventLoop) -> bool:
        return home.is_running()

    def interruption(self) -> BaseException:
        return asyncio.CancelledError("the computation was cancelled")

    async def attempt(self, thunk: Callable[[], Any]) -> Answer | Failure:
        try:
            result = thunk()
            if inspect.isawaitable(result):
                result = await result
            return Answer(result)
        except INTERRUPTIONS:
            raise
        except asyncio.CancelledError as error:
            if _is_being_cancelled():
                raise
            return Failure.of(error)  # the function's own, not a cancellation of this task
        except BaseException as error:
            return Failure.of(error)

    async def launch(self, body: Coroutine[Any, Any, None], ended: Callable[[], None]) -> None:
        _start(body).add_done_callback(lambda _: ended())

    def spawn(self, body: Coroutine[Any, Any, None]) -> None:
        _start(body)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def offload(self, function: Callable[..., T], *args: Any) -> T:
        context = contextvars.copy_context()
        return await asyncio.get_running_loop().run_in_executor(_workers.pool(), context.run, function, *args)

    async def together(self, *bodies: Coroutine[Any, Any, T]) -> list[T]:
        if len(bodies) == 1:
            return [await bodies[0]]
        tasks = [_start(body) for body in bodies]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def within(self, seconds: float, awaitable: Awaitable[T]) -> T:
        async with TimeLimit(time.monotonic() + seconds):
            return await awaitable

    async def call_hook(self, function: Callable[..., Any], args: tuple[Any, ...]) -> bool:
        try:
            result = function(*args)
        except (Exception, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a CancelledError would look like the caller's own
            raise RuntimeError(f"the hook raised {type(error).__name__}") from error
        if not inspect.isawaitable(result):
            return True
        task = _start(_hook(result))
        done, _ = await asyncio.wait({task}, timeout=HOOK_DEADLINE)
        if task.cancelled():
            raise RuntimeError("the hook was cancelled")
        if done:
            task.result()
        else:
            task.add_done_callback(lambda late: late.cancelled() or late.exception())  # it has been counted
        return bool(done)

    def call_hook_beside(self, function: Callable[..., Any], args: tuple[Any, ...], done: HookDone) -> None:
        async def call() -> None:
            try:
                result = function(*args) if is_async else await _in_daemon(function, args)
                if inspect.isawaitable(result):
                    await result
            except asyncio.CancelledError as error:
                if _is_being_cancelled():
                    raise
                raise RuntimeError("the hook raised CancelledError") from error

        is_async = inspect.iscoroutinefunction(function)
        _start(call()).add_done_callback(lambda task: done(None if task.cancelled() else task.exception()))


def _in_daemon(function: Callable[..., T], args: tuple[Any, ...]) -> asyncio.Future[T]:
    """Call a function in a thread that nobody waits for, at the end of the loop neither: it may never return."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def tell(end: Callable[[Any], None], what: Any) -> None:
        if not future.done():
            end(what)

    def call() -> None:
        end: Callable[[Any], None] = future.set_result
        try:
            what: Any = context.run(function, *args)
        except BaseException as error:  # a future takes no StopIteration, and a CancelledError would be its task's
            end, what = future.set_exception, error
            if not isinstance(error, Exception) or isinstance(error, StopIteration):
                what = RuntimeError(f"the hook raised {type(error).__name__}")
        with contextlib.suppress(RuntimeError):  # the loop is over
            loop.call_soon_threadsafe(tell, end, what)

    context = contextvars.copy_context()
    threading.Thread(target=call, name="aimemo-hook", daemon=True).start()
    return future


async def _hook(result: Awaitable[Any]) -> None:
    try:
        await result
    except (Exception, asyncio.CancelledError, *INTERRUPTIONS):
        raise
    except BaseException as error:
        raise RuntimeError(f"the hook raised {type(error).__name__}") from error


async def unless_cancelled(awaitable: Awaitable[T]) -> T:
    """What an awaitable gives, unless its task was cancelled meanwhile: `wait_for` of Python 3.11 may swallow that."""
    task = asyncio.current_task()
    before = task.cancelling() if task is not None else 0
    result = await awaitable
    if task is not None and task.cancelling() > before:
        raise asyncio.CancelledError
    return result


def run_in_thread(awaitable: Awaitable[Any], seconds: float | None) -> bool:
    """Run an awaitable on a loop of its own. False if it is still running after `seconds`; None waits."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            asyncio.run(_hook(awaitable))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=contextvars.copy_context().run, args=(run,), name="aimemo-hook", daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    return not thread.is_alive()
