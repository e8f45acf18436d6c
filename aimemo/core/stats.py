"""Counting without a second counter: live entries carry their own hits, tallies carry the rest."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from aimemo.core.entry import Entry


@dataclass(slots=True)
class Tally:
    """The running counts of one operation.

    Fields are added to without a lock: in CPython with a GIL, `x.n += y` on a slot is not interrupted, as
    long as no call stands between the reading and the writing.
    """

    misses: int = 0
    stale_hits: int = 0
    coalesced: int = 0
    sets: int = 0
    deletes: int = 0
    errors: int = 0
    evictions: int = 0
    callback_errors: int = 0
    l1_hits: int = 0
    l2_hits: int = 0
    seconds_saved: float = 0.0
    tokens_saved: int = 0
    cost_saved: float = 0.0
    call_seconds: float = 0.0
    bytes_raw: int = 0
    bytes_stored: int = 0

    def save(self, entry: Entry, times: int = 1) -> None:
        """Count what `times` answers from this entry saved."""
        self.seconds_saved += times * entry.seconds
        if entry.facts:
            tokens, cost = times * entry.facts.get("tokens", 0), times * entry.facts.get("cost", 0.0)
            self.tokens_saved += tokens
            self.cost_saved += cost

    def add(self, other: Tally) -> None:
        for spec in fields(Tally):
            setattr(self, spec.name, getattr(self, spec.name) + getattr(other, spec.name))


@dataclass(frozen=True, slots=True)
class CacheStats:
    """A snapshot of the counts, for one operation or for all.

    Every lookup is exactly one of `hits` (`l1_hits` + `l2_hits`), `stale_hits`, `misses`, `coalesced`.
    `hit_rate` is (hits + stale_hits + coalesced) / lookups, from 0 to 1. `call_seconds` is what the calls took whose
    answers were kept. Bytes count what was set:
    packed (`bytes_raw`) and as the store keeps it (`bytes_stored`). `breaker` is `open` while a store that
    failed is left alone, but for a probe now and then.
    """

    hits: int = 0
    misses: int = 0
    stale_hits: int = 0
    coalesced: int = 0
    sets: int = 0
    deletes: int = 0
    errors: int = 0
    evictions: int = 0
    callback_errors: int = 0
    hit_rate: float = 0.0
    l1_hits: int = 0
    l2_hits: int = 0
    seconds_saved: float = 0.0
    tokens_saved: int = 0
    cost_saved: float = 0.0
    call_seconds: float = 0.0
    bytes_raw: int = 0
    bytes_stored: int = 0
    breaker: Literal["closed", "open"] = "closed"
    by_operation: dict[str, CacheStats] = field(default_factory=dict)

    @classmethod
    def of(cls, tally: Tally, by_operation: dict[str, CacheStats] | None = None) -> CacheStats:
        counts = {spec.name: getattr(tally, spec.name) for spec in fields(Tally)}
        hits = tally.l1_hits + tally.l2_hits
        answered = hits + tally.stale_hits + tally.coalesced
        lookups = answered + tally.misses
        rate = answered / lookups if lookups else 0.0
        return cls(hits=hits, hit_rate=rate, by_operation=by_operation or {}, **counts)

    @property
    def lookups(self) -> int:
        """How often something was looked up."""
        return self.hits + self.stale_hits + self.coalesced + self.misses

    def as_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        plain = {spec.name: getattr(self, spec.name) for spec in fields(self)}
        plain["by_operation"] = {name: stats.as_dict() for name, stats in self.by_operation.items()}
        return plain

    def __str__(self) -> str:
        rows = [("all", self), *sorted(self.by_operation.items())]
        width = max(len(name or "(by hand)") for name, _ in rows)
        return "\n".join(f"{name or '(by hand)':<{width}}  {stats._line()}" for name, stats in rows)

    def _line(self) -> str:
        return (
            f"{self.hit_rate:6.1%} of {self.lookups} lookups: {self.hits} hits, {self.stale_hits} stale, "
            f"{self.coalesced} coalesced, {self.misses} misses; {self.seconds_saved:.1f} s saved; "
            f"{self.bytes_raw} B raw, {self.bytes_stored} B stored; {self.errors} errors"
            f"{'; the store is left alone' if self.breaker == 'open' else ''}"
        )


class Stats:
    """The counts of one cache, by operation."""

    def __init__(self) -> None:
        self._tallies: dict[str, Tally] = {}

    def tally(self, operation: str) -> Tally:
        return self._tallies.get(operation) or self._tallies.setdefault(operation, Tally())

    def retire(self, entry: Entry) -> None:
        """Take over the hits of an entry that leaves its store."""
        self._fold(self.tally(entry.operation), entry)
        entry.hits = 0

    @staticmethod
    def _fold(tally: Tally, entry: Entry) -> None:
        tally.l1_hits += entry.hits
        tally.save(entry, entry.hits)

    def snapshot(self, live: Iterable[Entry] = ()) -> CacheStats:
        """The counts of now; `live` are the entries whose hits are still their own."""
        tallies: dict[str, Tally] = {}
        for operation, tally in list(self._tallies.items()):
            tallies.setdefault(operation, Tally()).add(tally)
        for entry in live:
            if entry.hits:
                self._fold(tallies.setdefault(entry.operation, Tally()), entry)
        total = Tally()
        for tally in tallies.values():
            total.add(tally)
        return CacheStats.of(total, {operation: CacheStats.of(tally) for operation, tally in tallies.items()})
