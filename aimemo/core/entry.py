"""One stored answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Self

RETIRED: Final = float("-inf")

Address = tuple[Any, ...]


class Entry:
    """An answer with its times and the facts about the call that gave it.

    All times are seconds of the clock of the process's cache. `expires_at` is when the answer is no longer
    fresh wherever it is stored; `fresh_until` may come before that in this process. `hits` is the hit
    count, the recency bit of the eviction (with `seen`, its value when the eviction last looked) and the
    source of what was saved. `front` and `address` say where the one front index that knows this entry
    holds it.
    """

    __slots__ = (
        "address",
        "created",
        "expires_at",
        "facts",
        "fresh_until",
        "front",
        "hits",
        "key",
        "newer",
        "older",
        "operation",
        "payload",
        "raw_size",
        "seconds",
        "seen",
        "stored_size",
        "tags",
        "usable_until",
        "value",
    )  # fmt: skip

    value: Any

    def __init__(
        self,
        key: str,
        payload: bytes,
        created: float,
        fresh_until: float,
        usable_until: float,
        operation: str = "",
        tags: tuple[str, ...] = (),
        seconds: float = 0.0,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self.key = key
        self.operation = operation
        self.tags = tags
        self.payload: bytes | None = payload
        self.raw_size = self.stored_size = len(payload)
        self.created = created
        self.fresh_until = self.expires_at = fresh_until
        self.usable_until = usable_until
        self.seconds = seconds
        self.facts = facts
        self.hits = 0

    def enter(self) -> None:
        """Get ready for a place in an in-process store."""
        self.seen = 0
        self.front: dict[Address, Entry] | None = None
        self.address: Address | None = None
        self.newer: Entry | None = None
        self.older: Entry | None = None

    @classmethod
    def like(cls, other: Entry) -> Self:
        """An entry of this class with what another one says, but for its value."""
        assert other.payload is not None
        entry = cls(
            other.key, other.payload, created=other.created, fresh_until=other.fresh_until,
            usable_until=other.usable_until, operation=other.operation, tags=other.tags,
            seconds=other.seconds, facts=other.facts,
        )  # fmt: skip
        entry.stored_size = other.stored_size
        return entry

    @classmethod
    def holding(cls, value: Any, packed: Entry) -> Self:
        """`packed` with its value unpacked once for everybody, which no one can change."""
        entry = cls.like(packed)
        entry.value = value
        return entry

    def retire(self) -> None:
        """Make sure that nobody who still holds this entry takes it for an answer."""
        self.fresh_until = self.usable_until = RETIRED
        self.leave_front()

    def leave_front(self) -> None:
        if self.front is not None and self.address is not None and self.front.get(self.address) is self:
            del self.front[self.address]
        self.front = self.address = None


class PackedEntry(Entry):
    """An entry whose value can be changed by who gets it: everyone gets a fresh copy."""

    __slots__ = ("unpack",)

    unpack: Callable[[bytes], Any]

    @property
    def value(self) -> Any:
        assert self.payload is not None
        return self.unpack(self.payload)
