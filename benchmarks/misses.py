"""Misses: what they cost beside the function, and how often it runs when many ask at one time."""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from aimemo import InMemoryCache, cache_from_url, cached_ai_call
from benchmarks.measure import Section, Table
from benchmarks.peers import Call, of_world
from tests.kit.servers import Server

FUNCTION_SECONDS: Final = 0.2
PROCESSES: Final = 4


def overhead() -> Iterator[Section]:
    async def ask(text: str, *, model: str = "small") -> str:
        return "answer"

    numbers = itertools.count()
    calls: dict[str, Call] = {"a bare await": ask}
    calls["aimemo"] = cached_ai_call(operation="miss", cache=InMemoryCache())(ask)
    calls |= dict(of_world("async", ask))

    def asking(call: Call) -> Call:
        return lambda: call(f"question {next(numbers)}", model="small")

    tasks = {name: asking(call) for name, call in calls.items()}
    yield Section("async miss in memory", tasks=tasks, goals={"cashews memory": 1.0})


def stampede() -> Iterator[Callable[[], Table]]:
    yield lambda: _table("200 tasks", 0.015, *_tasks())
    yield lambda: _table("100 threads", 0.015, *_threads())
    yield lambda: _table(f"{PROCESSES} processes of 50 tasks, one SQLite file", None, *_processes("sqlite"))
    yield lambda: _table(f"{PROCESSES} processes of 50 tasks, Redis", 0.04, *_processes("redis"))


def _table(who: str, late: float | None, executions: int, seconds: float) -> Table:
    title = f"stampede: {who} ask for a function of {FUNCTION_SECONDS} s; it ran {executions} times"
    goals = {} if late is None else {"the function": 1 + late / FUNCTION_SECONDS}
    return Table(title, "s", {"the function": FUNCTION_SECONDS, "aimemo": seconds}, goals)


def _tasks() -> tuple[int, float]:
    calls: list[int] = []

    @cached_ai_call(operation="stampede", cache=InMemoryCache())
    async def ask(text: str) -> str:
        calls.append(1)
        await asyncio.sleep(FUNCTION_SECONDS)
        return text

    async def all_at_once() -> float:
        started = time.perf_counter()
        await asyncio.gather(*(ask("q") for _ in range(200)))
        return time.perf_counter() - started

    seconds = asyncio.run(all_at_once())
    return len(calls), seconds


def _threads() -> tuple[int, float]:
    calls: list[int] = []
    barrier = threading.Barrier(101)

    @cached_ai_call(operation="stampede", cache=InMemoryCache())
    def ask(text: str) -> str:
        calls.append(1)
        time.sleep(FUNCTION_SECONDS)
        return text

    def wait_and_ask() -> str:
        barrier.wait()
        return ask("q")

    with ThreadPoolExecutor(100) as threads:
        asked = [threads.submit(wait_and_ask) for _ in range(100)]
        barrier.wait()
        started = time.perf_counter()
        for each in asked:
            each.result()
        return len(calls), time.perf_counter() - started


def _processes(kind: str) -> tuple[int, float]:
    if kind == "redis":
        with Server() as server:
            return _run_processes(server.url)
    with tempfile.TemporaryDirectory() as folder:
        return _run_processes(f"sqlite:///{folder}/cache.db")


def _run_processes(url: str) -> tuple[int, float]:
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(PROCESSES), context.Queue()
    running = [context.Process(target=_ask_in_process, args=(url, barrier, answers)) for _ in range(PROCESSES)]
    for process in running:
        process.start()
    told = [answers.get(timeout=60) for _ in running]
    for process in running:
        process.join()
    return sum(executions for executions, _ in told), max(seconds for _, seconds in told)


def _ask_in_process(url: str, barrier: Any, answers: Any) -> None:
    calls: list[int] = []
    cache = cache_from_url(url, deadline=2)

    @cached_ai_call(operation="stampede", cache=cache)
    async def ask(text: str) -> str:
        calls.append(1)
        await asyncio.sleep(FUNCTION_SECONDS)
        return text

    async def all_at_once() -> float:
        await cache.connect()
        barrier.wait()
        started = time.perf_counter()
        await asyncio.gather(*(ask("q") for _ in range(50)))
        taken = time.perf_counter() - started
        await cache.close()
        return taken

    seconds = asyncio.run(all_at_once())
    answers.put((len(calls), seconds))
