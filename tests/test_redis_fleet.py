"""Single flight in a fleet: of the processes that share a Redis, one computes what several need at one time.

Where the processes themselves do not matter, caches in one namespace stand for them: each has leases of its own.
"""

from __future__ import annotations

import asyncio
import collections
import itertools
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any

import pytest

import aimemo
from aimemo import GenericRedisCache, InfrastructureError, cached_ai_call
from aimemo.coordination import lock
from aimemo.core import fleet as fleet_module
from tests.kit import stalls
from tests.kit.clock import Clock
from tests.kit.fleet_worker import Crew, FleetWorker, renews_nothing, runs
from tests.kit.looking import followers, until
from tests.kit.redis_caches import shared
from tests.kit.servers import Server, wait_until

KEY = "op:ask|txt:|" + "0" * 32
WORLDS = ["tasks", "threads"]
LEASE = 1.0
"""Seconds of a lease in tests that wait for its end. Slow ones try the lock's own."""

OWN_LEASE = lock.LEASE_SECONDS

each_world = pytest.mark.parametrize("world", WORLDS)

_numbers = itertools.count()


def new_namespace() -> str:
    return f"fleet{next(_numbers)}"


@pytest.fixture
def namespace() -> str:
    return new_namespace()


@pytest.fixture
def short_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    """For those that wait for a lease to end. Where it must not, a slow machine needs the lock's own."""
    wait_until(renews_nothing, "nobody sleeps for a third of a longer lease")
    monkeypatch.setattr(lock, "LEASE_SECONDS", LEASE)


with_short_leases = pytest.mark.usefixtures("short_leases")


# Real processes


@pytest.fixture(scope="module")
def whole_crew() -> Iterator[Crew]:
    crew = Crew()
    yield crew
    crew.close()


@pytest.fixture
def crew(whole_crew: Crew, namespace: str) -> Iterator[Callable[..., list[FleetWorker]]]:
    """Processes that are ready to begin."""

    def prepare(number: int, **plan: Any) -> list[FleetWorker]:
        workers = whole_crew.take(number)
        for worker in workers:
            worker.prepare(shared("server").url, namespace, **{"lease_seconds": OWN_LEASE, **plan})
        return workers

    yield prepare
    whole_crew.tidy()


def ran(namespace: str) -> list[int]:
    return runs(shared("server").client, namespace)


def run_all(workers: list[FleetWorker]) -> list[dict[str, Any]]:
    for worker in workers:
        worker.go()
    return [worker.result() for worker in workers]


def all_answers(results: list[dict[str, Any]]) -> collections.Counter[str]:
    return sum((collections.Counter(result["answers"]) for result in results), collections.Counter())


def answer_of(pid: int) -> str:
    return f"question answered by {pid}"


def begin(worker: FleetWorker, namespace: str) -> None:
    """Go, and be executing the function."""
    before = len(ran(namespace))
    worker.go()
    wait_until(lambda: len(ran(namespace)) > before, "an execution has begun")


@each_world
@pytest.mark.parametrize("with_l1", [True, False], ids=["behind L1", "without L1"])
def test_four_processes_with_200_calls_each_execute_once_in_all(
    crew: Callable[..., list[FleetWorker]], namespace: str, world: str, with_l1: bool
) -> None:
    settings = {"deadline": 5, "enable_l1_cache": with_l1}
    results = run_all(crew(4, world=world, calls=200, at_once=50, settings=settings))
    assert [len(ran(namespace)), sum(result["executions"] for result in results)] == [1, 1]
    assert all_answers(results) == {answer_of(ran(namespace)[0]): 800}


@each_world
def test_without_leases_each_process_executes_at_most_once(
    crew: Callable[..., list[FleetWorker]], namespace: str, world: str
) -> None:
    settings = {"deadline": 5, "leases": False, "enable_l1_cache": False}
    results = run_all(crew(4, world=world, calls=200, at_once=50, settings=settings))
    assert max(result["executions"] for result in results) == 1
    answers = all_answers(results)
    assert answers.keys() <= {answer_of(pid) for pid in ran(namespace)}
    assert answers.total() == 800


def slow(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world", "lease"), [("tasks", LEASE), ("threads", LEASE), slow("tasks", OWN_LEASE), slow("threads", OWN_LEASE)]
)
def test_the_others_take_over_within_a_lease_from_a_process_that_is_killed(
    crew: Callable[..., list[FleetWorker]], namespace: str, world: str, lease: float
) -> None:
    settings = {"deadline": 5, "enable_l1_cache": False}
    killed, *others = crew(4, world=world, seconds=0.5, lease_seconds=lease, settings=settings)
    begin(killed, namespace)
    for other in others:
        other.go()
    time.sleep(0.2)  # they wait for the lease
    killed.kill()
    at = time.monotonic()
    wait_until(lambda: len(ran(namespace)) == 2, "another process has taken over")
    assert time.monotonic() - at < lease + 0.5 + stalls.longest()
    results = [other.result() for other in others]
    successor = ran(namespace)[1]
    assert successor != killed.pid
    assert all_answers(results) == {answer_of(successor): 3}
    assert len(ran(namespace)) == 2


@pytest.mark.slow
@pytest.mark.parametrize("world", ["tasks", slow("threads")])
def test_a_holder_that_was_stopped_longer_than_its_lease_does_not_end_the_lease_of_its_successor(
    crew: Callable[..., list[FleetWorker]], namespace: str, world: str
) -> None:
    stopped, successor, late = crew(3, world=world, seconds=LEASE, lease_seconds=LEASE)
    begin(stopped, namespace)
    stopped.freeze()
    begin(successor, namespace)
    token = the_lease(namespace)
    late.go()
    stopped.thaw()
    assert stopped.result()["answers"] == {answer_of(stopped.pid): 1}
    assert the_lease(namespace) == token
    assert successor.result()["answers"] == {answer_of(successor.pid): 1}
    assert late.result()["answers"].keys() < {answer_of(stopped.pid), answer_of(successor.pid)}
    assert ran(namespace) == [stopped.pid, successor.pid]


def the_lease(namespace: str) -> Any:
    """The token in the one lease that there is."""
    client = shared("server").client
    [name] = leases(client, namespace)
    return client.get(name)


def leases(client: Any, namespace: str) -> list[bytes]:
    return list(client.scan_iter(f"{{{namespace}:*}}l:*", count=10_000))


HOLDERS = {"task": {}, "held loop": {"holds_loop": True}, "thread": {"world": "threads"}}


@pytest.mark.slow
@pytest.mark.parametrize("lease", [LEASE, slow(OWN_LEASE)])
def test_a_computation_of_three_leases_is_not_repeated(
    crew: Callable[..., list[FleetWorker]], whole_crew: Crew, lease: float
) -> None:
    plans = {name: new_namespace() for name in HOLDERS}
    workers = iter(whole_crew.take(2 * len(plans)))
    pairs = {}
    for name, namespace in plans.items():
        pairs[name] = next(workers), next(workers)
        for worker in pairs[name]:
            plan = {"seconds": 3 * lease, "lease_seconds": lease, **HOLDERS[name]}
            worker.prepare(shared("server").url, namespace, **plan)
        begin(pairs[name][0], namespace)
        pairs[name][1].go()
    for name, (holder, other) in pairs.items():
        assert [worker.result()["answers"] for worker in (holder, other)] == [{answer_of(holder.pid): 1}] * 2, name
        assert ran(plans[name]) == [holder.pid], name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world", "end"),
    [("tasks", "fail"), ("threads", "unkept"), slow("tasks", "unkept"), slow("tasks", "cancel"),
     slow("threads", "fail"), slow("threads", "cancel")],
)  # fmt: skip
def test_processes_do_not_queue_behind_one_another_when_nothing_is_kept(
    crew: Callable[..., list[FleetWorker]], namespace: str, world: str, end: str
) -> None:
    results = run_all(crew(4, world=world, end=end, seconds=1.0, calls=5, at_once=5))
    assert max(result["seconds"] for result in results) < 3.2, "one behind the other they take four seconds"
    assert [result["executions"] for result in results] == [1] * 4, "single flight holds within each process"
    errors = {"fail": "ValueError", "cancel": "CancelledError"}
    if end in errors:
        assert all_answers(results) == {errors[end]: 20}
    else:
        assert all_answers(results) == {answer_of(pid): 5 for pid in ran(namespace)}


# Caches that stand for processes


class Work:
    """A computation in either world, which takes until the gate is open; an error as its answer is raised."""

    def __init__(self, answer: Any, *, is_open: bool = False) -> None:
        self.answer = answer
        self.runs = 0
        self.gate = threading.Event()
        if is_open:
            self.gate.set()

    async def in_task(self) -> Any:
        self.runs += 1
        await until(self.gate.is_set, 30)
        return self._end()

    def in_thread(self) -> Any:
        self.runs += 1
        assert self.gate.wait(30)
        return self._end()

    def _end(self) -> Any:
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


def in_thread(function: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
    """The result of a plain call in a thread that nobody waits for if it never ends."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(function(*args))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return asyncio.wrap_future(future)


def start(world: str, cache: GenericRedisCache, work: Work, key: str = KEY) -> asyncio.Future[Any]:
    """A caller that needs the answer."""
    if world == "tasks":
        return asyncio.ensure_future(cache.get_or_compute(key, work.in_task))
    return in_thread(cache.blocking.get_or_compute, key, work.in_thread)


async def hold(world: str, cache: GenericRedisCache, work: Work, key: str = KEY) -> asyncio.Future[Any]:
    """A caller whose computation is under way."""
    caller = start(world, cache, work, key)
    await until(lambda: work.runs)
    return caller


async def wait_for_lease(world: str, cache: GenericRedisCache, work: Work, key: str = KEY) -> asyncio.Future[Any]:
    """A caller that waits for the lease of another process."""
    caller = start(world, cache, work, key)
    await until(lambda: cache._flights._flights)
    await asyncio.sleep(0.05)
    assert not work.runs
    return caller


def decorate(world: str, cache: GenericRedisCache, work: Work, **options: Any) -> Any:
    """A function of a text in one of the worlds."""

    async def ask_in_task(text: str) -> Any:
        return await work.in_task()

    def ask(text: str) -> Any:
        return work.in_thread()

    given = {"operation": "ask", "cache": cache, **options}
    return cached_ai_call(**given)(ask_in_task if world == "tasks" else ask)


def call(function: Any, *args: Any, **kwargs: Any) -> asyncio.Future[Any]:
    """Call a decorated function, or one of its doors, where its world is."""
    if asyncio.iscoroutinefunction(function):
        return asyncio.ensure_future(function(*args, **kwargs))
    return in_thread(lambda: function(*args, **kwargs))


def after_looking(world: str, cache: GenericRedisCache, happen: Callable[[], Any]) -> None:
    """Let something happen between the next look into the tiers and what follows from it."""
    tiers: Any = cache.memoizer_of(world).tiers
    look = tiers.look

    async def look_once(call: Any) -> Any:
        found = await look(call)
        del tiers.look
        happen()
        return found

    tiers.look = look_once


@contextmanager
def caches(url: str, number: int, **settings: Any) -> Iterator[list[GenericRedisCache]]:
    given = {"namespace": new_namespace(), "deadline": 5, "strict": True, "enable_l1_cache": False, **settings}
    made = [GenericRedisCache(url, **given) for _ in range(number)]
    try:
        yield made
    finally:
        for cache in made:
            cache.blocking.close()


@pytest.fixture(
    params=[("server", True), ("server", False), ("cluster", False)], ids=["behind L1", "without L1", "cluster"]
)
def peers(request: pytest.FixtureRequest, clock: Clock) -> Iterator[list[GenericRedisCache]]:
    """Four processes of one fleet."""
    kind, with_l1 = request.param
    with caches(shared(kind).url, 4, enable_l1_cache=with_l1, clock=clock) as made:
        yield made


@pytest.fixture
def own_server() -> Iterator[Server]:
    with Server() as server:
        yield server
        server.thaw()


@each_world
async def test_all_who_wait_get_the_one_answer(peers: list[GenericRedisCache], world: str) -> None:
    work = Work(["answer"])
    first = await hold(world, peers[0], work)
    others = [start(world, cache, work) for cache in peers for _ in range(10)]
    work.gate.set()
    assert await asyncio.wait_for(asyncio.gather(first, *others), 10) == [["answer"]] * 41
    assert work.runs == 1
    stats = [cache.stats() for cache in peers]
    assert sum(counts.misses for counts in stats) == 1
    assert sum(counts.misses + counts.hits + counts.coalesced for counts in stats) == 41


@each_world
async def test_after_an_invalidation_one_of_those_who_wait_computes_anew_for_all(
    peers: list[GenericRedisCache], world: str
) -> None:
    old, new = Work("old"), Work("new", is_open=True)
    holder = await hold(world, peers[0], old)
    waiting = [await wait_for_lease(world, cache, new) for cache in peers[1:]]
    await peers[1].delete(KEY)
    old.gate.set()
    assert await asyncio.wait_for(holder, 5) == "old"
    assert await asyncio.wait_for(asyncio.gather(*waiting), 10) == ["new"] * 3
    assert await peers[0].get(KEY) == "new"
    assert (old.runs, new.runs) == (1, 1)


INVALIDATIONS: dict[str, Callable[[GenericRedisCache, str], Any]] = {
    "delete": lambda cache, key: cache.delete(key),
    "operation": lambda cache, key: cache.invalidate_operation("ask"),
    "tag": lambda cache, key: cache.invalidate_tag("t"),
    "glob": lambda cache, key: cache.invalidate_pattern("op:ask|*"),
    "clear": lambda cache, key: cache.clear(),
}


@each_world
@pytest.mark.parametrize("invalidate", INVALIDATIONS.values(), ids=INVALIDATIONS)
async def test_nobody_waits_for_a_computation_that_was_invalidated(
    peers: list[GenericRedisCache], world: str, invalidate: Callable[[GenericRedisCache, str], Any]
) -> None:
    old, new = Work("old"), Work("new", is_open=True)
    first, second, third = (
        decorate(world, cache, work, tags=("t",)) for cache, work in zip(peers, (old, new, new), strict=False)
    )
    holder = call(first, "q")
    await until(lambda: old.runs)
    await invalidate(peers[3], first.key_for("q"))
    assert await asyncio.wait_for(call(second, "q"), 10) == "new"
    old.gate.set()
    assert await asyncio.wait_for(holder, 5) == "old"
    assert await call(third, "q") == "new"
    assert new.runs == 1


async def test_when_the_leader_is_cancelled_the_others_of_all_processes_are_answered_by_one_execution(
    peers: list[GenericRedisCache],
) -> None:
    work = Work("answer")
    leader = await hold("tasks", peers[0], work)
    others = [start("tasks", cache, work) for cache in peers for _ in range(4)]
    await until(lambda: all(followers(cache) >= 4 for cache in peers))
    leader.cancel()
    await asyncio.wait([leader])
    work.gate.set()
    assert await asyncio.wait_for(asyncio.gather(*others), 10) == ["answer"] * 16
    assert leader.cancelled()
    assert work.runs == 1


@pytest.mark.leaves("what goes on in the background")
async def test_when_the_computation_itself_is_cancelled_another_process_takes_it_up_at_once(
    peers: list[GenericRedisCache],
) -> None:
    work, other = Work("never"), Work("answer", is_open=True)

    async def cancel_all() -> None:
        call_here = asyncio.ensure_future(peers[0].get_or_compute(KEY, work.in_task))
        await until(is_waited_for.is_set)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.wait([call_here])

    is_waited_for = threading.Event()
    elsewhere = in_thread(asyncio.run, cancel_all())
    await until(lambda: work.runs)
    waiting = await wait_for_lease("tasks", peers[1], other)
    is_waited_for.set()
    at = time.monotonic()
    assert await asyncio.wait_for(waiting, 10) == "answer"
    assert time.monotonic() - at < 1 + stalls.longest()
    await elsewhere


ERRORS = [ValueError("no"), asyncio.CancelledError(), TimeoutError("late")]


@each_world
@pytest.mark.parametrize("error", ERRORS, ids=repr)
async def test_an_error_reaches_those_who_wait_in_its_process_and_the_others_compute_for_themselves(
    peers: list[GenericRedisCache], world: str, error: BaseException
) -> None:
    failing, working = Work(error), Work("answer", is_open=True)
    here = [await hold(world, peers[0], failing)]
    here += [start(world, peers[0], failing) for _ in range(5)]
    await until(lambda: followers(peers[0]) >= 5)
    there = await wait_for_lease(world, peers[1], working)
    failing.gate.set()
    results = await asyncio.wait_for(asyncio.gather(*here, return_exceptions=True), 5)
    assert [(type(result), str(result)) for result in results] == [(type(error), str(error))] * 6
    at = time.monotonic()
    assert await asyncio.wait_for(there, 10) == "answer"
    assert time.monotonic() - at < 1 + stalls.longest()
    assert (failing.runs, working.runs) == (1, 1)


UNKEPT: dict[str, tuple[Any, dict[str, Any]]] = {
    "raises": (ValueError("no"), {}),
    "store_if": ("answer", {"store_if": lambda answer: False}),
    "cannot be packed": (threading.Lock(), {}),
}


@each_world
@pytest.mark.filterwarnings("ignore:an answer of ask was not kept")
@pytest.mark.parametrize(("answer", "options"), UNKEPT.values(), ids=UNKEPT)
async def test_an_answer_that_is_not_kept_leaves_a_mark_of_one_second_and_then_a_lease_can_be_had_again(
    monkeypatch: pytest.MonkeyPatch, peers: list[GenericRedisCache], world: str, answer: Any, options: dict[str, Any]
) -> None:
    assert lock.UNKEPT_SECONDS == 1
    monkeypatch.setattr(lock, "UNKEPT_SECONDS", 30)  # so that it ends when it is told to
    unkept = decorate(world, peers[0], Work(answer, is_open=True), **options)
    await asyncio.gather(call(unkept, "q"), return_exceptions=True)
    nodes = getattr(shared(peers[0]._target.kind), "nodes", [shared("server")])
    [(client, mark)] = [(node.client, mark) for node in nodes for mark in leases(node.client, peers[0].namespace)]
    assert client.get(mark) == lock.UNKEPT.encode()
    assert 0 < client.pttl(mark) <= 30_000
    work = Work("answer", is_open=True)
    ask = decorate(world, peers[1], work)
    assert await asyncio.wait_for(call(ask, "q"), 10) == "answer"
    await call(ask.invalidate, "q")
    client.pexpire(mark, 1)  # a second passes
    await until(lambda: not client.exists(mark))
    work.gate.clear()
    holder = call(ask, "q")
    await until(lambda: client.exists(mark))
    assert client.get(mark) != lock.UNKEPT.encode()
    work.gate.set()
    assert await asyncio.wait_for(holder, 5) == "answer"
    assert not client.exists(mark)


@each_world
async def test_refresh_and_bypass_do_not_wait_for_a_lease(peers: list[GenericRedisCache], world: str) -> None:
    work = Work("theirs")
    holder = call(decorate(world, peers[0], work), "q")
    await until(lambda: work.runs)
    ask = decorate(world, peers[1], Work("mine", is_open=True))

    def within(mode: Any) -> asyncio.Future[Any]:
        def call_in_thread() -> Any:
            with mode():
                return ask("q")

        async def call_in_task() -> Any:
            with mode():
                return await ask("q")

        return asyncio.ensure_future(call_in_task()) if world == "tasks" else in_thread(call_in_thread)

    doors = [lambda: call(ask.bypass, "q"), lambda: call(ask.refresh, "q"),
             lambda: within(aimemo.bypass), lambda: within(aimemo.refresh)]  # fmt: skip
    for door in doors:
        assert await asyncio.wait_for(door(), 10) == "mine"
    assert not holder.done()
    work.gate.set()
    assert await asyncio.wait_for(holder, 5) == "theirs"


@pytest.mark.leaves("what goes on in the background")
@each_world
async def test_a_stale_answer_is_refreshed_once_in_a_fleet(
    peers: list[GenericRedisCache], clock: Clock, world: str
) -> None:
    policy = {"ttl": 10, "stale_while_revalidate": 1000}
    old = decorate(world, peers[0], Work("old", is_open=True), **policy)
    work = Work("new")
    asks = [decorate(world, cache, work, **policy) for cache in peers[1:]]
    assert await call(old, "q") == "old"
    assert await asyncio.gather(*(call(ask, "q") for ask in asks)) == ["old"] * 3
    assert work.runs == 0
    clock.advance(11)
    ends = time.monotonic() + 15
    while not all(cache._flights._flights for cache in peers[1:]):
        assert await asyncio.gather(*(call(ask, "q") for ask in asks)) == ["old"] * 3
        assert time.monotonic() < ends
    await until(lambda: work.runs)
    work.gate.set()
    await until(lambda: not any(cache._flights._flights for cache in peers), 15)
    assert work.runs == 1
    assert await asyncio.gather(*(call(ask, "q") for ask in asks)) == ["new"] * 3


# Nobody waits for ever


@each_world
async def test_while_redis_hangs_those_who_wait_for_a_lease_compute(own_server: Server, world: str) -> None:
    deadline = 1.0
    with caches(own_server.url, 2, deadline=deadline, strict=False) as (here, there):
        holding, own = Work("theirs"), Work("mine", is_open=True)
        for cache in (here, there):
            assert await cache.connect()
            cache.blocking.connect()
        holder = await hold(world, there, holding)
        waiting = await wait_for_lease(world, here, own)
        own_server.freeze()
        at = time.monotonic()
        assert await asyncio.wait_for(waiting, 5) == "mine"
        assert time.monotonic() - at < deadline + 0.6 + stalls.longest()
        holding.gate.set()
        at = time.monotonic()
        assert await asyncio.wait_for(holder, 5) == "theirs"
        assert time.monotonic() - at < deadline + 0.6 + stalls.longest()
        own_server.thaw()


@with_short_leases
@pytest.mark.slow
@each_world
async def test_a_lease_that_could_not_be_given_back_ends_by_itself(own_server: Server, world: str) -> None:
    with caches(own_server.url, 2, deadline=0.1, strict=False) as (here, there):
        work, own = Work("theirs"), Work("mine", is_open=True)
        for cache in (here, there):
            assert await cache.connect()
            cache.blocking.connect()
        holder = await hold(world, there, work)
        own_server.ask("CLIENT", "PAUSE", 300, "WRITE")
        work.gate.set()
        assert await asyncio.wait_for(holder, 5) == "theirs"
        own_server.ask("SET", "the pause", "is over")
        at = time.monotonic()
        assert await asyncio.wait_for(start(world, here, own), 5) == "mine"
        assert time.monotonic() - at < LEASE + 1 + stalls.longest()


@with_short_leases
@each_world
async def test_an_error_of_a_strict_cache_right_after_it_got_a_lease_leaves_no_lease_behind(
    own_server: Server, world: str
) -> None:
    def forbid_reading_entries() -> None:
        own_server.ask("ACL", "SETUSER", "default", "resetkeys", "~{*}l:*", "~{*}f", "~{*}g")

    with caches(own_server.url, 2) as (here, there):
        assert here.blocking.connect()
        after_looking(world, here, forbid_reading_entries)
        with pytest.raises(InfrastructureError):
            await start(world, here, Work("never", is_open=True))
        own_server.ask("ACL", "SETUSER", "default", "allkeys")
        assert await asyncio.wait_for(start(world, there, Work("theirs", is_open=True)), LEASE + 10) == "theirs"


@with_short_leases
@pytest.mark.leaves("what goes on in the background")
async def test_callers_cut_off_with_their_event_loop_leave_no_lease_behind() -> None:
    dice = random.Random(1)
    with caches(shared("server").url, 1) as [cache]:
        cache.blocking.connect()

        def call_and_end(number: int) -> None:
            async def call() -> None:
                await cache.connect()
                task = asyncio.create_task(cache.get_or_compute(f"{KEY}{number}", lambda: "answer"))
                await asyncio.wait([task], timeout=dice.uniform(0, 0.003))

            asyncio.run(call())

        for number in range(80):
            await in_thread(call_and_end, number)
        client = shared("server").client
        await until(lambda: not leases(client, cache.namespace), LEASE + 10)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
async def test_a_forked_child_waits_for_what_its_parent_computes(peers: list[GenericRedisCache]) -> None:
    cache, work = peers[0], Work("the parent's")
    holder = await hold("threads", cache, work)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, b"begin;")
            os.write(writer, cache.blocking.get_or_compute(KEY, lambda: "the child's").encode())
        finally:
            os._exit(0)
    os.close(writer)
    assert await asyncio.to_thread(os.read, reader, 6) == b"begin;"
    await asyncio.sleep(0.3)
    work.gate.set()
    assert await asyncio.wait_for(holder, 5) == "the parent's"
    assert await asyncio.wait_for(asyncio.to_thread(os.read, reader, 100), 5) == b"the parent's"
    os.close(reader)
    os.waitpid(child, 0)


@with_short_leases
async def test_an_event_loop_that_no_longer_runs_keeps_no_lease() -> None:
    work, own = Work("never"), Work("mine", is_open=True)
    with caches(shared("server").url, 2) as (here, there):
        loop = asyncio.new_event_loop()

        async def give_up_waiting() -> None:
            caller = asyncio.ensure_future(there.get_or_compute(KEY, work.in_task))
            await until(lambda: work.runs)
            caller.cancel()

        await in_thread(loop.run_until_complete, give_up_waiting())
        try:
            assert await asyncio.wait_for(start("tasks", here, own), LEASE + 10) == "mine"
        finally:
            work.gate.set()
            await in_thread(loop.run_until_complete, asyncio.sleep(0.1))
            await in_thread(loop.run_until_complete, loop.shutdown_asyncgens())
            loop.close()


@pytest.mark.parametrize("pauses", [10, slow(fleet_module.NESTED_PAUSES)])
async def test_two_processes_whose_functions_need_each_other_come_to_an_end(
    monkeypatch: pytest.MonkeyPatch, pauses: int
) -> None:
    monkeypatch.setattr(fleet_module, "NESTED_PAUSES", pauses)
    both_hold = {world: threading.Barrier(2) for world in WORLDS}

    async def need_each_other(world: str) -> None:
        def ask_on(cache: GenericRedisCache) -> Any:
            async def ask_in_task(text: str, other: str = "") -> str:
                if other:
                    await asyncio.to_thread(both_hold[world].wait, 10)
                    assert await remembered(other) == f"answer to {other}"
                return f"answer to {text}"

            def ask(text: str, other: str = "") -> str:
                if other:
                    both_hold[world].wait(10)
                    assert remembered(other) == f"answer to {other}"
                return f"answer to {text}"

            remember = cached_ai_call(operation="ask", cache=cache, ignore=("other",))
            remembered = remember(ask_in_task if world == "tasks" else ask)
            return remembered

        with caches(shared("server").url, 2) as (here, there):
            pair = asyncio.gather(call(ask_on(here), "a", "b"), call(ask_on(there), "b", "a"))
            limit = pauses * fleet_module.LONGEST_PAUSE + 10
            assert await asyncio.wait_for(pair, limit) == ["answer to a", "answer to b"]

    await asyncio.gather(*map(need_each_other, WORLDS))


async def test_a_blocking_call_inside_an_async_computation_of_the_same_key_does_not_wait_for_it(
    peers: list[GenericRedisCache],
) -> None:
    cache = peers[0]

    async def outer() -> list[str]:
        return ["outer", cache.blocking.get_or_compute(KEY, lambda: "inner")]

    async def run() -> Any:
        return await cache.get_or_compute(KEY, outer)

    assert await asyncio.wait_for(in_thread(asyncio.run, run()), 10) == ["outer", "inner"]


async def test_an_async_call_inside_a_blocking_computation_of_the_same_key_does_not_wait_for_it(
    peers: list[GenericRedisCache],
) -> None:
    cache = peers[0]

    def outer() -> list[str]:
        return ["outer", asyncio.run(cache.get_or_compute(KEY, lambda: "inner"))]

    assert await asyncio.wait_for(in_thread(cache.blocking.get_or_compute, KEY, outer), 10) == ["outer", "inner"]


@pytest.mark.parametrize(("first", "second"), [("tasks", "threads"), ("threads", "tasks")])
async def test_the_other_world_of_a_process_does_not_wait_for_its_lease(
    peers: list[GenericRedisCache], first: str, second: str
) -> None:
    held, own = Work("theirs"), Work("mine", is_open=True)
    holder = await hold(first, peers[0], held)
    assert await asyncio.wait_for(start(second, peers[0], own), 10) == "mine"
    held.gate.set()
    assert await asyncio.wait_for(holder, 5) == "theirs"
    assert (held.runs, own.runs) == (1, 1)


async def test_decorated_calls_through_both_worlds_end(peers: list[GenericRedisCache]) -> None:
    cache = peers[0]

    @cached_ai_call(operation="even", cache=cache)
    async def even(n: int) -> int:
        return n + (odd(n - 1) if n else 0)

    @cached_ai_call(operation="odd", cache=cache)
    def odd(n: int) -> int:
        return n + asyncio.run_coroutine_threadsafe(even(n - 1), other_loop).result(10)

    other_loop = asyncio.new_event_loop()
    thread = threading.Thread(target=other_loop.run_forever)
    thread.start()
    try:
        assert await asyncio.wait_for(asyncio.to_thread(odd, 1), 5) == 1
        assert await asyncio.wait_for(in_thread(lambda: asyncio.run(even(2))), 5) == 3
    finally:
        asyncio.run_coroutine_threadsafe(other_loop.shutdown_asyncgens(), other_loop).result(5)
        other_loop.call_soon_threadsafe(other_loop.stop)
        thread.join(5)
        other_loop.close()


@each_world
async def test_a_recursive_function_runs_once_for_each_argument_in_a_fleet(
    peers: list[GenericRedisCache], world: str
) -> None:
    calls: list[int] = []

    def fibonacci_on(cache: GenericRedisCache) -> Any:
        async def in_task(n: int) -> int:
            calls.append(n)
            return n if n < 2 else sum(await asyncio.gather(remembered(n - 1), remembered(n - 2)))

        def in_thread(n: int) -> int:
            calls.append(n)
            return n if n < 2 else remembered(n - 1) + remembered(n - 2)

        remember = cached_ai_call(operation="fibonacci", cache=cache)
        remembered = remember(in_task if world == "tasks" else in_thread)
        return remembered

    callers = [call(fibonacci_on(cache), n) for cache, n in zip(peers, (20, 15, 20, 12), strict=True)]
    assert await asyncio.wait_for(asyncio.gather(*callers), 10) == [6765, 610, 6765, 144]
    assert sorted(calls) == list(range(21))


async def test_what_a_computation_left_running_waits_for_leases_like_any_caller_once_it_is_over(
    peers: list[GenericRedisCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_module, "NESTED_PAUSES", 2)
    held, own = Work("theirs"), Work("mine", is_open=True)
    is_over = asyncio.Event()
    later: list[asyncio.Task[Any]] = []

    async def call_later() -> Any:
        await is_over.wait()
        return await peers[1].get_or_compute(KEY, own.in_task)

    async def leave_something_running() -> str:
        later.append(asyncio.create_task(call_later()))
        return "over"

    holder = await hold("tasks", peers[0], held)
    assert await peers[1].get_or_compute("another", leave_something_running) == "over"
    is_over.set()
    await asyncio.sleep(0.3)
    assert own.runs == 0
    held.gate.set()
    assert await asyncio.wait_for(asyncio.gather(holder, *later), 5) == ["theirs", "theirs"]


# Cancelled at any moment


def connections(server: Server) -> int:
    return len(server.client.client_list())


@with_short_leases
@pytest.mark.parametrize("seconds", [1.5, slow(5)])
async def test_callers_cancelled_at_any_moment_leave_nothing_behind_and_get_no_wrong_answer(
    own_server: Server, seconds: float
) -> None:
    with caches(own_server.url, 2, max_connections=8) as fleet:
        dice = random.Random(seconds)
        asks = [echo_soon(cache, dice) for cache in fleet]
        before = connections(own_server)
        callers: set[asyncio.Task[None]] = set()
        wrong: list[BaseException] = []
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            while len(callers) < 100:
                callers.add(asyncio.create_task(use(dice, dice.choice(asks), f"{dice.randrange(20)}")))
            for caller in dice.sample(sorted(callers, key=id), 30):
                caller.cancel()
            await asyncio.sleep(dice.uniform(0, 0.004))
            done = {caller for caller in callers if caller.done()}
            wrong += [error for caller in done if not caller.cancelled() and (error := caller.exception())]
            callers -= done
        await asyncio.wait_for(asyncio.gather(*callers, return_exceptions=True), 10)
        assert wrong == []
        await until(lambda: asyncio.all_tasks() == {asyncio.current_task()})
        pools = [pool_of(cache) for cache in fleet]
        assert [pool._open for pool in pools] == [len(pool._idle) for pool in pools]
        assert all(pool._open <= 8 for pool in pools)
        idle = sum(pool._open for pool in pools)
        await until(lambda: connections(own_server) <= before + idle + sum(map(open_among_threads, fleet)) + len(fleet))
        for ask in asks:
            assert await asyncio.wait_for(ask("after"), 5) == ["after"]
        await until(lambda: not leases(own_server.client, fleet[0].namespace), LEASE + 10)


def echo_soon(cache: GenericRedisCache, dice: random.Random) -> Any:
    @cached_ai_call(operation="echo", cache=cache)
    async def echo(text: str) -> list[str]:
        await asyncio.sleep(dice.choice([0, 0, 0.001, 0.01]))
        return [text]

    return echo


async def use(dice: random.Random, ask: Any, text: str) -> None:
    match dice.randrange(10):
        case 0:
            with suppress(InfrastructureError):  # it has half a second, which is short on a loaded machine
                await ask.invalidate(text)
        case 1:
            assert await ask.refresh(text) == [text]
        case 2:
            assert await ask.cache.get(ask.key_for(text), [text]) == [text]
        case _:
            assert await ask(text) == [text]


def open_among_threads(cache: GenericRedisCache) -> int:
    """The connections of the listener, who asks for the time, and of who renews leases; beside the one to listen."""
    servers: Any = cache._blocking_link._servers
    return int(servers._server._open)


def pool_of(cache: GenericRedisCache) -> Any:
    """The connections of this event loop."""
    server: Any = cache.memoizer.tiers.guard._store._link._servers._server
    return server._pools[asyncio.get_running_loop()]
