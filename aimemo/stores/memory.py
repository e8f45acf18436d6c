"""Entries as live objects in this process, bounded by number and bytes, evicted by SIEVE.

SIEVE: Zhang et al., "SIEVE is Simpler than LRU", NSDI 2024. Entries stand in order of arrival; a hand
walks from the oldest to the newest, spares once what was read since it last came by, and evicts the
first that was not. A read moves nothing, so reads take no lock.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from aimemo.core.entry import Address, Entry
from aimemo.core.ports import Clock, Selector, Stored
from aimemo.core.runtime import fork_safe_lock

Left = Callable[[Entry, str], None]


class _Ticket:
    """Open for as long as its computation holds it; void once an invalidation meant it."""

    __slots__ = ("__weakref__", "is_void", "key", "operation", "tags")

    def __init__(self, key: str, operation: str, tags: tuple[str, ...]) -> None:
        self.key = key
        self.operation = operation
        self.tags = tags
        self.is_void = False


class MemoryStore:
    """A store of at most `max_size` entries, whose packed values are at most `max_bytes` together.

    Args:
        max_life: seconds that no entry outlives here, whatever its own times say.
        left: called, outside the lock, with each entry that leaves and why: `evicted`, `expired`,
            `replaced`, `deleted` or `invalidated`.
    """

    reads_inline = True
    keeps_time = True

    def __init__(
        self, max_size: int, max_bytes: int | None, *, clock: Clock, left: Left, max_life: float = float("inf")
    ) -> None:
        self.epoch = 0
        self.max_size = max_size
        self._max_bytes = max_bytes if max_bytes is not None else float("inf")
        self._max_life = max_life
        self._clock = clock
        self._left = left
        self._entries: dict[str, Entry] = {}
        self._bytes = 0
        self._oldest: Entry | None = None
        self._newest: Entry | None = None
        self._hand: Entry | None = None
        self._tickets: weakref.WeakSet[_Ticket] = weakref.WeakSet()
        self._lock = fork_safe_lock()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def size_bytes(self) -> int:
        """Bytes of the packed values held."""
        return self._bytes

    def entries(self) -> list[Entry]:
        return list(self._entries.values())

    def find(self, key: str) -> Entry | None:
        """The usable entry of a key, without counting a hit."""
        entry = self._entries.get(key)
        if entry is None or entry.usable_until > self._clock():
            return entry
        self._discard(entry, "expired")
        return None

    async def connect(self) -> None:
        """Always there."""

    async def get(self, key: str) -> Entry | None:
        return self.find(key)

    async def get_many(self, keys: Iterable[str]) -> dict[str, Entry]:
        found = ((key, self.find(key)) for key in keys)
        return {key: entry for key, entry in found if entry is not None}

    async def ticket(self, key: str, operation: str, tags: tuple[str, ...]) -> _Ticket:
        ticket = _Ticket(key, operation, tags)
        with self._lock:
            self._tickets.add(ticket)
        return ticket

    async def set(self, key: str, entry: Entry, ticket: Any = None, *, replaces: bool = False) -> bool | None:
        self.epoch += 1  # what is being read from a slower store may be older

        def may() -> bool:
            if ticket is not None and ticket.is_void:
                return False
            if replaces:
                self._void(Selector("key", key), but=ticket)
            return True

        return self._keep(entry, may)

    async def set_many(self, entries: Mapping[str, Entry]) -> int:
        return sum([bool(await self.set(key, entry, replaces=True)) for key, entry in entries.items()])

    def _void(self, selector: Selector, but: Any = None) -> None:
        for ticket in self._tickets:
            if ticket is not but and selector.matches(ticket.key, ticket.operation, ticket.tags):
                ticket.is_void = True

    def fill(self, entry: Entry, epoch: int) -> bool:
        def may() -> bool:
            held = self._entries.get(entry.key)
            return epoch == self.epoch and (held is None or held.fresh_until <= self._clock())

        return bool(self._keep(entry, may))

    def aim(self, entry: Entry, front: dict[Address, Entry], address: Address) -> None:
        with self._lock:
            if self._entries.get(entry.key) is entry:
                entry.leave_front()
                entry.front, entry.address = front, address
                front[address] = entry

    async def page(self, cursor: str, count: int) -> tuple[list[Stored], str]:
        start = int(cursor or 0)
        entries = self.entries()
        end = start + count
        found = [
            Stored(
                entry.key, entry.raw_size, entry.stored_size, entry.created, entry.fresh_until, entry.usable_until,
                entry.seconds, entry.hits,
            )
            for entry in entries[max(start, 0) : end]
        ]  # fmt: skip
        return found, str(end) if end < len(entries) else ""

    async def delete_many(self, keys: Iterable[str]) -> frozenset[str]:
        return frozenset(key for key in keys if self._invalidate(Selector("key", key), "deleted"))

    async def sweep(self, selector: Selector) -> int:
        return self._invalidate(selector, "invalidated")

    async def close(self) -> None:
        """Nothing to release: a closed cache keeps what it has in memory."""

    def invalidate(self, selector: Selector) -> None:
        self._invalidate(selector, "invalidated")

    def _invalidate(self, selector: Selector, reason: str) -> int:
        with self._lock:
            self.epoch += 1
            self._void(selector)
        # Only now, so that nothing kept with a ticket that was still good is overlooked.
        candidates = [self._entries.get(selector.name)] if selector.kind == "key" else self.entries()
        now = self._clock()
        count = 0
        for entry in candidates:
            if entry is not None and selector.matches(entry.key, entry.operation, entry.tags):
                usable_until = entry.usable_until
                count += self._discard(entry, reason) and usable_until > now
        return count

    def _discard(self, entry: Entry, reason: str) -> bool:
        with self._lock:
            if self._entries.get(entry.key) is not entry:
                return False
            del self._entries[entry.key]
            self._unlink(entry)
        self._left(entry, reason)
        return True

    def _keep(self, entry: Entry, may: Callable[[], bool]) -> bool | None:
        horizon = self._clock() + self._max_life
        entry.fresh_until = min(entry.fresh_until, horizon)
        entry.usable_until = min(entry.usable_until, horizon)
        if entry.raw_size > self._max_bytes:
            held = self._entries.get(entry.key)
            if held is not None:
                self._discard(held, "replaced")  # it is no longer the answer, even if the new one is too large
            return None
        with self._lock:
            if not may():
                return False
            if self._entries.get(entry.key) is entry:
                return True  # two readers were handed the one entry
            entry.enter()
            gone = [] if (old := self._entries.get(entry.key)) is None else [(old, "replaced")]
            if old is not None:
                self._take_place(old, entry)
            else:
                gone += self._make_room(entry.raw_size)
                self._append(entry)
            self._entries[entry.key] = entry
            if type(entry) is Entry:
                entry.payload = None  # a value that is shared as it is needs no packed copy
            while self._bytes > self._max_bytes:
                gone.append(self._evict())
        for leaver, reason in gone:
            self._left(leaver, reason)
        return True

    def _make_room(self, size: int) -> list[tuple[Entry, str]]:
        gone = []
        while self._entries and (len(self._entries) >= self.max_size or self._bytes + size > self._max_bytes):
            gone.append(self._evict())
        return gone

    def _evict(self) -> tuple[Entry, str]:
        """Remove the entry that SIEVE's hand stops at; an expired one stops it at once."""
        now = self._clock()
        entry = self._hand or self._oldest
        assert entry is not None
        while entry.hits != entry.seen and entry.usable_until > now:
            entry.seen = entry.hits
            entry = entry.newer or self._oldest
            assert entry is not None
        reason = "evicted" if entry.usable_until > now else "expired"
        self._hand = entry
        del self._entries[entry.key]
        self._unlink(entry)
        return entry, reason

    # The order of arrival, a doubly linked list through the entries themselves.

    def _append(self, entry: Entry) -> None:
        entry.older, entry.newer = self._newest, None
        if self._newest is not None:
            self._newest.newer = entry
        else:
            self._oldest = entry
        self._newest = entry
        self._bytes += entry.raw_size

    def _unlink(self, entry: Entry) -> None:
        older, newer = entry.older, entry.newer
        if self._hand is entry:
            self._hand = newer
        if older is not None:
            older.newer = newer
        else:
            self._oldest = newer
        if newer is not None:
            newer.older = older
        else:
            self._newest = older
        entry.older = entry.newer = None
        self._bytes -= entry.raw_size
        entry.retire()

    def _take_place(self, old: Entry, new: Entry) -> None:
        """Put `new` where `old` stood, as recently used: overwriting a key evicts no other."""
        new.older, new.newer = old.older, old.newer
        new.seen = -1
        for neighbour, side in ((old.older, "newer"), (old.newer, "older")):
            if neighbour is not None:
                setattr(neighbour, side, new)
        if self._oldest is old:
            self._oldest = new
        if self._newest is old:
            self._newest = new
        if self._hand is old:
            self._hand = new
        old.older = old.newer = None
        self._bytes += new.raw_size - old.raw_size
        old.retire()
