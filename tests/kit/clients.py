"""Clients of the redis package of every kind, as users make them, and services over them as plain calls."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import AsyncIterator
from typing import Any

import redis
import redis.asyncio
from redis.asyncio.cluster import RedisCluster as TaskCluster
from redis.asyncio.retry import Retry as TaskRetry
from redis.backoff import NoBackoff
from redis.cluster import RedisCluster
from redis.retry import Retry

from tests.kit.redis_caches import shared
from tests.kit.servers import HOST

KINDS = ["sync", "sync-decoding", "asyncio", "asyncio-decoding", "cluster", "asyncio-cluster"]


def client_of(kind: str, **settings: Any) -> Any:
    """A client for the servers that all tests share."""
    world, _, rest = kind.partition("-")
    settings = {"decode_responses": rest == "decoding", **settings}
    if "cluster" in kind:
        node = shared("cluster").nodes[0]
        return (TaskCluster if world == "asyncio" else RedisCluster)(host=HOST, port=node.port, **settings)
    make = redis.asyncio.Redis if world == "asyncio" else redis.Redis
    return make(host=HOST, port=shared("server").port, **settings)


async def done(result: Any) -> Any:
    """What a method of a service gives, in either world."""
    return await result if inspect.isawaitable(result) else result


async def close(client: Any) -> None:
    await done(client.aclose() if hasattr(client, "aclose") else client.close())


@contextlib.asynccontextmanager
async def client_at(world: str, port: int, retries: int | None = 0) -> AsyncIterator[Any]:
    """A client whose own retries are as the redis package has them (None), or so many."""
    make, retry = (redis.asyncio.Redis, TaskRetry) if world == "asyncio" else (redis.Redis, Retry)
    made = make(host=HOST, port=port, **({} if retries is None else {"retry": retry(NoBackoff(), retries)}))
    yield made
    await close(made)


async def in_parallel(kind: str, *calls: Any) -> list[Any]:
    """The results of calls that run at one time: tasks, or threads."""
    if kind.startswith("asyncio"):
        return await asyncio.gather(*(call() for call in calls), return_exceptions=True)
    return await asyncio.gather(*(asyncio.to_thread(call) for call in calls), return_exceptions=True)
