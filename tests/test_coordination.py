"""Cache service, idempotency, lock, limiter and channel over every kind of client, on real servers."""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import Any

import pytest

from aimemo import (
    CacheService,
    Channel,
    CodecError,
    IdempotencyConflictError,
    IdempotencyService,
    RateLimiter,
    RedisLock,
)
from tests.kit.clients import done, in_parallel


async def test_the_cache_service_keeps_json(client: Any, name: str) -> None:
    cache = CacheService(client)
    value = {"user": {"id": "1", "näme": None}, "loans": [1, 2.5, True]}
    assert await done(cache.get(name)) is None
    await done(cache.set(name, value, ttl=60))
    assert await done(cache.get(name)) == value
    await done(cache.set_many({f"{name} a": 1, f"{name} b": [2]}))
    assert await done(cache.get_many([f"{name} a", f"{name} b", f"{name} c"])) == {f"{name} a": 1, f"{name} b": [2]}
    assert [await done(cache.delete(name)) for _ in range(2)] == [True, False]
    with pytest.raises(CodecError):
        await done(cache.set(name, {1: 2}))
    assert await done(cache.get(name)) is None


async def test_a_request_is_carried_out_once_and_stands_for_one_payload(client: Any, kind: str, name: str) -> None:
    service = IdempotencyService(client)
    calls: list[int] = []

    def charge() -> dict[str, int]:
        calls.append(1)
        time.sleep(0.05)
        return {"charged": len(calls)}

    results = await in_parallel(kind, *[lambda: service.run(name, {"amount": 1}, charge)] * 20)
    assert results == [{"charged": 1}] * 20
    assert await done(service.is_duplicate(name))
    assert await done(service.get_result(name)) == {"charged": 1}
    with pytest.raises(IdempotencyConflictError):
        await done(service.run(name, {"amount": 2}, charge))
    assert len(calls) == 1


async def test_a_request_that_failed_may_be_tried_again(client: Any, name: str) -> None:
    service = IdempotencyService(client)

    def fail() -> None:
        raise StopIteration("no")

    with pytest.raises((StopIteration, RuntimeError)):
        await done(service.run(name, 1, fail))
    assert not await done(service.is_duplicate(name))
    assert await done(service.run(name, 1, lambda: "yes")) == "yes"


async def test_a_stored_request_is_a_duplicate(client: Any, name: str) -> None:
    service = IdempotencyService(client, ttl=60)
    assert not await done(service.is_duplicate(name))
    assert await done(service.store_request(name, {"result": "processed"}))
    assert not await done(service.store_request(name, "another"))
    assert await done(service.is_duplicate(name))
    assert await done(service.get_result(name)) == {"result": "processed"}


async def test_a_lock_is_held_by_one(client: Any, kind: str, name: str) -> None:
    first, second = RedisLock(client, name, timeout=5), RedisLock(client, name, timeout=5)
    assert await done(first.acquire())
    assert await done(first.acquire()), "the same token"
    assert not await done(second.acquire())
    assert not await done(second.acquire(blocking=True, deadline=0.05))
    assert await done(first.extend())
    assert await done(first.release())
    assert not await done(first.release())
    assert await done(second.acquire(blocking=True))
    assert second.fencing_token > first.fencing_token
    assert await done(second.release())
    locks = [RedisLock(client, name, timeout=5) for _ in range(8)]
    assert sorted(await in_parallel(kind, *(lock.acquire for lock in locks))) == [False] * 7 + [True]


async def test_a_limiter_admits_no_more_than_its_limit(client: Any, kind: str, name: str) -> None:
    limiter = RateLimiter(client, max_requests=3, window_seconds=60)
    limit = await done(limiter.check(name))
    assert (limit.is_allowed, limit.remaining, limit.retry_after) == (True, 3, 0)
    admitted = await in_parallel(kind, *[lambda: limiter.is_allowed(name)] * 8)
    assert sorted(admitted) == [False] * 5 + [True] * 3
    limit = await done(limiter.check(name))
    assert (limit.is_allowed, limit.remaining) == (False, 0)
    assert 0 < limit.retry_after <= 60
    assert not await done(limiter.acquire(name, deadline=0.001))
    short = RateLimiter(client, max_requests=3, window_seconds=0.2)
    assert await done(short.acquire(name, weight=3))
    assert await done(short.acquire(name, deadline=5))


async def test_messages_reach_who_listens(client: Any, kind: str, name: str) -> None:
    channel = Channel(client, name)
    assert await done(channel.publish("nobody hears it")) == 0
    subscription = channel.subscribe()
    if kind.startswith("asyncio"):
        async with subscription as messages:
            for number in range(3):
                await done(channel.publish({"n": number}))
            assert [await anext(messages) for _ in range(3)] == [{"n": number} for number in range(3)]
        with pytest.raises(StopAsyncIteration):
            await anext(subscription)
    else:
        with subscription as messages:
            for number in range(3):
                channel.publish({"n": number})
            assert list(itertools.islice(messages, 3)) == [{"n": number} for number in range(3)]
        assert list(subscription) == []
    assert subscription.missed == 0
    await asyncio.sleep(0)
