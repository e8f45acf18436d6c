"""Timing caches as the seeds' documents do: through their public methods, side by side, in one run."""

from __future__ import annotations

import functools
import gc
import json
import os
import random
import statistics
import time
import tracemalloc
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from aimemo.caches.interface import Cache
from aimemo.errors import ConfigurationError, ValidationError

SMALLEST_CHANGE: Final = 5.0
"""Percent. A change below it is never called a regression."""

MOST_KEYS: Final = 10_000

_BOOLEANS: Final = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
_SEED: Final = 20_240_101


@dataclass(frozen=True, slots=True)
class BenchmarkConfig:
    """How long and how closely to measure.

    Attributes:
        default_iterations: rounds that count.
        warmup_iterations: rounds before them that do not.
        timeout_seconds: after so many seconds no other round is begun.
        enable_memory_tracking: measure the peak of memory too, in a round of its own.
        enable_compression_tests: report how much smaller what was stored is.

    Raises:
        ValidationError: for a number that is none, or too small.
    """

    default_iterations: int = 100
    warmup_iterations: int = 10
    timeout_seconds: float = 300
    enable_memory_tracking: bool = True
    enable_compression_tests: bool = True

    def __post_init__(self) -> None:
        checks = {
            "default_iterations": (_at_least(1, self.default_iterations), "a positive integer"),
            "warmup_iterations": (_at_least(0, self.warmup_iterations), "a non-negative integer"),
            "timeout_seconds": (_is_positive(self.timeout_seconds), "a positive number"),
            "enable_memory_tracking": (isinstance(self.enable_memory_tracking, bool), "true or false"),
            "enable_compression_tests": (isinstance(self.enable_compression_tests, bool), "true or false"),
        }
        faults = {name: f"{name} must be {form}" for name, (is_right, form) in checks.items() if not is_right}
        if faults:
            raise ValidationError("; ".join(faults.values()), faults)

    @classmethod
    def from_environment(cls) -> BenchmarkConfig:
        """The preset that `BENCHMARK_ENV` names, changed by `BENCHMARK_DEFAULT_ITERATIONS` and the like.

        Raises:
            ConfigurationError: for a variable that cannot be read; the text names it.
        """
        name = os.environ.get("BENCHMARK_ENV", "development")
        if name not in _PRESETS:
            raise ConfigurationError(f"BENCHMARK_ENV must be one of {', '.join(_PRESETS)}", {"BENCHMARK_ENV": name})
        chosen = asdict(_PRESETS[name])
        for setting, default in chosen.items():
            variable = f"BENCHMARK_{setting.upper()}"
            text = os.environ.get(variable)
            if text:
                try:
                    chosen[setting] = _BOOLEANS[text.lower()] if isinstance(default, bool) else json.loads(text)
                except (KeyError, ValueError):
                    raise ConfigurationError(f"{variable} must be like {default}", {variable: text}) from None
        return cls(**chosen)


def _at_least(low: int, number: Any) -> bool:
    return type(number) is int and number >= low


def _is_positive(number: Any) -> bool:
    return isinstance(number, int | float) and not isinstance(number, bool) and number > 0


_PRESETS: Final[Mapping[str, BenchmarkConfig]] = {
    "development": BenchmarkConfig(10, 2, 60, True, True),
    "testing": BenchmarkConfig(50, 5, 120, True, True),
    "production": BenchmarkConfig(500, 50, 600, True, True),
    "ci": BenchmarkConfig(25, 5, 120, False, False),
    "docker": BenchmarkConfig(25, 5, 120, False, False),
}


class ConfigPresets:
    """Configurations for common places."""

    @staticmethod
    def development_config() -> BenchmarkConfig:
        """Short, for quick looks."""
        return _PRESETS["development"]

    @staticmethod
    def testing_config() -> BenchmarkConfig:
        """Longer, for a look at the details."""
        return _PRESETS["testing"]

    @staticmethod
    def production_config() -> BenchmarkConfig:
        """Long, for figures to publish."""
        return _PRESETS["production"]

    @staticmethod
    def ci_config() -> BenchmarkConfig:
        """As steady as a shared machine allows."""
        return _PRESETS["ci"]


@dataclass(frozen=True, slots=True)
class BenchmarkResult:
    """What one operation took. `success_rate` is from 0 to 1; `None` was not measured."""

    name: str
    iterations: int
    avg_duration_ms: float
    median_duration_ms: float
    p95_duration_ms: float
    p99_duration_ms: float
    max_duration_ms: float
    operations_per_second: float
    success_rate: float
    memory_peak_mb: float | None = None
    compression_ratio: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.avg_duration_ms:.4f} ms on average, {self.p95_duration_ms:.4f} at 95 %, "
            f"{self.p99_duration_ms:.4f} at 99 %; {self.operations_per_second:,.0f} a second, "
            f"{self.success_rate:.1%} succeeded"
        )


@dataclass(frozen=True, slots=True)
class ComparisonResult:
    """Two caches at the same requests, in turns.

    Attributes:
        performance_change_percent: of the time a request takes; negative is faster.
        noise_percent: how far two runs of the original were from one another.
        regression_detected: the new cache is slower by more than the noise, and than `SMALLEST_CHANGE`.
    """

    name: str
    original: BenchmarkResult
    new: BenchmarkResult
    performance_change_percent: float
    noise_percent: float
    regression_detected: bool

    def as_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        verdict = "regression" if self.regression_detected else "no regression"
        change = f"{self.performance_change_percent:+.1f} % (noise {self.noise_percent:.1f} %): {verdict}"
        return f"{self.name}: {change}\n  {self.original}\n  {self.new}"


class CacheBenchmarkRunner:
    """Times caches through their public methods. It leaves nothing of its own in them."""

    def __init__(self, config: BenchmarkConfig | None = None) -> None:
        self.config = config or BenchmarkConfig.from_environment()

    async def run_bulk_set_benchmark(
        self, cache: Cache, test_data: Sequence[Mapping[str, Any]], iterations: int | None = None
    ) -> BenchmarkResult:
        """Time single `set`s of all test data (dictionaries with `key` and `value`), `iterations` times."""
        if not test_data:
            raise ValidationError("test_data must not be empty", {"test_data": "empty"})
        before = cache.stats()
        durations: list[float] = []
        failures = 0

        async def round_of(times: list[float]) -> int:
            failed = 0
            for item in test_data:
                started = time.perf_counter()
                try:
                    await cache.set(item["key"], item["value"])
                except Exception:
                    failed += 1
                times.append(time.perf_counter() - started)
            return failed

        for is_warm in self._rounds(iterations):
            failures += await round_of(durations if is_warm else []) * is_warm
        peak = await self._peak(lambda: round_of([]))
        ratio = self._compression(before, cache.stats())
        await cache.delete_many([item["key"] for item in test_data])
        return _result("bulk set", durations, failures, attempts=len(durations), peak=peak, ratio=ratio)

    async def run_cache_comparison(
        self, original_cache: Cache, new_cache: Cache, test_suite_name: str = "comparison"
    ) -> ComparisonResult:
        """Give both caches the same requests in turns, the original twice a round: that tells what is noise.

        There are more keys than the smaller cache holds, and fewer than the larger, if their sizes differ: a cache
        that holds more of the working set has fewer misses.
        """
        keys = _working_set(original_cache, new_cache)
        requests = random.Random(_SEED).choices(keys, k=2 * len(keys))
        contestants = {"original": original_cache, "again": original_cache, "new": new_cache}
        times: dict[str, list[float]] = {name: [] for name in contestants}
        failures = dict.fromkeys(contestants, 0)
        for cache in (original_cache, new_cache):  # empty caches in the first round would look like noise
            await _ask_all(cache, requests)
        order = list(contestants)
        for is_warm in self._rounds(None):
            order.append(order.pop(0))
            for name in order:
                taken, failed = await _ask_all(contestants[name], requests)
                if is_warm:
                    times[name].append(taken / len(requests))
                    failures[name] += failed
        for cache in {id(cache): cache for cache in contestants.values()}.values():
            await cache.delete_many(keys)
        results = {
            name: _result(name, times[name], failures[name], attempts=len(requests) * len(times[name]))
            for name in ("original", "new")
        }
        change, noise = _change(times["original"], times["new"]), _spread(times["original"], times["again"])
        return ComparisonResult(
            test_suite_name, results["original"], results["new"], change, noise,
            regression_detected=change > max(noise, SMALLEST_CHANGE),
        )  # fmt: skip

    def _rounds(self, iterations: int | None) -> Iterable[bool]:
        """One item per round: whether it counts. At least one does."""
        if iterations is not None and not _at_least(1, iterations):
            raise ValidationError("iterations must be a positive integer", {"iterations": "range"})
        ends = time.monotonic() + self.config.timeout_seconds
        warm_up, count = self.config.warmup_iterations, iterations or self.config.default_iterations
        for number in range(warm_up + count):
            if number != warm_up and time.monotonic() > ends:
                continue
            gc.collect()
            yield number >= warm_up

    async def _peak(self, run: Callable[[], Awaitable[Any]]) -> float | None:
        if not self.config.enable_memory_tracking:
            return None
        was_tracing = tracemalloc.is_tracing()
        tracemalloc.start()
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        await run()
        peak = tracemalloc.get_traced_memory()[1] - before
        if not was_tracing:
            tracemalloc.stop()
        return peak / 2**20

    def _compression(self, before: Any, after: Any) -> float | None:
        raw = after.bytes_raw - before.bytes_raw
        is_wanted = self.config.enable_compression_tests and raw > 0
        return (after.bytes_stored - before.bytes_stored) / raw if is_wanted else None


def _size(cache: Cache) -> int:
    """How many entries a cache keeps in this process."""
    holder = getattr(cache, "l1_cache", None) or cache
    return int(getattr(holder, "max_size", 0))


def _working_set(*caches: Cache) -> list[str]:
    sizes = [size for size in map(_size, caches) if size]
    count = min(sum(sizes) // len(sizes) if sizes else 100, MOST_KEYS)
    return [f"aimemo-benchmark:{number}" for number in range(count)]


async def _ask_all(cache: Cache, requests: Sequence[str]) -> tuple[float, int]:
    failed = 0
    started = time.perf_counter()
    for key in requests:
        try:
            await cache.get_or_compute(key, functools.partial(_answer, key))
        except Exception:
            failed += 1
    return time.perf_counter() - started, failed


def _answer(key: str) -> dict[str, str]:
    return {"answer": key * 10}


def _change(original: Sequence[float], new: Sequence[float]) -> float:
    """Percent by which `new` takes longer, as the median of the rounds."""
    return 100 * (statistics.median(b / a for a, b in zip(original, new, strict=True)) - 1)


def _spread(original: Sequence[float], again: Sequence[float]) -> float:
    """Percent within which nine of ten rounds of one and the same cache lie."""
    return _percentile([abs(100 * (b / a - 1)) for a, b in zip(original, again, strict=True)], 90)


def _percentile(values: Sequence[float], percent: int) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


def _result(
    name: str, seconds: Sequence[float], failures: int, *, attempts: int,
    peak: float | None = None, ratio: float | None = None,
) -> BenchmarkResult:  # fmt: skip
    average = statistics.fmean(seconds)
    return BenchmarkResult(
        name, len(seconds), 1000 * average, 1000 * statistics.median(seconds),
        1000 * _percentile(seconds, 95), 1000 * _percentile(seconds, 99), 1000 * max(seconds),
        1 / average, 1 - failures / attempts, peak, ratio,
    )  # fmt: skip
