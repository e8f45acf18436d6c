"""The world of tasks: the only file of the core that imports asyncio."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

from aimemo.core.runtime import (
    HOOK_DEADLINE,
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
_LATE: Final = 0.02

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


class TaskRuntime:
    """The world of tasks, on whichever event loop is running."""

    world = "tasks"

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
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
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

    async def within(self, seconds: float, awaitable: Awaitable[T]) -> tuple[T, bool]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        task = asyncio.ensure_future(awaitable)
        is_late = False
        try:
            await asyncio.wait({task}, timeout=seconds)
            is_late = loop.time() - deadline > _LATE  # the user's code held the loop
            if is_late and not task.done():
                await asyncio.wait({task}, timeout=_LATE)  # what is ready by now was in time
        finally:
            if not task.done():
                task.cancel()
        if not task.done():
            raise (HeldUp if is_late else TimeoutError)(f"no answer within {seconds:.3f} s")
        return task.result(), is_late

    async def call_hook(self, function: Callable[..., Any], args: tuple[Any, ...]) -> bool:
        try:
            result = function(*args)
        except asyncio.CancelledError as error:
            raise RuntimeError("the hook raised CancelledError") from error
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
            result = function(*args) if is_async else await asyncio.to_thread(function, *args)
            if inspect.isawaitable(result):
                await result

        is_async = inspect.iscoroutinefunction(function)
        _start(call()).add_done_callback(lambda task: done(None if task.cancelled() else task.exception()))


async def _hook(result: Awaitable[Any]) -> None:
    await result


def run_in_thread(awaitable: Awaitable[Any], seconds: float | None) -> bool:
    """Run an awaitable on a loop of its own. False if it is still running after `seconds`; None waits."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            asyncio.run(_hook(awaitable))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="aimemo-hook", daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    return not thread.is_alive()
