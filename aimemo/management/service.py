"""What operators ask of a cache, once; the API, the command line and the metrics are doors to it."""

from __future__ import annotations

import base64
import contextlib
import datetime
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from typing import Any, Final, Literal

from aimemo.caches.interface import Cache
from aimemo.core.codec import unpacker
from aimemo.core.entry import Entry, PackedEntry
from aimemo.core.events import CacheEvent
from aimemo.core.keys import digest_of, operation_of
from aimemo.core.ports import Selector, Stored
from aimemo.core.stats import CacheStats
from aimemo.errors import InfrastructureError, ValidationError

MAX_NAME: Final = 512
"""Characters of a pattern, an operation or a tag."""

PAGE: Final = 100
SEARCH_SECONDS: Final = 5.0
SAMPLES: Final = 720
BATCH: Final = 200
FORMAT: Final = "aimemo-export-1"

_SELECTED_BY: Final[Mapping[str, Literal["glob", "operation", "tag"]]] = {
    "pattern": "glob", "operation": "operation", "tag": "tag",
}  # fmt: skip
_PROBE: Final = "aimemo:probe"
_WATCHED: Final = ("error", "evicted", "invalidated")


class Operations:
    """The operations on one cache. Counts errors, evictions and invalidations by their reason from now on.

    Every method raises `InfrastructureError` if the store did not do what was asked.
    """

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self.backend = cache.backend
        self.errors: Counter[str] = Counter()
        self.evictions: Counter[str] = Counter()
        self.invalidations: Counter[str] = Counter()
        self.removed = 0
        self.lookup_seconds: deque[float] = deque(maxlen=SAMPLES)
        self._history: deque[dict[str, Any]] = deque(maxlen=SAMPLES)
        for kind in _WATCHED:
            cache.on(kind, self._note)

    def close(self) -> None:
        """Stop counting."""
        for kind in _WATCHED:
            self.cache.off(kind, self._note)

    def _note(self, event: CacheEvent) -> None:
        if event.kind == "invalidated":
            self.invalidations[event.reason] += 1
            self.removed += event.count or 0
        else:
            (self.errors if event.kind == "error" else self.evictions)[event.reason] += 1

    # Steering

    async def invalidate(
        self, *, pattern: str | None = None, operation: str | None = None, tag: str | None = None
    ) -> int:
        """Remove what a glob, an operation or a tag means; how many entries.

        Raises:
            ValidationError: not exactly one of the three is given, or it is empty or too long.
        """
        given = {
            name: value
            for name, value in (("pattern", pattern), ("operation", operation), ("tag", tag))
            if value is not None
        }
        if len(given) != 1:
            raise ValidationError(
                "give exactly one of pattern, operation and tag", dict.fromkeys(given, "one of three")
            )
        [(kind, name)] = given.items()
        if not 0 < len(name) <= MAX_NAME:
            raise ValidationError(f"{kind} must have 1 to {MAX_NAME} characters", {kind: "length"})
        return await self.cache.memoizer.sweep(Selector(_SELECTED_BY[kind], name))

    async def delete(self, digest: str) -> bool:
        """Remove the entry with this digest. Whether it was there."""
        found = await self._search(digest)
        return found is not None and await self.cache.delete(found.key)

    # Seeing

    async def entries(self, cursor: str = "", limit: int = PAGE, operation: str | None = None) -> dict[str, Any]:
        """Some entries without keys or values, and the cursor for the next ones.

        Raises:
            ValidationError: for a cursor that is none.
        """
        try:
            found, following = await self.cache.memoizer.page(cursor, limit)
        except (ValueError, InfrastructureError) as error:
            if isinstance(error.__cause__ or error, ValueError):
                raise ValidationError("cursor must be one that an earlier page gave", {"cursor": "unknown"}) from error
            raise
        shown = [self.describe(stored) for stored in found if operation in (None, operation_of(stored.key))]
        return {"entries": shown, "cursor": following or None}

    async def entry(self, digest: str, *, with_value: bool = False) -> dict[str, Any] | None:
        """One entry; with its key and value only if that is asked for."""
        found = await self._search(digest)
        if found is None:
            return None
        shown = self.describe(found)
        if with_value:
            held = await self.cache.memoizer.look(self.cache._call(found.key))
            shown |= {"key": found.key, "value": repr(held.value) if held is not None else None}
        return shown

    def describe(self, stored: Stored) -> dict[str, Any]:
        now = self.cache.clock()
        left = stored.fresh_until - now
        return {
            "digest": digest_of(stored.key), "operation": operation_of(stored.key),
            "size_raw": stored.size_raw, "size_stored": stored.size_stored,
            "age": round(now - stored.created, 3), "ttl": None if left == float("inf") else round(left, 3),
            "call_seconds": round(stored.seconds, 3), "hits": stored.hits,
        }  # fmt: skip

    async def _search(self, digest: str) -> Stored | None:
        ends = time.monotonic() + SEARCH_SECONDS
        async with contextlib.aclosing(self._all()) as entries:
            async for stored in entries:
                if digest_of(stored.key) == digest:
                    return stored
                if time.monotonic() > ends:
                    raise InfrastructureError(f"the entry was not found within {SEARCH_SECONDS:.0f} s")
        return None

    async def _all(self) -> AsyncGenerator[Stored, None]:
        cursor = ""
        while True:
            found, cursor = await self.cache.memoizer.page(cursor, BATCH)
            for stored in found:
                yield stored
            if not cursor:
                return

    def stats(self, operation: str | None = None) -> CacheStats:
        """The counts of all operations, or of one."""
        stats = self.cache.stats()
        return stats if operation is None else stats.by_operation.get(operation, CacheStats())

    def metrics(self) -> dict[str, Any]:
        """The counts under the names of the seeds' documents. A hit is every answer that was not computed."""
        stats = self.cache.stats()
        answered = stats.lookups - stats.misses
        sections: dict[str, Any] = {}
        if stats.bytes_stored < stats.bytes_raw:
            ratio = stats.bytes_stored / stats.bytes_raw
            sections["compression"] = {"bytes_raw": stats.bytes_raw, "bytes_stored": stats.bytes_stored, "ratio": ratio}
        if self.invalidations:
            sections["invalidation"] = self.invalidation_stats()
        monitor = self.cache._performance_monitor
        told = monitor.get_performance_stats() if hasattr(monitor, "get_performance_stats") else {}
        return {
            **told, **sections,
            "timestamp": _now(),
            "cache_hit_rate": stats.hit_rate,
            "total_cache_operations": stats.lookups + stats.sets + stats.deletes,
            "cache_hits": answered,
            "cache_misses": stats.misses,
        }  # fmt: skip

    async def status(self) -> dict[str, Any]:
        """Whether the store answers, what this process holds, how it went; nothing is scanned."""
        started = time.perf_counter()
        answers = await self.cache.ping()
        milliseconds = round(1000 * (time.perf_counter() - started), 3)
        state = "connected" if answers else "disconnected"
        is_redis = self.backend == "redis"
        stats = self.cache.stats()
        return {
            "backend": self.backend,
            "redis": {
                "status": state if is_redis else "not_configured",
                "latency_ms": milliseconds if is_redis and answers else None, "breaker": stats.breaker,
            },
            "memory": self.memory(),
            "performance": {
                "hit_rate": stats.hit_rate, "lookups": stats.lookups, "errors": stats.errors,
                "seconds_saved": stats.seconds_saved, "evictions": stats.evictions,
            },
            "is_available": answers,
        }  # fmt: skip

    def memory(self) -> dict[str, Any]:
        """What this process holds itself."""
        local = self.cache._local
        if local is None:
            return {"status": "not_used", "entries": 0, "size_bytes": 0, "max_entries": None}
        return {
            "status": "active", "entries": len(local), "size_bytes": local.size_bytes, "max_entries": local.max_size,
        }  # fmt: skip

    def invalidation_stats(self) -> dict[str, Any]:
        """How often something was invalidated by what, and how many entries that removed."""
        total = sum(self.invalidations.values())
        return {"total_invalidations": total, "keys_invalidated": self.removed, "by_kind": dict(self.invalidations)}

    async def sample(self) -> None:
        """Note how things stand, for `history`; and how long a lookup takes, of a key that nobody has."""
        started = time.perf_counter()
        await self.cache.exists(_PROBE)
        self.lookup_seconds.append(time.perf_counter() - started)
        stats = self.cache.stats()
        self._history.append({
            "at": time.time(), "lookups": stats.lookups, "answered": stats.lookups - stats.misses,
            "seconds_saved": stats.seconds_saved, "errors": stats.errors, "lookup_seconds": self.lookup_seconds[-1],
        })  # fmt: skip

    def history(self) -> list[dict[str, Any]]:
        """The samples of late, oldest first."""
        return list(self._history)

    # Moving

    async def export(self) -> AsyncIterator[dict[str, Any]]:
        """Every entry as plain data: a first line that says what follows, then one for each entry."""
        yield {"format": FORMAT, "namespace": self.cache.namespace, "exported": _now()}
        cursor = ""
        while True:
            found, cursor = await self.cache.memoizer.page(cursor, BATCH)
            entries = await self.cache.memoizer.tiers.store.get_many([stored.key for stored in found])
            now = self.cache.clock()
            for key, entry in entries.items():
                if isinstance(entry, Entry) and entry.payload is not None:
                    yield _plain(key, entry, now)
            if not cursor:
                return

    async def load(self, lines: Iterable[Mapping[str, Any]]) -> int:
        """Keep what `export` gave; how many entries. Those that have ended meanwhile are left out.

        Raises:
            ValidationError: it is not an export; the text names the line.
        """
        count = 0
        unpack = unpacker(self.cache.types)
        batch: dict[str, Any] = {}
        for number, line in enumerate(lines):
            if number == 0:
                if not isinstance(line, Mapping) or line.get("format") != FORMAT:
                    raise ValidationError(f"line 1 must say that the format is {FORMAT}", {"line": 1})
                continue
            entry = _entry(line, number + 1, self.cache.clock())
            entry.unpack = unpack
            batch[entry.key] = entry
            if len(batch) >= BATCH:
                count += await self._keep(batch)
                batch = {}
        return count + await self._keep(batch)

    async def _keep(self, batch: Mapping[str, Any]) -> int:
        if not batch:
            return 0
        kept = await self.cache.memoizer.tiers.store.set_many(batch)
        if kept is None:
            raise InfrastructureError("the store did not take the entries")
        return kept


def _plain(key: str, entry: Any, now: float) -> dict[str, Any]:
    def left(until: float) -> float | None:
        return None if until == float("inf") else until - now

    return {
        "key": key, "payload": base64.b64encode(entry.payload).decode(), "age": now - entry.created,
        "fresh_for": left(entry.fresh_until), "usable_for": left(entry.usable_until),
        "seconds": entry.seconds, "tags": list(entry.tags), "facts": dict(entry.facts or {}),
    }  # fmt: skip


def _entry(line: Mapping[str, Any], number: int, now: float) -> PackedEntry:
    def until(seconds: float | None) -> float:
        return float("inf") if seconds is None else now + seconds

    try:
        return PackedEntry(
            line["key"], base64.b64decode(line["payload"], validate=True), now - line["age"],
            until(line["fresh_for"]), until(line["usable_for"]), operation_of(line["key"]),
            tuple(line["tags"]), line["seconds"], line["facts"],
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise ValidationError(f"line {number} is not an entry: {error!r}", {"line": number}) from error


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat()
