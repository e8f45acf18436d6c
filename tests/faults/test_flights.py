"""Calls that are cancelled, killed, forked, that fail, or whose answers are invalidated meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from aimemo import Cache, InMemoryCache, cached_ai_call
from tests.faults.conftest import LOADED_MACHINE, Case
from tests.faults.stands import Stand
from tests.kit.clock import Clock
from tests.kit.crowd import CALLERS, Crowd, answer_to
from tests.kit.fleet_worker import FleetWorker, runs
from tests.kit.forks import Fork
from tests.kit.looking import followers, until
from tests.kit.servers import Server, wait_until

row = pytest.mark.row
behind_l1 = pytest.mark.parametrize("stand", ["valkey behind L1"], indirect=True)
with_l1_and_without = pytest.mark.parametrize("stand", ["valkey", "valkey behind L1"], indirect=True)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@row("F10")
@pytest.mark.parametrize("seconds", [1, pytest.param(10, marks=pytest.mark.slow)])
async def test_callers_cancelled_at_random_moments(cache: Cache, case: Case, seconds: float) -> None:
    async with Crowd(cache) as crowd:
        usual = await crowd.warm_up()
        files, tasks = open_files(), len(asyncio.all_tasks())
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            callers = [asyncio.create_task(crowd.ask([question])) for question in (*crowd.new(20), *range(20))]
            await asyncio.sleep(random.random() * 0.01)
            for caller in random.sample(callers, 30):
                caller.cancel()
            await asyncio.gather(*callers, return_exceptions=True)
        await until(lambda: len(asyncio.all_tasks()) <= tasks)
        case.crowd(crowd, usual, budget=cache.deadline)
        case.recovers(
            open_files() <= files + 60, f"{open_files() - files} files more: pools may hold 16 for each server"
        )
        case.recovers(await crowd.recovers(5))


@row("F12")
def test_a_fork_with_a_warm_client(cache: Cache, case: Case) -> None:
    def ask_all() -> list[Any]:
        crowd = Crowd(cache)

        async def go() -> None:
            await crowd.warm_up()
            await crowd.ask([*range(50), *crowd.new(50)])

        asyncio.run(go())
        return [crowd.wrong, [repr(error) for error in crowd.lost]]

    ask_all()
    with Fork(lambda pipe: pipe.send(ask_all())) as child:
        here, there = ask_all(), child.hear()
    case.right(here[0] == there[0] == [], (here, there))
    case.nothing_lost(here[1] == there[1] == [], (here, there))


@row("F13")
def test_a_second_event_loop_and_five_threads_with_five_loops(cache: Cache, case: Case) -> None:
    crowds = [Crowd(cache, callers=10) for _ in range(5)]

    def run(crowd: Crowd) -> None:
        async def go() -> None:
            await crowd.ask([*range(20), *crowd.new(20)])

        asyncio.run(go())
        asyncio.run(go())

    threads = [threading.Thread(target=run, args=(crowd,)) for crowd in crowds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for crowd in crowds:
        case.crowd(crowd, budget=cache.deadline)
        case.right(len(crowd.added) == 80)


class Held:
    """A function that is held while it runs."""

    def __init__(self, cache: Cache, scope: str = "") -> None:
        self.calls = 0
        self.goes_on = asyncio.Event()
        self.error: BaseException | None = None

        @cached_ai_call(operation="held", cache=cache, tags=("held",))
        async def function(question: int) -> dict[str, Any]:
            self.calls += 1
            call = self.calls
            await self.goes_on.wait()
            if self.error is not None:
                raise self.error
            return {**answer_to(question), "call": call}

        self.function = function

    async def is_asked_by(self, cache: Cache, number: int) -> list[asyncio.Task[Any]]:
        callers = [asyncio.create_task(self.function(7)) for _ in range(number)]
        await until(lambda: self.calls == 1 and followers(cache) >= number)
        return callers


@row("F14")
async def test_a_cancelled_leader_strands_nobody(cache: Cache, case: Case) -> None:
    held = Held(cache)
    leader, *others = await held.is_asked_by(cache, CALLERS)
    leader.cancel()
    await asyncio.wait([leader])
    held.goes_on.set()
    answers = await asyncio.gather(*others, return_exceptions=True)
    case.right(all(answer == {**answer_to(7), "call": 1} for answer in answers), answers[:3])
    case.nothing_lost(leader.cancelled() and held.calls == 1, f"{held.calls} executions")
    case.recovers((await held.function(7))["call"] == 1, "kept")


@row("F15", on="valkey")
@pytest.mark.parametrize("world", ["tasks", "threads"])
def test_others_take_over_from_a_leader_that_was_killed(case: Case, world: str) -> None:
    lease = 2.0  # renewed three times in that: a slow machine must not let that of the successor run out
    workers = [FleetWorker() for _ in range(4)]
    try:
        with Server() as server:
            settings = {"deadline": 5, "enable_l1_cache": False}
            leader, *others = workers
            for worker in workers:  # the leader is at it for as long as it lives
                seconds = 60 if worker is leader else 0.3
                worker.prepare(server.url, "f15", world=world, seconds=seconds, lease_seconds=lease, settings=settings)
            leader.go()
            wait_until(lambda: len(runs(server.client, "f15")) == 1, "the leader computes")
            for other in others:
                other.go()
            leader.kill()
            killed = time.monotonic()
            wait_until(lambda: len(runs(server.client, "f15")) == 2, "another one has taken over")
            case.bounded(time.monotonic() - killed, lease + LOADED_MACHINE)
            answers = sum((Counter(other.result()["answers"]) for other in others), Counter[str]())
            [_, successor] = runs(server.client, "f15")
            case.right(list(answers) == [f"question answered by {successor}"], answers)
            case.nothing_lost(answers.total() == 3, answers)
            case.recovers(len(runs(server.client, "f15")) == 2, "one more execution")
    finally:
        for worker in workers:
            worker.close()


@row("F17")
@pytest.mark.parametrize("error", [ValueError("no"), asyncio.CancelledError("own")], ids=["raises", "cancels itself"])
async def test_an_error_of_the_function_reaches_all_who_wait(cache: Cache, case: Case, error: BaseException) -> None:
    held = Held(cache)
    held.error = error
    callers = await held.is_asked_by(cache, CALLERS)
    held.goes_on.set()
    await asyncio.wait(callers)
    ends = [type(error) if caller.cancelled() else type(caller.exception()) for caller in callers]
    case.nothing_lost(ends == [type(error)] * CALLERS and held.calls == 1, f"{Counter(ends)}, {held.calls} executions")
    held.error = None
    answer = await held.function(7)
    case.right(answer == {**answer_to(7), "call": 2}, "nothing kept, and tried again")
    case.recovers((await held.function(7))["call"] == 2)


INVALIDATIONS: dict[str, Callable[[Any], Any]] = {
    "operation": lambda cache: cache.invalidate_operation("held"),
    "tag": lambda cache: cache.invalidate_tag("held"),
    "pattern": lambda cache: cache.invalidate_pattern("*held*"),
    "clear": lambda cache: cache.clear(),
}
each_invalidation = pytest.mark.parametrize("invalidate", INVALIDATIONS.values(), ids=INVALIDATIONS)


@row("F18")
@each_invalidation
async def test_an_invalidation_during_the_call(cache: Cache, case: Case, invalidate: Callable[[Any], Any]) -> None:
    held = Held(cache)
    callers = await held.is_asked_by(cache, CALLERS)
    await invalidate(cache)
    later = asyncio.create_task(held.function(7))
    await until(lambda: held.calls == 2)
    held.goes_on.set()
    before = await asyncio.gather(*callers)
    case.nothing_lost({answer["call"] for answer in before} == {1}, "the value goes out")
    case.right((await later)["call"] == 2, "a caller after the invalidation joined the flight from before it")
    case.right((await held.function(7))["call"] == 2, "what was computed before the invalidation was kept")


@row("F18")
@with_l1_and_without
@each_invalidation
async def test_an_invalidation_by_another_process_during_the_call(
    stand: Stand, case: Case, invalidate: Callable[[Any], Any]
) -> None:
    here, there = stand.cache(deadline=5), stand.cache(deadline=5)
    async with here, there:
        held = Held(here)
        callers = await held.is_asked_by(here, CALLERS)
        await invalidate(there)
        held.goes_on.set()
        before = await asyncio.gather(*callers)
        case.nothing_lost({answer["call"] for answer in before} == {1}, "the value goes out")
        case.right((await held.function(7))["call"] == 2, "what was computed before the invalidation was kept")


@contextlib.contextmanager
def cut_off(server: Server) -> Iterator[None]:
    """Nobody listens, and nobody can begin to."""
    server.ask("ACL", "SETUSER", "default", "-subscribe")
    server.ask("CLIENT", "KILL", "TYPE", "pubsub")
    yield
    server.ask("ACL", "SETUSER", "default", "+subscribe")


@row("F19")
@behind_l1
@each_invalidation
async def test_an_invalidation_message_that_is_lost(
    stand: Stand, case: Case, clock: Clock, invalidate: Callable[[Any], Any]
) -> None:
    here, there = (stand.cache(deadline=5, clock=clock, l1_max_ttl=30) for _ in range(2))
    async with here, there:
        held = Held(here)
        held.goes_on.set()
        l1, key = here.l1_cache, held.function.key_for(7)
        assert l1 is not None
        first = await held.function(7)
        await asyncio.to_thread(wait_until, lambda: here.blocking.get(key) and l1.blocking.exists(key), "L1 has it")
        with cut_off(stand.nodes[0]):
            await invalidate(there)
            case.nothing_lost((await held.function(7))["question"] == 7)
            clock.advance(30.1)
            case.in_time((await held.function(7))["call"] == 2, "a stale hit beyond l1_max_ttl")
            await invalidate(there)
        await asyncio.to_thread(wait_until, lambda: not l1.blocking.exists(key), "the listener is back")
        case.right((await held.function(7))["call"] == 3, f"a stale hit after the listener came back; first {first}")

        async def is_heard() -> bool:
            await held.function(7)
            before = held.calls
            await invalidate(there)
            await asyncio.sleep(0.05)
            await held.function(7)
            return held.calls > before

        limit = time.monotonic() + 5
        while not await is_heard():
            case.recovers(time.monotonic() < limit)
        case.recovers(True)


@row("F13")
@pytest.mark.leaves("the call that was under way")
def test_a_loop_that_was_closed_with_its_calls_under_way(case: Case) -> None:
    cache = InMemoryCache()

    @cached_ai_call(operation="slow", cache=cache)
    async def slow(question: int) -> dict[str, Any]:
        await asyncio.sleep(0 if question < 0 else 3600)
        return answer_to(question)

    async def leave() -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(slow(1), 0.01)

    asyncio.run(leave())
    case.nothing_lost(asyncio.run(slow(-1)) == answer_to(-1))
