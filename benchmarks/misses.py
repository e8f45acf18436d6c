"""Misses: what they cost beside the function, and how often it runs when many ask at one time."""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import statistics
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from aimemo import InMemoryCache, cache_from_url, cached_ai_call
from benchmarks.measure import Section, Table, spread
from benchmarks.peers import Call, of_world
from tests.kit.servers import Server

FUNCTION_SECONDS: Final = 0.2
PROCESSES: Final = 4
ROUNDS: Final = 9


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
    yield lambda: _table("200 tasks", 0.015, *asyncio.run(_tasks()))
    yield lambda: _table("100 threads", 0.015, *_threads())
    yield lambda: _table(f"{PROCESSES} processes of 50 tasks, one SQLite file", None, *_processes("sqlite"))
    yield lambda: _table(f"{PROCESSES} processes of 50 tasks, Redis", 0.04, *_processes("redis"))


def _table(who: str, late: float | None, executions: int, seconds: list[float]) -> Table:
    title = f"stampede: {who} ask for a function of {FUNCTION_SECONDS} s; it ran {executions} times in {ROUNDS} rounds"
    values = {"the function": FUNCTION_SECONDS, "aimemo": statistics.median(seconds)}
    goals = {} if late is None else {"the function": 1 + late / FUNCTION_SECONDS}
    return Table(title, "s", values, goals, {"aimemo": spread(seconds)})


async def _tasks() -> tuple[int, list[float]]:
    calls: list[str] = []

    @cached_ai_call(operation="stampede", cache=InMemoryCache())
    async def ask(text: str) -> str:
        calls.append(text)
        await asyncio.sleep(FUNCTION_SECONDS)
        return text

    seconds = [await _all_at_once(ask, f"q{number}", 200) for number in range(ROUNDS)]
    return len(calls), seconds


async def _all_at_once(ask: Callable[[str], Awaitable[str]], text: str, callers: int) -> float:
    started = time.perf_counter()
    await asyncio.gather(*(ask(text) for _ in range(callers)))
    return time.perf_counter() - started


def _threads() -> tuple[int, list[float]]:
    calls: list[str] = []
    barrier = threading.Barrier(101)

    @cached_ai_call(operation="stampede", cache=InMemoryCache())
    def ask(text: str) -> str:
        calls.append(text)
        time.sleep(FUNCTION_SECONDS)
        return text

    def wait_and_ask(text: str) -> str:
        barrier.wait()
        return ask(text)

    seconds = []
    with ThreadPoolExecutor(100) as threads:
        for number in range(ROUNDS):
            asked = [threads.submit(wait_and_ask, f"q{number}") for _ in range(100)]
            barrier.wait()
            started = time.perf_counter()
            for each in asked:
                each.result()
            seconds.append(time.perf_counter() - started)
    return len(calls), seconds


def _processes(kind: str) -> tuple[int, list[float]]:
    if kind == "redis":
        with Server() as server:
            return _run_processes(server.url)
    with tempfile.TemporaryDirectory() as folder:
        return _run_processes(f"sqlite:///{folder}/cache.db")


def _run_processes(url: str) -> tuple[int, list[float]]:
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(PROCESSES), context.Queue()
    running = [context.Process(target=_ask_in_process, args=(url, barrier, answers)) for _ in range(PROCESSES)]
    for process in running:
        process.start()
    told = [answers.get(timeout=60) for _ in running]
    for process in running:
        process.join()
    slowest = map(max, zip(*(seconds for _, seconds in told), strict=True))
    return sum(executions for executions, _ in told), list(slowest)


def _ask_in_process(url: str, barrier: Any, answers: Any) -> None:
    calls: list[str] = []
    cache = cache_from_url(url, deadline=2)

    @cached_ai_call(operation="stampede", cache=cache)
    async def ask(text: str) -> str:
        calls.append(text)
        await asyncio.sleep(FUNCTION_SECONDS)
        return text

    async def rounds() -> None:
        await cache.connect()
        for number in range(ROUNDS):
            barrier.wait()
            seconds.append(await _all_at_once(ask, f"q{number}", 50))
        await cache.close()

    seconds: list[float] = []
    asyncio.run(rounds())
    answers.put((len(calls), seconds))
