"""Counts in the text format of Prometheus, made when they are asked for: nothing is added to any call."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

try:
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, SummaryMetricFamily
    from prometheus_client.registry import Collector
except ImportError as error:
    raise ImportError("metrics for Prometheus need the extra 'server': pip install '.[server]'") from error

from aimemo.core.stats import CacheStats
from aimemo.management.service import Operations

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST

MAX_OPERATIONS: Final = 50
"""The operations with the most lookups have labels of their own; the others are counted together."""

OTHERS: Final = "(others)"
_RESULTS: Final = ("l1_hits", "l2_hits", "stale_hits", "coalesced", "misses")


class CacheCollector(Collector):
    """The counts of one cache, for a registry of one's own: `REGISTRY.register(CacheCollector(Operations(cache)))`."""

    def __init__(self, work: Operations) -> None:
        self._work = work

    def collect(self) -> Iterator[Any]:
        """What the metrics are called and labelled with is part of the public interface."""
        work, stats = self._work, self._work.stats()
        groups = _grouped(stats)
        requests = CounterMetricFamily("aimemo_requests", "Lookups", labels=["operation", "result"])
        calls = SummaryMetricFamily("aimemo_call_seconds", "Calls whose answers were kept", labels=["operation"])
        for operation, group in groups.items():
            for result in _RESULTS:
                requests.add_metric([operation, result], sum(getattr(each, result) for each in group))
            taken, count = sum(each.call_seconds for each in group), sum(each.sets for each in group)
            calls.add_metric([operation], count_value=count, sum_value=taken)
        yield requests
        yield calls
        probes = list(work.lookup_seconds)
        yield SummaryMetricFamily(
            "aimemo_lookup_seconds", "Lookups of a sample key", count_value=len(probes), sum_value=sum(probes)
        )
        memory = work.memory()
        yield _labelled(
            GaugeMetricFamily, "aimemo_entries", "Entries in this process", "backend", {"memory": memory["entries"]}
        )
        size = GaugeMetricFamily("aimemo_size_bytes", "Bytes set, and held in this process", labels=["backend", "kind"])
        size.add_metric(["memory", "held"], memory["size_bytes"])
        size.add_metric([work.backend, "raw"], stats.bytes_raw)
        size.add_metric([work.backend, "stored"], stats.bytes_stored)
        yield size
        yield _labelled(
            CounterMetricFamily, "aimemo_evictions", "Entries that left for others", "reason", work.evictions
        )
        errors = CounterMetricFamily("aimemo_errors", "Faults of the store", labels=["backend", "stage"])
        for stage, count in work.errors.items():
            errors.add_metric([work.backend, stage], count)
        yield errors
        yield CounterMetricFamily(
            "aimemo_seconds_saved", "Seconds that calls would have taken", value=stats.seconds_saved
        )


def exposition(work: Operations) -> bytes:
    """The metrics of one cache as text."""
    registry = CollectorRegistry()
    registry.register(CacheCollector(work))
    return generate_latest(registry)


def _labelled(kind: Any, name: str, text: str, label: str, values: Any) -> Any:
    family = kind(name, text, labels=[label])
    for value, number in values.items():
        family.add_metric([value], number)
    return family


def _grouped(stats: CacheStats) -> dict[str, list[CacheStats]]:
    by_use = sorted(stats.by_operation.items(), key=lambda pair: pair[1].lookups, reverse=True)
    groups = {operation: [own] for operation, own in by_use[:MAX_OPERATIONS]}
    rest = [own for _, own in by_use[MAX_OPERATIONS:]]
    return {**groups, OTHERS: rest} if rest else groups
