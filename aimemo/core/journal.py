"""The journal of one cache: the one place that knows what is counted, told to hooks and recorded."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from typing import Any

from aimemo.core.context import CallRecord, Outcome, current_recorders
from aimemo.core.entry import RETIRED, Entry, PackedEntry
from aimemo.core.envelope import DamagedEntry
from aimemo.core.events import CacheEvent, EventBus, Hook, Tier, frames
from aimemo.core.keys import digest_of, operation_of
from aimemo.core.ports import Clock
from aimemo.core.stats import Stats
from aimemo.errors import AimemoWarning

log = logging.getLogger("aimemo")

Hooks = Mapping[str, tuple[Hook, ...]]
NO_HOOKS: Hooks = {}

_SEED_OUTCOME = {"hit": "get_success", "stale": "get_success", "coalesced": "get_success", "miss": "get_miss"}


class Journal:
    """Counts into `stats`, tells `bus`, and writes to the `record_calls()` of the context."""

    def __init__(self, clock: Clock) -> None:
        self.stats = Stats()
        self.bus = EventBus(self.stats)
        self._clock = clock
        self._open_breakers = 0

    def lookup(
        self, outcome: Outcome, key: str, operation: str, started: float, *,
        value: Any = None, entry: Entry | None = None, tier: Tier | None = None,
        reason: str = "", hooks: Hooks = NO_HOOKS, is_decorated: bool = True, has_answer: bool = True,
    ) -> None:  # fmt: skip
        """A call or a read by hand came to its end."""
        self.count(outcome, operation, entry, tier)
        recorders = current_recorders() if is_decorated else []
        own = hooks.get(outcome, ())
        if not (recorders or own or self.bus.has_hooks):
            return
        now = self._clock()
        facts: Mapping[str, Any] = (entry.facts if entry is not None else None) or {}
        known: dict[str, Any] = {
            "operation": operation,
            "digest": digest_of(key) if key else "",
            "tier": tier,
            "age": now - entry.created if entry is not None and outcome != "miss" else None,
            "seconds": now - started,
        }
        saved = facts if outcome in ("hit", "stale", "coalesced") else {}
        for recorder in recorders:
            recorder.append(
                CallRecord(outcome=outcome, tokens_saved=saved.get("tokens"), cost_saved=saved.get("cost"), **known)
            )
        if own or self.bus.wants(outcome):
            event = CacheEvent(kind=outcome, reason=reason, tokens=facts.get("tokens"), cost=facts.get("cost"), **known)
            self.bus.post(outcome, operation, (event,), own)
        seed = _SEED_OUTCOME.get(outcome)
        if seed is not None and (has_answer or seed == "get_miss") and self.bus.wants(seed):
            self.bus.post(seed, operation, (key,) if seed == "get_miss" else (key, _copy(entry, value)))

    def count(self, outcome: Outcome, operation: str, entry: Entry | None, tier: Tier | None) -> None:
        """Count a lookup that nobody watches."""
        is_local = outcome == "hit" and tier == "l1"
        if is_local and entry is not None and entry.usable_until != RETIRED:  # it has not left meanwhile
            entry.hits += 1  # and with it what was saved
            return
        tally = self.stats.tally(operation)
        match outcome:
            case "hit" if is_local:
                tally.l1_hits += 1
            case "hit":
                tally.l2_hits += 1
            case "stale":
                tally.stale_hits += 1
            case "coalesced":
                tally.coalesced += 1
            case "miss":
                tally.misses += 1
                return
            case _:  # bypass, refresh
                return
        if entry is not None:
            tally.save(entry)

    def kept(self, entry: Entry, value: Any, hooks: Hooks = NO_HOOKS) -> None:
        """An answer was stored."""
        tally = self.stats.tally(entry.operation)
        tally.sets += 1
        tally.call_seconds += entry.seconds
        tally.bytes_raw += entry.raw_size
        tally.bytes_stored += entry.stored_size
        own = hooks.get("set", ())
        if own or self.bus.wants("set"):
            facts = entry.facts or {}
            event = CacheEvent(
                kind="set", operation=entry.operation, digest=digest_of(entry.key), seconds=entry.seconds,
                size_raw=entry.raw_size, size_stored=entry.stored_size,
                tokens=facts.get("tokens"), cost=facts.get("cost"),
            )  # fmt: skip
            self.bus.post("set", entry.operation, (event,), own)
        if self.bus.wants("set_success"):
            self.bus.post("set_success", entry.operation, (entry.key, _copy(entry, value)))

    def not_kept(self, key: str, operation: str, reason: str, error: BaseException | None = None) -> None:
        """An answer went out, but was not stored."""
        self._post("not_kept", operation, key, reason=reason, error=type(error).__name__ if error else "")

    def deleted(self, key: str, existed: bool) -> None:
        operation = operation_of(key)
        self.stats.tally(operation).deletes += existed
        self._post("delete", operation, key, count=int(existed))
        if existed and self.bus.wants("delete_success"):
            self.bus.post("delete_success", operation, (key,))

    def invalidated(self, kind: str, operation: str, count: int) -> None:
        self.stats.tally(operation).deletes += count
        self._post("invalidated", operation, "", reason=kind, count=count)

    def left(self, entry: Entry, reason: str) -> None:
        """An entry left the in-process tier: `evicted`, `expired`, `replaced`, `deleted` or `invalidated`."""
        self.stats.retire(entry)
        if reason == "evicted":
            self.stats.tally(entry.operation).evictions += 1
            self._post("evicted", entry.operation, entry.key, reason="size")

    def error(self, stage: str, key: str, error: BaseException) -> None:
        """A store, or a function that the user gave to steer the keeping, failed at a stage of a call."""
        operation = operation_of(key)
        self.stats.tally(operation).errors += 1
        reason = error.reason if isinstance(error, DamagedEntry) else stage
        log.info("%s failed for operation %r: %s", reason, operation, type(error).__name__)
        if log.isEnabledFor(logging.DEBUG):
            log.debug("%s failed at:\n%s", reason, frames(error))
        self._post("error", operation, key, reason=reason, error=type(error).__name__)

    def breaker(self, state: str, why: str) -> None:
        """A store is left alone from now on (`open`), or it is asked again (`closed`)."""
        was_open, self._open_breakers = self._open_breakers, self._open_breakers + (1 if state == "open" else -1)
        if not was_open:
            log.warning("the store failed several times in a row (last with %s) and is left alone but for a probe", why)
        elif not self._open_breakers:
            log.warning("the store answers again")
        self._post("error", "", "", reason=f"breaker_{state}")

    def warn(self, text: str) -> None:
        """Tell the user of something in the use of the cache that costs answers."""
        try:
            warnings.warn(text, AimemoWarning, stacklevel=3)
        except AimemoWarning:  # warnings were made errors: the answer goes out all the same
            log.warning(text)

    def _post(self, kind: str, operation: str, key: str, **what: Any) -> None:
        if self.bus.wants(kind):
            digest = digest_of(key) if key else ""
            self.bus.post(kind, operation, (CacheEvent(kind=kind, operation=operation, digest=digest, **what),))


def _copy(entry: Entry | None, value: Any) -> Any:
    """The value for a callback: what the callback does to it is nobody else's matter."""
    return entry.value if isinstance(entry, PackedEntry) else value
