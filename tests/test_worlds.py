"""What the body of a cached call may rely on in either world, of tasks or of threads."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from aimemo.core.aio import TaskRuntime
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
    with pytest.raises(RuntimeError, match="suspended in the blocking world"):
        drive(body())
    assert closed == [True]
