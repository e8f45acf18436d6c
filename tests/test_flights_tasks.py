"""Flights among tasks: one execution for all who ask at one time, whoever of them is cancelled."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import itertools
import random
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from aimemo import Cache, cached_ai_call
from aimemo.core import leader
from tests.kit.looking import background, followers, until

EVERYBODY = 50
SECONDS = 2.5
"""Time for a slow machine, and less than a lease lasts: nobody is to wait for one to run out."""


class Held:
    """A function that waits in its body until it is let go, and then does what `end` does."""

    def __init__(self, end: Callable[[str], Any] = lambda text: [text]) -> None:
        self.end = end
        self.calls = 0
        self.tasks: list[asyncio.Task[Any] | None] = []
        self.started = asyncio.Event()
        self.gate = asyncio.Event()

    async def run(self, text: str) -> Any:
        self.calls += 1
        self.tasks.append(asyncio.current_task())
        self.started.set()
        await self.gate.wait()
        return self.end(text)


def remember(held: Any, cache: Cache, **options: Any) -> Any:
    @cached_ai_call(operation="ask", cache=cache, **options)
    async def ask(text: str) -> Any:
        return await held.run(text)

    return ask


async def start(ask: Any, held: Held, count: int = EVERYBODY) -> list[asyncio.Task[Any]]:
    """Callers that all wait for the one execution that has begun."""
    callers = [asyncio.create_task(ask("question")) for _ in range(count)]
    await held.started.wait()
    await until(lambda: followers(ask.cache) == count)
    return callers


async def nothing_left() -> None:
    """Wait until no task is left but the test's own."""
    async with asyncio.timeout(5):
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others)


def fail(error: BaseException) -> Callable[[str], Any]:
    def end(text: str) -> Any:
        raise error

    return end


async def test_fifty_equal_calls_run_once_and_each_gets_an_object_of_its_own(cache: Cache) -> None:
    held = Held()
    callers = await start(remember(held, cache), held)
    held.gate.set()
    answers = await asyncio.gather(*callers)
    assert answers == [["question"]] * EVERYBODY
    assert len({id(answer) for answer in answers}) == EVERYBODY
    assert held.calls == 1
    assert (cache.stats().misses, cache.stats().coalesced) == (1, EVERYBODY - 1)


async def test_unequal_calls_share_nothing(cache: Cache) -> None:
    held = Held()
    ask = remember(held, cache)
    held.gate.set()
    texts = [str(n) for n in range(EVERYBODY)]
    assert await asyncio.gather(*map(ask, texts)) == [[text] for text in texts]
    assert held.calls == EVERYBODY


@pytest.mark.parametrize("cancelled", [[0], [3], [4], [0, 1, 2], [1, 2, 3, 4]], ids=str)
async def test_cancelled_callers_do_not_disturb_the_others(cache: Cache, cancelled: Sequence[int]) -> None:
    held = Held()
    callers = await start(remember(held, cache), held, 5)
    for at in cancelled:
        callers[at].cancel()
    await asyncio.sleep(0)
    held.gate.set()
    results = await asyncio.gather(*callers, return_exceptions=True)
    assert [isinstance(result, asyncio.CancelledError) for result in results] == [at in cancelled for at in range(5)]
    assert all(results[at] == ["question"] for at in range(5) if at not in cancelled)
    assert held.calls == 1


async def test_the_answer_is_kept_although_every_caller_was_cancelled(cache: Cache) -> None:
    held = Held()
    ask = remember(held, cache)
    callers = await start(ask, held, 5)
    for caller in callers:
        caller.cancel()
    await asyncio.gather(*callers, return_exceptions=True)
    held.gate.set()
    await nothing_left()
    assert await ask("question") == ["question"]
    assert held.calls == 1


@pytest.mark.parametrize("error", [ValueError("no"), asyncio.CancelledError(), TimeoutError()], ids=repr)
async def test_an_error_reaches_all_who_wait_and_is_not_kept(cache: Cache, error: BaseException) -> None:
    held = Held(fail(error))
    ask = remember(held, cache)
    callers = await start(ask, held)
    held.gate.set()
    results = await asyncio.gather(*callers, return_exceptions=True)
    assert [type(result) for result in results] == [type(error)] * EVERYBODY
    assert held.calls == 1
    held.end = str.upper
    assert await ask("question") == "QUESTION"
    assert held.calls == 2


async def test_a_follower_takes_over_when_the_computation_is_cancelled_from_outside(cache: Cache) -> None:
    held = Held()
    callers = await start(remember(held, cache), held)
    held.started.clear()
    computation = held.tasks[0]
    assert computation is not None
    computation.cancel()
    await asyncio.wait_for(held.started.wait(), SECONDS)
    held.gate.set()
    assert await asyncio.wait_for(asyncio.gather(*callers), SECONDS) == [["question"]] * EVERYBODY
    assert held.calls == 2


async def test_cancelling_every_task_right_after_a_call_began_does_not_strand_the_next_caller(cache: Cache) -> None:
    held = Held()
    ask = remember(held, cache)
    caller = asyncio.create_task(ask("question"))
    await until(lambda: followers(cache) == 1)
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    await asyncio.gather(caller, return_exceptions=True)
    held.gate.set()
    assert await asyncio.wait_for(ask("question"), SECONDS) == ["question"]


async def test_a_function_that_cancels_its_own_task_is_not_called_without_end(cache: Cache) -> None:
    class Suicidal(Held):
        async def run(self, text: str) -> Any:
            self.calls += 1
            task = asyncio.current_task()
            assert task is not None
            if self.calls <= 100:
                task.cancel()
            await asyncio.sleep(0)

    held = Suicidal()
    await asyncio.gather(asyncio.create_task(remember(held, cache)("question")), return_exceptions=True)
    assert held.calls <= 10


async def test_a_function_that_calls_itself_under_its_own_key_does_not_wait_for_itself(cache: Cache) -> None:
    @cached_ai_call(operation="retrying", cache=cache, ignore=("attempt",))
    async def ask(text: str, attempt: int = 0) -> str:
        return text if attempt else await ask(text, attempt + 1)

    assert await asyncio.wait_for(ask("question"), SECONDS) == "question"


async def test_random_cancellations_give_no_wrong_answer_and_leave_no_task(cache: Cache) -> None:
    dice = random.Random(1)

    class Short:
        async def run(self, text: str) -> list[str]:
            for _ in range(dice.randrange(4)):
                await asyncio.sleep(0)
            return [text]

    ask = remember(Short(), cache)

    async def check(text: str) -> None:
        assert await ask(text) == [text]

    callers = []
    for n in range(300):
        callers.append(asyncio.create_task(check(str(n // 15))))
        if dice.random() < 0.5:
            dice.choice(callers).cancel()
        if dice.random() < 0.3:
            await asyncio.sleep(0)
    results = await asyncio.wait_for(asyncio.gather(*callers, return_exceptions=True), 5)
    assert all(result is None or isinstance(result, asyncio.CancelledError) for result in results)
    await nothing_left()


class Box:
    """Not of a type that can be stored."""

    def __init__(self) -> None:
        self.items: list[str] = []


@pytest.mark.parametrize("make", [object, Box, socket.socket], ids=lambda make: make.__name__)
async def test_an_answer_that_cannot_be_packed_is_not_one_object_for_all(cache: Cache, make: Callable[[], Any]) -> None:
    held = Held(lambda text: make())
    callers = await start(remember(held, cache), held, 5)
    held.gate.set()
    answers = await asyncio.gather(*callers)
    for answer in answers:
        getattr(answer, "close", lambda: None)()
    assert len({id(answer) for answer in answers}) == 5


async def test_what_the_leader_does_to_an_unpackable_answer_is_not_seen_by_followers(cache: Cache) -> None:
    held = Held(lambda text: Box())
    ask = remember(held, cache)

    async def use() -> list[str]:
        box = await ask("question")
        seen = list(box.items)
        box.items.append("mine")
        return seen

    callers = [asyncio.create_task(use()) for _ in range(5)]
    await held.started.wait()
    held.gate.set()
    assert await asyncio.gather(*callers) == [[]] * 5


async def test_a_chain_of_tasks_begun_in_flights_holds_no_flight_that_has_landed(cache: Cache) -> None:
    answered = [asyncio.Event() for _ in range(10)]
    held: list[int] = []
    tasks: list[asyncio.Task[None]] = []

    @cached_ai_call(operation="ask", cache=cache)
    async def ask(number: int) -> int:
        held.append(len(leader._LEADING.get()))
        tasks.append(asyncio.create_task(ask_after(number)))
        return number

    async def ask_after(number: int) -> None:
        await answered[number].wait()
        if number + 1 < len(answered):
            assert await ask(number + 1) == number + 1
            answered[number + 1].set()

    assert await ask(0) == 0
    answered[0].set()
    await answered[-1].wait()
    await asyncio.gather(*tasks)
    assert held == [1] * len(answered)


async def test_unequal_scopes_share_no_flight(cache: Cache) -> None:
    tenant = contextvars.ContextVar("tenant", default="")
    held = Held(lambda text: f"{text} of {tenant.get()}")
    ask = remember(held, cache, scope=tenant.get)

    async def call_as(name: str) -> Any:
        tenant.set(name)
        return await ask("question")

    held.gate.set()
    answers = await asyncio.gather(*map(call_as, "abab"))
    assert answers == [f"question of {name}" for name in "abab"]
    assert held.calls == 2


def test_two_event_loops_one_after_the_other(cache: Cache) -> None:
    async def once() -> Any:
        held = Held()
        callers = await start(remember(held, cache), held, 5)
        held.gate.set()
        return await asyncio.gather(*callers), held.calls

    assert asyncio.run(once()) == ([["question"]] * 5, 1)
    assert asyncio.run(asyncio.wait_for(remember(Held(), cache)("question"), SECONDS)) == ["question"]


def test_five_loops_in_five_threads_share_one_execution(cache: Cache) -> None:
    calls: list[str] = []
    all_joined = threading.Event()
    answers: list[Any] = []

    class Counted:
        async def run(self, text: str) -> list[str]:
            calls.append(text)
            while not all_joined.is_set():
                await asyncio.sleep(0.001)
            return [text]

    ask = remember(Counted(), cache)

    async def call() -> None:
        caller = asyncio.create_task(ask("question"))
        await until(lambda: followers(cache) == 5 or all_joined.is_set())
        all_joined.set()
        answers.append(await asyncio.wait_for(caller, 5))

    threads = [threading.Thread(target=asyncio.run, args=(call(),)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert answers == [["question"]] * 5
    assert calls == ["question"]


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # a loop that is closed like this leaves its connections behind
def test_a_closed_loop_with_an_unfinished_call_does_not_strand_callers_on_the_next(cache: Cache) -> None:
    held = Held()
    ask = remember(held, cache)
    loop = asyncio.new_event_loop()
    stranded = loop.create_task(ask("question"))
    loop.run_until_complete(held.started.wait())
    loop.close()
    held.gate = asyncio.Event()
    held.gate.set()
    assert asyncio.run(asyncio.wait_for(ask("question"), SECONDS)) == ["question"]
    assert not stranded.done()
    asyncio.run(cache.close())
    del stranded
    gc.collect()  # here, and not in the middle of some other test


@pytest.mark.skipif(sys.version_info < (3, 12), reason="comes with Python 3.12")
async def test_where_tasks_begin_at_once_all_is_as_elsewhere(cache: Cache) -> None:
    numbers = {text: itertools.count() for text in "ab"}  # for each its own: which of the two ends first is open

    @cached_ai_call(operation="ask", cache=cache)
    async def ask(text: str) -> list[Any]:
        await asyncio.sleep(0.01)
        return [text, next(numbers[text])]

    loop = asyncio.get_running_loop()
    loop.set_task_factory(getattr(asyncio, "eager_task_factory"))  # noqa: B009 - not there in 3.11
    try:
        assert await asyncio.gather(*(ask(text) for text in "aaab")) == [["a", 0]] * 3 + [["b", 0]]
        assert await asyncio.gather(*(ask(text) for text in "abab")) == [["a", 0], ["b", 0]] * 2
        assert await ask.refresh("a") == await ask("a") == ["a", 1]
        assert await ask.invalidate("a")
        cancelled = asyncio.create_task(ask("a"))
        cancelled.cancel()
        assert await ask("a") == ["a", 2]
    finally:
        loop.set_task_factory(None)
    await until(lambda: not background())
