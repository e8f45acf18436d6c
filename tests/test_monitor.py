"""A monitor is told of every operation of its caches, and adds up what it is told in bounded memory."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from typing import Any
from unittest.mock import AsyncMock, MagicMock, patch

import pytest

from aimemo import Cache, CachePerformanceMonitor, InMemoryCache, SQLiteCache, cached_ai_call
from aimemo.core.events import GATE
from tests.kit.clock import Clock

ALWAYS = {"timestamp", "cache_hit_rate", "total_cache_operations", "cache_hits", "cache_misses"}


@pytest.fixture
def monitor() -> CachePerformanceMonitor:
    return CachePerformanceMonitor()


@pytest.fixture
def watched(monitor: CachePerformanceMonitor, clock: Clock) -> Iterator[InMemoryCache]:
    cache = InMemoryCache(2, clock=clock, performance_monitor=monitor)
    yield cache
    cache._performance_monitor = None


@pytest.fixture(params=["tasks", "threads"])
def world(request: pytest.FixtureRequest) -> str:
    return request.param


async def do(cache: Cache, world: str, method: str, *args: Any) -> Any:
    """Call a method of a cache, or its twin that does not await."""
    return getattr(cache.blocking, method)(*args) if world == "threads" else await getattr(cache, method)(*args)


def counts(monitor: CachePerformanceMonitor) -> tuple[int, int, int]:
    return monitor.total_operations, monitor.cache_hits, monitor.cache_misses


async def test_reads_writes_and_deletes_are_counted(
    watched: InMemoryCache, monitor: CachePerformanceMonitor, world: str
) -> None:
    await do(watched, world, "set", "k", 1)
    await do(watched, world, "get", "k")
    await do(watched, world, "get", "other")
    assert counts(monitor) == (3, 1, 1)
    await do(watched, world, "delete", "k")
    assert counts(monitor) == (4, 1, 1)
    operations = monitor.get_performance_stats()["cache_operations"]
    assert {name: section["count"] for name, section in operations.items()} == {"set": 1, "get": 2, "delete": 1}


async def test_an_expired_entry_is_a_miss(
    watched: InMemoryCache, monitor: CachePerformanceMonitor, world: str, clock: Clock
) -> None:
    await do(watched, world, "set", "k", 1, 5)
    clock.advance(6)
    await do(watched, world, "get", "k")
    assert counts(monitor) == (2, 0, 1)


async def test_decorated_calls_are_counted(watched: InMemoryCache, monitor: CachePerformanceMonitor) -> None:
    @cached_ai_call(operation="ask", cache=watched)
    async def ask(text: str) -> str:
        await asyncio.sleep(0)
        return text

    @cached_ai_call(operation="ask at once", cache=watched)
    def ask_at_once(text: str) -> str:
        return text

    await asyncio.gather(*(ask("q") for _ in range(3)))
    assert (monitor.cache_hits, monitor.cache_misses) == (2, 1)
    ask_at_once("q"), ask_at_once("q")
    assert (monitor.cache_hits, monitor.cache_misses) == (3, 2)


async def test_writes_do_not_dilute_the_hit_rate(
    watched: InMemoryCache, monitor: CachePerformanceMonitor, world: str
) -> None:
    assert monitor.cache_hit_rate == 0.0
    for number in range(20):
        await do(watched, world, "set", "k", number)
    for _ in range(3):
        await do(watched, world, "get", "k")
    await do(watched, world, "get", "other")
    await do(watched, world, "delete", "k")
    assert monitor.cache_hit_rate == monitor.get_performance_stats()["cache_hit_rate"] == 0.75


def test_a_monitor_without_data_has_no_sections(monitor: CachePerformanceMonitor) -> None:
    stats = monitor.get_performance_stats()
    assert stats.keys() == ALWAYS
    assert (stats["cache_hit_rate"], stats["total_cache_operations"]) == (0.0, 0)


RECORDS = {
    "key_generation": lambda monitor: monitor.record_key_generation_time(0.1, text_length=3, operation_type="qa"),
    "cache_operations": lambda monitor: monitor.record_cache_operation_time("get", 0.1, cache_hit=True),
    "invalidation": lambda monitor: monitor.record_invalidation_event("qa:*", 3, 0.1),
    "memory_usage": lambda monitor: monitor.record_cache_operation_time(
        "set", 0.1, additional_data={"size_raw": 10, "size_stored": 10}
    ),
    "compression": lambda monitor: monitor.record_cache_operation_time(
        "set", 0.1, additional_data={"size_raw": 10, "size_stored": 4}
    ),
}


@pytest.mark.parametrize("section", RECORDS)
def test_a_section_is_there_once_it_has_data(monitor: CachePerformanceMonitor, section: str) -> None:
    RECORDS[section](monitor)
    stats = monitor.get_performance_stats()
    with_it = {"compression": {"cache_operations", "memory_usage"}, "memory_usage": {"cache_operations"}}
    assert stats.keys() - ALWAYS == {section} | with_it.get(section, set())
    assert json.loads(json.dumps(stats)) == stats
    monitor.reset_stats()
    assert monitor.get_performance_stats().keys() == ALWAYS


def test_durations_are_summed_up(monitor: CachePerformanceMonitor) -> None:
    for seconds in (0.1, 0.2, 0.6):
        monitor.record_cache_operation_time(operation="get", duration=seconds, cache_hit=False)
    section = monitor.get_performance_stats()["cache_operations"]["get"]
    assert section == {
        "count": 3, "avg_duration": pytest.approx(0.3), "median_duration": 0.2, "max_duration": 0.6, "min_duration": 0.1
    }  # fmt: skip


def test_compression_and_sizes_are_summed_up(monitor: CachePerformanceMonitor) -> None:
    for raw, stored in ((1000, 100), (500, 400), (100, 100)):
        monitor.record_cache_operation_time("set", 0.1, additional_data={"size_raw": raw, "size_stored": stored})
    monitor.record_eviction()
    stats = monitor.get_performance_stats()
    assert stats["memory_usage"] == {"entries_written": 3, "bytes_raw": 1600, "bytes_stored": 600, "evictions": 1}
    assert stats["compression"] == {"compressed_entries": 2, "overall_compression_ratio": 0.375, "bytes_saved": 1000}


def test_invalidations_are_summed_up_by_type(monitor: CachePerformanceMonitor) -> None:
    monitor.record_invalidation_event("a", 3)
    monitor.record_invalidation_event("b", 4, invalidation_type="tag")
    assert monitor.get_performance_stats()["invalidation"] == {
        "total_invalidations": 2, "keys_invalidated": 7, "by_manual": 1, "by_tag": 1
    }  # fmt: skip


async def test_a_cache_tells_of_invalidations_and_evictions(
    watched: InMemoryCache, monitor: CachePerformanceMonitor, world: str
) -> None:
    for number in range(4):
        await do(watched, world, "set", f"qa:{number}", [number])
    await do(watched, world, "invalidate_pattern", "qa:*")
    stats = monitor.get_performance_stats()
    assert stats["memory_usage"]["evictions"] == 2
    assert stats["invalidation"]["keys_invalidated"] == 2
    assert monitor.total_operations == 4


async def test_a_cache_that_compresses_tells_how_much(
    monitor: CachePerformanceMonitor, world: str, tmp_path: Any
) -> None:
    cache = SQLiteCache(tmp_path / "c.db", deadline=5, performance_monitor=monitor)
    await do(cache, world, "set", "k", "the same again and again " * 200)
    section = monitor.get_performance_stats()["compression"]
    assert section["compressed_entries"] == 1
    assert 0 < section["overall_compression_ratio"] < 0.2
    await cache.close()


def test_any_number_of_records_leaves_memory_flat(monitor: CachePerformanceMonitor) -> None:
    def record(times: int) -> None:
        for number in range(times):
            monitor.record_cache_operation_time(
                "get", number / 7, cache_hit=True, additional_data={"operation": f"op {number}", "size_raw": 9}
            )

    record(2000)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    record(1000)  # now the durations that are kept are all counted
    filled = tracemalloc.get_traced_memory()[0] - before
    record(5000)
    grown = tracemalloc.get_traced_memory()[0] - before - filled
    tracemalloc.stop()
    assert grown < 10 * 5000
    assert monitor.get_performance_stats()["cache_operations"]["get"]["count"] == monitor.cache_hits == 8000


async def test_one_monitor_watches_several_caches(
    watched: InMemoryCache, monitor: CachePerformanceMonitor, world: str, tmp_path: Any
) -> None:
    other = SQLiteCache(tmp_path / "c.db", deadline=5, performance_monitor=monitor)
    for cache in (watched, other):
        await do(cache, world, "set", "k", 1)
        await do(cache, world, "get", "k")
    assert counts(monitor) == (4, 2, 0)
    await other.close()


def test_caches_in_several_threads_lose_no_count(watched: InMemoryCache, monitor: CachePerformanceMonitor) -> None:
    def work() -> None:
        for _ in range(200):
            watched.blocking.get("k")
            monitor.get_performance_stats()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts(monitor) == (800, 0, 800)
    assert watched.stats().callback_errors == 0


def test_threads_lose_no_count_of_sizes_and_invalidations(monitor: CachePerformanceMonitor) -> None:
    def work() -> None:
        for _ in range(500):
            monitor.record_cache_operation_time("set", 0.1, additional_data={"size_raw": 10, "size_stored": 4})
            monitor.record_invalidation_event("qa:*", 2)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    stats = monitor.get_performance_stats()
    assert stats["memory_usage"] == {
        "entries_written": 2000, "bytes_raw": 20_000, "bytes_stored": 8000, "evictions": 0
    }  # fmt: skip
    assert stats["compression"]["compressed_entries"] == 2000
    assert stats["invalidation"] == {"total_invalidations": 2000, "keys_invalidated": 4000, "by_manual": 2000}


def test_a_new_operation_may_begin_while_figures_are_made(
    monitor: CachePerformanceMonitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monitor.record_cache_operation_time("get", 0.1, cache_hit=True)
    meanwhile = lambda _: monitor.record_cache_operation_time("delete", 0.1) or 0.0
    monkeypatch.setattr("aimemo.measure.monitor.statistics.median", meanwhile)
    assert monitor.get_performance_stats()["cache_operations"].keys() == {"get"}


async def test_a_monitor_may_be_replaced_and_taken_away(
    watched: InMemoryCache, monitor: CachePerformanceMonitor, world: str
) -> None:
    other = CachePerformanceMonitor()
    watched._performance_monitor = other
    await do(watched, world, "get", "k")
    watched._performance_monitor = None
    await do(watched, world, "get", "k")
    assert watched._performance_monitor is None
    watched._performance_monitor = monitor
    await do(watched, world, "get", "k")
    assert (counts(other), counts(monitor)) == ((1, 0, 1), (1, 0, 1))


async def test_an_unwatched_cache_leaves_the_gate_open(watched: InMemoryCache) -> None:
    before = len(GATE)
    watched._performance_monitor = None
    assert len(GATE) == before - 1
    watched._on_cache_operation = print
    assert len(GATE) == before
    watched._on_cache_operation = None
    assert len(GATE) == before - 1


@pytest.mark.parametrize("record", [MagicMock, AsyncMock])
async def test_a_patched_monitor_is_told_as_long_as_it_is_there(world: str, record: Any) -> None:
    cache, mock = InMemoryCache(), MagicMock()
    mock.record_cache_operation_time = record()
    with patch.object(cache, "_performance_monitor", mock):
        assert cache._performance_monitor is mock
        await do(cache, world, "set", "k", "value")
        await do(cache, world, "get", "k")
    await do(cache, world, "get", "k")
    assert cache._performance_monitor is None
    calls = [call.kwargs for call in mock.record_cache_operation_time.call_args_list]
    assert [(call["operation"], call["cache_hit"]) for call in calls] == [("set", None), ("get", True)]
    assert all(isinstance(call["duration"], float) for call in calls)


async def test_patching_gives_the_former_monitor_back(
    watched: InMemoryCache, monitor: CachePerformanceMonitor, world: str
) -> None:
    with patch.object(watched, "_performance_monitor", None):
        await do(watched, world, "get", "k")
    await do(watched, world, "get", "k")
    assert counts(monitor) == (1, 0, 1)


@pytest.mark.parametrize("mock", [MagicMock, AsyncMock])
@pytest.mark.parametrize("error", [None, Exception("no"), RuntimeError("no")], ids=repr)
async def test_a_patched_hook_is_called_and_its_failure_reaches_nobody(world: str, mock: Any, error: Any) -> None:
    cache, hook = InMemoryCache(), mock(side_effect=error)
    with patch.object(cache, "_on_cache_operation", hook):
        await do(cache, world, "set", "k", "value")
        assert await do(cache, world, "get", "k") == "value"
        assert await do(cache, world, "get", "other") is None
        assert await do(cache, world, "delete", "k") is True
    await do(cache, world, "get", "k")
    assert [call.args[0] for call in hook.call_args_list] == ["set", "get", "get", "delete"]
    assert [call.args[1].kind for call in hook.call_args_list] == ["set", "hit", "miss", "delete"]
    assert cache.stats().callback_errors == (4 if error else 0)


async def test_a_monitor_that_fails_harms_nobody_and_leaves_the_hook_alone(world: str) -> None:
    cache, told = InMemoryCache(), MagicMock()
    broken = MagicMock(**{"record_cache_operation_time.side_effect": ZeroDivisionError})
    with patch.object(cache, "_performance_monitor", broken), patch.object(cache, "_on_cache_operation", told):
        assert await do(cache, world, "get_or_compute", "k", lambda: 3) == 3
        assert await do(cache, world, "get", "k") == 3
    assert sorted(call.args[0] for call in told.call_args_list) == ["get", "get", "set"]
    assert cache.stats().callback_errors == 3


async def test_a_monitor_need_not_know_of_everything(world: str) -> None:
    class Counting:
        count = 0

        def record_cache_operation_time(self, **_: Any) -> None:
            self.count += 1

    own = Counting()
    cache = InMemoryCache(1, performance_monitor=own)
    for key in "ab":
        await do(cache, world, "set", key, 1)
    await do(cache, world, "invalidate_pattern", "*")
    assert (own.count, cache.stats().callback_errors) == (2, 0)
