"""Watching a cache as the seeds' documents do: a subscriber that adds up what it is told, in bounded memory."""

from __future__ import annotations

import datetime
import statistics
from collections import Counter, deque
from typing import Any, Final

from aimemo.core.runtime import fork_safe_lock

RECENT: Final = 1000
"""How many of the latest durations of each kind the averages are made of."""


class _Durations:
    """The latest durations of one kind, and how many there have been."""

    def __init__(self) -> None:
        self.count = 0
        self._recent: deque[float] = deque(maxlen=RECENT)

    def add(self, seconds: float) -> None:
        self.count += 1
        self._recent.append(seconds)

    def as_dict(self) -> dict[str, float]:
        recent = list(self._recent)
        return {
            "count": self.count,
            "avg_duration": statistics.fmean(recent),
            "median_duration": statistics.median(recent),
            "max_duration": max(recent),
            "min_duration": min(recent),
        }


class CachePerformanceMonitor:
    """Adds up what caches do. Any number of caches may share one: `performance_monitor=` of each.

    Attributes:
        total_operations: reads, writes and deletes.
        cache_hits: reads that were answered, however.
        cache_misses: reads that were not.
    """

    def __init__(self) -> None:
        self._lock = fork_safe_lock()
        self.reset_stats()

    def reset_stats(self) -> None:
        """Begin anew."""
        self.total_operations = 0
        self.cache_hits = 0
        self.cache_misses = 0
        self._operations: dict[str, _Durations] = {}
        self._key_generation = _Durations()
        self._bytes: Counter[str] = Counter()
        self._entries: Counter[str] = Counter()
        self._invalidations: Counter[str] = Counter()

    @property
    def cache_hit_rate(self) -> float:
        """`cache_hits` / reads, from 0 to 1. Writes do not dilute it."""
        reads = self.cache_hits + self.cache_misses
        return self.cache_hits / reads if reads else 0.0

    def record_cache_operation_time(
        self, operation: str, duration: float, cache_hit: bool | None = None, text_length: int = 0,
        additional_data: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """Count one operation.

        Args:
            operation: `get`, `set` or `delete`.
            duration: its seconds; of a `set`, those of the call whose answer was kept.
            cache_hit: for a read, whether it was answered.
            additional_data: of a `set`, its `size_raw` and `size_stored` in bytes.
        """
        raw, stored = ((additional_data or {}).get(name) for name in ("size_raw", "size_stored"))
        with self._lock:
            self.total_operations += 1
            self._operations.setdefault(operation, _Durations()).add(duration)
            if cache_hit is not None:
                self.cache_hits += cache_hit
                self.cache_misses += not cache_hit
            if raw and stored:
                self._bytes.update(raw=raw, stored=stored)
                self._entries.update(entries=1, compressed=int(stored < raw))

    def record_key_generation_time(
        self, duration: float, text_length: int = 0, operation_type: str = "",
        additional_data: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """Note how many seconds the making of a key took."""
        self._key_generation.add(duration)

    def record_invalidation_event(
        self, pattern: str, keys_invalidated: int, duration: float = 0.0, invalidation_type: str = "manual",
        operation_context: str = "", additional_data: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """Count one invalidation, and how many entries it removed."""
        counted = {"total_invalidations": 1, "keys_invalidated": keys_invalidated, f"by_{invalidation_type}": 1}
        with self._lock:
            self._invalidations.update(counted)

    def record_eviction(self, count: int = 1) -> None:
        """Count entries that had to leave memory for others."""
        with self._lock:
            self._entries["evicted"] += count

    def get_performance_stats(self) -> dict[str, Any]:
        """Plain data, ready for JSON. Sections without data are left out."""
        sections: dict[str, Any] = {
            "key_generation": self._key_generation.as_dict() if self._key_generation.count else None,
            "cache_operations": {name: durations.as_dict() for name, durations in list(self._operations.items())},
            "compression": self._compression(),
            "memory_usage": self._memory_usage(),
            "invalidation": dict(self._invalidations),
        }
        return {
            "timestamp": datetime.datetime.now(datetime.UTC).isoformat(),
            "cache_hit_rate": self.cache_hit_rate,
            "total_cache_operations": self.total_operations,
            "cache_hits": self.cache_hits,
            "cache_misses": self.cache_misses,
            **{name: section for name, section in sections.items() if section},
        }

    def _compression(self) -> dict[str, Any] | None:
        raw, stored = self._bytes["raw"], self._bytes["stored"]
        if not self._entries["compressed"]:
            return None
        return {
            "compressed_entries": self._entries["compressed"],
            "overall_compression_ratio": stored / raw,
            "bytes_saved": raw - stored,
        }

    def _memory_usage(self) -> dict[str, Any] | None:
        if not self._entries["entries"]:
            return None
        return {
            "entries_written": self._entries["entries"],
            "bytes_raw": self._bytes["raw"],
            "bytes_stored": self._bytes["stored"],
            "evictions": self._entries["evicted"],
        }
