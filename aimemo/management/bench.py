"""`python -m aimemo bench`: one cache timed, or two compared."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from aimemo.caches.interface import Cache
from aimemo.errors import AimemoError, InfrastructureError
from aimemo.measure.benchmark import BenchmarkConfig, BenchmarkResult, CacheBenchmarkRunner, ComparisonResult
from aimemo.setup.config import cache_from_url

_ANSWER = "What a model says of a document, in about as many words as it usually takes. "


def run(urls: list[str], *, iterations: int | None, as_json: bool) -> int:
    """Print the figures. The exit code: 0, 1 for a regression, 2 if a cache cannot be used."""
    try:
        results, comparison = asyncio.run(_measure(urls, iterations))
    except (AimemoError, ImportError) as error:
        print(f"aimemo: {error}", file=sys.stderr)  # noqa: T201
        return 2
    if as_json:
        figures: dict[str, Any] = {"results": [result.as_dict() for result in results]}
        if comparison is not None:
            figures["comparison"] = comparison.as_dict()
        print(json.dumps(figures, indent=2))  # noqa: T201
    else:
        _print(results, comparison)
    return int(comparison is not None and comparison.regression_detected)


async def _measure(urls: list[str], iterations: int | None) -> tuple[list[BenchmarkResult], ComparisonResult | None]:
    config = BenchmarkConfig.from_environment()
    if iterations is not None:
        config = dataclasses.replace(config, default_iterations=iterations)
    runner = CacheBenchmarkRunner(config)
    caches = [cache_from_url(url, strict=True) for url in urls]
    answers = [
        {"key": f"aimemo-benchmark {at}", "value": {"answer": f"{at} {_ANSWER * (at % 40)}"}} for at in range(100)
    ]
    try:
        results = [await _timed(runner, cache, answers) for cache in caches]
        name = " against ".join(repr(cache) for cache in reversed(caches))  # without credentials
        comparison = await runner.run_cache_comparison(caches[0], caches[1], name) if len(caches) > 1 else None
    finally:
        for cache in caches:
            await cache.close()
    return results, comparison


async def _timed(runner: CacheBenchmarkRunner, cache: Cache, answers: list[dict[str, Any]]) -> BenchmarkResult:
    if not await cache.connect():
        raise InfrastructureError(f"{cache!r} does not answer")
    return dataclasses.replace(await runner.run_bulk_set_benchmark(cache, answers), name=f"set in {cache!r}")


def _print(results: list[BenchmarkResult], comparison: ComparisonResult | None) -> None:
    table = Table(
        "", "mean ms", "95 %", "99 %", "a second", "succeeded", title="100 answers of up to 3 KB, one at a time"
    )
    for result in [*results, *((comparison.original, comparison.new) if comparison else ())]:
        table.add_row(
            result.name, f"{result.avg_duration_ms:.4f}", f"{result.p95_duration_ms:.4f}",
            f"{result.p99_duration_ms:.4f}", f"{result.operations_per_second:,.0f}", f"{result.success_rate:.1%}",
        )  # fmt: skip
    console = Console(markup=False)  # a path may hold brackets
    console.print(table)
    if comparison is not None:
        console.print(str(comparison).splitlines()[0])
