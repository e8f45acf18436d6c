"""Interleaved measurement: every contestant runs in every round, so that drift hits all alike."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

WARM_UP: Final = 100


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
    pinned: int | None = None
    """A server's process: with one caller, its ratios repeat only if both are on one core."""

    def measure(self, rounds: int, seconds: float) -> Table:
        """`rounds` rounds, each giving every contestant about `seconds`."""
        with _on_one_core(self.pinned), _frozen():
            times = asyncio.run(self._run_tasks(rounds, seconds)) if self.tasks else self._run(rounds, seconds)
        medians = {name: statistics.median(values) for name, values in times.items()}
        spreads = {name: spread(values) for name, values in times.items()}
        return Table(self.title, "ns a call", medians, self.goals, spreads)

    def _run(self, rounds: int, seconds: float) -> dict[str, list[float]]:
        loops = {name: _loops(call, seconds) for name, call in self.sync.items()}
        times: dict[str, list[float]] = {name: [] for name in loops}
        for _ in range(rounds):
            for name, call in self.sync.items():
                times[name].append(_time(call, loops[name]))
        return times

    async def _run_tasks(self, rounds: int, seconds: float) -> dict[str, list[float]]:
        loops: dict[str, int] = {}
        for name, call in self.tasks.items():
            await _time_task(call, self.callers, WARM_UP // self.callers + 1)
            once = await _time_task(call, self.callers, 10)
            loops[name] = max(3, int(seconds / (once / 1e9)) // self.callers)
        times: dict[str, list[float]] = {name: [] for name in loops}
        for _ in range(rounds):
            for name, call in self.tasks.items():
                times[name].append(await _time_task(call, self.callers, loops[name]))
        return times


@dataclass
class Table:
    """Figures of one kind, by contestant; of the first, the others are multiples."""

    title: str
    unit: str
    values: dict[str, float]
    goals: dict[str, float] = field(default_factory=dict)
    """For aimemo: at most so many times the contestant named, or (`""`) so much."""
    spreads: dict[str, float] = field(default_factory=dict)
    more_is_better: bool = False
    """A goal is then at least so many times the contestant."""

    def measure(self, rounds: int, seconds: float) -> Table:
        """It is measured already."""
        return self

    def verdicts(self) -> Iterator[tuple[str, float, float, bool]]:
        """Each goal: against whom, the ratio wanted, the ratio there is, and whether it is met."""
        ours = self.values["aimemo"]
        for name, goal in self.goals.items():
            ratio = ours / self.values[name] if name in self.values else ours if not name else None
            if ratio is not None:
                yield name, goal, ratio, ratio >= goal if self.more_is_better else ratio <= goal


Work = Section | Callable[[], Table]


def _loops(call: Callable[[], Any], seconds: float) -> int:
    _time(call, WARM_UP)
    return max(3, int(seconds / (_time(call, 10) / 1e9)))


def _time(call: Callable[[], Any], loops: int) -> float:
    gc.collect()
    gc.disable()
    started = time.perf_counter_ns()
    for _ in range(loops):
        call()
    taken = time.perf_counter_ns() - started
    gc.enable()
    return taken / loops


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


def spread(values: list[float]) -> float:
    """How far apart half of some figures lie, as a share of their median."""
    if len(values) < 2:
        return 0.0
    quartiles = statistics.quantiles(values, n=4)
    return (quartiles[2] - quartiles[0]) / statistics.median(values)


@contextlib.contextmanager
def _frozen() -> Iterator[None]:
    """What the neighbours have imported is not collected again before each round."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextlib.contextmanager
def _on_one_core(process: int | None) -> Iterator[None]:
    if process is None or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = {each: os.sched_getaffinity(each) for each in (0, process)}
    for each in before:
        os.sched_setaffinity(each, {min(before[0])})
    try:
        yield
    finally:
        for each, cores in before.items():
            os.sched_setaffinity(each, cores)
