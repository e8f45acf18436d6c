"""What entries weigh in memory, what a hit costs among many of them, and what importing costs."""

from __future__ import annotations

import asyncio
import functools
import itertools
import statistics
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any, Final

from aimemo import InMemoryCache, cached_ai_call
from benchmarks.measure import Section, Table
from benchmarks.peers import Call, optional

SMALL: Final = 10_000


def growth(most: int) -> Iterator[Section]:
    """Hits on a thousand keys, among few and among many entries."""
    sync = {
        "1,000 entries": _among(1000, _cached),
        "aimemo": _among(most, _cached),
        "functools.lru_cache, 1,000 entries": _among(1000, functools.lru_cache(maxsize=None)),
        f"functools.lru_cache, {most:,} entries": _among(most, functools.lru_cache(maxsize=None)),
    }
    yield Section(f"sync hit among {most:,} entries against 1,000", sync=sync, goals={"1,000 entries": 1.3})


def _cached(function: Call) -> Call:
    return cached_ai_call(operation="growth", cache=InMemoryCache(max_size=1_000_000))(function)


def _among(count: int, decorate: Callable[[Call], Call]) -> Call:
    def ask(text: str) -> str:
        return "answer"

    cached = decorate(ask)
    questions = [f"question {at}" for at in range(count)]
    for question in questions:
        cached(question)
    turns = itertools.cycle(questions[:: max(1, count // 1000)])
    return lambda: cached(next(turns))


def entry_bytes() -> Table:
    values = {"aimemo": _bytes(_fill_ours)}
    if cashews := optional("cashews"):
        values["cashews"] = _bytes(functools.partial(_fill_cashews, cashews))
    return Table("bytes of memory for an entry with an answer of 20 characters", "B", values, {"cashews": 1.0})


def _bytes(fill: Callable[[int], Any]) -> float:
    fill(10)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    held = fill(SMALL)
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    del held
    return taken / SMALL


def _fill_ours(count: int) -> Any:
    cache = InMemoryCache(max_size=count)
    for at in range(count):
        cache.blocking.set(f"key {at}", f"answer {at:013}")
    return cache


def _fill_cashews(cashews: Any, count: int) -> Any:
    cache = cashews.Cache()
    cache.setup("mem://", size=count)

    async def fill() -> None:
        for at in range(count):
            await cache.set(f"key {at}", f"answer {at:013}", expire=3600)

    asyncio.run(fill())
    return cache


def imports() -> Table:
    parts = "msgpack, zstandard, xxhash, sqlite3"
    values = {f"import {parts}": _import_ms(parts), "aimemo": _import_ms("aimemo")}
    return Table("import time", "ms", values, {f"import {parts}": 2.0, "": 50.0})


def _import_ms(names: str) -> float:
    code = f"import time; t = time.perf_counter(); import {names}; print(1000 * (time.perf_counter() - t))"
    run = functools.partial(subprocess.run, [sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return statistics.median(float(run().stdout) for _ in range(9))
