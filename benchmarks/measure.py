"""Interleaved measurement: every contestant runs in every round, so that drift hits all alike."""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

WARM_UP = 100


@dataclass
class Section:
    """Contestants at one task; the first is the floor that the others are compared with."""

    title: str
    sync: dict[str, Callable[[], Any]] = field(default_factory=dict)
    tasks: dict[str, Callable[[], Awaitable[Any]]] = field(default_factory=dict)
    callers: int = 1
    """How many tasks call at one time."""
    goals: dict[str, float] = field(default_factory=dict)
    """For aimemo: at most so many times the contestant named."""


@dataclass(frozen=True)
class Result:
    """One contestant: median nanoseconds a call, and the spread of the rounds around it."""

    name: str
    ns: float
    spread: float


def run(section: Section, *, rounds: int, seconds: float) -> list[Result]:
    """Measure a section: `rounds` rounds, each giving every contestant about `seconds`."""
    if section.tasks:
        return asyncio.run(_run_tasks(section.tasks, section.callers, rounds, seconds))
    timed = {name: _loops(call, seconds) for name, call in section.sync.items()}
    times: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(rounds):
        for name, (call, loops) in timed.items():
            times[name].append(_time(call, loops))
    return [_result(name, values) for name, values in times.items()]


def _loops(call: Callable[[], Any], seconds: float) -> tuple[Callable[[], Any], int]:
    _time(call, WARM_UP)
    once = _time(call, 10)
    return call, max(3, int(seconds / (once / 1e9)))


def _time(call: Callable[[], Any], loops: int) -> float:
    gc.collect()
    gc.disable()
    started = time.perf_counter_ns()
    for _ in range(loops):
        call()
    taken = time.perf_counter_ns() - started
    gc.enable()
    return taken / loops


async def _run_tasks(
    contestants: dict[str, Callable[[], Awaitable[Any]]], callers: int, rounds: int, seconds: float
) -> list[Result]:
    loops: dict[str, int] = {}
    for name, call in contestants.items():
        await _time_task(call, callers, WARM_UP // callers + 1)
        loops[name] = max(3, int(seconds / (await _time_task(call, callers, 10) / 1e9)) // callers)
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, call in contestants.items():
            times[name].append(await _time_task(call, callers, loops[name]))
    return [_result(name, values) for name, values in times.items()]


async def _time_task(call: Callable[[], Awaitable[Any]], callers: int, loops: int) -> float:
    async def ask() -> None:
        for _ in range(loops):
            await call()

    gc.collect()
    gc.disable()
    started = time.perf_counter_ns()
    if callers == 1:
        await ask()
    else:
        await asyncio.gather(*(ask() for _ in range(callers)))
    taken = time.perf_counter_ns() - started
    gc.enable()
    return taken / (loops * callers)


def _result(name: str, values: list[float]) -> Result:
    median = statistics.median(values)
    quartiles = statistics.quantiles(values, n=4) if len(values) > 1 else [median] * 3
    return Result(name, median, (quartiles[2] - quartiles[0]) / median)
