"""The cases of seed 003 with our names: services over a client of asyncio that decodes replies."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from aimemo import CacheService, IdempotencyService, RateLimiter, RedisLock
from tests.kit.clients import client_of

pytestmark = [pytest.mark.redis, pytest.mark.integration]

SHORT = 0.05
"""Seconds, in place of the seed's one second."""

COMPLEX = {
    "user": {"id": "123", "name": "John"},
    "loans": [{"id": "loan-1", "amount": 10000}, {"id": "loan-2", "amount": 5000}],
    "metadata": {"created_at": "2025-01-15T10:00:00Z"},
}


@pytest.fixture
async def redis_client() -> AsyncIterator[Any]:
    client = client_of("asyncio-decoding", encoding="utf-8", db=1)
    yield client
    await client.flushdb()
    await client.aclose()


@pytest.mark.parametrize("value", [{"id": "123", "name": "John"}, "value", COMPLEX], ids=["object", "text", "complex"])
async def test_cache_set_and_get(redis_client: Any, value: Any) -> None:
    cache = CacheService(redis_client)
    await cache.set("user:123", value, ttl=60)
    assert await cache.get("user:123") == value


async def test_cache_miss_returns_none(redis_client: Any) -> None:
    assert await CacheService(redis_client).get("nonexistent:key") is None


async def test_cache_delete(redis_client: Any) -> None:
    cache = CacheService(redis_client)
    await cache.set("temp:key", "value")
    assert await cache.get("temp:key") == "value"
    await cache.delete("temp:key")
    assert await cache.get("temp:key") is None


async def test_cache_expiration(redis_client: Any) -> None:
    cache = CacheService(redis_client)
    await cache.set("expire:key", "value", ttl=60)
    assert await cache.get("expire:key") == "value"
    await cache.set("expire:key", "value", ttl=SHORT)
    await asyncio.sleep(1.5 * SHORT)
    assert await cache.get("expire:key") is None


async def test_extend_ttl(redis_client: Any) -> None:
    await CacheService(redis_client).set("extend:key", "value", ttl=30)
    await redis_client.expire("extend:key", 60)
    assert await redis_client.ttl("extend:key") > 30
    assert await CacheService(redis_client).get("extend:key") == "value"


async def test_cache_invalidation_on_user_update(redis_client: Any) -> None:
    cache = CacheService(redis_client)
    await cache.set("user:1", {"name": "John"})
    assert await redis_client.get("user:1") is not None
    await cache.delete("user:1")
    assert await redis_client.get("user:1") is None


async def test_idempotency_key_prevents_duplicates(redis_client: Any) -> None:
    service = IdempotencyService(redis_client)
    assert await service.is_duplicate("req-12345") is False
    await service.store_request("req-12345", {"result": "processed", "amount": 100})
    assert await service.is_duplicate("req-12345") is True
    assert await service.get_result("req-12345") == {"result": "processed", "amount": 100}


async def test_idempotency_key_expires(redis_client: Any) -> None:
    services = {f"req-expire-{ttl}": IdempotencyService(redis_client, ttl=ttl) for ttl in (60, SHORT)}
    for request_id, service in services.items():
        await service.store_request(request_id, {"result": "ok"})
    await asyncio.sleep(1.5 * SHORT)
    assert [await service.is_duplicate(request_id) for request_id, service in services.items()] == [True, False]


async def test_distributed_lock(redis_client: Any) -> None:
    lock, lock2 = (RedisLock(redis_client, "resource:123", timeout=5) for _ in range(2))
    assert await lock.acquire() is True
    assert await lock2.acquire() is False
    await lock.release()
    assert await lock2.acquire() is True
    await lock2.release()


async def test_lock_auto_expiration(redis_client: Any) -> None:
    lock, lock2 = (RedisLock(redis_client, "expire:lock", timeout=SHORT) for _ in range(2))
    await lock.acquire()
    await asyncio.sleep(1.5 * SHORT)
    assert await lock2.acquire() is True
    await lock2.release()


async def test_concurrent_lock_acquisition(redis_client: Any) -> None:
    results, all_have_tried = [], asyncio.Barrier(5)

    async def try_lock(number: int) -> bool:
        lock = RedisLock(redis_client, "concurrent:lock", timeout=60)
        acquired = await lock.acquire()
        if acquired:
            results.append(f"worker-{number}")
        await all_have_tried.wait()
        if acquired:
            await lock.release()
        return bool(acquired)

    outcomes = await asyncio.gather(*(try_lock(number) for number in range(5)))
    assert sum(outcomes) == len(results) == 1


async def test_rate_limiting(redis_client: Any) -> None:
    for window, is_over in ((60, False), (0.1, True)):
        limiter = RateLimiter(redis_client, max_requests=3, window_seconds=window)
        assert [await limiter.is_allowed("user-123") for _ in range(3)] == [True, True, True]
        await asyncio.sleep(0.12 if is_over else 0)
        assert await limiter.is_allowed("user-123") is is_over


async def test_pubsub_messaging(redis_client: Any) -> None:
    pubsub = redis_client.pubsub()
    await pubsub.subscribe("events:user")
    assert (await pubsub.get_message(timeout=5))["type"] == "subscribe"

    async def listen() -> Any:
        async for message in pubsub.listen():
            if message["type"] == "message":
                return json.loads(message["data"])
        return None

    listener_task = asyncio.create_task(listen())
    await redis_client.publish("events:user", json.dumps({"event": "user_created", "user_id": "123"}))
    assert await asyncio.wait_for(listener_task, timeout=10) == {"event": "user_created", "user_id": "123"}
    await pubsub.unsubscribe("events:user")
    await pubsub.aclose()


async def test_redis_pipeline(redis_client: Any) -> None:
    cache = CacheService(redis_client)
    await cache.set_many({"key1": "value1", "key2": "value2", "key3": "value3"})
    assert await cache.get_many(["key1", "key2"]) == {"key1": "value1", "key2": "value2"}
