"""The tiers of one cache in one world: looking for answers, and keeping them."""

from __future__ import annotations

from collections.abc import Coroutine, Mapping, Sequence
from contextvars import Token
from typing import Any, Final, Literal, TypeVar

from aimemo.core.call import Call, Found
from aimemo.core.codec import is_immutable, pack
from aimemo.core.context import put_back
from aimemo.core.entry import Entry, PackedEntry
from aimemo.core.envelope import clean_facts
from aimemo.core.guard import BUDGET, Guard
from aimemo.core.journal import Journal
from aimemo.core.policy import Policy, read_facts
from aimemo.core.ports import Clock, LocalStore, Store
from aimemo.core.runtime import INTERRUPTIONS
from aimemo.errors import CodecError

T = TypeVar("T")

UNREADABLE: Final = object()
"""In place of a value: what is stored cannot be restored here."""


class Tiers:
    """What is stored, from the nearest tier to the farthest.

    Args:
        store: all tiers; the slow one behind `guard`.
        local: the in-process tier of `store`, or None.
        guard: in front of the slow tier of `store`, or None where there is none.
    """

    def __init__(
        self, *, store: Store, local: LocalStore | None, guard: Guard | None, journal: Journal, clock: Clock
    ) -> None:
        self.store = store
        self.local = local
        self.guard = guard
        self.inline = guard if guard is not None and guard.reads_inline else None
        self.waits = guard is not None and self.inline is None
        """Whether a look into the slow tier may have to wait."""
        self.journal = journal
        self.clock = clock

    @property
    def faults(self) -> int:
        """How often the slow tier has failed."""
        return self.guard.faults if self.guard is not None else 0

    def start_call(self, *, is_spent: bool = False) -> Token[Any] | None:
        """Give the call that begins here its budget, if there is a guard; for `put_back`."""
        return None if self.guard is None else self.guard.start_call(is_spent=is_spent)

    async def within_budget(self, body: Coroutine[Any, Any, T]) -> T:
        """Run something that is a call of its own."""
        token = self.start_call()
        try:
            return await body
        finally:
            put_back(BUDGET, token)

    def find(self, call: Call) -> Found | None:
        """What the tiers have that are read without waiting; fresh, else stale."""
        if self.local is None:
            entry = self.inline.find(call.key) if self.inline is not None else None
            return None if entry is None else self.open(call.policy, entry, 0)
        found = self._find_local(self.local, call.key)
        if found is not None and found.entry.fresh_until > self.clock():
            return found
        if self.inline is not None:
            epoch = self.local.epoch
            entry = self.inline.find(call.key)
            if entry is not None:
                return self.open(call.policy, entry, epoch) or found
        return found

    def _find_local(self, local: LocalStore, key: str) -> Found | None:
        entry = local.find(key)
        if entry is None:
            return None
        try:
            return Found(entry, "l1", entry.value)
        except CodecError as error:  # its class has been registered anew, with other fields
            self.journal.error("decode", key, error)
            entry.retire()
            return None

    async def look(self, call: Call) -> Found | None:
        """What any tier has; fresh, else stale."""
        found = self.find(call) if self.local is not None or not self.waits else None
        if not self.waits or (found and found.entry.fresh_until > self.clock()):
            return found
        epoch = self.local.epoch if self.local is not None else 0
        entry = await self.store.get(call.key)
        return found if entry is None else self.open(call.policy, entry, epoch) or found

    async def find_fresh(self, call: Call) -> Found | None:
        """What any tier has fresh."""
        found = await self.look(call)
        return found if found is not None and found.entry.fresh_until > self.clock() else None

    async def find_many(self, calls: Sequence[Call]) -> dict[str, Found]:
        """What is fresh of many calls, by key, in one question to the slow tier."""
        found: dict[str, Found] = {}
        now = self.clock()
        for call in calls:
            held = self._find_local(self.local, call.key) if self.local is not None else None
            if held is not None and held.entry.fresh_until > now:
                found[call.key] = held
        rest = {call.key: call for call in calls if call.key not in found}
        if rest and self.guard is not None:
            epoch = self.local.epoch if self.local is not None else 0
            for key, answer in (await self.store.get_many(list(rest))).items():
                read = self.open(rest[key].policy, answer, epoch)
                if read is not None and read.entry.fresh_until > now:
                    found[key] = read
        return found

    def open(self, policy: Policy, entry: Any, epoch: int) -> Found | None:
        """An entry read from the slow tier, with its value; None if that cannot be restored."""
        assert isinstance(entry, PackedEntry)
        entry.operation = policy.operation
        entry.unpack = policy.unpack
        value = self.unpack(policy, entry)
        if value is UNREADABLE:
            return None
        if self.local is not None:
            local_entry = Entry.holding(value, entry) if is_immutable(value) else entry
            self.local.fill(local_entry, epoch)
            return Found(local_entry, "l2", value)
        return Found(entry, "l2", value)

    def unpack(self, policy: Policy, entry: Entry) -> Any:
        """The value of an entry read from the slow tier, or `UNREADABLE`."""
        assert entry.payload is not None
        try:
            return policy.unpack(entry.payload)
        except CodecError as error:
            self.journal.error("decode", entry.key, error)
            return UNREADABLE

    def pack(self, call: Call, value: Any, seconds: float) -> Entry:
        """An entry for a value that took so long to compute.

        Raises:
            CodecError: for a value that cannot be packed.
        """
        payload = pack(value, call.policy.types)
        now = self.clock()
        fresh_until, usable_until = call.policy.lifetimes(now)
        entry = PackedEntry(
            call.key, payload, created=now, fresh_until=fresh_until, usable_until=usable_until,
            operation=call.policy.operation, tags=call.tags, seconds=seconds, facts=self._facts(call, value),
        )  # fmt: skip
        entry.unpack = call.policy.unpack
        return Entry.holding(value, entry) if is_immutable(value) else entry

    def _facts(self, call: Call, value: Any) -> Mapping[str, Any]:
        try:
            return clean_facts((call.policy.facts or read_facts)(value) or {})
        except INTERRUPTIONS:
            raise
        except BaseException as error:
            self.journal.error("facts", call.key, error)
            self.journal.warn(f"facts= of {call.policy.operation} failed: {type(error).__name__}; nothing is counted")
            return {}

    def may_keep(self, call: Call, value: Any) -> bool:
        """Whether the function's `store_if` lets a value be kept; one that fails does not."""
        try:
            return call.policy.store_if is None or bool(call.policy.store_if(value))
        except INTERRUPTIONS:
            raise
        except BaseException as error:
            self.journal.error("store_if", call.key, error)
            self.journal.warn(f"store_if= of {call.policy.operation} failed: {type(error).__name__}; nothing is kept")
            return False

    async def keep(
        self, call: Call, entry: Entry, value: Any, ticket: Any = None, *, replaces: bool = False
    ) -> bool | None:
        """Store an entry. True if it was stored, False if it was invalidated, None if the store cannot take it."""
        kept = await self.store.set(call.key, entry, ticket, replaces=replaces)
        if kept:
            self.aim(call, entry)
            self.journal.kept(entry, value, call.policy.hooks)
            return True
        reason: Literal["invalidated", "store"] = "invalidated" if kept is False else "store"
        self.journal.not_kept(call.key, call.policy.operation, reason)
        return kept

    def aim(self, call: Call, entry: Entry) -> None:
        """Let the front find an entry of the in-process tier."""
        if self.local is not None:
            call.aim(self.local, entry)
