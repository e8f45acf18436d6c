"""Memory: bounds, SIEVE, and the order of arrival."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from aimemo import InMemoryCache
from aimemo.core.entry import Entry, PackedEntry
from aimemo.core.runtime import drive
from aimemo.stores.memory import MemoryStore
from benchmarks import eviction
from tests.kit.clock import Clock


def store_of(size: int, max_bytes: int | None = None) -> tuple[MemoryStore, list[tuple[str, str]], Clock]:
    left: list[tuple[str, str]] = []
    clock = Clock(0)
    made = MemoryStore(size, max_bytes, clock=clock, left=lambda entry, reason: left.append((entry.key, reason)))
    return made, left, clock


def put(store: MemoryStore, *keys: str, payload: bytes = b"", until: float = 100) -> None:
    for key in keys:
        drive(store.set(key, PackedEntry(key, payload, 0, until, until)))


def read(store: MemoryStore, *keys: str) -> None:
    for key in keys:
        entry = store.find(key)
        assert entry is not None
        entry.hits += 1


def keys_of(store: MemoryStore) -> set[str]:
    return {entry.key for entry in store.entries()}


def test_the_oldest_that_was_not_read_goes_first() -> None:
    store, left, _ = store_of(3)
    put(store, "a", "b", "c")
    read(store, "a")
    put(store, "d")
    assert left == [("b", "evicted")]


def test_with_all_read_in_order_the_oldest_goes_first() -> None:
    store, left, _ = store_of(3)
    put(store, "a", "b", "c")
    read(store, "a", "b", "c")
    put(store, "d")
    assert left == [("a", "evicted")]


def test_the_hand_goes_on_from_where_it_stopped() -> None:
    store, left, _ = store_of(4)
    put(store, "a", "b", "c", "d")
    read(store, "a", "c")
    put(store, "e", "f", "g")
    assert [key for key, _ in left] == ["b", "d", "e"]


def test_overwriting_evicts_nothing_and_counts_as_a_use() -> None:
    store, left, _ = store_of(3)
    put(store, "a", "b", "c", "a")
    assert left == [("a", "replaced")]
    put(store, "d")
    assert left[1:] == [("b", "evicted")]


def test_a_scan_does_not_push_out_what_is_asked_often() -> None:
    store, _, _ = store_of(10)
    put(store, *"abcde")
    for number in range(200):
        read(store, *"abcde")
        put(store, f"scan-{number}")
    assert set("abcde") <= keys_of(store)


def test_an_expired_entry_goes_before_a_live_one_that_was_not_read() -> None:
    store, left, clock = store_of(3)
    put(store, "a", until=5)
    put(store, "b", "c")
    read(store, "a")
    clock.advance(6)
    put(store, "d")
    assert left == [("a", "expired")]
    assert store.find("a") is None


def test_bytes_are_bounded_too() -> None:
    store, left, _ = store_of(100, max_bytes=100)
    put(store, "a", "b", payload=b"x" * 40)
    put(store, "c", payload=b"x" * 60)
    assert (store.size_bytes, [key for key, _ in left]) == (100, ["a"])
    put(store, "b", payload=b"x" * 90)
    assert store.size_bytes == 90
    assert keys_of(store) == {"b"}


def test_a_value_larger_than_the_bound_is_not_kept_and_pushes_nothing_out() -> None:
    cache = InMemoryCache(max_bytes=100)
    reasons: list[str] = []
    cache.on("not_kept", lambda event: reasons.append(event.reason))
    cache.blocking.set("small", "x")
    cache.blocking.set("large", "x" * 200)
    assert cache.blocking.get_many(["small", "large"]) == {"small": "x"}
    assert reasons == ["store"]


@given(st.lists(st.tuples(st.sampled_from(["put", "read", "delete"]), st.integers(0, 9)), max_size=80))
def test_the_list_the_dictionary_and_the_sizes_always_agree(steps: list[tuple[str, int]]) -> None:
    store, left, _ = store_of(4, max_bytes=50)
    for action, number in steps:
        key = str(number)
        if action == "put":
            put(store, key, payload=b"x" * number)
        elif action == "read" and store.find(key) is not None:
            read(store, key)
        elif action == "delete":
            drive(store.delete_many([key]))
        chain: list[Any] = []
        entry: Entry | None = store._oldest
        while entry is not None:
            assert entry.newer is None or entry.newer.older is entry
            chain.append(entry)
            entry = entry.newer
        assert {each.key: each for each in chain} == store._entries
        assert store._newest is (chain[-1] if chain else None)
        assert store._hand is None or store._hand in chain
        assert store.size_bytes == sum(each.raw_size for each in chain) <= 50
        assert len(store) <= 4
    assert all(reason in ("evicted", "replaced", "deleted") for _, reason in left)


def test_sieve_beats_lru_on_a_zipf_stream_with_keys_asked_once() -> None:
    ours = eviction.sieve(eviction.stream(20_000, skew=0.9, once=0.2), 500)
    theirs = eviction.lru(eviction.stream(20_000, skew=0.9, once=0.2), 500)
    assert ours > theirs * 1.1


def test_evictions_are_counted_and_told() -> None:
    cache = InMemoryCache(max_size=2)
    told: list[str] = []
    cache.on("evicted", lambda event: told.append(event.reason))
    for key in "abc":
        cache.blocking.set(key, key)
    assert cache.stats().evictions == 1
    assert told == ["size"]


def test_hits_of_what_has_left_are_still_counted() -> None:
    cache = InMemoryCache(max_size=1)
    cache.blocking.set("a", 1)
    cache.blocking.get("a")
    cache.blocking.set("b", 1)
    cache.blocking.set("c", 1)
    assert cache.stats().l1_hits == 1
