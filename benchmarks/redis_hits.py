"""Hits in Redis, on a server that the benchmark starts, and what answers weigh there."""

from __future__ import annotations

import asyncio
import itertools
import json
import tempfile
from collections.abc import Iterator
from typing import Any

import redis
import redis.asyncio

from aimemo import GenericRedisCache, cached_ai_call
from benchmarks.measure import Section, Table
from benchmarks.peers import Call, optional
from benchmarks.texts import answers, texts
from tests.kit.servers import HOST, Server

KEYS = 64
RAW = "raw redis-py GET"

Goals = dict[int, dict[str, float]]
_SYNC_GOALS: Goals = {1: {RAW: 1.15}, 10: {RAW: 1.5}}
_ONE_GOALS: Goals = {1: {RAW: 1.0}, 10: {RAW: 1.3}}
_MANY_GOALS: Goals = {1: {RAW: 1 / 6, "cashews": 1 / 12}, 10: {RAW: 1 / 2, "cashews": 1 / 5}}


def hits() -> Iterator[Section]:
    """The in-process tier off, so that every hit goes to the server."""
    with tempfile.TemporaryDirectory() as folder, Server(unixsocket=f"{folder}/redis.sock") as server:
        for kilobytes in (1, 10, 100):
            yield from _of_size(server, f"redis://{HOST}:{server.port}/0", kilobytes, "TCP")
        yield from _of_size(server, f"unix://{folder}/redis.sock", 1, "unix socket")


def _of_size(server: Server, url: str, kilobytes: int, way: str) -> Iterator[Section]:
    question, answer = texts(2, 1000 * kilobytes)
    questions = [f"{at}: {question[:1000]}"[:1000] for at in range(KEYS)]
    cache = GenericRedisCache(url, enable_l1_cache=False, namespace=f"b{kilobytes}")
    title = f"Redis hit, {kilobytes} KB, {way}"
    goals = _SYNC_GOALS.get(kilobytes, {}) if way == "TCP" else {}
    sync = _sync(url, cache, questions, answer)
    yield Section(f"{title}, sync", sync=sync, goals=goals, pinned=server.process.pid)
    for callers in (1, 16, 64, 256) if way == "TCP" and kilobytes < 100 else (1, 64):
        goals = {1: _ONE_GOALS, 64: _MANY_GOALS}.get(callers, {}).get(kilobytes, {}) if way == "TCP" else {}
        tasks = _tasks(url, cache, questions, answer)
        if callers > 100:
            tasks.pop("aiocache", None)  # it raises once it has as many connections as it may
        pinned = server.process.pid if callers == 1 else None
        yield Section(f"{title}, async, callers: {callers}", tasks=tasks, callers=callers, goals=goals, pinned=pinned)
    cache.blocking.close()


def _sync(url: str, cache: GenericRedisCache, questions: list[str], answer: str) -> dict[str, Call]:
    def ask(text: str, *, model: str = "small") -> str:
        return answer

    client = redis.Redis.from_url(url)
    client.set("raw", answer)
    cached = cached_ai_call(operation="sync", cache=cache)(ask)
    turns = itertools.cycle(questions)
    return {RAW: lambda: client.get("raw"), "aimemo": lambda: cached(next(turns), model="small")}


def _tasks(url: str, cache: GenericRedisCache, questions: list[str], answer: str) -> dict[str, Call]:
    async def ask(text: str, *, model: str = "small") -> str:
        return answer

    raw = redis.asyncio.Redis.from_url(url, max_connections=600)
    functions: dict[str, Any] = {"aimemo": cached_ai_call(operation="tasks", cache=cache)(ask)}
    if url.startswith("redis:"):
        host, _, port = url.removeprefix("redis://").removesuffix("/0").partition(":")
        if cashews := optional("cashews"):
            other = cashews.Cache()
            other.setup(f"redis://{host}:{port}/1")
            functions["cashews"] = other(ttl=3600)(ask)
        if aiocache := optional("aiocache"):
            arguments = {"endpoint": host, "port": int(port), "namespace": "aiocache"}
            functions["aiocache"] = aiocache.cached(ttl=3600, cache=aiocache.Cache.REDIS, **arguments)(ask)
    turns = itertools.cycle(questions)
    calls: dict[str, Call] = {RAW: lambda: raw.get("raw")}
    for name, function in functions.items():
        calls[name] = _asking(function, turns)
    return calls


def _asking(function: Any, turns: Iterator[str]) -> Call:
    return lambda: function(next(turns), model="small")


def weights() -> Table:
    """What answers weigh in Redis, keys included, as the peers store them by default."""
    stored = dict(zip(texts(200, 2000), answers(200), strict=True))
    with Server() as server:

        def used(fill: Any) -> float:
            server.client.flushall()
            fill()
            return float(sum(len(name) + _weight(server, name) for name in server.client.scan_iter("*", count=1000)))

        values = {"the answers as JSON": float(sum(len(json.dumps(answer).encode()) for answer in stored.values()))}
        values["aimemo"] = used(lambda: _fill_ours(server, stored))
        if cashews := optional("cashews"):
            values["cashews"] = used(lambda: asyncio.run(_fill_cashews(cashews, server, stored)))
        if langchain := optional("langchain_community.cache"):
            values["langchain RedisCache"] = used(lambda: _fill_langchain(langchain, server, stored))
    goals = {"the answers as JSON": 0.7, "cashews": 0.3, "langchain RedisCache": 0.27}
    return Table("in Redis: 200 answers of 300 B to 8 KB to questions of 2 KB, keys included", "B", values, goals)


def _weight(server: Server, name: bytes) -> int:
    """Bytes of a value; bookkeeping of other types than strings and hashes is not an answer's."""
    match server.client.type(name):
        case b"string":
            return len(server.client.get(name) or b"")
        case b"hash" if b"}g" not in name:
            return sum(len(field) + len(value) for field, value in server.client.hgetall(name).items())
    return 0


def _fill_ours(server: Server, stored: dict[str, Any]) -> None:
    cache = GenericRedisCache(server.url, enable_l1_cache=False, deadline=5)

    @cached_ai_call(operation="summarize", cache=cache, version="1")
    def summarize(text: str) -> Any:
        return stored[text]

    for text in stored:
        summarize(text)
    cache.blocking.close()


async def _fill_cashews(cashews: Any, server: Server, stored: dict[str, Any]) -> None:
    cache = cashews.Cache()
    cache.setup(server.url)

    async def summarize(text: str) -> Any:
        return stored[text]

    cached = cache(ttl=3600)(summarize)
    for text in stored:
        await cached(text)
    await cache.close()


def _fill_langchain(module: Any, server: Server, stored: dict[str, Any]) -> None:
    from langchain_core.outputs import Generation  # type: ignore[import-not-found,unused-ignore]

    cache = module.RedisCache(server.client, ttl=3600)
    for text, answer in stored.items():
        cache.update(text, "small", [Generation(text=answer["text"])])
