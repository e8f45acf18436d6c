"""Invalidations, refreshes and changed arguments while the function runs (F18, F43), step by step.

Every caller has a thread of its own and, among tasks, an event loop of its own.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from aimemo import MISSING, Cache, cached_ai_call
from tests.kit.clock import Clock

SECONDS = 5
WORLDS = ("tasks", "threads")


class Held:
    """A function whose executions, counted from 0, each wait until they are let go."""

    def __init__(self, end: Callable[[Any, int], Any]) -> None:
        self.end = end
        self.calls = 0
        self.started = threading.Semaphore(0)
        self.gates = [threading.Event() for _ in range(5)]

    def run(self, what: Any) -> Any:
        at, self.calls = self.calls, self.calls + 1
        self.started.release()
        assert self.gates[at].wait(SECONDS)
        return self.end(what, at)

    def has_started(self) -> bool:
        return self.started.acquire(timeout=SECONDS)


def numbered(what: str, at: int) -> str:
    return f"{what} {at}"


def remember(held: Held, cache: Cache, world: str, **options: Any) -> Any:
    decorate = cached_ai_call(operation="ask", cache=cache, tags=("news",), **options)

    async def ask_in_tasks(what: Any) -> Any:
        return await asyncio.to_thread(held.run, what)

    def ask(what: Any) -> Any:
        return held.run(what)

    return decorate(ask_in_tasks if world == "tasks" else ask)


def finish(make: Callable[[], Any]) -> Any:
    """What `make` gives, awaited on a loop of its own if it has to be."""
    result = make()

    async def wait() -> Any:
        return await result

    return asyncio.run(wait()) if inspect.isawaitable(result) else result


@pytest.fixture(params=WORLDS)
def world(request: pytest.FixtureRequest) -> str:
    world: str = request.param
    return world


@pytest.fixture
def start() -> Iterator[Callable[..., Future[Any]]]:
    """Begins a call in a thread of its own."""
    with ThreadPoolExecutor(8) as pool:
        yield lambda function, *args: pool.submit(finish, functools.partial(function, *args))


def until_one_follows(cache: Cache) -> None:
    """A leader's caller among tasks waits for its flight too; among threads it runs it."""
    deadline = time.monotonic() + SECONDS
    while True:
        waiting = [len(f.waiters or ()) - (f.world == "tasks") for f in list(cache._flights._flights.values())]
        if any(count > 0 for count in waiting):
            return
        assert time.monotonic() < deadline
        time.sleep(0.0005)


MATCHING = {
    "delete": lambda cache, ask: cache.delete(ask.key_for("q")),
    "operation": lambda cache, ask: cache.invalidate_operation("ask"),
    "tag": lambda cache, ask: cache.invalidate_tag("news"),
    "glob": lambda cache, ask: cache.invalidate_pattern("op:ask|*"),
    "clear": lambda cache, ask: cache.clear(),
    "invalidate": lambda cache, ask: ask.invalidate("q"),
    "invalidate_all": lambda cache, ask: ask.invalidate_all(),
}
OTHERS = {
    "delete": lambda cache, ask: cache.delete(ask.key_for("other")),
    "operation": lambda cache, ask: cache.invalidate_operation("ask_long"),
    "tag": lambda cache, ask: cache.invalidate_tag("new"),
    "glob": lambda cache, ask: cache.invalidate_pattern("op:as|*"),
    "invalidate": lambda cache, ask: ask.invalidate("other"),
}


@pytest.mark.parametrize("view", WORLDS)
@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["old_lands_first", "new_lands_first"])
@pytest.mark.parametrize("way", MATCHING)
def test_an_answer_computed_before_an_invalidation_goes_out_and_is_not_kept(
    cache: Cache, start: Any, world: str, view: str, way: str, order: tuple[int, int]
) -> None:
    held = Held(numbered)
    ask = remember(held, cache, world)
    callers = [start(ask, "q")]
    assert held.has_started()
    finish(lambda: MATCHING[way](cache if view == "tasks" else cache.blocking, ask))
    assert finish(lambda: ask.peek("q")) is MISSING
    callers.append(start(ask, "q"))
    assert held.has_started(), "the later caller joined the old flight"
    for at in order:
        held.gates[at].set()
        assert callers[at].result(SECONDS) == f"q {at}"
        assert finish(lambda: ask.peek("q")) == (MISSING if (at, order[0]) == (0, 0) else "q 1")
    assert finish(lambda: ask("q")) == "q 1"
    assert held.calls == 2


@pytest.mark.parametrize("view", WORLDS)
@pytest.mark.parametrize("way", OTHERS)
def test_an_invalidation_of_something_else_leaves_a_flight_alone(
    cache: Cache, start: Any, world: str, view: str, way: str
) -> None:
    held = Held(numbered)
    ask = remember(held, cache, world)
    first = start(ask, "q")
    assert held.has_started()
    finish(lambda: OTHERS[way](cache if view == "tasks" else cache.blocking, ask))
    second = start(ask, "q")
    until_one_follows(cache)
    held.gates[0].set()
    assert [first.result(SECONDS), second.result(SECONDS)] == ["q 0"] * 2
    assert finish(lambda: ask.peek("q")) == "q 0"


def test_those_who_waited_before_an_invalidation_get_the_answer(cache: Cache, start: Any, world: str) -> None:
    held = Held(numbered)
    ask = remember(held, cache, world)
    callers = [start(ask, "q")]
    assert held.has_started()
    callers.append(start(ask, "q"))
    until_one_follows(cache)
    finish(lambda: ask.invalidate("q"))
    held.gates[0].set()
    assert [caller.result(SECONDS) for caller in callers] == ["q 0"] * 2
    assert held.calls == 1


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["old_lands_first", "refresh_lands_first"])
def test_a_refresh_during_a_flight_calls_anew_and_its_answer_stays(
    cache: Cache, start: Any, world: str, order: tuple[int, int]
) -> None:
    held = Held(numbered)
    ask = remember(held, cache, world)
    callers = [start(ask, "q")]
    assert held.has_started()
    callers.append(start(ask.refresh, "q"))
    assert held.has_started(), "the refresh joined the flight"
    for at in order:
        held.gates[at].set()
        assert callers[at].result(SECONDS) == f"q {at}"
    assert finish(lambda: ask("q")) == "q 1"


def test_a_caller_during_a_refresh_of_a_missing_answer_waits_for_it(cache: Cache, start: Any, world: str) -> None:
    held = Held(numbered)
    ask = remember(held, cache, world)
    refreshing = start(ask.refresh, "q")
    assert held.has_started()
    caller = start(ask, "q")
    until_one_follows(cache)
    held.gates[0].set()
    assert [refreshing.result(SECONDS), caller.result(SECONDS)] == ["q 0"] * 2


def test_a_stale_answer_that_was_invalidated_meanwhile_is_not_served_when_the_function_fails(
    cache: Cache, clock: Clock, start: Any, world: str
) -> None:
    def second_fails(what: str, at: int) -> str:
        if at:
            raise ValueError("no")
        return what

    held = Held(second_fails)
    ask = remember(held, cache, world, ttl=10, stale_if_error=100)
    held.gates[0].set()
    finish(lambda: ask("q"))
    assert held.has_started()
    clock.advance(11)
    caller = start(ask, "q")
    assert held.has_started()
    finish(lambda: ask.invalidate("q"))
    held.gates[1].set()
    assert isinstance(caller.exception(SECONDS), ValueError)


def joined(what: list[str], at: int) -> list[str]:
    return what[:]


def fail_if_changed(what: list[str], at: int) -> list[str]:
    if len(what) > 1:
        raise ValueError("too many")
    return what[:]


@pytest.mark.parametrize("end", [joined, fail_if_changed])
def test_arguments_changed_during_the_call_spoil_the_answer_of_nobody_else(
    cache: Cache, start: Any, world: str, end: Any
) -> None:
    held = Held(end)
    ask = remember(held, cache, world)
    mine = ["a"]
    leader = start(ask, mine)
    assert held.has_started()
    follower = start(ask, ["a"])
    until_one_follows(cache)
    mine.append("b")
    for gate in held.gates:
        gate.set()
    assert leader.exception(SECONDS) is not None or leader.result() == ["a", "b"]
    assert follower.result(SECONDS) == ["a"]
    assert finish(lambda: ask(["a"])) == ["a"]
    assert finish(lambda: ask.peek(["a", "b"])) is MISSING


async def test_an_answer_to_arguments_that_were_changed_before_it_began_and_back_is_not_kept(cache: Cache) -> None:
    what = ["a"]

    @cached_ai_call(operation="ask", cache=cache)
    async def ask(what: list[str]) -> list[str]:
        answer = what[:]
        what.remove("b")
        return answer

    caller = asyncio.create_task(ask(what))
    await asyncio.sleep(0)
    what.append("b")
    assert await caller == ["a", "b"]
    assert what == ["a"]
    assert await ask.peek(["a"]) is MISSING


def test_bound_arguments_changed_during_the_call_are_arguments_too(cache: Cache, start: Any, world: str) -> None:
    held = Held(lambda what, at: what[:])
    context = ["a"]

    def run(context: list[str], text: str) -> Any:
        return held.run(context)

    async def run_in_tasks(context: list[str], text: str) -> Any:
        return await asyncio.to_thread(held.run, context)

    bound = functools.partial(run_in_tasks if world == "tasks" else run, context)
    ask = cached_ai_call(operation="bound", cache=cache)(bound)
    caller = start(ask, "q")
    assert held.has_started()
    context.append("b")
    for gate in held.gates:
        gate.set()
    assert caller.result(SECONDS) == ["a", "b"]
    context.pop()
    assert finish(lambda: ask("q")) == ["a"]


def test_an_answer_goes_out_although_its_arguments_can_no_longer_be_read(cache: Cache, world: str) -> None:
    held = Held(lambda what, at: what.pop("id"))
    for gate in held.gates:
        gate.set()
    ask = remember(held, cache, world, key=lambda what: what["id"])
    assert finish(lambda: ask({"id": 5})) == 5
    assert finish(lambda: ask.peek({"id": 5})) is MISSING
