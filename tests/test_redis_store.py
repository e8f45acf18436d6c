"""The store in Redis: what travels together, what an invalidation reaches, and what is where."""

from __future__ import annotations

import asyncio
import atexit
import functools
import itertools
import json
import random
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from redis.crc import key_slot

from aimemo import GenericRedisCache, InfrastructureError, InMemoryCache, cached_ai_call
from aimemo.core.codec import pack, unpacker
from aimemo.core.entry import PackedEntry
from aimemo.core.keys import key_prefix, make_key, operation_of
from aimemo.core.ports import Selector, compile_glob
from aimemo.core.runtime import drive
from aimemo.core.types import TypeResolver
from aimemo.link.layout import BUCKETS, Layout, message
from benchmarks.texts import ROOT
from tests.kit.clock import Clock
from tests.kit.redis_caches import Kind, redis_cache, shared
from tests.kit.servers import ClusterOfThree, Server, binaries, wait_until
from tests.test_redis_bytes import Here

FOREVER = float("inf")
Enter = Callable[[GenericRedisCache], Here]
TYPES = TypeResolver()


@functools.cache
def own(kind: str = "valkey") -> Server:
    """A server that nobody else uses: it may be emptied, and nothing else is found in it."""
    server = Server(kind)
    atexit.register(server.__exit__)
    return server


def on(server: Server | ClusterOfThree, **settings: Any) -> GenericRedisCache:
    return GenericRedisCache(server.url, **{"deadline": 5, "strict": True, "namespace": "n", **settings})


def nodes(servers: Server | ClusterOfThree) -> list[Server]:
    return servers.nodes if isinstance(servers, ClusterOfThree) else [servers]


class Counted:
    """What servers are asked within the block: calls by command, round trips by server."""

    def __init__(self, servers: Server | ClusterOfThree) -> None:
        self._nodes = nodes(servers)
        self.calls: Counter[str] = Counter()
        self.round_trips: list[int] = []

    def __enter__(self) -> Counted:
        for node in self._nodes:
            node.ask("CONFIG", "RESETSTAT")
        return self

    def __exit__(self, *_: object) -> None:
        for node in self._nodes:
            self.round_trips.append(node.client.info("stats")["total_reads_processed"] - 1)
            for name, figures in node.client.info("commandstats").items():
                self.calls[name.removeprefix("cmdstat_")] += figures["calls"] + figures["rejected_calls"]
        for own_question in ("config|resetstat", "info", "ping"):
            self.calls.pop(own_question, None)


def fewest_round_trips(servers: Server | ClusterOfThree, act: Callable[[], Any]) -> list[int]:
    """Of several times: now and then the listener says PING meanwhile."""
    found = []
    for _ in range(5):
        with Counted(servers) as counted:
            act()
        found.append(counted.round_trips)
    return min(found)


# Reads of one tick


@pytest.fixture(autouse=True)
def _a_long_tick_is_one_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that stalls within a tick would make two batches of it."""
    monkeypatch.setattr("aimemo.link.aio.LATER", 60)


@pytest.fixture(params=["server", "cluster"])
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


@pytest.fixture
async def cache() -> AsyncIterator[GenericRedisCache]:
    """Without L1, with fifty values."""
    made = redis_cache("server", None, enable_l1_cache=False, strict=False)
    await made.set_many({f"k{number}": number for number in range(50)})
    yield made
    await made.close()


FIFTY = [f"k{number}" for number in range(50)]


async def test_gets_of_one_tick_travel_as_one_mget(cache: GenericRedisCache) -> None:
    with Counted(shared("server")) as counted:
        assert await asyncio.gather(*map(cache.get, FIFTY)) == list(range(50))
    assert counted.calls == {"mget": 1}


async def test_a_lone_get_is_one_get(cache: GenericRedisCache) -> None:
    with Counted(shared("server")) as counted:
        assert await cache.get("k7") == 7
    assert counted.calls == {"get": 1}


async def test_gets_of_two_ticks_travel_as_two(cache: GenericRedisCache) -> None:
    with Counted(shared("server")) as counted:
        first = [asyncio.ensure_future(cache.get(key)) for key in FIFTY[:25]]
        for _ in range(3):
            await asyncio.sleep(0)
        second = [asyncio.ensure_future(cache.get(key)) for key in FIFTY[25:]]
        assert await asyncio.gather(*first, *second) == list(range(50))
    assert counted.calls == {"mget": 2}


async def test_one_key_asked_fifty_times_in_one_tick_is_one_question(cache: GenericRedisCache) -> None:
    with Counted(shared("server")) as counted:
        assert await asyncio.gather(*(cache.get("k7") for _ in range(50))) == [7] * 50
    assert sum(counted.calls.values()) == 1


@pytest.mark.parametrize("l1", [False, True])
async def test_hits_of_decorated_calls_of_one_tick_travel_as_one_mget(l1: bool) -> None:
    writer = redis_cache("server", None)
    reader = on(shared("server"), namespace=writer.namespace, enable_l1_cache=l1)

    async def ask(text: str) -> str:
        return text

    write, read = (cached_ai_call(operation="qa", cache=each)(ask) for each in (writer, reader))
    texts = [f"q{number}" for number in range(64)]
    for text in texts:
        await write(text)
    await reader.connect()
    with Counted(shared("server")) as counted:
        assert await asyncio.gather(*map(read, texts)) == texts
    assert counted.calls == {"mget": 1}
    assert reader.stats().l2_hits == 64
    await writer.close()
    await reader.close()


@pytest.mark.parametrize("ticks", [0, 1, 2, 3])
@pytest.mark.parametrize("meant", [[0], [49], list(range(0, 50, 2)), list(range(49))])
async def test_a_cancelled_caller_does_not_disturb_the_others_of_its_batch(
    cache: GenericRedisCache, ticks: int, meant: list[int]
) -> None:
    callers = [asyncio.ensure_future(cache.get(key)) for key in FIFTY]
    for _ in range(ticks):
        await asyncio.sleep(0)
    for number in meant:
        callers[number].cancel()
    answers = await asyncio.gather(*callers, return_exceptions=True)
    assert {type(answers[number]) for number in meant} == {asyncio.CancelledError}
    others = [number for number in range(50) if number not in meant]
    assert [answers[number] for number in others] == others
    assert cache.stats().errors == 0


async def test_a_batch_whose_callers_all_were_cancelled_is_forgotten(cache: GenericRedisCache) -> None:
    await cache.get("k0")
    before = shared("server").client.info("clients")["connected_clients"]
    for ticks in range(6):
        callers = [asyncio.ensure_future(cache.get(key)) for key in FIFTY]
        for _ in range(ticks):
            await asyncio.sleep(0)
        for caller in callers:
            caller.cancel()
        await asyncio.wait(callers)
        assert await cache.get("k7") == 7
    assert shared("server").client.info("clients")["connected_clients"] <= before + 1
    assert cache.stats().errors == 0


@pytest.fixture
def refusing() -> Iterator[Server]:
    """A server that refuses MGET."""
    with Server() as server:
        server.ask("ACL", "SETUSER", "default", "-mget")
        yield server


async def test_an_error_fails_a_batch_once(refusing: Server) -> None:
    cache = on(refusing, strict=False, enable_l1_cache=False)
    await cache.set_many({f"k{number}": number for number in range(50)})
    with Counted(refusing) as counted:
        assert await asyncio.gather(*map(cache.get, FIFTY)) == [None] * 50
    assert counted.calls == {"mget": 1}
    assert await cache.get("k7") == 7, "one failed command is one failure, however many waited for it"
    await cache.close()


async def test_an_error_of_a_batch_reaches_each_of_its_callers_where_errors_are_wanted(refusing: Server) -> None:
    cache = on(refusing, enable_l1_cache=False)
    await cache.connect()
    answers = await asyncio.gather(*map(cache.get, FIFTY), return_exceptions=True)
    assert {type(answer) for answer in answers} == {InfrastructureError}
    await cache.close()


def test_loops_do_not_mix_their_reads() -> None:
    cache = redis_cache("server", None, enable_l1_cache=False)
    cache.blocking.set_many({f"k{number}": number for number in range(50)})
    together = threading.Barrier(3)

    async def read(keys: list[str]) -> list[Any]:
        await cache.connect()
        together.wait(10)
        together.wait(10)
        found = await asyncio.gather(*map(cache.get, keys))
        together.wait(10)
        return found

    with ThreadPoolExecutor(2) as pool:
        halves = [pool.submit(lambda keys=keys: asyncio.run(read(keys))) for keys in (FIFTY[:25], FIFTY[25:])]
        together.wait(10)
        with Counted(shared("server")) as counted:
            together.wait(10)
            together.wait(10)
        assert [number for half in halves for number in half.result(10)] == list(range(50))
    assert counted.calls == {"mget": 2}
    cache.blocking.close()


async def test_gets_of_one_tick_on_a_cluster_are_at_most_one_mget_for_each_bucket() -> None:
    cache = redis_cache("cluster", None, enable_l1_cache=False)
    values = {f"k{number}": [number] for number in range(200)}
    await cache.set_many(values)
    with Counted(shared("cluster")) as counted:
        assert await asyncio.gather(*map(cache.get, values)) == list(values.values())
    assert counted.calls.keys() <= {"mget", "get"}
    assert counted.calls.total() <= BUCKETS
    await cache.close()


# Round trips


@pytest.fixture(params=["tasks", "threads"])
def world(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def enter(world: str) -> Iterator[Callable[[GenericRedisCache], Here]]:
    """Connects caches in one world, and closes them in the end."""
    entered: list[Here] = []

    def enter_one(cache: GenericRedisCache) -> Here:
        entered.append(Here(cache, world))
        entered[-1].connect()
        return entered[-1]

    yield enter_one
    for here in entered:
        here.close()


@pytest.fixture
def here(enter: Enter, kind: Kind) -> Here:
    """Without L1."""
    return enter(redis_cache(kind, None, enable_l1_cache=False))


def test_many_at_once_take_one_round_trip_to_each_node(here: Here, kind: Kind) -> None:
    values = {f"k{number}": number for number in range(120)}
    trips = [
        fewest_round_trips(shared(kind), lambda: here.set_many(dict.fromkeys(list(values)[:30], 1))),
        fewest_round_trips(shared(kind), lambda: here.get_many(values)),
        fewest_round_trips(shared(kind), lambda: here.delete_many(list(values)[:30])),
    ]
    assert trips == [[1] * len(nodes(shared(kind)))] * 3


def test_many_at_once_are_right(here: Here) -> None:
    values = {f"k{number}": [number] for number in range(500)}
    here.set_many(values)
    assert here.get_many([*values, "missing", "k1", "k1"]) == values
    assert here.delete_many([f"k{number}" for number in range(0, 1000, 2)] + ["k0"]) == 250
    assert here.get_many(values) == {f"k{number}": [number] for number in range(1, 500, 2)}
    assert here.get_many([]) == {}
    assert here.delete_many([]) == 0
    here.set_many({})


@pytest.mark.parametrize(("l1", "calls"), [(False, {"get": 5}), (True, {})])
def test_a_hit_is_one_get_and_a_hit_in_l1_asks_nothing(enter: Enter, l1: bool, calls: dict[str, int]) -> None:
    asked = enter(redis_cache("server", None, enable_l1_cache=l1)).cached(lambda text: [text])
    asked("q")
    with Counted(shared("server")) as counted:
        assert [asked("q") for _ in range(5)] == [["q"]] * 5
    assert counted.calls == calls


@pytest.mark.parametrize(("leases", "most"), [(True, 6), (False, 3)])
def test_a_miss_takes_few_round_trips(enter: Enter, leases: bool, most: int) -> None:
    """Read, ticket, keep; and with a lease: take it, look again, give it back."""
    asked = enter(redis_cache("server", None, enable_l1_cache=False, leases=leases)).cached(lambda text: [text])
    for number in range(50):
        asked(f"warm {number}")
    texts = (f"q{number}" for number in itertools.count())
    assert fewest_round_trips(shared("server"), lambda: asked(next(texts))) <= [most]


def test_invalidations_scan_and_never_ask_for_all_keys_at_once(here: Here, kind: Kind) -> None:
    here.set_many({f"k{number}": number for number in range(300)})
    with Counted(shared(kind)) as counted:
        assert here.invalidate_pattern("k1*") == 111
        assert here.invalidate_operation("qa") == 0
        assert here.clear() == 189
    used = {"evalsha", "script|load", "hset", "scan", "unlink", "publish", "cluster|slots"}
    assert counted.calls.keys() <= used


def test_a_cache_is_cleared_without_touching_what_is_not_its_own(enter: Enter) -> None:
    own().ask("FLUSHALL")
    here, there = (enter(on(own(), namespace=name, enable_l1_cache=False)) for name in ("n", "n.n"))
    others = ["n", "n:0", "{n:16}e:k", "{n:x}e:k", "x{n:0}e:k", "{n:0}E:k", "{n.:0}e:k"]
    for name in others:
        own().ask("SET", name, "somebody's")
    for each in (here, there):
        each.set("k", 1)
    assert here.clear() == 1
    assert (here.get("k"), there.get("k")) == (None, 1)
    assert own().client.mget(others) == [b"somebody's"] * len(others)


# Tags


class Tagged:
    """Entries with tags, straight into a store."""

    def __init__(self, servers: Server | ClusterOfThree, here: Here) -> None:
        self.servers = servers
        self.here = here
        self.store = here.cache.memoizer_of(here.world).tiers.store

    def run(self, body: Any) -> Any:
        return drive(body) if self.here.world == "threads" else self.here.run(body)

    def keep(self, key: str, tags: Iterable[str], seconds: float = FOREVER) -> None:
        now = self.here.cache.clock()
        entry = PackedEntry(key, pack(key, TYPES), now, now + seconds, now + seconds, tags=tuple(tags))
        assert self.run(self.store.set(key, entry)) is True

    def index_size(self) -> int:
        pattern = f"{{{self.here.cache.namespace}:*}}[tu]"
        return sum(node.client.zcard(name) for node in nodes(self.servers) for name in node.client.scan_iter(pattern))

    def let_days_pass(self) -> None:
        """In the index by expiry, the only part of it that knows of time."""
        for name in own().client.scan_iter("{n:*}u"):
            scores = dict(own().client.zrange(name, 0, -1, withscores=True))
            own().client.zadd(name, {member: score - 10 * 24 * 3600 * 1000 for member, score in scores.items()})


@pytest.fixture
def tagged(enter: Enter) -> Tagged:
    own().ask("FLUSHALL")
    return Tagged(own(), enter(on(own(), enable_l1_cache=False)))


ODD_TAGS = [
    "t", "tt", "t|", "|t", "|", "||", "t|t", "%", "%7C", "t%7C", "}", "{", "{t}", "t}", "~", "\u00e9", "e\u0301", "T",
    "*", "t*", "?", "[t]", "(t", "[t", "-", "+", "\0", "t\0", "\n", "\x7f", "\U0001f600", "\uffff", "\U0010ffff",
    "op:qa|txt:", "@", " ", "t ", "0", "x" * 5000,
]  # fmt: skip


def test_a_tag_of_any_characters_means_exactly_its_entries(tagged: Tagged) -> None:
    for number, tag in enumerate(ODD_TAGS):
        tagged.keep(f"k{number}", [tag])
        tagged.keep(f"both {number}", [tag, "in all"])
    for number, tag in enumerate(ODD_TAGS):
        assert (tag, tagged.here.invalidate_tag(tag)) == (tag, 2)
        assert tagged.here.get_many([f"k{number}", f"both {number}"]) == {}
        assert tagged.here.invalidate_tag(tag) == 0
    assert tagged.here.invalidate_tag("in all") == 0


tags_ = st.text(alphabet="at|%}~é\0", min_size=1, max_size=3)
ANY_STATE = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]


tagged_entries = st.dictionaries(
    st.text(alphabet="k|}é\n", min_size=1, max_size=3), st.sets(tags_, max_size=3), max_size=8
)


@pytest.mark.slow
@settings(max_examples=60, suppress_health_check=ANY_STATE)
@given(entries=tagged_entries, meant=st.lists(tags_, min_size=1, max_size=3))
def test_tags_agree_with_a_dictionary(tagged: Tagged, entries: dict[str, set[str]], meant: list[str]) -> None:
    tagged.here.clear()
    for key, tags in entries.items():
        tagged.keep(key, tags)
    for tag in meant:
        gone = {key for key, tags in entries.items() if tag in tags}
        assert tagged.here.invalidate_tag(tag) == len(gone)
        entries = {key: tags for key, tags in entries.items() if key not in gone}
        assert tagged.here.get_many(entries).keys() == entries.keys()


@pytest.mark.slow
def test_thousands_of_tagged_entries_are_counted_exactly(tagged: Tagged) -> None:
    for number in range(3000):
        tagged.keep(f"k{number}", ["all", f"third {number % 3}"])
    assert tagged.here.invalidate_tag("third 1") == 1000
    assert tagged.here.get_many(["k0", "k1", "k2"]).keys() == {"k0", "k2"}
    assert tagged.here.invalidate_tag("all") == 2000
    assert own().client.keys("*e:*") == []
    assert tagged.here.invalidate_tag("third 2") == 0


def test_tags_on_a_cluster_are_exact(enter: Enter) -> None:
    tagged = Tagged(shared("cluster"), enter(redis_cache("cluster", None, enable_l1_cache=False)))
    for number in range(300):
        tagged.keep(f"k{number}", [f"third {number % 3}"])
    assert [tagged.here.invalidate_tag(f"third {number}") for number in range(4)] == [100, 100, 100, 0]
    assert tagged.index_size() == 0


def test_an_entry_has_the_tags_that_it_was_last_kept_with(tagged: Tagged) -> None:
    for tags in (["a", "b"], ["b", "c"]):
        tagged.keep("k", tags)
    assert [tagged.here.invalidate_tag(tag) for tag in "ad"] == [0, 0]
    assert tagged.here.get("k") == "k"
    assert tagged.here.invalidate_tag("c") == 1
    tagged.keep("k", ["a"])
    tagged.here.set("k", "by hand, without tags")
    assert [tagged.here.invalidate_tag(tag) for tag in "abc"] == [0, 0, 0]
    assert tagged.here.get("k") == "by hand, without tags"


def test_a_refreshed_answer_has_the_tags_of_its_refresh(here: Here) -> None:
    current = ["old"]
    asked = here.cached(lambda text: text, tags=lambda text: (current[0],))
    asked("q")
    current[0] = "new"
    asked.refresh("q")
    assert (here.invalidate_tag("old"), asked.peek("q")) == (0, "q")
    assert here.invalidate_tag("new") == 1


def test_the_index_forgets_what_has_ended(tagged: Tagged) -> None:
    for number in range(200):
        tagged.keep(f"k{number}", ["t"], seconds=0.05)
    tagged.keep("for ever", ["t"])
    wait_until(
        lambda: own().client.keys("*e:*") == [b"{n:%d}e:for ever" % tagged.here.layout.place("for ever").bucket], "end"
    )
    for number in range(200):
        tagged.keep(f"new {number}", ["t"])
    assert tagged.index_size() == 2 * 201
    assert tagged.here.invalidate_tag("t") == 201


def test_the_index_does_not_forget_what_never_expires(tagged: Tagged) -> None:
    keys = [f"k{number}" for number in range(40)]
    for key in keys:
        tagged.keep(key, ["t"])
    for number in range(40):
        tagged.let_days_pass()
        tagged.keep(f"other {number}", ["other"])
    assert tagged.here.invalidate_tag("t") == len(keys)


def test_a_tagged_entry_that_never_expires_is_found_by_its_tag(here: Here) -> None:
    asked = here.cached(lambda text: text, ttl=0, tags=("t",))
    for text in "abc":
        asked(text)
    assert here.invalidate_tag("t") == 3
    assert [asked.peek(text) is asked.peek("never asked") for text in "abc"] == [True] * 3


# Keys, namespaces, globs

KEYS = [
    "k", "{", "}", "{}", "{k}", "}e:", "{n:3}e:k", "*", "?", "[a]", "k*", "\\", "k\n", "\n", "\0", " ", "\u00e9",
    "e\u0301", "ключ", "\U0001f600", "k" * 10_000, "ключ" * 2500, "op:qa|txt:|" + "0" * 32, "|", "%7C", "inv", "g",
    "-1", "op:qa|txt:{x}|" + "0" * 32, "a b\r\nGET x", "$5\r\nhello", "\u2028", "\uffff",
]  # fmt: skip


@pytest.mark.parametrize("l1", [False, True])
def test_a_key_of_any_characters_is_a_key_like_any_other(enter: Enter, kind: Kind, l1: bool) -> None:
    here = enter(redis_cache(kind, None, enable_l1_cache=l1))
    there = enter(on(shared(kind), namespace=here.cache.namespace, enable_l1_cache=l1))
    values = {key: [number] for number, key in enumerate(KEYS)}
    for key, value in values.items():
        here.set(key, value)
    assert {key: there.get(key) for key in values} == here.get_many(values) == values
    for key in KEYS[::2]:
        assert (here.exists(key), here.delete(key), here.exists(key), here.delete(key)) == (True, True, False, False)
    assert here.get_many(values) == {key: values[key] for key in KEYS[1::2]}
    assert here.clear() == len(KEYS[1::2])


NAMESPACES = ["n", "nn", "n.n", "n-n", "n_n", "ñ", "N", "n.", ".n", "-", "0", "x" * 300]


def test_namespaces_share_nothing(enter: Enter) -> None:
    own().ask("FLUSHALL")
    caches = {name: enter(on(own(), namespace=name)) for name in NAMESPACES}
    for name, here in caches.items():
        here.set_many({"k": name, "op:qa|txt:|" + "0" * 32: name})
    assert {name: here.get("k") for name, here in caches.items()} == {name: name for name in NAMESPACES}
    for number, here in enumerate(caches.values()):
        assert here.invalidate_operation("qa") == 1
        assert here.clear() == 1
        assert [each.get("k") is None for each in caches.values()] == [at <= number for at in range(len(caches))]


CHARACTERS = "ab|:*?[]^-\\é\n{}%"
keys_ = st.text(alphabet=CHARACTERS, min_size=1, max_size=5)
patterns = st.text(alphabet=CHARACTERS, min_size=1, max_size=6) | st.builds(
    "".join,
    st.lists(
        st.sampled_from(["*", "?", "a", "b", "é", "[ab]", "[^a]", "[a-b]", "\\*", "\\", "|", "{", "\n"]), max_size=5
    ),
).filter(bool)


@pytest.fixture(params=[False, True], ids=["without L1", "with L1"])
def emptied(request: pytest.FixtureRequest) -> Iterator[GenericRedisCache]:
    own().ask("FLUSHALL")
    cache = on(own(), enable_l1_cache=request.param)
    yield cache
    cache.blocking.close()


@settings(max_examples=150, suppress_health_check=ANY_STATE)
@given(keys=st.sets(keys_ | patterns, max_size=8), pattern=patterns)
def test_a_glob_means_in_redis_what_it_means_in_memory(emptied: Any, keys: set[str], pattern: str) -> None:
    caches = [InMemoryCache().blocking, emptied.blocking]
    emptied.blocking.clear()
    counts = []
    for cache in caches:
        cache.set_many(dict.fromkeys(keys, 1))
        counts.append((cache.invalidate_pattern(pattern), sorted(cache.get_many(keys))))
    assert counts[1] == counts[0]


WRITTEN = ["q", "a", "qa", "%71", "%61", "%7C", "%", "%7", "\x7f", "é", "%C3%A9"]
"""Pieces of operations in keys by hand, which may escape what need not be, and not escape what should."""
names_ = st.sampled_from(["q", "a", "qa", "é", "%"]) | st.text(alphabet="qa*?[]\\|%7C{}é\n ", min_size=1, max_size=5)


@settings(max_examples=100, suppress_health_check=ANY_STATE)
@given(
    operations=st.sets(names_, max_size=6),
    name=names_,
    by_hand=st.lists(st.lists(st.sampled_from(WRITTEN), max_size=3).map("".join), max_size=3),
)
def test_an_operation_means_in_redis_what_it_means_in_memory(
    emptied: Any, operations: set[str], name: str, by_hand: list[str]
) -> None:
    keys = [make_key(key_prefix(operation), operation, 0, "identity") for operation in operations]
    keys += [f"op:{operation}|txt:|{'0' * 32}" for operation in by_hand]
    caches = [InMemoryCache().blocking, emptied.blocking]
    emptied.blocking.clear()
    counts = []
    for cache in caches:
        cache.set_many(dict.fromkeys(keys, 1))
        meant = next(iter(operations), name)
        counts.append(
            (cache.invalidate_operation(meant), sorted(cache.get_many(keys)), cache.invalidate_operation(name))
        )
    assert counts[1] == counts[0]


@given(key=st.text(min_size=1, max_size=20), namespace=st.sampled_from(NAMESPACES))
def test_all_names_of_one_key_are_in_one_slot_of_a_cluster(key: str, namespace: str) -> None:
    layout = Layout(namespace)
    place = layout.place(key)
    bucket, *locks = layout.lock(key)
    names = [place.name, *locks, layout.generations(place.bucket), *layout.index(place.bucket)]
    assert bucket == place.bucket
    assert len({key_slot(name.encode()) for name in names}) == 1
    assert layout.entry(place.name.encode()) == (place.bucket, key)


def test_buckets_are_spread_over_the_nodes_of_a_cluster() -> None:
    for namespace in ("aimemo", "n", "prod.cache"):
        slots = {key_slot(Layout(namespace).hash_tag(bucket).encode()) for bucket in range(BUCKETS)}
        assert len(slots) == BUCKETS
        assert len({slot * 3 // 16384 for slot in slots}) == 3


# Bytes


def test_the_stats_count_the_bytes_that_are_in_redis(here: Here, kind: Kind) -> None:
    values = {f"k{number}": "text " * number for number in range(0, 600, 20)}
    here.set_many(values)
    here.set("alone", ["text"] * 500)
    here.cached(lambda text: text * 500)("q")
    stored = [
        node.client.strlen(name)
        for node in nodes(shared(kind))
        for name in node.client.scan_iter(f"{{{here.cache.namespace}:*}}e:*")
    ]
    stats = here.cache.stats()
    assert stats.sets == len(stored) == len(values) + 2
    assert stats.bytes_stored == sum(stored)
    assert stats.bytes_raw == sum(len(pack(value, TYPES)) for value in (*values.values(), ["text"] * 500, "q" * 500))


@functools.cache
def answers() -> list[Any]:
    """A thousand answers of 300 to 8,000 characters, cut from the project's own prose; short ones are more frequent."""
    prose = "\n".join(file.read_text() for file in [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md"))])
    chance = random.Random(7)
    lengths = [round(300 * (8000 / 300) ** chance.random()) for _ in range(1000)]
    starts = [chance.randrange(len(prose) - length) for length in lengths]
    usage = {"prompt_tokens": 311, "completion_tokens": 97}
    return [
        prose[at : at + length] if number % 2 else {"text": prose[at : at + length], "model": "small", "usage": usage}
        for number, (at, length) in enumerate(zip(starts, lengths, strict=True))
    ]


def test_realistic_answers_take_much_less_than_their_json() -> None:
    cache = redis_cache("server", None, enable_l1_cache=False)
    cache.blocking.set_many({f"k{number}": answer for number, answer in enumerate(answers())})
    raw = sum(len(json.dumps(answer, ensure_ascii=False).encode()) for answer in answers())
    stored = sum(
        shared("server").client.strlen(Layout(cache.namespace).place(f"k{number}").name) for number in range(1000)
    )
    assert stored <= 0.70 * raw
    cache.blocking.close()


# Tickets

QA = [f"op:qa|txt:|{number:032x}" for number in range(2)]
TAGS: dict[str, tuple[str, ...]] = {
    QA[0]: ("t",),
    QA[1]: ("t", "u"),
    f"op:qa_long|txt:|{'0' * 32}": (),
    "by hand": ("u",),
}
SELECTORS = [
    *(Selector("tag", tag) for tag in ("t", "u", "no such")), *(Selector("operation", name) for name in ("qa", "q")),
    *(Selector("glob", glob) for glob in ("op:qa|*", "*", "b?", "op:qa*", "[^o]*", "by hand")), Selector("all"),
]  # fmt: skip


class Interrupted:
    """A link in whose pauses between two commands something else happens."""

    def __init__(self, link: Any) -> None:
        self._link = link
        self.between: list[Callable[[], None]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._link, name)

    def _pause(self) -> None:
        happens, self.between = self.between[:1], self.between[1:]
        rest, self.between = self.between, []
        for what in happens:
            what()
        self.between = rest

    async def ask(self, *args: Any) -> Any:
        self._pause()
        return await self._link.ask(*args)

    async def ask_each(self, *args: Any) -> Any:
        self._pause()
        return await self._link.ask_each(*args)

    async def scan(self, pattern: str) -> AsyncIterator[Any]:
        async for names in self._link.scan(pattern):
            self._pause()
            yield names


class Outstanding(NamedTuple):
    """A ticket; it was asked for and handed out at these moments."""

    key: str
    ticket: Any
    asked: int
    born: int


keys_of_tickets = st.sampled_from(list(TAGS))
interruptions = st.lists(
    st.tuples(st.sampled_from(["keep", "ticket", "evict", "flush scripts", "nothing", "delete"]), keys_of_tickets),
    max_size=5,
)


class Tickets(RuleBasedStateMachine):
    """Computations and invalidations at once, on a server that may evict what aimemo keeps its books in.

    Every value is a number, and `born` says when its computation began. What is read must never have begun before
    the last acknowledged invalidation of its key.
    """

    kind = "valkey"
    outstanding = Bundle("outstanding")

    @initialize()
    def start(self) -> None:
        self.server = own(self.kind)
        self.server.ask("FLUSHALL")
        self.cache = on(self.server, enable_l1_cache=False, clock=Clock())
        store = self.cache.memoizer_of("threads").tiers.store
        self.link = store._store._link = Interrupted(store._store._link)
        self.store = store._store
        self.numbers = itertools.count(1)
        self.open: list[Outstanding] = []
        self.born: dict[int, int] = {}
        self.void = dict.fromkeys(TAGS, 0)
        """When the last acknowledged invalidation of a key began."""
        self.moved = dict.fromkeys(TAGS, 0)
        """When something may last have voided the tickets of a key."""

    # What happens

    def _value(self, key: str) -> int | None:
        entry = drive(self.store.get(key))
        return None if entry is None else unpacker(TYPES)(entry.payload)

    def _entry(self, key: str, value: int) -> PackedEntry:
        now = self.cache.clock()
        return PackedEntry(key, pack(value, TYPES), now, FOREVER, FOREVER, operation_of(key), TAGS[key])

    def _ticket(self, key: str) -> Outstanding:
        asked = next(self.numbers)
        ticket = drive(self.store.ticket(key, operation_of(key), TAGS[key]))
        self.open.append(Outstanding(key, ticket, asked, next(self.numbers)))
        return self.open[-1]

    def _keep(self, outstanding: Outstanding) -> bool:
        value = next(self.numbers)
        self.born[value] = outstanding.born
        key = outstanding.key
        return bool(drive(self.store.set(key, self._entry(key, value), outstanding.ticket)))

    def _evict(self, key: str) -> None:
        self._moves(lambda other: self._bucket(other) == self._bucket(key))
        self.server.ask("DEL", self.store._layout.generations(self._bucket(key)))

    def _bucket(self, key: str) -> int:
        return self.store._layout.place(key).bucket

    def _moves(self, is_meant: Callable[[str], bool]) -> int:
        began = next(self.numbers)
        for key in filter(is_meant, TAGS):
            self.moved[key] = began
        return began

    def _plan(self, interruptions: list[tuple[str, str]]) -> None:
        self.link.between = [functools.partial(self._interrupt, *each) for each in interruptions]

    def _interrupt(self, what: str, key: str) -> None:
        match what:
            case "keep":
                for outstanding in [each for each in self.open if each.key == key][-2:]:
                    self._keep(outstanding)
            case "ticket":
                self._ticket(key)
            case "evict":
                self._evict(key)
            case "flush scripts":
                self.server.ask("SCRIPT", "FLUSH")
            case "delete":
                self._delete([key])

    def _delete(self, keys: list[str]) -> None:
        began = self._moves(keys.__contains__)
        drive(self.store.delete_many(keys))
        self.void |= dict.fromkeys(keys, began)

    @rule(target=outstanding, key=keys_of_tickets, interruptions=interruptions)
    def ticket(self, key: str, interruptions: list[Any]) -> Outstanding:
        self._plan(interruptions)
        return self._ticket(key)

    @rule(each=outstanding)
    def keep(self, each: Outstanding) -> None:
        kept = self._keep(each)
        if each.born < self.void[each.key]:
            assert kept is False, "an invalidation was acknowledged after its computation began"
        if each.asked > self.moved[each.key]:
            assert kept is True, "nothing has happened that means it"

    @rule(keys=st.lists(keys_of_tickets, min_size=1, max_size=3, unique=True), interruptions=interruptions)
    def delete(self, keys: list[str], interruptions: list[Any]) -> None:
        self._plan(interruptions)
        self._delete(keys)

    @rule(selector=st.sampled_from(SELECTORS), interruptions=interruptions)
    def sweep(self, selector: Selector, interruptions: list[Any]) -> None:
        present = [key for key in TAGS if self._value(key) is not None]
        meant = [key for key in TAGS if selector.matches(key, operation_of(key), TAGS[key])]
        self._plan(interruptions)
        began = self._moves(lambda key: key in meant or selector.kind == "glob")
        count = drive(self.store.sweep(selector))
        self._moves(lambda key: key in meant or selector.kind == "glob")
        self.void |= dict.fromkeys(meant, began)
        if not interruptions:
            assert count == len(set(present) & set(meant))

    @rule(key=keys_of_tickets)
    def evict_generations(self, key: str) -> None:
        self._evict(key)

    @rule(key=keys_of_tickets)
    def evict_an_entry(self, key: str) -> None:
        self.server.ask("DEL", self.store._layout.place(key).name)

    @rule()
    def lose_everything(self) -> None:
        self._moves(lambda key: True)
        self.server.ask("FLUSHALL")
        self.server.ask("SCRIPT", "FLUSH")

    @invariant()
    def nothing_is_served_that_began_before_an_acknowledged_invalidation(self) -> None:
        if hasattr(self, "store"):
            self.link.between = []
            for key in TAGS:
                value = self._value(key)
                assert value is None or self.born[value] > self.void[key]

    def teardown(self) -> None:
        if hasattr(self, "cache"):
            self.cache.blocking.close()


QUIET = [HealthCheck.too_slow, HealthCheck.filter_too_much]


@pytest.mark.slow
@pytest.mark.parametrize("kind", binaries())
def test_no_ticket_outlives_an_invalidation_whatever_is_evicted_meanwhile(kind: str) -> None:
    machine = type("Tickets", (Tickets,), {"kind": kind})
    options = settings(max_examples=40, stateful_step_count=25, suppress_health_check=QUIET)
    run_state_machine_as_test(machine, settings=options)


@pytest.mark.slow
def test_no_ticket_outlives_an_invalidation_for_long() -> None:
    options = settings(max_examples=600, stateful_step_count=50, suppress_health_check=QUIET)
    run_state_machine_as_test(Tickets, settings=options)


LOSSES: dict[str, Callable[[Here, str], Any]] = {
    "generations": lambda here, key: own().ask("DEL", here.layout.generations(here.layout.place(key).bucket)),
    "everything": lambda here, key: own().ask("FLUSHALL"),
    "nothing": lambda here, key: None,
}
MEANT: dict[str, Callable[[Any, str], Any]] = {
    "key": lambda cache, key: cache.delete(key),
    "operation": lambda cache, key: cache.invalidate_operation("qa"),
    "glob": lambda cache, key: cache.invalidate_pattern("op:q?|*"),
    "tag": lambda cache, key: cache.invalidate_tag("t"),
    "clear": lambda cache, key: cache.clear(),
}


@pytest.mark.slow
@pytest.mark.parametrize("invalidate", MEANT.values(), ids=MEANT)
@pytest.mark.parametrize("after", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("before", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("l1", [False, True])
def test_an_answer_computed_across_an_invalidation_and_a_loss_is_not_kept(
    enter: Enter, l1: bool, before: Any, after: Any, invalidate: Any
) -> None:
    here, there = enter(on(own(), enable_l1_cache=l1)), on(own()).blocking
    answers = itertools.chain(["old"], itertools.repeat("new"))

    def ask(text: str) -> str:
        answer = next(answers)
        if answer == "old":
            before(here, asked.key_for("q"))
            invalidate(there, asked.key_for("q"))
            after(here, asked.key_for("q"))
        return answer

    asked = here.cached(ask, tags=("t",))
    there.delete(asked.key_for("q"))
    assert [asked("q") for _ in range(4)] == ["old", "new", "new", "new"]
    there.close()


# The cache as a whole

HOUR = 3600
COMMON = st.sampled_from(["a", "b", "c"])
BY_HAND = st.sampled_from(["k", "kk", "op:qa|txt:|" + "0" * 32, "é"])
GLOBS = ["*", "k*", "op:qa|*", "op:*", "?", "[^k]*", "*é"]


class TwoProcesses(RuleBasedStateMachine):
    """Two caches with small L1s on one namespace, asked in both worlds, beside one dictionary.

    After every change both have heard of it: a message that goes the same way behind it has arrived. So everything
    is exact, hits as well as counts.
    """

    @initialize()
    def start(self) -> None:
        self.clock = Clock()
        first = redis_cache("server", self.clock, l1_cache_size=3, l1_max_ttl=HOUR / 2)
        self.caches = [first, self._beside(first)]
        self.heard = [_heard(cache) for cache in self.caches]
        self.loop = asyncio.new_event_loop()
        self.known: dict[str, tuple[Any, float, tuple[str, ...]]] = {}
        self.version = 0
        self.calls = 0
        self.barriers = itertools.count()
        self.functions = [self._decorated(cache) for cache in self.caches]

    def _beside(self, cache: GenericRedisCache) -> GenericRedisCache:
        small = {"l1_cache_size": 3, "l1_max_ttl": HOUR / 2}
        return on(shared("server"), namespace=cache.namespace, clock=self.clock, **small)

    def _answer(self, text: str) -> list[Any]:
        self.calls += 1
        self.version += 1
        return [text, self.version]

    def _decorated(self, cache: GenericRedisCache) -> list[Any]:
        def in_threads(text: str) -> list[Any]:
            return self._answer(text)

        async def in_tasks(text: str) -> list[Any]:
            return self._answer(text)

        options: Any = {"cache": cache, "ttl": 2 * HOUR, "tags": lambda text: (text, "all")}
        return [
            cached_ai_call(operation=operation, **options)(body)
            for operation, body in (("qa", in_threads), ("qa_later", in_tasks))
        ]

    def _run(self, result: Any) -> Any:
        return self.loop.run_until_complete(result) if asyncio.iscoroutine(result) else result

    def _ask(self, who: tuple[int, int], name: str, *args: Any) -> Any:
        cache = self.caches[who[0]]
        return self._run(getattr(cache if who[1] else cache.blocking, name)(*args))

    def _fresh(self, key: str) -> Any:
        value, ends, _ = self.known.get(key, (None, 0.0, ()))
        return value if self.clock.now < ends else None

    def _put(self, key: str, value: Any, ttl: float, tags: tuple[str, ...] = ()) -> None:
        self.known[key] = (value, self.clock.now + ttl if ttl else FOREVER, tags)

    def _settle(self, *changed: str) -> None:
        """Both have heard whatever was said, and agree."""
        said = message("nobody", Selector("key", f"barrier {next(self.barriers)}"))
        shared("server").ask("PUBLISH", f"{self.caches[0].namespace}:inv", said)
        wait_until(lambda: all(said in heard for heard in self.heard), "both have heard it")
        fresh = {key: self._fresh(key) for key in changed if self._fresh(key) is not None}
        for cache, heard in zip(self.caches, self.heard, strict=True):
            heard.clear()
            assert cache.blocking.get_many(changed) == fresh

    def _forget(self, is_meant: Callable[[str], bool], count: int) -> None:
        meant = [key for key in self.known if is_meant(key)]
        assert count == sum(self._fresh(key) is not None for key in meant)
        for key in meant:
            del self.known[key]
        self._settle(*meant)

    whos = st.tuples(st.integers(0, 1), st.integers(0, 1))

    @rule(who=whos, key=BY_HAND, ttl=st.sampled_from([0, HOUR, 2 * HOUR]))
    def set(self, who: Any, key: str, ttl: int) -> None:
        self.version += 1
        self._ask(who, "set", key, [key, self.version], ttl)
        self._put(key, [key, self.version], ttl)
        self._settle(key)

    @rule(who=whos, keys=st.sets(BY_HAND))
    def set_many(self, who: Any, keys: set[str]) -> None:
        self.version += 1
        self._ask(who, "set_many", {key: (key, self.version) for key in keys}, HOUR)
        for key in keys:
            self._put(key, (key, self.version), HOUR)
        self._settle(*keys)

    @rule(who=whos, key=BY_HAND)
    def get(self, who: Any, key: str) -> None:
        for _ in range(2):
            found = self._ask(who, "get", key)
            assert found == self._fresh(key)
            assert self._ask(who, "exists", key) == (found is not None)
            if isinstance(found, list):
                found.append("changed")

    @rule(who=whos, key=BY_HAND)
    def ttl(self, who: Any, key: str) -> None:
        left = self._ask(who, "ttl", key)
        expected = None if self._fresh(key) is None else self.known[key][1] - self.clock.now
        assert left == (None if expected in (None, FOREVER) else pytest.approx(expected))

    @rule(who=whos, keys=st.lists(BY_HAND))
    def get_many(self, who: Any, keys: list[str]) -> None:
        expected = {key: self._fresh(key) for key in keys if self._fresh(key) is not None}
        assert self._ask(who, "get_many", keys) == expected

    @rule(who=whos, key=BY_HAND)
    def get_or_compute(self, who: Any, key: str) -> None:
        self.version += 1
        expected = self._fresh(key)
        found = self._ask(who, "get_or_compute", key, lambda: [key, self.version], HOUR)
        if expected is None:
            self._put(key, [key, self.version], HOUR)
        assert found == (expected or [key, self.version])

    @rule(who=whos, text=COMMON)
    def call(self, who: Any, text: str) -> None:
        function = self.functions[who[0]][who[1]]
        key, calls = function.key_for(text), self.calls
        expected = self._fresh(key)
        found = self._run(function(text))
        assert self.calls - calls == (expected is None)
        assert found == (expected or [text, self.version])
        if expected is None:
            self._put(key, list(found), 2 * HOUR, (text, "all"))
        found.append("changed")
        assert self._run(function.peek(text)) == self._fresh(key)

    @rule(who=whos, text=COMMON)
    def refresh(self, who: Any, text: str) -> None:
        function = self.functions[who[0]][who[1]]
        found = self._run(function.refresh(text))
        assert found == [text, self.version]
        self._put(function.key_for(text), found, 2 * HOUR, (text, "all"))
        self._settle(function.key_for(text))

    @rule(who=whos, key=BY_HAND)
    def delete(self, who: Any, key: str) -> None:
        self._forget(key.__eq__, self._ask(who, "delete", key))

    @rule(who=whos, text=COMMON)
    def invalidate(self, who: Any, text: str) -> None:
        function = self.functions[who[0]][who[1]]
        self._forget(function.key_for(text).__eq__, self._run(function.invalidate(text)))

    @rule(who=whos, keys=st.lists(BY_HAND))
    def delete_many(self, who: Any, keys: list[str]) -> None:
        self._forget(keys.__contains__, self._ask(who, "delete_many", keys))

    @rule(who=whos, pattern=st.sampled_from(GLOBS))
    def invalidate_pattern(self, who: Any, pattern: str) -> None:
        matches = compile_glob(pattern).match
        self._forget(lambda key: matches(key) is not None, self._ask(who, "invalidate_pattern", pattern))

    @rule(who=whos, name=st.sampled_from(["qa", "qa_later"]))
    def invalidate_operation(self, who: Any, name: str) -> None:
        self._forget(lambda key: operation_of(key) == name, self._ask(who, "invalidate_operation", name))

    @rule(who=whos, tag=COMMON | st.just("all"))
    def invalidate_tag(self, who: Any, tag: str) -> None:
        self._forget(lambda key: tag in self.known[key][2], self._ask(who, "invalidate_tag", tag))

    @rule(who=whos)
    def clear(self, who: Any) -> None:
        self._forget(lambda key: True, self._ask(who, "clear"))

    @rule(hours=st.sampled_from([0.25, 0.5, 1, 2]))
    def advance(self, hours: float) -> None:
        self.clock.advance(hours * HOUR)

    @rule(which=st.integers(0, 1))
    def restart(self, which: int) -> None:
        """Another process takes the place of one of the two."""
        self._close(self.caches[which])
        self.caches[which] = self._beside(self.caches[which])
        self.heard[which] = _heard(self.caches[which])
        self.functions[which] = self._decorated(self.caches[which])

    def _close(self, cache: GenericRedisCache) -> None:
        self.loop.run_until_complete(cache.close())
        cache.blocking.close()

    def teardown(self) -> None:
        if hasattr(self, "caches"):
            for cache in self.caches:
                self._close(cache)
            self.loop.close()


def _heard(cache: GenericRedisCache) -> list[bytes]:
    """What a cache hears from now on."""
    heard: list[bytes] = []
    act = cache._listener._heard

    def hear(data: bytes) -> None:
        act(data)
        heard.append(data)

    cache._listener._heard = hear
    cache.blocking.connect()
    return heard


@pytest.mark.slow
def test_two_processes_agree_with_one_dictionary() -> None:
    options = settings(max_examples=30, stateful_step_count=30, suppress_health_check=QUIET)
    run_state_machine_as_test(TwoProcesses, settings=options)


@pytest.mark.slow
def test_two_processes_agree_with_one_dictionary_for_long() -> None:
    options = settings(max_examples=400, stateful_step_count=60, suppress_health_check=QUIET)
    run_state_machine_as_test(TwoProcesses, settings=options)
