"""The benchmark runner: what it reports, what it calls a regression, and that it leaves no traces."""

from __future__ import annotations

import gc
import json
import os
import statistics
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aimemo import ConfigurationError, InMemoryCache, SQLiteCache, ValidationError
from aimemo.measure.benchmark import BenchmarkConfig, BenchmarkResult, CacheBenchmarkRunner, ConfigPresets

DATA = [{"key": f"test_key_{number}", "value": f"test_value_{number}" * 10} for number in range(20)]
QUICK = BenchmarkConfig(5, 1, 30, enable_memory_tracking=False, enable_compression_tests=False)
STEADY = BenchmarkConfig(15, 2, 30, enable_memory_tracking=False, enable_compression_tests=False)


@pytest.fixture(autouse=True)
def _small_heap() -> Iterator[None]:
    """The runner collects garbage before every round: what was there before the test need not be looked through."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in [name for name in os.environ if name.startswith("BENCHMARK_")]:
        monkeypatch.delenv(variable)


@pytest.fixture
def runner() -> CacheBenchmarkRunner:
    return CacheBenchmarkRunner(QUICK)


@pytest.mark.parametrize(
    ("setting", "value", "form"),
    [*[("default_iterations", value, "a positive integer") for value in (0, -1, 1.5, "10", True, None)],
     *[("warmup_iterations", value, "a non-negative integer") for value in (-1, 1.5, "10", False, None)],
     *[("timeout_seconds", value, "a positive number") for value in (0, -1, float("nan"), "30", True, None)]],
)  # fmt: skip
def test_a_faulty_configuration_is_refused(setting: str, value: Any, form: str) -> None:
    with pytest.raises(ValidationError) as raised:
        BenchmarkConfig(**{setting: value})
    assert str(raised.value) == raised.value.context[setting] == f"{setting} must be {form}"


def test_all_faults_of_a_configuration_come_at_once() -> None:
    with pytest.raises(ValidationError) as raised:
        BenchmarkConfig(0, -1, 0)
    assert raised.value.context.keys() == {"default_iterations", "warmup_iterations", "timeout_seconds"}
    assert str(raised.value) == "; ".join(raised.value.context.values())


def test_a_configuration_keeps_what_it_is_given() -> None:
    config = BenchmarkConfig(
        default_iterations=25, warmup_iterations=0, timeout_seconds=0.5, enable_memory_tracking=True,
        enable_compression_tests=False,
    )  # fmt: skip
    assert (config.default_iterations, config.warmup_iterations, config.timeout_seconds) == (25, 0, 0.5)
    assert (config.enable_memory_tracking, config.enable_compression_tests) == (True, False)


def test_presets_go_from_quick_looks_to_figures_to_publish() -> None:
    quick, longer, longest = (
        ConfigPresets.development_config(), ConfigPresets.testing_config(), ConfigPresets.production_config()
    )  # fmt: skip
    assert quick.default_iterations < longer.default_iterations < longest.default_iterations
    assert quick.warmup_iterations < longer.warmup_iterations < longest.warmup_iterations
    assert quick.timeout_seconds < longer.timeout_seconds < longest.timeout_seconds
    assert ConfigPresets.ci_config().enable_memory_tracking is False


@pytest.mark.parametrize(
    ("name", "preset"),
    [("development", ConfigPresets.development_config()), ("testing", ConfigPresets.testing_config()),
     ("production", ConfigPresets.production_config()), ("ci", ConfigPresets.ci_config())],
)  # fmt: skip
def test_the_environment_names_a_preset(monkeypatch: pytest.MonkeyPatch, name: str, preset: BenchmarkConfig) -> None:
    monkeypatch.setenv("BENCHMARK_ENV", name)
    assert BenchmarkConfig.from_environment() == preset
    assert CacheBenchmarkRunner().config == preset


@pytest.mark.parametrize(
    ("variable", "text", "setting", "value"),
    [("DEFAULT_ITERATIONS", "7", "default_iterations", 7), ("WARMUP_ITERATIONS", "0", "warmup_iterations", 0),
     ("TIMEOUT_SECONDS", "1.5", "timeout_seconds", 1.5),
     ("ENABLE_MEMORY_TRACKING", "False", "enable_memory_tracking", False),
     ("ENABLE_COMPRESSION_TESTS", "false", "enable_compression_tests", False)],
)  # fmt: skip
def test_a_variable_changes_one_setting(
    monkeypatch: pytest.MonkeyPatch, variable: str, text: str, setting: str, value: Any
) -> None:
    assert BenchmarkConfig.from_environment() == ConfigPresets.development_config()
    monkeypatch.setenv(f"BENCHMARK_{variable}", text)
    assert getattr(BenchmarkConfig.from_environment(), setting) == value


@pytest.mark.parametrize(
    ("variable", "text", "message"),
    [("BENCHMARK_ENV", "moon", "BENCHMARK_ENV must be one of development, testing"),
     ("BENCHMARK_DEFAULT_ITERATIONS", "many", "BENCHMARK_DEFAULT_ITERATIONS must be like 10"),
     ("BENCHMARK_ENABLE_MEMORY_TRACKING", "perhaps", "BENCHMARK_ENABLE_MEMORY_TRACKING must be like True")],
)  # fmt: skip
def test_an_unreadable_variable_is_refused_by_its_name(
    monkeypatch: pytest.MonkeyPatch, variable: str, text: str, message: str
) -> None:
    monkeypatch.setenv(variable, text)
    with pytest.raises(ConfigurationError, match=message):
        BenchmarkConfig.from_environment()


@pytest.mark.parametrize("text", ["0", '"soon"', "[]"])
def test_a_variable_out_of_range_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("BENCHMARK_TIMEOUT_SECONDS", text)
    with pytest.raises(ValidationError, match="timeout_seconds must be a positive number"):
        BenchmarkConfig.from_environment()


class Recording(InMemoryCache):
    """Notes what is set, and fails or is slow on demand."""

    def __init__(self, fails_at: str = "", pause: float = 0.0, **settings: Any) -> None:
        super().__init__(**settings)
        self.keys: list[str] = []
        self._fails_at, self._pause = fails_at, pause

    async def set(self, key: str, value: Any, ttl: Any = None) -> None:
        self.keys.append(key)
        if self._fails_at and key.endswith(self._fails_at):
            raise ConnectionError("no")
        await super().set(key, value, ttl)

    async def get_or_compute(self, key: str, compute: Any, ttl: Any = None) -> Any:
        self.keys.append(key)
        ends = time.perf_counter() + self._pause
        while time.perf_counter() < ends:
            pass
        return await super().get_or_compute(key, compute, ttl)


async def test_the_figures_of_a_run_fit_together(runner: CacheBenchmarkRunner) -> None:
    cache = Recording()
    result = await runner.run_bulk_set_benchmark(cache=cache, test_data=DATA, iterations=3)
    assert result.iterations == 3 * len(DATA)
    assert len(cache.keys) == (1 + 3) * len(DATA)
    assert 0 < result.median_duration_ms <= result.p95_duration_ms <= result.p99_duration_ms <= result.max_duration_ms
    assert 0 < result.avg_duration_ms <= result.max_duration_ms
    assert result.operations_per_second == pytest.approx(1000 / result.avg_duration_ms)
    assert (result.success_rate, result.memory_peak_mb, result.compression_ratio) == (1.0, None, None)


async def test_the_configuration_s_iterations_are_run_unless_others_are_given(runner: CacheBenchmarkRunner) -> None:
    assert (await runner.run_bulk_set_benchmark(InMemoryCache(), DATA)).iterations == 5 * len(DATA)


@pytest.mark.parametrize("iterations", [0, -1, 1.5, "3", True])
async def test_faulty_iterations_are_refused(runner: CacheBenchmarkRunner, iterations: Any) -> None:
    with pytest.raises(ValidationError, match="iterations must be a positive integer"):
        await runner.run_bulk_set_benchmark(InMemoryCache(), DATA, iterations=iterations)


async def test_no_data_is_refused(runner: CacheBenchmarkRunner) -> None:
    with pytest.raises(ValidationError, match="test_data must not be empty"):
        await runner.run_bulk_set_benchmark(InMemoryCache(), [])


@pytest.mark.parametrize(("fails_at", "rate"), [("_1", 0.95), ("1", 0.9), ("_", 1.0)])
async def test_what_fails_lowers_the_success_rate(runner: CacheBenchmarkRunner, fails_at: str, rate: float) -> None:
    result = await runner.run_bulk_set_benchmark(Recording(fails_at), DATA, iterations=2)
    assert result.success_rate == pytest.approx(rate)


async def test_a_comparison_counts_what_fails_too() -> None:
    class Failing(InMemoryCache):
        async def get_or_compute(self, key: str, compute: Any, ttl: Any = None) -> Any:
            if key.endswith("7"):
                raise ConnectionError("no")
            return await super().get_or_compute(key, compute, ttl)

    comparison = await CacheBenchmarkRunner(QUICK).run_cache_comparison(InMemoryCache(50), Failing(50))
    assert comparison.original.success_rate == 1.0
    assert 0.7 < comparison.new.success_rate < 1.0


async def test_percentiles_are_those_of_the_durations(
    runner: CacheBenchmarkRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = [{"key": str(number), "value": number} for number in range(100)]
    durations = [(number + 1) / 1000 for number in range(100)]
    starts = iter([edge for seconds in [*durations, *durations] for edge in (0.0, seconds)])
    monkeypatch.setattr("aimemo.measure.benchmark.time.perf_counter", lambda: next(starts))
    result = await runner.run_bulk_set_benchmark(InMemoryCache(), data, iterations=1)
    assert result.avg_duration_ms == pytest.approx(1000 * statistics.fmean(durations))
    assert (result.p95_duration_ms, result.p99_duration_ms) == (pytest.approx(96), pytest.approx(100))
    assert result.max_duration_ms == pytest.approx(100)


async def test_memory_and_compression_are_measured_if_wished(tmp_path: Path) -> None:
    cache = SQLiteCache(tmp_path / "c.db", deadline=5)
    data = [{"key": "k", "value": "the same again and again " * 5000}]
    result = await CacheBenchmarkRunner(BenchmarkConfig(2, 0)).run_bulk_set_benchmark(cache, data)
    assert result.memory_peak_mb is not None
    assert 0.05 < result.memory_peak_mb < 20
    assert result.compression_ratio is not None
    assert 0 < result.compression_ratio < 0.1
    assert not tracemalloc.is_tracing()
    await cache.close()


async def test_tracing_that_was_on_before_stays_on() -> None:
    tracemalloc.start()
    try:
        await CacheBenchmarkRunner(BenchmarkConfig(1, 0)).run_bulk_set_benchmark(InMemoryCache(), DATA)
        assert tracemalloc.is_tracing()
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("warmups", [0, 50])
async def test_after_the_timeout_only_one_round_is_run(warmups: int) -> None:
    cache = Recording()
    runner = CacheBenchmarkRunner(BenchmarkConfig(50, warmups, 1e-9, False, False))
    assert (await runner.run_bulk_set_benchmark(cache, DATA)).iterations == len(DATA)
    assert len(cache.keys) <= 2 * len(DATA)


async def test_a_cache_that_holds_more_of_the_working_set_is_faster() -> None:
    small, large = InMemoryCache(50), InMemoryCache(100)
    comparison = await CacheBenchmarkRunner(STEADY).run_cache_comparison(
        original_cache=small, new_cache=large, test_suite_name="sizes"
    )
    assert not comparison.regression_detected
    assert comparison.performance_change_percent < 0
    assert large.stats().hit_rate > small.stats().hit_rate


async def test_a_cache_that_holds_less_is_slower() -> None:
    comparison = await CacheBenchmarkRunner(STEADY).run_cache_comparison(InMemoryCache(100), InMemoryCache(20))
    assert comparison.performance_change_percent > 0


@pytest.mark.slow
async def test_equal_caches_are_no_regression_in_ten_of_ten_runs() -> None:
    runner = CacheBenchmarkRunner(STEADY)
    runs = [await runner.run_cache_comparison(InMemoryCache(50), InMemoryCache(50)) for _ in range(10)]
    assert [run.regression_detected for run in runs] == [False] * 10


async def test_a_cache_that_is_slower_by_a_clear_factor_is_a_regression() -> None:
    comparison = await CacheBenchmarkRunner(STEADY).run_cache_comparison(
        InMemoryCache(20), Recording(pause=0.001, max_size=20), "slowed down"
    )
    assert comparison.regression_detected
    assert comparison.performance_change_percent > max(100, comparison.noise_percent)
    assert comparison.new.avg_duration_ms > 2 * comparison.original.avg_duration_ms


async def test_a_regression_is_seen_without_warm_up_rounds_too() -> None:
    runner = CacheBenchmarkRunner(BenchmarkConfig(15, 0, 30, False, False))
    comparison = await runner.run_cache_comparison(InMemoryCache(20), Recording(pause=0.001, max_size=20))
    assert comparison.regression_detected


async def test_caches_take_turns_at_the_same_requests() -> None:
    original, new = Recording(max_size=10), Recording(max_size=10)
    await CacheBenchmarkRunner(QUICK).run_cache_comparison(original, new)
    count = len(new.keys) // 7  # one round to fill, one to warm up, five that count
    assert len(original.keys) == 13 * count
    assert original.keys[: 3 * count] == new.keys[:count] * 3


async def test_nothing_of_a_run_is_left_and_what_was_there_stays(runner: CacheBenchmarkRunner, tmp_path: Path) -> None:
    caches = [InMemoryCache(), SQLiteCache(tmp_path / "c.db", deadline=5)]
    for cache in caches:
        await cache.set("own", "entry")
        await runner.run_bulk_set_benchmark(cache, DATA, iterations=1)
    config = BenchmarkConfig(1, 0, 30, False, False)
    await CacheBenchmarkRunner(config).run_cache_comparison(InMemoryCache.over(caches[0]._store), caches[1])  # type: ignore[attr-defined]
    for cache in caches:
        assert await cache.get("own") == "entry"
        assert await cache.clear() == 1
        await cache.close()


async def test_results_are_ready_for_json_and_for_reading(runner: CacheBenchmarkRunner) -> None:
    result = await runner.run_bulk_set_benchmark(InMemoryCache(), DATA, iterations=1)
    comparison = await runner.run_cache_comparison(InMemoryCache(10), InMemoryCache(10), "mine")
    assert BenchmarkResult(**json.loads(json.dumps(result.as_dict()))) == result
    plain = json.loads(json.dumps(comparison.as_dict()))
    assert plain["name"] == "mine"
    assert BenchmarkResult(**plain["new"]) == comparison.new
    assert str(result).startswith("bulk set: ")
    assert "100.0% succeeded" in str(result)
    verdict = "regression" if comparison.regression_detected else "no regression"
    first, *others = str(comparison).splitlines()
    assert first.startswith("mine: ")
    assert first.endswith(f": {verdict}")
    assert [line.strip() for line in others] == [str(comparison.original), str(comparison.new)]
