"""What the body of a cached call may rely on in either world, of tasks or of threads."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from aimemo.core.aio import TaskRuntime, unless_cancelled
from aimemo.core.runtime import Answer, Failure, Runtime, ThreadRuntime, drive
from tests.kit.looking import until


@pytest.fixture(params=[TaskRuntime, ThreadRuntime])
def world(request: pytest.FixtureRequest) -> Runtime:
    runtime: Runtime = request.param()
    return runtime


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(), GeneratorExit()], ids=repr)
async def test_an_interruption_from_outside_is_raised_at_once(world: Runtime, error: BaseException) -> None:
    def interrupt() -> None:
        raise error

    with pytest.raises(type(error)) as raised:
        await world.attempt(interrupt)
    assert raised.value is error


@pytest.mark.parametrize("error", [ValueError("no"), StopIteration(), asyncio.CancelledError()], ids=repr)
async def test_an_error_of_the_function_is_returned(world: Runtime, error: BaseException) -> None:
    def fail() -> None:
        raise error

    failure = await world.attempt(fail)
    assert isinstance(failure, Failure)
    assert failure.error is error
    assert await world.attempt(lambda: 1) == Answer(1)


def test_whoever_waits_for_a_computation_that_was_cancelled_is_interrupted_as_his_world_does_it() -> None:
    assert isinstance(TaskRuntime().interruption(), asyncio.CancelledError)
    assert isinstance(ThreadRuntime().interruption(), KeyboardInterrupt)


async def test_a_hook_beside_its_caller_tells_its_end(world: Runtime) -> None:
    def fail(event: str) -> None:
        raise ValueError(event)

    told: list[str] = []
    ends: list[Any] = []
    world.call_hook_beside(told.append, ("event",), ends.append)
    await until(lambda: ends)
    assert (told, ends) == (["event"], [None])
    world.call_hook_beside(fail, ("event",), ends.append)
    await until(lambda: len(ends) == 2)
    assert isinstance(ends[1], ValueError)


def test_a_hook_for_which_there_is_no_thread_left_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    told: list[str] = []
    ends: list[Any] = []
    ThreadRuntime().call_hook_beside(told.append, ("event",), ends.append)
    assert told == []
    assert [type(end) for end in ends] == [RuntimeError]


def test_a_body_that_suspends_among_threads_is_closed_and_named() -> None:
    async def body() -> None:
        try:
            await asyncio.sleep(0)
        finally:
            closed.append(True)

    closed: list[bool] = []
    suspended = body()
    with pytest.raises(RuntimeError, match="suspended in the blocking world"):
        drive(suspended)
    assert closed == [True]


async def swallowed(answer: str) -> str:
    try:
        await asyncio.sleep(0)
    except asyncio.CancelledError:
        await asyncio.sleep(0)
    return answer


async def test_a_cancellation_that_a_client_swallowed_is_not_lost() -> None:
    task = asyncio.create_task(unless_cancelled(swallowed("answer")))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await unless_cancelled(swallowed("answer")) == "answer"


async def test_a_cancellation_before_the_asking_does_not_count() -> None:
    async def ask_again() -> str:
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            return await unless_cancelled(swallowed("answer"))
        return "not cancelled"

    task = asyncio.create_task(ask_again())
    await asyncio.sleep(0)
    task.cancel()
    assert await task == "answer"


async def numbered(number: int) -> int:
    if number < 0:
        raise ValueError("negative")
    await asyncio.sleep(0) if number > 9 else None
    return number


async def test_bodies_run_together_answer_in_their_order_and_the_first_error_ends_all(world: Runtime) -> None:
    assert await world.together(numbered(1)) == [1]
    assert await world.together(*map(numbered, (3, 1, 2))) == [3, 1, 2]
    bodies = [numbered(1), numbered(-1), numbered(10)]
    with pytest.raises(ValueError, match="negative"):
        await world.together(*bodies)
    await asyncio.sleep(0.001)
    assert [body.cr_frame for body in bodies] == [None] * 3


async def test_waiting_at_most_so_long_ends_without_an_error(world: Runtime) -> None:
    await world.wait_at_most(0.001, world.waiter())
    woken = world.waiter()
    woken.wake()
    await asyncio.wait_for(world.wait_at_most(60, woken), 1)


def test_waking_those_who_waited_on_a_loop_that_is_closed_harms_nobody() -> None:
    async def waiter() -> Any:
        return TaskRuntime().waiter()

    asyncio.run(waiter()).wake()
