"""What the guide that aimemo grew from tests: the same behaviour, on our clocks and servers."""

from __future__ import annotations

import asyncio
import gc
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from unittest.mock import AsyncMock, MagicMock, patch

import pytest
from aimemo.benchmarks.config import BenchmarkConfig, ConfigPresets
from aimemo.benchmarks.core import CacheBenchmarkRunner

from aimemo import (
    CacheFactory,
    ConfigurationError,
    GenericRedisCache,
    InfrastructureError,
    InMemoryCache,
    ValidationError,
    compose_callbacks,
)
from tests.kit import stalls
from tests.kit.clock import Clock
from tests.kit.redis_caches import redis_cache, shared
from tests.kit.servers import Server

NOWHERE = "redis://nonexistent.invalid:6379"


@pytest.fixture
def factory() -> CacheFactory:
    return CacheFactory()


@pytest.fixture
def memory(clock: Clock) -> InMemoryCache:
    return InMemoryCache(max_size=100, default_ttl=3600, clock=clock)


@pytest.fixture
async def redis(clock: Clock) -> AsyncIterator[GenericRedisCache]:
    cache = redis_cache("server", clock, l1_cache_size=100)
    yield cache
    await cache.clear()
    await cache.close()


async def test_a_web_app_without_redis_has_memory_of_the_same_settings(factory: CacheFactory) -> None:
    cache = await factory.for_web_app(
        redis_url=NOWHERE, fail_on_connection_error=False, default_ttl=1800, l1_cache_size=200
    )
    assert isinstance(cache, InMemoryCache)
    assert (cache.default_ttl, cache.max_size) == (1800, 200)


async def test_an_ai_app_without_redis_has_memory_of_the_same_settings(factory: CacheFactory) -> None:
    ttls = {"summarize": 1800, "sentiment": 3600}
    cache = await factory.for_ai_app(
        redis_url=NOWHERE, default_ttl=7200, text_hash_threshold=1000, memory_cache_size=200, operation_ttls=ttls
    )
    assert isinstance(cache, InMemoryCache)
    assert (cache.default_ttl, cache.max_size, cache.text_hash_threshold) == (7200, 200, 1000)
    assert cache.operation_ttls == ttls


async def test_what_is_set_can_be_read_until_it_is_deleted(memory: InMemoryCache) -> None:
    await memory.set("k", "value")
    assert await memory.get("k") == "value"
    await memory.delete("k")
    assert await memory.get("k") is None


async def test_an_entry_expires(memory: InMemoryCache, clock: Clock) -> None:
    await memory.set("k", "value", ttl=1)
    assert await memory.get("k") == "value"
    clock.advance(1.5)
    assert await memory.get("k") is None


@pytest.mark.parametrize("reads", [True, False])
async def test_of_four_entries_the_oldest_leaves_a_cache_of_three(reads: bool) -> None:
    cache = InMemoryCache(max_size=3)
    for number in range(1, 4):
        await cache.set(f"key{number}", f"value{number}")
        assert not reads or await cache.get(f"key{number}") == f"value{number}"
    await cache.set("key4", "value4")
    assert await cache.get("key1") is None
    assert await cache.get("key4") == "value4"


async def test_of_ten_entries_the_latest_five_stay_in_a_cache_of_five() -> None:
    cache = InMemoryCache(max_size=5)
    for number in range(10):
        await cache.set(f"key_{number}", f"value_{number}")
    found = [await cache.get(f"key_{number}") for number in range(10)]
    assert found == [None] * 5 + [f"value_{number}" for number in range(5, 10)]


@pytest.mark.redis
@pytest.mark.parametrize("value", [{"data": "value"}, {"list": [1, 2, 3], "dict": {"nested": "value"}, "number": 42}])
async def test_redis_gives_back_what_was_set(redis: GenericRedisCache, value: Any) -> None:
    await redis.set("k", value)
    assert await redis.get("k") == value


async def test_a_cache_that_fell_back_works(factory: CacheFactory) -> None:
    cache = await factory.for_web_app(redis_url=NOWHERE)
    await cache.set("k", "value")
    assert await cache.get("k") == "value"


@pytest.mark.redis
async def test_what_was_read_before_the_server_went_away_is_read_on(factory: CacheFactory) -> None:
    with Server() as server:
        cache = await factory.for_testing(
            redis_url=server.url, enable_l1_cache=True, performance_monitor=None, deadline=5
        )
        await cache.set("k", "important")
        assert await cache.get("k") == "important"
    await cache.get("k")  # with a message or without: nothing is raised
    await cache.set("k", "more")
    await cache.close()


async def test_the_monitor_of_a_factory_counts(factory: CacheFactory) -> None:
    cache = await factory.for_testing(use_memory_cache=True)
    await cache.set("k", "value")
    await cache.get("k")
    await cache.get("other")
    monitor = factory._performance_monitor
    assert (monitor.total_operations, monitor.cache_hits, monitor.cache_misses) == (3, 1, 1)


async def test_bulk_writes_are_fast_enough(factory: CacheFactory) -> None:
    cache = await factory.for_testing(use_memory_cache=True, l1_cache_size=200)
    config = BenchmarkConfig(2, 1, timeout_seconds=30, enable_memory_tracking=True, enable_compression_tests=False)
    data = [{"key": f"key_{number}", "value": f"value_{number}" * 10, "size_kb": 0.1} for number in range(50)]
    results = await CacheBenchmarkRunner(config).run_bulk_set_benchmark(cache=cache, test_data=data, iterations=2)
    assert results.avg_duration_ms < 50
    assert results.success_rate == 1.0
    assert results.operations_per_second > 20


async def test_large_values_need_little_more_memory_than_they_are() -> None:
    tracemalloc.start()
    cache = InMemoryCache(max_size=100)
    for number in range(100):
        await cache.set(f"key_{number}", [f"{number}" + "x" * 100 * 1024])
    peak = tracemalloc.get_traced_memory()[0]
    await cache.clear()
    left = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert peak < 12 * 2**20
    assert left < 2**20


@pytest.mark.redis
async def test_what_can_be_compressed_is_and_comes_back_whole(redis: GenericRedisCache, factory: CacheFactory) -> None:
    text = "This is repeated text. " * 100
    for cache in (redis, await factory.for_ai_app(use_memory_cache=True, compression_threshold=1000)):
        await cache.set("k", text)
        assert await cache.get("k") == text
    assert redis.stats().bytes_stored < 500


async def test_a_larger_cache_is_no_regression(factory: CacheFactory) -> None:
    small, large = [await factory.for_testing(use_memory_cache=True, l1_cache_size=size) for size in (50, 100)]
    gc.freeze()
    comparison = await CacheBenchmarkRunner(ConfigPresets.ci_config()).run_cache_comparison(
        original_cache=small, new_cache=large, test_suite_name="regression_test"
    )
    gc.unfreeze()
    assert not comparison.regression_detected
    assert comparison.performance_change_percent < 0


async def test_a_patched_monitor_is_told_by_keyword(memory: InMemoryCache) -> None:
    monitor = MagicMock(record_cache_operation_time=AsyncMock(), record_key_generation_time=AsyncMock())
    with patch.object(memory, "_performance_monitor", monitor):
        await memory.set("k", "value")
        await memory.get("k")
    first, *_ = calls = monitor.record_cache_operation_time.call_args_list
    assert len(calls) >= 2
    assert first.kwargs["operation"] == "set"
    assert "duration" in first.kwargs


async def test_a_hook_that_raises_does_not_reach_the_caller(memory: InMemoryCache) -> None:
    hook = AsyncMock(side_effect=Exception("Callback error"))
    with patch.object(memory, "_on_cache_operation", hook):
        await memory.set("k", "value")
        assert await memory.get("k") == "value"
    assert hook.await_count == 2


async def test_composed_callbacks_are_all_called(memory: InMemoryCache) -> None:
    callbacks = [MagicMock(), MagicMock(side_effect=ValueError), AsyncMock(), MagicMock()]
    memory.register_callback("set_success", compose_callbacks(*callbacks))
    await memory.set("k", "value")
    for callback in callbacks:
        callback.assert_called_once_with("k", "value")


async def test_concurrent_reads_and_writes_all_succeed(memory: InMemoryCache) -> None:
    pairs = [(f"key_{number}", number) for number in range(10)]
    steps: list[Awaitable[Any]] = []
    for key, value in pairs:
        steps += [memory.set(key, value), memory.get(key)]
    results = await asyncio.gather(*steps)
    assert results[::2] == [None] * 10
    assert await memory.get_many(key for key, _ in pairs) == dict(pairs)


async def test_a_cache_is_an_async_context_manager() -> None:
    async with InMemoryCache() as cache:
        await cache.set("k", "value")
        assert await cache.get("k") == "value"


async def test_entries_may_come_from_an_async_generator(memory: InMemoryCache) -> None:
    async def entries() -> AsyncIterator[tuple[str, str]]:
        for number in range(5):
            yield f"key_{number}", f"value_{number}"
            await asyncio.sleep(0)

    async for key, value in entries():
        await memory.set(key, value)
    assert [await memory.get(f"key_{number}") for number in range(5)] == [f"value_{number}" for number in range(5)]


async def test_a_write_that_timed_out_before_it_began_left_nothing(memory: InMemoryCache) -> None:
    async def slow() -> None:
        await asyncio.Event().wait()
        await memory.set("k", "value")

    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(slow(), timeout=0.01)
    assert await memory.get("k") is None


@pytest.mark.redis
async def test_a_strict_cache_raises_when_the_server_hangs_and_another_goes_on() -> None:
    with Server() as server:
        strict = GenericRedisCache(server.url, strict=True, enable_l1_cache=False)
        tolerant = GenericRedisCache(server.url, enable_l1_cache=False)
        async with GenericRedisCache(server.url, strict=True, enable_l1_cache=False, deadline=5) as patient:
            await patient.set("k", "value")
        assert await strict.connect()
        assert await tolerant.connect()
        server.freeze()
        with pytest.raises(InfrastructureError):
            await strict.set("k", "other")
        await tolerant.set("k", "other")
        assert await tolerant.get("k") is None
        server.thaw()
        await strict.close()
        await tolerant.close()


@pytest.mark.redis
async def test_a_cache_is_closed_although_its_block_failed() -> None:
    with pytest.raises(ValueError, match="Simulated"):
        async with redis_cache("server", client=None) as cache:
            await cache.set("k", "value")
            raise ValueError("Simulated error")
    assert await cache.get("k") == "value"  # it opens again when it is used again
    await cache.close()


@pytest.mark.parametrize(
    ("method", "setting", "value", "message"),
    [("for_web_app", "redis_url", "", "redis_url cannot be empty"),
     ("for_web_app", "redis_url", "http://localhost:6379", "redis_url must start with 'redis://'"),
     ("for_web_app", "redis_url", "redis://", "must include host information"),
     ("for_web_app", "redis_url", 123, "redis_url must be a string"),
     ("for_web_app", "default_ttl", -100, "default_ttl must be non-negative"),
     ("for_web_app", "default_ttl", "3600", "must be an integer"),
     ("for_web_app", "default_ttl", 86400 * 366, "must not exceed 365 days"),
     ("for_web_app", "default_ttl", float("inf"), "must be an integer"),
     ("for_ai_app", "text_hash_threshold", -1, "must be a non-negative integer"),
     ("for_ai_app", "memory_cache_size", 0, "must be a positive integer"),
     ("for_ai_app", "operation_ttls", "invalid", "must be a dictionary"),
     ("for_ai_app", "operation_ttls", {"": 3600}, "keys must be non-empty strings"),
     ("for_ai_app", "operation_ttls", {"test": -1}, "must be a non-negative integer")],
)  # fmt: skip
async def test_faulty_settings_are_refused(
    factory: CacheFactory, method: str, setting: str, value: Any, message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        await getattr(factory, method)(**{"redis_url": "redis://localhost:6379", setting: value})


async def test_an_empty_configuration_is_refused(factory: CacheFactory) -> None:
    with pytest.raises(ValidationError, match="redis_url is required"):
        await factory.create_cache_from_config({})
    assert issubclass(ConfigurationError, ValidationError)


@pytest.mark.parametrize("url", ["redis://nonexistent.invalid:6379", "redis://localhost:99999", "redis://127.0.0.1:1"])
async def test_a_failed_connection_is_an_error_or_memory(factory: CacheFactory, url: str) -> None:
    with pytest.raises(InfrastructureError, match="Redis connection failed"):
        await factory.for_web_app(redis_url=url, fail_on_connection_error=True)
    assert isinstance(await factory.for_web_app(redis_url=url, fail_on_connection_error=False), InMemoryCache)


async def test_a_patched_client_does_not_break_a_cache_in_memory(memory: InMemoryCache) -> None:
    with patch.object(memory, "_redis_client", MagicMock(**{"set.side_effect": ConnectionError("Connection lost")})):
        await memory.set("k", "value")
        assert await memory.get("k") == "value"
    await memory._redis_client.close()  # as the fixture of the document does


async def test_a_value_that_cannot_be_packed_is_refused_and_harms_no_other(memory: InMemoryCache) -> None:
    class Circular:
        def __init__(self) -> None:
            self.circle = self

    with pytest.raises((TypeError, ValueError)):
        await memory.set("bad", Circular())
    await memory.set("good", {"key": "value"})
    assert await memory.get("bad") is None
    assert await memory.get("good") == {"key": "value"}


@pytest.mark.redis
async def test_bytes_that_somebody_else_wrote_are_a_miss() -> None:
    cache = redis_cache("server", enable_l1_cache=False)
    client = shared("server").client
    await cache.set("k", {"key": "value"})
    for key in client.scan_iter(f"{{{cache.namespace}:*"):
        if client.type(key) == b"string":
            client.set(key, b"corrupted_json_string")
    assert await cache.get("k") is None
    await cache.close()


@pytest.mark.parametrize(
    ("method", "settings"),
    [("for_web_app", {"redis_url": NOWHERE, "default_ttl": 300, "l1_cache_size": 100}),
     ("for_testing", {"use_memory_cache": True, "default_ttl": 60, "l1_cache_size": 50}),
     ("for_web_app", {"redis_url": NOWHERE, "default_ttl": 1800, "l1_cache_size": 500, "enable_l1_cache": True}),
     ("for_web_app", {"redis_url": NOWHERE, "default_ttl": 3600, "l1_cache_size": 1000, "compression_threshold": 9})],
)  # fmt: skip
async def test_each_environment_has_its_settings(factory: CacheFactory, method: str, settings: dict[str, Any]) -> None:
    cache = await getattr(factory, method)(**settings)
    assert (cache.default_ttl, cache.max_size) == (settings["default_ttl"], settings["l1_cache_size"])


async def test_entries_can_be_carried_from_one_cache_to_another(factory: CacheFactory) -> None:
    old, new = [await factory.for_testing(use_memory_cache=True, default_ttl=ttl) for ttl in (300, 3600)]
    await old.set("k", {"env": "development"})
    await new.set("k", await old.get("k"))
    assert await new.get("k") == {"env": "development"}


@pytest.mark.parametrize(
    "settings",
    [{"redis_url": "redis://127.0.0.1:1"}, {"use_memory_cache": True, "default_ttl": 300},
     {"redis_url": "redis://127.0.0.1:1", "enable_l1_cache": True}],
)  # fmt: skip
async def test_the_same_settings_suit_every_kind_of_app(factory: CacheFactory, settings: dict[str, Any]) -> None:
    general = factory.for_testing if "use_memory_cache" in settings else factory.for_web_app
    methods: tuple[Callable[..., Any], ...] = (general, factory.for_ai_app)
    for method in methods:
        assert isinstance(await method(**settings, fail_on_connection_error=False), InMemoryCache)


async def test_many_writes_at_once_are_all_kept(factory: CacheFactory) -> None:
    cache = await factory.for_testing(use_memory_cache=True, default_ttl=300, l1_cache_size=100)
    started = time.perf_counter()
    await asyncio.gather(*(cache.set(f"key_{number}", f"value_{number}") for number in range(50)))
    assert time.perf_counter() - started < 1 + stalls.longest()
    assert [await cache.get(f"key_{number}") for number in range(50)] == [f"value_{number}" for number in range(50)]


async def test_workers_that_mostly_read_get_over_a_hundred_operations_a_second(factory: CacheFactory) -> None:
    cache = await factory.for_testing(use_memory_cache=True, default_ttl=3600, l1_cache_size=1000)

    async def work(worker: int) -> None:
        for number in range(100):
            key = f"worker_{worker}_key_{number}"
            await cache.set(key, f"value_{number}" * 10)
            assert number % 5 == 0 or await cache.get(key) == f"value_{number}" * 10

    started = time.perf_counter()
    await asyncio.gather(*(work(worker) for worker in range(5)))
    assert 900 / (time.perf_counter() - started) > 100
