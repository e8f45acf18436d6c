"""One store in front of another."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any, TypeVar

from aimemo.core.entry import Entry
from aimemo.core.envelope import DamagedEntry
from aimemo.core.ports import LocalStore, Selector, Store, Stored

T = TypeVar("T")


class TieredStore:
    """A local store (L1) in front of a slower, usually shared one (L2).

    Reads go to L2: the caller looks into L1 first and fills it, because only the caller can tell whether
    what was read is a value. Whatever L2 refuses because of an invalidation L1 does not keep either; what
    L2 could not take because it is in trouble L1 keeps. An invalidation reaches L2 first, and L1 even if
    L2 did not acknowledge it.
    """

    def __init__(self, l1: LocalStore, l2: Store) -> None:
        self.l1 = l1
        self.l2 = l2
        self.reads_inline = l2.reads_inline
        self.keeps_time = l2.keeps_time

    async def connect(self) -> None:
        await self.l2.connect()

    def find(self, key: str) -> Entry | None:
        return self.l2.find(key)

    async def get(self, key: str) -> Entry | None:
        return await self.l2.get(key)

    async def get_many(self, keys: Iterable[str]) -> Mapping[str, Entry | DamagedEntry]:
        return await self.l2.get_many(keys)

    async def ticket(self, key: str, operation: str, tags: tuple[str, ...]) -> Any:
        return await self.l1.ticket(key, operation, tags), await self.l2.ticket(key, operation, tags)

    async def set(self, key: str, entry: Entry, ticket: Any = None, *, replaces: bool = False) -> bool | None:
        # Without a ticket too, L1 must not keep what another process removes from L2 just after it came there.
        ours, theirs = ticket or (await self.l1.ticket(key, entry.operation, entry.tags), None)
        kept = await self.l2.set(key, entry, theirs, replaces=replaces)
        if kept is False:
            return False
        local = await self.l1.set(key, entry, ours, replaces=replaces)
        return local if kept is None else kept

    async def set_many(self, entries: Mapping[str, Entry]) -> int | None:
        tickets = {key: await self.l1.ticket(key, entry.operation, entry.tags) for key, entry in entries.items()}
        kept = await self.l2.set_many(entries)
        local = [await self.l1.set(key, entry, tickets[key], replaces=True) for key, entry in entries.items()]
        return sum(map(bool, local)) if kept is None else kept

    async def page(self, cursor: str, count: int) -> tuple[list[Stored], str]:
        return await self.l2.page(cursor, count)

    async def delete_many(self, keys: Iterable[str]) -> frozenset[str]:
        keys = list(keys)
        return await self._both(self.l2.delete_many(keys), self.l1.delete_many(keys), frozenset.union)

    async def sweep(self, selector: Selector) -> int:
        return await self._both(self.l2.sweep(selector), self.l1.sweep(selector), max)

    async def _both(self, theirs: Coroutine[Any, Any, T], ours: Coroutine[Any, Any, T], join: Callable[[T, T], T]) -> T:
        try:
            result = await theirs
        finally:
            local = await ours
        return join(result, local)

    async def close(self) -> None:
        await self.l2.close()
        await self.l1.close()
