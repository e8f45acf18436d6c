"""The contract of the Store port, for every store and for wrappers, in both worlds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from aimemo.core.aio import TaskRuntime
from aimemo.core.codec import pack, unpacker
from aimemo.core.entry import Entry, PackedEntry
from aimemo.core.guard import Guard
from aimemo.core.ports import Selector, Store
from aimemo.core.runtime import Runtime, ThreadRuntime, drive
from aimemo.core.types import TypeResolver
from aimemo.stores.memory import MemoryStore
from aimemo.stores.sqlite import SQLiteStore
from aimemo.stores.sqlite_file import SQLiteFile
from aimemo.stores.tiered import TieredStore
from tests.kit.clock import Clock
from tests.kit.redis_caches import redis_cache

TYPES = TypeResolver()
Run = Callable[[Coroutine[Any, Any, Any]], Any]


def memory(path: Path, clock: Clock, runtime: Runtime) -> Store:
    return MemoryStore(100, None, clock=clock, left=lambda entry, reason: None)


def sqlite(path: Path, clock: Clock, runtime: Runtime) -> Store:
    file = SQLiteFile(path / "store.db", busy_seconds=5, damaged=lambda error: None)
    return SQLiteStore(
        file, runtime, namespace="n", clock=clock, wall=clock, compression_threshold=1000, compression_level=3
    )


def guarded(path: Path, clock: Clock, runtime: Runtime) -> Store:
    store = sqlite(path, clock, runtime)
    return Guard(store, runtime, clock=clock, seconds=5, strict=True, report=lambda *_: None)


def redis(path: Path, clock: Clock, runtime: Runtime) -> Store:
    return redis_cache("server", clock, enable_l1_cache=False).memoizer_of(runtime.world).tiers.store


def redis_cluster(path: Path, clock: Clock, runtime: Runtime) -> Store:
    return redis_cache("cluster", clock, enable_l1_cache=False).memoizer_of(runtime.world).tiers.store


def redis_behind_l1(path: Path, clock: Clock, runtime: Runtime) -> Store:
    return redis_cache("server", clock).memoizer_of(runtime.world).tiers.store


def tiered(path: Path, clock: Clock, runtime: Runtime) -> Store:
    l1 = MemoryStore(100, None, clock=clock, left=lambda entry, reason: None)
    return TieredStore(l1, guarded(path, clock, runtime))


@pytest.fixture(params=["threads", "tasks"])
def world(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def run(world: str) -> Run:
    return drive if world == "threads" else asyncio.run


STORES = [memory, sqlite, guarded, tiered, redis, redis_cluster, redis_behind_l1]


@pytest.fixture(params=STORES, ids=lambda make: make.__name__)
def store(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock, world: str, run: Run) -> Any:
    made = request.param(tmp_path, clock, ThreadRuntime() if world == "threads" else TaskRuntime())
    yield made
    run(made.close())


@pytest.fixture
def entry(clock: Clock) -> Callable[..., Entry]:
    def make(key: str, value: Any = "value", *, ttl: float = 60, stale: float = 0, **more: Any) -> Entry:
        until = clock.now + ttl
        return PackedEntry(key, pack(value, TYPES), clock.now, until, until + stale, **more)

    return make


def value_of(entry: Entry | None) -> Any:
    assert entry is not None
    assert entry.payload is not None
    return unpacker(TYPES)(entry.payload)


def test_what_is_set_is_got(store: Store, run: Run, entry: Any) -> None:
    assert run(store.get("k")) is None
    assert run(store.set("k", entry("k", ["a", 1], seconds=2.5, facts={"model": "m"}))) is True
    found = run(store.get("k"))
    assert value_of(found) == ["a", 1]
    assert (found.seconds, dict(found.facts)) == (2.5, {"model": "m"})


def test_overwriting_leaves_only_the_new(store: Store, run: Run, entry: Any) -> None:
    run(store.set("k", entry("k", "small")))
    run(store.set("k", entry("k", "large" * 5000)))
    assert value_of(run(store.get("k"))) == "large" * 5000


def test_many_at_once(store: Store, run: Run, entry: Any) -> None:
    assert run(store.set_many({key: entry(key, key) for key in "abc"})) == 3
    found = run(store.get_many(["a", "c", "missing"]))
    assert {key: value_of(each) for key, each in found.items()} == {"a": "a", "c": "c"}


def test_an_entry_is_there_until_it_is_no_longer_usable(store: Store, run: Run, entry: Any, clock: Clock) -> None:
    run(store.set("k", entry("k", ttl=10, stale=5)))
    clock.advance(12)
    found = run(store.get("k"))
    assert found.fresh_until < clock.now < found.usable_until
    clock.advance(3)
    assert run(store.get("k")) is None


def test_an_entry_without_end_stays(store: Store, run: Run, entry: Any, clock: Clock) -> None:
    run(store.set("k", entry("k", ttl=float("inf"))))
    clock.advance(1e9)
    assert value_of(run(store.get("k"))) == "value"


def test_delete_tells_whether_a_usable_entry_was_there(store: Store, run: Run, entry: Any, clock: Clock) -> None:
    run(store.set("k", entry("k", ttl=10)))
    assert run(store.delete_many(["k"])) == {"k"}
    assert run(store.get("k")) is None
    assert run(store.delete_many(["k"])) == set()
    run(store.set("k", entry("k", ttl=10)))
    clock.advance(11)
    assert run(store.delete_many(["k"])) == set()


A, B, C = (f"op:{operation}|txt:{text}|{text * 32}" for operation, text in (("qa", "a"), ("qa", "b"), ("qa_long", "c")))
D = "d"
SELECTORS = [
    (Selector("operation", "qa"), {A, B}),
    (Selector("tag", "t"), {B, D}),
    (Selector("glob", "op:*|txt:[ab]|*"), {A, B}),
    (Selector("glob", "?"), {D}),
    (Selector("all"), {A, B, C, D}),
]


@pytest.fixture
def filled(store: Store, run: Run, entry: Any) -> Store:
    run(store.set(A, entry(A, operation="qa")))
    run(store.set(B, entry(B, operation="qa", tags=("t", "u"))))
    run(store.set(C, entry(C, operation="qa_long", tags=("tt",))))
    run(store.set(D, entry(D, tags=("t",))))
    return store


@pytest.mark.parametrize(("selector", "meant"), SELECTORS)
def test_a_sweep_removes_exactly_what_is_meant(filled: Store, run: Run, selector: Selector, meant: set[str]) -> None:
    assert run(filled.sweep(selector)) == len(meant)
    assert {key for key in (A, B, C, D) if run(filled.get(key)) is None} == meant
    assert run(filled.sweep(selector)) == 0


def test_a_sweep_counts_only_what_was_usable(filled: Store, run: Run, clock: Clock) -> None:
    clock.advance(61)
    assert run(filled.sweep(Selector("all"))) == 0


@pytest.mark.parametrize("selector", [Selector("key", B), *(selector for selector, meant in SELECTORS if B in meant)])
def test_a_ticket_is_void_once_an_invalidation_means_it(store: Store, run: Run, entry: Any, selector: Selector) -> None:
    ticket = run(store.ticket(B, "qa", ("t",)))
    run(store.delete_many([selector.name]) if selector.kind == "key" else store.sweep(selector))
    made = entry(B, operation="qa", tags=("t",))
    assert run(store.set(B, made, ticket)) is False
    assert run(store.get(B)) is None


@pytest.mark.parametrize(
    "selector",
    [Selector("key", C), Selector("operation", "q"), Selector("tag", "tt"), Selector("glob", "[^b]")],
)
def test_a_ticket_outlives_what_does_not_mean_it(
    store: Store, run: Run, entry: Any, selector: Selector, request: pytest.FixtureRequest
) -> None:
    store_name = request.node.callspec.params["store"].__name__
    ticket = run(store.ticket(B, "qa", ("t",)))
    run(store.delete_many([selector.name]) if selector.kind == "key" else store.sweep(selector))
    made = entry(B, operation="qa", tags=("t",))
    kept = run(store.set(B, made, ticket))
    if selector.kind == "glob" and "redis" in store_name:
        assert kept is False, "Redis cannot tell which of the keys being computed a glob means"
    else:
        assert kept is True


def test_a_ticket_taken_after_an_invalidation_is_good(store: Store, run: Run, entry: Any) -> None:
    run(store.sweep(Selector("all")))
    ticket = run(store.ticket("k", "", ()))
    assert run(store.set("k", entry("k"), ticket)) is True


def test_a_closed_store_can_be_used_again(store: Store, run: Run, entry: Any) -> None:
    run(store.connect())
    run(store.close())
    run(store.close())
    run(store.set("k", entry("k")))
    assert value_of(run(store.get("k"))) == "value"
