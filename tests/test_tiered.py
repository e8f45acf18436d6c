"""An in-process store in front of one that others share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aimemo import Cache, InfrastructureError, cached_ai_call, record_calls
from aimemo.core.entry import Entry
from aimemo.core.memoizer import Memoizer
from aimemo.core.ports import Selector
from aimemo.core.runtime import Runtime
from aimemo.core.tiers import Tiers
from aimemo.stores.memory import MemoryStore
from aimemo.stores.sqlite import SQLiteStore
from aimemo.stores.sqlite_file import SQLiteFile
from aimemo.stores.tiered import TieredStore
from tests.kit.clock import Clock

KEY = "op:qa|txt:|" + "0" * 32


class WatchedStore(SQLiteStore):
    """Calls `between` after every read, before what was read is handed on."""

    between: Callable[[], Any] = staticmethod(lambda: None)

    def find(self, key: str) -> Entry | None:
        entry = super().find(key)
        between, self.between = self.between, lambda: None
        between()
        return entry


class TieredCache(Cache):
    """A memory in front of an SQLite file, put together by hand as the Redis cache is."""

    def __init__(self, path: Path, **settings: Any) -> None:
        super().__init__(**settings)
        self.file = SQLiteFile(path, busy_seconds=self.deadline, damaged=lambda error: None)
        self.l1 = MemoryStore(100, None, clock=self.clock, left=self.journal.left, max_life=self.l1_max_ttl)
        self.l2: WatchedStore

    @property
    def _local(self) -> MemoryStore:
        return self.l1

    def _assemble(self, runtime: Runtime) -> Memoizer:
        self.l2 = WatchedStore(
            self.file, runtime, namespace=self.namespace, clock=self.clock, wall=self.wall_clock,
            compression_threshold=1000, compression_level=3,
        )  # fmt: skip
        guard = self._guarded(self.l2, runtime)
        store = TieredStore(self.l1, guard)
        tiers = Tiers(store=store, local=self.l1, guard=guard, journal=self.journal, clock=self.clock)
        return Memoizer(tiers, runtime, self._flights)


@pytest.fixture
def make(tmp_path: Path, clock: Clock) -> Iterator[Callable[..., TieredCache]]:
    """Makes caches that stand for processes: one file, each with an L1 of its own."""
    made: list[TieredCache] = []

    def make_one(**settings: Any) -> TieredCache:
        made.append(TieredCache(tmp_path / "cache.db", clock=clock, deadline=5, **settings))
        return made[-1]

    yield make_one
    for cache in made:
        cache.file.close()


@pytest.fixture
def here(make: Callable[..., TieredCache]) -> TieredCache:
    return make()


@pytest.fixture
def there(make: Callable[..., TieredCache]) -> TieredCache:
    return make()


@pytest.mark.parametrize("value", ["text", ["a", "list"]])
async def test_the_first_read_comes_from_l2_and_the_next_from_l1(
    here: TieredCache, there: TieredCache, value: Any
) -> None:
    await there.set(KEY, value)
    assert [await here.get(KEY) for _ in range(3)] == [value] * 3
    assert (here.stats().l2_hits, here.stats().l1_hits) == (1, 2)


def test_a_decorated_call_says_which_tier_answered(here: TieredCache, there: TieredCache) -> None:
    def ask(text: str) -> str:
        return text.upper()

    on = {cache: cached_ai_call(operation="qa", cache=cache)(ask) for cache in (here, there)}
    on[there]("q")
    with record_calls() as calls:
        assert [on[here]("q") for _ in range(2)] == ["Q", "Q"]
    assert [(call.outcome, call.tier) for call in calls] == [("hit", "l2"), ("hit", "l1")]


REMOVALS = {
    "delete": lambda cache: cache.delete(KEY),
    "operation": lambda cache: cache.invalidate_operation("qa"),
    "glob": lambda cache: cache.invalidate_pattern("op:q?|*"),
    "clear": lambda cache: cache.clear(),
}
each_removal = pytest.mark.parametrize("remove", REMOVALS.values(), ids=REMOVALS)


@each_removal
def test_what_is_removed_leaves_both_tiers(here: TieredCache, remove: Callable[[Any], Any]) -> None:
    here.blocking.set(KEY, "old")
    assert remove(here.blocking) == 1
    assert here.l1.find(KEY) is None
    assert here.blocking.get(KEY) is None


@each_removal
def test_what_is_removed_leaves_an_l1_that_was_filled_from_l2(
    here: TieredCache, there: TieredCache, remove: Callable[[Any], Any]
) -> None:
    there.blocking.set(KEY, "old")
    assert here.blocking.get(KEY) == "old"
    assert remove(here.blocking) == 1
    assert here.l1.find(KEY) is None
    assert here.blocking.get(KEY) is None


def test_a_tag_removes_what_l1_was_filled_with_from_l2(here: TieredCache, there: TieredCache) -> None:
    def ask(text: str) -> str:
        return text

    on = {cache: cached_ai_call(operation="qa", cache=cache, tags=("t",))(ask) for cache in (here, there)}
    on[there]("q")
    on[here]("q")
    assert here.blocking.invalidate_tag("t") == 1
    assert here.l1.entries() == []


@each_removal
def test_what_was_read_from_l2_before_a_removal_does_not_fill_l1_after_it(
    here: TieredCache, there: TieredCache, remove: Callable[[Any], Any]
) -> None:
    there.blocking.set(KEY, "old")
    here.blocking.connect()
    here.l2.between = lambda: remove(here.blocking)
    here.blocking.get(KEY)
    assert here.l1.find(KEY) is None
    assert here.blocking.get(KEY) is None


def test_one_entry_read_from_l2_by_two_at_once_fills_l1_once(here: TieredCache, there: TieredCache) -> None:
    keys = [KEY, "second", "third"]
    for key in keys:
        there.blocking.set(key, [key])
    here.blocking.get(KEY)
    here.l1.invalidate(Selector("all"))
    here.l2.between = lambda: here.blocking.get(KEY)
    for key in keys:
        assert here.blocking.get(key) == [key]
    assert here.l1.find(KEY) is not None
    assert [here.blocking.get(key) for key in keys] == [[key] for key in keys]
    assert here.stats().l1_hits >= 3


def test_what_was_read_from_l2_before_a_set_does_not_replace_what_was_set(
    here: TieredCache, there: TieredCache
) -> None:
    there.blocking.set(KEY, "old")
    here.blocking.connect()
    here.l2.between = lambda: here.blocking.set(KEY, "new")
    here.blocking.get(KEY)
    assert here.blocking.get(KEY) == "new"


@each_removal
def test_an_answer_that_l2_refuses_stays_out_of_l1(
    here: TieredCache, there: TieredCache, remove: Callable[[Any], Any]
) -> None:
    def compute() -> str:
        remove(there.blocking)
        return "old"

    assert here.blocking.get_or_compute(KEY, compute) == "old"
    assert here.l1.find(KEY) is None
    assert here.blocking.get(KEY) is None


@each_removal
def test_an_answer_that_l1_refuses_is_refused_by_l2_too(here: TieredCache, remove: Callable[[Any], Any]) -> None:
    def compute() -> str:
        remove(here.blocking)
        return "old"

    assert here.blocking.get_or_compute(KEY, compute) == "old"
    assert here.blocking.get(KEY) is None


@pytest.fixture
def broken(tmp_path: Path, clock: Clock) -> TieredCache:
    """Its L2 is a file below a file."""
    (tmp_path / "file").touch()
    return TieredCache(tmp_path / "file" / "cache.db", clock=clock)


async def test_an_answer_that_l2_cannot_take_is_kept_in_l1(broken: TieredCache) -> None:
    assert await broken.get_or_compute(KEY, lambda: "new") == "new"
    assert await broken.get_or_compute(KEY, lambda: "other") == "new"
    await broken.set("by hand", 1)
    await broken.set_many({"many": 2})
    assert await broken.get_many(["by hand", "many"]) == {"by hand": 1, "many": 2}
    assert broken.stats().errors > 0


@each_removal
def test_a_removal_that_l2_does_not_acknowledge_raises_and_reaches_l1(
    broken: TieredCache, remove: Callable[[Any], Any]
) -> None:
    broken.blocking.set(KEY, "old")
    with pytest.raises(InfrastructureError):
        remove(broken.blocking)
    assert broken.l1.find(KEY) is None


@each_removal
def test_a_removal_that_l2_does_not_acknowledge_voids_what_is_being_computed(
    broken: TieredCache, remove: Callable[[Any], Any]
) -> None:
    def compute() -> str:
        with pytest.raises(InfrastructureError):
            remove(broken.blocking)
        return "old"

    assert broken.blocking.get_or_compute(KEY, compute) == "old"
    assert broken.l1.find(KEY) is None


@pytest.mark.parametrize(("ttl", "age", "l1_max_ttl", "life"), [(60, 50, 60, 10), (60, 50, 5, 5), (0, 50, 60, 60)])
def test_l1_keeps_no_longer_than_what_l2_has_left_nor_than_its_own_limit(
    make: Callable[..., TieredCache], clock: Clock, ttl: int, age: int, l1_max_ttl: int, life: int
) -> None:
    make().blocking.set(KEY, "old", ttl)
    clock.advance(age)
    cache = make(l1_max_ttl=l1_max_ttl)
    assert cache.blocking.get(KEY) == "old"
    clock.advance(life - 0.1)
    assert cache.l1.find(KEY) is not None
    clock.advance(0.2)
    assert cache.l1.find(KEY) is None


def test_l1s_own_limit_does_not_shorten_what_l2_keeps(make: Callable[..., TieredCache], clock: Clock) -> None:
    cache = make(l1_max_ttl=5)
    cache.blocking.set_many({KEY: "old"}, ttl=60)
    cache.blocking.get_or_compute("computed", lambda: "old", ttl=60)
    clock.advance(50)
    assert cache.blocking.get_many([KEY, "computed"]) == {KEY: "old", "computed": "old"}
    assert cache.blocking.ttl(KEY) == 10, "what is left of it wherever it is stored"


def test_what_another_process_removed_is_gone_here_within_the_limit(
    here: TieredCache, there: TieredCache, clock: Clock
) -> None:
    here.blocking.set(KEY, "old")
    assert there.blocking.delete(KEY) is True
    clock.advance(here.l1_max_ttl)
    assert here.blocking.get(KEY) is None
