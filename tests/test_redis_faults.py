"""A Redis that hangs, dies, is not there or answers badly: calls are computed in time, and it recovers by itself.

Every answer carries its question, and every caller checks it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import socket
import statistics
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis

from aimemo import CacheEvent, GenericRedisCache, InfrastructureError, cached_ai_call
from aimemo.coordination.lock import LEASE_SECONDS
from aimemo.core.guard import FAILURES_TO_OPEN, PROBE_INTERVAL
from tests.kit import stalls
from tests.kit.looking import followers, until
from tests.kit.proxy import Proxy
from tests.kit.servers import HOST, Server, free_port, wait_until

ONE_BUDGET = 0.5
"""What one call may take if the stores get 0.1 s: a loaded machine needs the rest. Most faults would cost seconds."""
RECOVERY = 5.0

THREADS = 64
CLIENT_ERRORS = (redis.RedisError, OSError)
KEY = "op:hand|txt:|" + "0" * 32


def is_one_budget(took: list[float]) -> bool:
    """Whether the stores cost callers at once one budget each. Of many, a loaded machine leaves some waiting."""
    late = max(statistics.median(took) - 2 * ONE_BUDGET, max(took) - 3 * ONE_BUDGET)
    return late < stalls.longest()


def answer_to(question: int) -> dict[str, Any]:
    return {"question": question, "padding": "x" * (question % 300)}


class Caller:
    """A cached function in one world, on a cache of its own, and those who call it."""

    def __init__(self, url: str, world: str, has_l1: bool, **settings: Any) -> None:
        self.world = world
        self.name = f"{world}{'-behind-L1' if has_l1 else ''}"
        self.cache = GenericRedisCache(url, **{"namespace": self.name, "enable_l1_cache": has_l1, **settings})
        self.computed: Counter[int] = Counter()
        self.before: Callable[[int], Any] = lambda question: None
        self.events: list[CacheEvent] = []
        self.cache.on("error", self.events.append)
        self.function = self._decorate()
        self._new = itertools.count(1_000_000)
        self._threads = ThreadPoolExecutor(THREADS)

    def __repr__(self) -> str:
        return self.name

    def _decorate(self) -> Any:
        def compute(question: int) -> dict[str, Any]:
            self.computed[question] += 1
            return answer_to(question)

        async def in_tasks(question: int) -> dict[str, Any]:
            if (before := self.before(question)) is not None:
                await before
            return compute(question)

        def in_threads(question: int) -> dict[str, Any]:
            self.before(question)
            return compute(question)

        decorator = cached_ai_call(operation="qa", cache=self.cache, tags=("t",))
        return decorator(in_tasks if self.world == "tasks" else in_threads)

    def new(self, count: int) -> list[int]:
        """Questions that nobody has asked."""
        return list(itertools.islice(self._new, count))

    async def ask(self, questions: Iterable[int]) -> list[float]:
        """Ask all at once; how long each took."""
        if self.world == "tasks":
            return await asyncio.gather(*(self._ask_task(question) for question in questions))
        return await asyncio.gather(*(self._in_thread(self._ask_thread, question) for question in questions))

    async def ask_in_turn(self, questions: Iterable[int]) -> list[float]:
        if self.world == "tasks":
            return [await self._ask_task(question) for question in questions]
        return await self._in_thread(lambda: [self._ask_thread(question) for question in questions])

    async def _ask_task(self, question: int) -> float:
        started = time.monotonic()
        answer = await self.function(question)
        took = time.monotonic() - started
        assert answer == answer_to(question), self
        return took

    def _ask_thread(self, question: int) -> float:
        started = time.monotonic()
        answer = self.function(question)
        took = time.monotonic() - started
        assert answer == answer_to(question), self
        return took

    def _in_thread(self, function: Callable[..., Any], *args: Any) -> Awaitable[Any]:
        return asyncio.get_running_loop().run_in_executor(self._threads, function, *args)

    async def start_threads(self) -> None:
        everywhere = threading.Barrier(THREADS)
        await asyncio.gather(*(self._in_thread(everywhere.wait) for _ in range(THREADS)))

    async def do(self, name: str, *args: Any) -> Any:
        """A method of the cache, in the world of this caller."""
        if self.world == "tasks":
            return await getattr(self.cache, name)(*args)
        return await self._in_thread(getattr(self.cache.blocking, name), *args)

    async def of_function(self, name: str, *args: Any) -> Any:
        """What the decorated function carries, in the world of this caller."""
        if self.world == "tasks":
            return await getattr(self.function, name)(*args)
        return await self._in_thread(getattr(self.function, name), *args)

    def faults(self) -> list[CacheEvent]:
        """What was said of a store that failed; one fault is all that a call lets happen."""
        return [event for event in self.events if not event.reason.startswith("breaker_")]

    def breaker(self) -> str:
        return self.cache.stats().breaker

    async def remembers(self) -> bool:
        """Whether a new answer goes to Redis, and comes back from there."""
        [question] = self.new(1)
        await self.ask([question])
        if self.cache.l1_cache is not None:
            await self.cache.l1_cache.clear()
        await self.ask([question])
        return self.computed[question] == 1

    async def recovers(self, seconds: float) -> None:
        """By itself, while it is used."""
        limit = time.monotonic() + seconds
        while not (await self.remembers() and self.breaker() == "closed"):
            assert time.monotonic() < limit, f"{self} did not recover in {seconds} s: breaker {self.breaker()}"
            await asyncio.sleep(0.01)

    async def load(self, callers: int, seconds: float) -> None:
        """So many callers, who ask what was asked before and what was not."""
        end = time.monotonic() + seconds

        def questions() -> Iterator[int]:
            while time.monotonic() < end:
                yield random.choice([random.randrange(50), next(self._new)])

        await asyncio.gather(*(self.ask_in_turn(questions()) for _ in range(callers)))

    async def open_breaker(self) -> None:
        limit = time.monotonic() + RECOVERY
        while self.breaker() == "closed":
            assert time.monotonic() < limit, self
            await self.ask(self.new(2 * FAILURES_TO_OPEN))
        await self.ask_in_turn(self.new(2 * FAILURES_TO_OPEN))  # of the writes too

    async def warm_up(self, questions: Iterable[int]) -> None:
        """Have the answers stored, a few at a time: this is not about many cold connections at once."""
        with self.patience():
            await self.do("connect")
            for question in questions:
                await self.ask([question])
            await self.ask(self.new(5))
        self.events.clear()

    @contextlib.contextmanager
    def patience(self) -> Iterator[None]:
        """Five seconds for the stores, while there is no fault: a slow machine must not leave something unkept."""
        guard = self.cache.memoizer_of(self.world).tiers.guard
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(guard, "_seconds", 5)
            patch.setattr(guard, "_patience", 5)
            yield

    async def keep(self, key: str, value: Any) -> None:
        """Before a fault."""
        with self.patience():
            await self.do("set", key, value)

    async def close(self) -> None:
        await self.cache.close()
        self._threads.shutdown()


def held() -> int:
    """How many files and threads this process has."""
    return len(os.listdir("/proc/self/fd")) + threading.active_count()


async def everybody(work: Callable[[Caller], Awaitable[Any]], callers: Iterable[Caller]) -> None:
    await asyncio.gather(*(work(caller) for caller in callers))


@pytest.fixture
async def make() -> AsyncIterator[Callable[..., Caller]]:
    made: list[Caller] = []

    def make_one(url: str, world: str, has_l1: bool = False, **settings: Any) -> Caller:
        made.append(Caller(url, world, has_l1, **settings))
        return made[-1]

    yield make_one
    for caller in made:
        await caller.close()


@pytest.fixture
def make_all(make: Callable[..., Caller]) -> Callable[..., list[Caller]]:
    """One in each world, with L1 and without."""

    def make_four(url: str, **settings: Any) -> list[Caller]:
        return [make(url, world, has_l1, **settings) for world in ("tasks", "threads") for has_l1 in (False, True)]

    return make_four


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as started:
        yield started


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    with Proxy(server.port) as started:
        yield started


each_world = pytest.mark.parametrize("world", ["tasks", "threads"])
each_tier = pytest.mark.parametrize("has_l1", [False, True], ids=["L2-alone", "behind-L1"])


# A server that hangs


@each_world
async def test_a_hung_server_costs_many_callers_one_budget_each_and_then_nothing(
    make: Callable[..., Caller], server: Server, world: str
) -> None:
    callers = [make(server.url, world, has_l1) for has_l1 in (False, True)]
    for caller in callers:
        await caller.warm_up(caller.new(10))
    server.freeze()
    for caller in callers:
        questions = caller.new(50)
        assert is_one_budget(await caller.ask(questions)), caller
        assert len(caller.faults()) <= 50, "one fault ends the part of the stores in a call"
        assert [caller.computed[question] for question in questions] == [1] * 50, caller
        await caller.open_breaker()
        assert caller.breaker() == "open"
        assert "breaker_open" in [event.reason for event in caller.events]
        assert statistics.median(await caller.ask_in_turn(caller.new(200))) < 0.001, caller
        assert is_one_budget(await caller.ask(caller.new(50))), caller
    server.thaw()
    await everybody(lambda caller: caller.recovers(RECOVERY), callers)
    assert all("breaker_closed" in [event.reason for event in caller.events] for caller in callers)


async def test_reads_alone_recover_from_a_server_that_hung(make: Callable[..., Caller], server: Server) -> None:
    async def read_on(caller: Caller) -> None:
        limit = time.monotonic() + RECOVERY
        while await caller.do("get", KEY) != "kept" or caller.breaker() == "open":
            assert time.monotonic() < limit, caller
            await asyncio.sleep(0.02)

    callers = [make(server.url, world) for world in ("tasks", "threads")]
    await everybody(lambda caller: caller.warm_up([]), callers)
    await everybody(lambda caller: caller.keep(KEY, "kept"), callers)
    server.freeze()
    await everybody(lambda caller: caller.open_breaker(), callers)
    server.thaw()
    await everybody(read_on, callers)


@pytest.mark.slow
@each_world
async def test_a_hung_server_leaves_no_connection_and_no_thread_behind(
    make: Callable[..., Caller], server: Server, world: str
) -> None:
    caller = make(server.url, world)
    await caller.start_threads()
    before = held()
    await caller.warm_up([])
    server.freeze()
    await caller.open_breaker()
    await caller.ask(caller.new(50))
    server.thaw()
    await caller.recovers(RECOVERY)
    await caller.do("close")
    await until(lambda: held() <= before)


@each_world
async def test_callers_of_one_question_on_a_hung_server_share_one_computation(
    make: Callable[..., Caller], server: Server, world: str
) -> None:
    caller = make(server.url, world)
    await caller.warm_up(caller.new(1))
    others = 50 if world == "tasks" else 49  # among tasks the leader's caller waits for its flight too
    all_wait = lambda: followers(caller.cache) >= others
    caller.before = lambda question: until(all_wait) if world == "tasks" else wait_until(all_wait, "the others wait")
    server.freeze()
    [question] = caller.new(1)
    assert is_one_budget(await caller.ask([question] * 50))
    assert caller.computed[question] == 1


@each_world
async def test_calls_one_after_another_lose_no_more_budgets_than_open_the_breaker(
    make: Callable[..., Caller], server: Server, world: str
) -> None:
    caller = make(server.url, world)
    await caller.warm_up(caller.new(1))
    server.freeze()
    assert max(await caller.ask_in_turn(caller.new(3 * FAILURES_TO_OPEN))) < ONE_BUDGET + stalls.longest()
    probes = int(stalls.longest() / PROBE_INTERVAL)
    assert len([fault for fault in caller.faults() if fault.error != "HeldUp"]) <= FAILURES_TO_OPEN + probes


@pytest.mark.slow
async def test_a_hung_server_is_probed_once_per_interval(make_all: Callable[..., list[Caller]], server: Server) -> None:
    async def count_probes(caller: Caller) -> None:
        await caller.open_breaker()
        before, end = len(caller.faults()), time.monotonic() + 2.5 * PROBE_INTERVAL
        while time.monotonic() < end:
            await caller.ask(caller.new(3))
            await asyncio.sleep(0.02)
        assert 1 <= len(caller.faults()) - before <= 3, caller

    callers = make_all(server.url)
    await everybody(lambda caller: caller.warm_up(caller.new(1)), callers)
    server.freeze()
    await everybody(count_probes, callers)


@each_tier
@each_world
async def test_an_open_breaker_costs_reads_and_writes_by_hand_nothing(
    make: Callable[..., Caller], server: Server, world: str, has_l1: bool
) -> None:
    caller = make(server.url, world, has_l1)
    await caller.do("set", KEY, 1)
    server.freeze()
    await caller.open_breaker()
    took = []
    for number in range(30):
        started = time.monotonic()
        await caller.do("set", f"k{number}", number)
        assert await caller.do("get", f"k{number}") == (number if has_l1 else None)
        assert await caller.do("get_many", [f"k{number}", "none"]) == ({f"k{number}": number} if has_l1 else {})
        took.append(time.monotonic() - started)
    assert statistics.median(took) < 0.005


@pytest.mark.parametrize("state", ["closed", "open"])
@each_world
async def test_every_way_to_use_a_hung_server_costs_one_budget(
    make: Callable[..., Caller], server: Server, world: str, state: str
) -> None:
    async def use(caller: Caller) -> None:
        started = time.monotonic()
        await READS_AND_WRITES[caller.cache.namespace](caller)
        took[caller.cache.namespace] = round(time.monotonic() - started, 3)

    took: dict[str, float] = {}
    callers = [make(server.url, world, namespace=way, deadline=0.3) for way in READS_AND_WRITES]
    await everybody(lambda caller: caller.warm_up([1]), callers)
    server.freeze()
    if state == "open":
        await everybody(lambda caller: caller.open_breaker(), callers)
    await everybody(use, callers)
    assert max(took.values()) < 0.55 + stalls.longest(), took


async def test_a_server_that_drips_does_not_outlast_the_deadline(
    make_all: Callable[..., list[Caller]], proxy: Proxy
) -> None:
    async def live_through(caller: Caller) -> None:
        assert is_one_budget(await caller.ask_in_turn(caller.new(FAILURES_TO_OPEN - 1))), caller
        assert is_one_budget(await caller.ask(caller.new(10))), caller
        await caller.open_breaker()

    callers = make_all(proxy.url)
    await everybody(lambda caller: caller.warm_up(caller.new(5)), callers)
    proxy.behave(pause=(0.02, 0.03), piece=(1, 1))
    await everybody(live_through, callers)
    proxy.behave()
    await everybody(lambda caller: caller.recovers(RECOVERY), callers)


@each_world
async def test_a_server_that_drips_from_the_start_does_not_outlast_the_deadline(
    make: Callable[..., Caller], proxy: Proxy, world: str
) -> None:
    proxy.behave(pause=(0.02, 0.03), piece=(1, 1))
    caller = make(proxy.url, world)
    assert is_one_budget(await caller.ask(caller.new(20)))
    assert is_one_budget(await caller.ask_in_turn(caller.new(5)))


async def test_a_delete_that_a_dripping_server_would_acknowledge_too_late_raises_in_time(
    make_all: Callable[..., list[Caller]], proxy: Proxy
) -> None:
    callers = make_all(proxy.url)
    await everybody(lambda caller: caller.warm_up([]), callers)
    proxy.behave(pause=(0.4, 0.4), piece=(1, 1))
    await everybody(lambda caller: raises(caller, DELETES["delete"], 1), callers)


@each_world
async def test_a_cache_whose_server_hangs_closes_at_once(
    make: Callable[..., Caller], server: Server, world: str
) -> None:
    caller = make(server.url, world)
    await caller.warm_up(caller.new(5))
    server.freeze()
    await caller.ask(caller.new(5))
    started = time.monotonic()
    await caller.do("close")
    assert time.monotonic() - started < 0.5 + stalls.longest()


# An event loop that is held by its user


async def test_an_event_loop_that_user_code_holds_is_not_taken_for_a_hung_server(
    make: Callable[..., Caller], server: Server
) -> None:
    caller = make(server.url, "tasks", deadline=0.15)
    for turns in range(9):  # at each moment of a call
        asking = asyncio.create_task(caller.ask(caller.new(3)))
        for _ in range(turns):
            await asyncio.sleep(0)
        time.sleep(0.2)
        await asking
    is_server_held = stalls.longest() > 0.1
    assert caller.events == [] or is_server_held
    assert (caller.cache.stats().errors, caller.breaker()) == (len(caller.events), "closed")
    assert await caller.remembers() or is_server_held


@contextlib.asynccontextmanager
async def held_loop(seconds: float) -> AsyncIterator[None]:
    """At every turn user code holds the loop for so long."""

    async def hold() -> None:
        while True:
            time.sleep(seconds)
            await asyncio.sleep(0)

    holding = asyncio.create_task(hold())
    yield
    holding.cancel()


# A server that dies, or was never there


async def test_a_killed_server_that_comes_back_empty_is_used_again(
    make_all: Callable[..., list[Caller]], server: Server
) -> None:
    async def live_through(caller: Caller) -> None:
        assert is_one_budget(await caller.ask(caller.new(10))), caller
        await caller.ask(range(5))
        await restarted.wait()
        await caller.recovers(RECOVERY)
        with caller.patience():
            assert await caller.do("delete", caller.function.key_for(0)) in (True, False)

    async def restart() -> None:
        await asyncio.sleep(0.5)
        await asyncio.to_thread(server.start)
        restarted.set()

    restarted = asyncio.Event()
    callers = make_all(server.url)
    await everybody(lambda caller: caller.warm_up(range(5)), callers)
    server.kill()
    await asyncio.gather(restart(), everybody(live_through, callers))


@pytest.mark.slow
async def test_a_server_killed_and_started_under_load_harms_no_call(
    make_all: Callable[..., list[Caller]], server: Server
) -> None:
    async def kill_often() -> None:
        for _ in range(3):
            await asyncio.sleep(0.3)
            await asyncio.to_thread(server.restart)

    callers = make_all(server.url)
    await asyncio.gather(kill_often(), everybody(lambda caller: caller.load(5, 1.5), callers))
    await everybody(lambda caller: caller.recovers(RECOVERY), callers)


async def test_a_server_that_comes_after_the_app_is_used_from_then_on(make_all: Callable[..., list[Caller]]) -> None:
    async def start_without(caller: Caller) -> None:
        questions = caller.new(20)
        started = time.monotonic()
        await caller.ask(questions)
        await caller.ask(questions)
        assert time.monotonic() - started < 1 + stalls.longest(), caller
        once = 1 if caller.cache.l1_cache is not None else 2
        assert [caller.computed[question] for question in questions] == [once] * 20, caller
        assert await caller.do("connect") is False

    port = free_port()
    callers = make_all(f"redis://{HOST}:{port}/0")
    await everybody(start_without, callers)
    with Server(port=port):
        await everybody(lambda caller: caller.recovers(RECOVERY), callers)
        assert [await caller.do("connect") for caller in callers] == [True] * 4


# Connections that are cut, replies that are late or in pieces


@pytest.mark.slow
async def test_connections_killed_ten_times_a_second_harm_no_call(
    make_all: Callable[..., list[Caller]], server: Server
) -> None:
    async def kill_often() -> None:
        for _ in range(20):
            await asyncio.sleep(0.1)
            killed.append(await asyncio.to_thread(server.ask, "CLIENT", "KILL", "TYPE", "normal"))

    killed: list[int] = []
    callers = make_all(server.url)
    await everybody(lambda caller: caller.warm_up(range(10)), callers)
    await asyncio.gather(kill_often(), everybody(lambda caller: caller.load(5, 2), callers))
    assert sum(map(bool, killed)) > 10
    assert all(caller.cache.stats().l2_hits for caller in callers if caller.cache.l1_cache is None)
    await everybody(lambda caller: caller.recovers(RECOVERY), callers)


@pytest.mark.slow
async def test_a_server_that_pauses_for_three_seconds_is_as_one_that_hangs(
    make_all: Callable[..., list[Caller]], server: Server
) -> None:
    async def live_through(caller: Caller) -> None:
        assert is_one_budget(await caller.ask(caller.new(10))), caller
        await caller.open_breaker()
        assert statistics.median(await caller.ask_in_turn(caller.new(100))) < 0.005, caller
        assert caller.breaker() == "open"
        await caller.recovers(3 + RECOVERY)

    callers = make_all(server.url)
    await everybody(lambda caller: caller.warm_up(caller.new(5)), callers)
    server.ask("CLIENT", "PAUSE", 3000, "ALL")
    await everybody(live_through, callers)


@pytest.mark.slow
async def test_replies_that_are_late_at_random_are_waited_for_no_longer_than_the_deadline(
    make: Callable[..., Caller], proxy: Proxy
) -> None:
    async def ask_often(caller: Caller) -> None:
        for _ in range(6):
            assert is_one_budget(await caller.ask([*range(10), *caller.new(10)])), caller
            await asyncio.sleep(0.1)

    callers = [make(proxy.url, world) for world in ("tasks", "threads")]
    await everybody(lambda caller: caller.warm_up(range(10)), callers)
    proxy.behave(pause=(0.03, 0.5))
    await everybody(ask_often, callers)
    proxy.behave()
    await everybody(lambda caller: caller.recovers(RECOVERY), callers)


@pytest.mark.slow
async def test_a_late_reply_is_never_taken_for_the_next_one(
    make_all: Callable[..., list[Caller]], proxy: Proxy
) -> None:
    async def read_all(caller: Caller) -> None:
        for number in itertools.chain.from_iterable([range(30)] * 3):
            seen = await caller.do("get", f"k{number}")
            assert seen in (None, [number]), caller
        assert caller.cache.stats().l2_hits > 0, caller

    callers = make_all(proxy.url, deadline=0.02)
    for caller in callers:
        await caller.do("connect")
        while await caller.do("get", "k29") != [29]:
            await caller.do("set_many", {f"k{number}": [number] for number in range(30)})
        if caller.cache.l1_cache is not None:
            await caller.cache.l1_cache.clear()
    proxy.behave(pause=(0.0, 0.025))
    await everybody(read_all, callers)


async def test_replies_in_pieces_are_put_together(make_all: Callable[..., list[Caller]], proxy: Proxy) -> None:
    async def ask_twice(caller: Caller) -> None:
        questions = caller.new(10)
        await caller.ask(questions)
        if caller.cache.l1_cache is not None:
            await caller.cache.l1_cache.clear()
        await caller.ask(questions)
        assert [caller.computed[question] for question in questions] == [1] * 10, caller
        assert caller.events == []

    proxy.behave(piece=(1, 7))
    await everybody(ask_twice, make_all(proxy.url, deadline=10))


@each_world
async def test_replies_in_pieces_are_waited_for_no_longer_than_the_deadline(
    make: Callable[..., Caller], proxy: Proxy, world: str
) -> None:
    caller = make(proxy.url, world)
    await caller.warm_up(range(10))
    proxy.behave(piece=(1, 7), pause=(0, 0.01))
    for _ in range(5):
        assert is_one_budget(await caller.ask([*range(5), *caller.new(5)]))


@pytest.mark.slow
async def test_connections_cut_in_the_middle_of_replies_harm_no_call(
    make_all: Callable[..., list[Caller]], proxy: Proxy
) -> None:
    async def cut_often() -> None:
        for _ in range(20):
            await asyncio.sleep(0.05)
            proxy.cut()

    callers = make_all(proxy.url)
    await everybody(lambda caller: caller.warm_up(range(10)), callers)
    proxy.behave(piece=(1, 40), pause=(0, 0.004))
    await asyncio.gather(cut_often(), everybody(lambda caller: caller.load(5, 1), callers))
    proxy.behave()
    await everybody(lambda caller: caller.recovers(RECOVERY), callers)


# A network that swallows everything


@pytest.mark.slow
async def test_a_network_that_swallows_everything_costs_one_budget_and_is_recovered_from(
    make_all: Callable[..., list[Caller]], proxy: Proxy
) -> None:
    async def live_through(caller: Caller) -> None:
        assert is_one_budget(await caller.ask(caller.new(10))), caller
        await raises(caller, DELETES["delete"], 1.5)

    callers = make_all(proxy.url)
    await everybody(lambda caller: caller.warm_up(caller.new(5)), callers)
    proxy.behave(swallow=True)
    await everybody(live_through, callers)
    proxy.behave()
    await everybody(lambda caller: caller.recovers(RECOVERY), callers)


@pytest.mark.slow
async def test_a_listener_whose_connection_went_silent_listens_again(
    make: Callable[..., Caller], proxy: Proxy, server: Server
) -> None:
    here = make(proxy.url, "tasks", has_l1=True, namespace="shared")
    there = make(server.url, "tasks", namespace="shared")
    await here.warm_up([])
    await here.do("set", KEY, "old")
    proxy.behave(swallow=True)
    await there.do("set", KEY, "new")
    await until(lambda: proxy.swallowed)
    assert await here.do("get", KEY) == "old"
    proxy.behave()
    started = time.monotonic()
    while await here.do("get", KEY) != "new":
        assert time.monotonic() - started < 5
        await asyncio.sleep(0.02)


async def test_a_lease_that_could_not_be_given_back_ends_by_itself(
    make: Callable[..., Caller], proxy: Proxy, server: Server
) -> None:
    leaders = [make(proxy.url, world, namespace="shared") for world in ("tasks", "threads")]
    for leader, question in zip(leaders, (1, 2), strict=True):
        await leader.warm_up([])
        leader.before = lambda question: proxy.behave(swallow=True)
        await leader.ask([question])
        proxy.behave()
    other = make(server.url, "tasks", namespace="shared")
    took = await asyncio.wait_for(other.ask([1, 2]), 4 * LEASE_SECONDS)
    assert max(took) < LEASE_SECONDS + 1 + stalls.longest()


# No server at all


def no_port() -> Iterator[str]:
    yield f"redis://{HOST}:{free_port()}/0"


def no_name() -> Iterator[str]:
    yield "redis://no-such-host.invalid:6379/0"


def hung_server() -> Iterator[str]:
    with Server() as hung:
        hung.freeze()
        yield hung.url


def silent_host() -> Iterator[str]:
    """It does not even take connections: so many wait to be accepted that the system drops more."""
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.create_server((HOST, 0), backlog=0))
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        yield f"redis://{HOST}:{full.getsockname()[1]}/0"


@pytest.fixture(params=[no_port, pytest.param(no_name, marks=pytest.mark.slow), silent_host, hung_server])
def nowhere(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a server that cannot be used."""
    yield from request.param()


@pytest.mark.slow
async def test_connect_and_ping_say_soon_that_there_is_no_server(
    make_all: Callable[..., list[Caller]], nowhere: str
) -> None:
    async def connect(caller: Caller) -> None:
        started = time.monotonic()
        assert await asyncio.gather(caller.do("connect"), caller.do("ping")) == [False, False], caller
        assert time.monotonic() - started < 2.5, caller

    await everybody(connect, make_all(nowhere))


async def test_without_a_server_calls_are_computed_in_time_and_l1_remembers(
    make_all: Callable[..., list[Caller]], nowhere: str
) -> None:
    for caller in make_all(nowhere):
        questions = caller.new(20)
        assert is_one_budget(await caller.ask(questions)), caller
        assert is_one_budget(await caller.ask(questions)), caller
        once = 1 if caller.cache.l1_cache is not None else 2
        assert [caller.computed[question] for question in questions] == [once] * 20, caller


async def test_without_a_server_reads_and_writes_by_hand_never_raise_and_end_in_time(
    make_all: Callable[..., list[Caller]], nowhere: str
) -> None:
    async def read_and_write(caller: Caller) -> None:
        has_l1 = caller.cache.l1_cache is not None
        steps: list[tuple[str, tuple[Any, ...], Any]] = [
            ("get", ("none",), None),
            ("set", ("k", 1), None),
            ("get", ("k",), 1 if has_l1 else None),
            ("set_many", ({"m": 2},), None),
            ("get_many", (["m", "none"],), {"m": 2} if has_l1 else {}),
            ("exists", ("none",), False),
            ("ttl", ("none",), None),
            ("get_or_compute", ("c", lambda: 3), 3),
        ]
        for name, arguments, expected in steps:
            started = time.monotonic()
            assert await caller.do(name, *arguments) == expected, (caller, name)
            assert time.monotonic() - started < 2 * ONE_BUDGET + stalls.longest(), (caller, name)

    await everybody(read_and_write, make_all(nowhere))


READS_AND_WRITES: dict[str, Callable[[Caller], Awaitable[Any]]] = {
    "get": lambda caller: caller.do("get", "k"),
    "set": lambda caller: caller.do("set", "k", 1),
    "get_many": lambda caller: caller.do("get_many", ["k"]),
    "set_many": lambda caller: caller.do("set_many", {"k": 1}),
    "exists": lambda caller: caller.do("exists", "k"),
    "get_or_compute": lambda caller: caller.do("get_or_compute", "k", lambda: 1),
    "call": lambda caller: caller.ask(caller.new(1)),
    "peek": lambda caller: caller.of_function("peek", 1),
    "refresh": lambda caller: caller.of_function("refresh", 1),
}


@pytest.mark.parametrize("way", READS_AND_WRITES.values(), ids=READS_AND_WRITES)
@each_world
async def test_a_strict_cache_raises_the_clients_error_as_cause_every_time(
    make: Callable[..., Caller], world: str, way: Callable[[Caller], Awaitable[Any]]
) -> None:
    caller = make(f"redis://{HOST}:{free_port()}/0", world, strict=True)
    for _ in range(3 * FAILURES_TO_OPEN):
        with pytest.raises(InfrastructureError) as raised:
            await way(caller)
        assert isinstance(raised.value.__cause__, CLIENT_ERRORS)


@each_world
async def test_a_strict_cache_raises_in_time_where_there_is_no_server(
    make: Callable[..., Caller], nowhere: str, world: str
) -> None:
    caller = make(nowhere, world, strict=True)
    started = time.monotonic()
    with pytest.raises(InfrastructureError) as raised:
        await caller.ask(caller.new(1))
    assert isinstance(raised.value.__cause__, CLIENT_ERRORS)
    assert time.monotonic() - started < ONE_BUDGET + stalls.longest()


# Removals that nobody acknowledged

DELETES: dict[str, Callable[[Caller], Awaitable[Any]]] = {
    "delete": lambda caller: caller.do("delete", KEY),
    "delete_many": lambda caller: caller.do("delete_many", [KEY, "k"]),
    "invalidate": lambda caller: caller.of_function("invalidate", 1),
}
SWEEPS: dict[str, Callable[[Caller], Awaitable[Any]]] = {
    "clear": lambda caller: caller.do("clear"),
    "invalidate_operation": lambda caller: caller.do("invalidate_operation", "hand"),
    "invalidate_pattern": lambda caller: caller.do("invalidate_pattern", "op:hand*"),
    "invalidate_tag": lambda caller: caller.do("invalidate_tag", "t"),
    "invalidate_all": lambda caller: caller.of_function("invalidate_all"),
}


async def raises(caller: Caller, removal: Callable[[Caller], Awaitable[Any]], seconds: float) -> None:
    started = time.monotonic()
    with pytest.raises(InfrastructureError) as raised:
        await removal(caller)
    assert isinstance(raised.value.__cause__, CLIENT_ERRORS), caller
    assert time.monotonic() - started < seconds + stalls.longest(), caller


async def test_without_a_server_a_delete_raises_within_a_second(
    make_all: Callable[..., list[Caller]], nowhere: str
) -> None:
    async def remove(caller: Caller) -> None:
        await asyncio.gather(*(raises(caller, removal, 1) for removal in DELETES.values()))

    await everybody(remove, make_all(nowhere))


async def test_where_nobody_listens_every_removal_raises_at_once_also_with_the_breaker_open(
    make_all: Callable[..., list[Caller]],
) -> None:
    async def remove(caller: Caller) -> None:
        for removal in [*DELETES.values(), *SWEEPS.values()] * 2:
            await raises(caller, removal, 1)
        assert caller.breaker() == "open"

    await everybody(remove, make_all(f"redis://{HOST}:{free_port()}/0"))


@pytest.mark.slow
async def test_on_a_hung_server_every_removal_raises_within_the_time_of_one_command(
    make_all: Callable[..., list[Caller]], server: Server
) -> None:
    async def remove(caller: Caller) -> None:
        await asyncio.gather(
            *(raises(caller, removal, 1.5) for removal in DELETES.values()),
            *(raises(caller, removal, 6.5) for removal in SWEEPS.values()),
        )

    callers = make_all(server.url)
    await everybody(lambda caller: caller.warm_up(caller.new(5)), callers)
    server.freeze()
    await everybody(remove, callers)


@each_world
async def test_a_delete_that_a_hung_server_did_not_acknowledge_is_true_here(
    make: Callable[..., Caller], server: Server, world: str
) -> None:
    caller = make(server.url, world, has_l1=True)
    await caller.warm_up([1])
    await caller.do("set_many", {KEY: "old", "k": "old"})
    server.freeze()
    assert await caller.do("get_many", [KEY, "k"]) == {KEY: "old", "k": "old"}
    await asyncio.gather(*(raises(caller, removal, 1.5) for removal in DELETES.values()))
    assert await caller.do("get_many", [KEY, "k"]) == {}
    await caller.ask([1])
    assert caller.computed[1] == 2


async def test_a_removal_after_the_server_hung_is_acknowledged_and_true(
    make_all: Callable[..., list[Caller]], server: Server
) -> None:
    async def remove(caller: Caller) -> None:
        with caller.patience():
            assert await caller.do("delete", KEY) is True, caller
            assert await caller.do("get", KEY) is None, caller
            assert await caller.do("clear") >= 10, caller
            await caller.ask([0])
        assert caller.computed[0] == 2, caller

    callers = make_all(server.url)
    await everybody(lambda caller: caller.warm_up(range(10)), callers)
    await everybody(lambda caller: caller.keep(KEY, "old"), callers)
    server.freeze()
    await everybody(lambda caller: caller.open_breaker(), callers)
    server.thaw()
    await everybody(remove, callers)
