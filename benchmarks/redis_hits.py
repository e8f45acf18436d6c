"""Hits in Redis over loopback TCP, on a server that the benchmark starts, and what answers weigh there."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

import redis
import redis.asyncio

from aimemo import GenericRedisCache, cached_ai_call
from benchmarks.hits import Call, _optional
from benchmarks.measure import Section
from benchmarks.texts import texts
from tests.kit.servers import HOST, Server

KEYS = 64
CALLERS = 64


def hits() -> Iterator[Section]:
    """1 KB, the in-process tier off, so that every hit goes to the server."""
    with Server() as server:
        question, answer = texts(2, 1000)
        questions = [f"{at}: {question}"[:1000] for at in range(KEYS)]
        cache = GenericRedisCache(server.url, enable_l1_cache=False)
        yield Section("Redis hit, 1 KB, sync", sync=_sync(server, cache, questions, answer), goals={RAW: 1.35})
        one = _tasks(server, cache, questions, answer)
        yield Section("Redis hit, 1 KB, async, one caller", tasks=one, goals={RAW: 1.35})
        goals = {RAW: 1 / 3, "cashews": 1 / 6, "aiocache": 1 / 6}
        many = _tasks(server, cache, questions, answer)
        yield Section(f"Redis hit, 1 KB, async, {CALLERS} callers", tasks=many, callers=CALLERS, goals=goals)
        cache.blocking.close()


RAW = "raw redis-py GET"


def _sync(server: Server, cache: GenericRedisCache, questions: list[str], answer: str) -> dict[str, Call]:
    def ask(text: str, *, model: str = "small") -> str:
        return answer

    client = redis.Redis(HOST, server.port)
    client.set("raw", answer)
    cached = cached_ai_call(operation="sync", cache=cache)(ask)
    turns = itertools.cycle(questions)
    return {RAW: lambda: client.get("raw"), "aimemo": lambda: cached(next(turns), model="small")}


def _tasks(server: Server, cache: GenericRedisCache, questions: list[str], answer: str) -> dict[str, Call]:
    async def ask(text: str, *, model: str = "small") -> str:
        return answer

    raw = redis.asyncio.Redis(host=HOST, port=server.port, max_connections=2 * CALLERS)
    functions: dict[str, Any] = {"aimemo": cached_ai_call(operation="tasks", cache=cache)(ask)}
    if cashews := _optional("cashews"):
        other = cashews.Cache()
        other.setup(f"redis://{HOST}:{server.port}/1")
        functions["cashews"] = other(ttl=3600)(ask)
    if aiocache := _optional("aiocache"):
        arguments = {"endpoint": HOST, "port": server.port, "namespace": "aiocache"}
        functions["aiocache"] = aiocache.cached(ttl=3600, cache=aiocache.Cache.REDIS, **arguments)(ask)
    turns = itertools.cycle(questions)
    calls: dict[str, Call] = {RAW: lambda: raw.get("raw")}
    for name, function in functions.items():
        calls[name] = _asking(function, turns)
    return calls


def _asking(function: Any, turns: Iterator[str]) -> Call:
    return lambda: function(next(turns), model="small")


TITLE = "bytes in Redis"


def weights() -> str:
    """What answers of 300 B to 8 KB weigh in Redis, as part of the JSON that holds the same."""
    with Server() as server:
        cache = GenericRedisCache(server.url, enable_l1_cache=False)
        raw = 0
        for length in (300, 500, 800, 1200, 2000, 3000, 5000, 8000):
            for number, text in enumerate(texts(25, length)):
                answer = {"text": text, "model": "small", "tokens": length // 4}
                cache.blocking.set(f"{length}:{number}", answer)
                raw += len(json.dumps(answer).encode())
        stored = sum(server.client.strlen(name) for name in server.client.scan_iter("*}e:*", count=1000))
        cache.blocking.close()
    verdict = "met" if stored / raw <= 0.7 else "MISSED"
    return f"\n{TITLE}: 200 answers of 300 B to 8 KB: {stored / raw:.2f} x their JSON  goal <= 0.7: {verdict}"
