"""The order of steps of a cached call: look up, join a flight, compute, keep. Written once, for both worlds.

A memoizer is one world's assembly of the parts of one cache. The parts that both worlds share (the
in-process store, the flights, the journal) are handed in.
"""

from __future__ import annotations

import contextlib
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from aimemo.core.call import Call, Found, Pending
from aimemo.core.context import Outcome, current_mode, put_back
from aimemo.core.entry import Entry
from aimemo.core.events import GATE, Tier
from aimemo.core.fleet import Fleet
from aimemo.core.guard import BUDGET
from aimemo.core.leader import REPLACE, Leader
from aimemo.core.ports import Selector, Stored
from aimemo.core.runtime import Answer, Failure, Runtime
from aimemo.core.single_flight import Flights
from aimemo.core.tiers import UNREADABLE, Tiers
from aimemo.errors import InfrastructureError

T = TypeVar("T")


class Memoizer:
    """One cache in one world.

    Args:
        fleet: the processes that share the store, if they compute each key only once.
        enabled: False lets every call through and keeps nothing.
    """

    def __init__(
        self, tiers: Tiers, runtime: Runtime, flights: Flights, *, fleet: Fleet | None = None, enabled: bool = True
    ) -> None:
        self.tiers = tiers
        self.runtime = runtime
        self.enabled = enabled
        self.clock = tiers.clock
        self.journal = tiers.journal
        self._flights = flights
        self._leader = Leader(tiers, runtime, flights, fleet)

    def recall_at_once(self, call: Call) -> Any:
        """The answer to a call if it is fresh in a tier that is read without waiting; else a `Pending`.

        Where there is no in-process tier, only the call's policy and key are looked at.
        """
        started = self.clock()
        if GATE or call.policy.hooks or not self.enabled:
            return Pending(started)  # somebody wants to see or steer this call
        tiers, landings = self.tiers, self._flights.landings
        if tiers.waits and tiers.local is None:
            return Pending(started)
        inline = tiers.inline
        faults = inline.faults if inline is not None else 0
        if tiers.local is None and inline is not None:  # as below, without what an in-process tier asks for
            entry = inline.find(call.key)
            is_fresh = entry is not None and entry.fresh_until > started
            if entry is not None and is_fresh:
                value = tiers.unpack(call.policy, entry)
                if value is not UNREADABLE:
                    self.journal.count("hit", call.policy.operation, entry, "l2")
                    return value
            stale = None if entry is None or is_fresh else tiers.open(call.policy, entry, 0)
            return Pending(started, stale, landings, inline.faults != faults)
        found = tiers.find(call)
        if found is None or found.entry.fresh_until <= started:
            return Pending(started, found, landings, inline is not None and inline.faults != faults)
        tiers.aim(call, found.entry)
        self.journal.count("hit", call.policy.operation, found.entry, found.tier)
        return found.value

    def recall(self, call: Call, pending: Pending) -> Coroutine[Any, Any, Any]:
        """The answer to a call, from a store or from its function; a `Failure` if the function raised."""
        mode = current_mode() if call.is_decorated else None
        if mode == "bypass" or not self.enabled:
            return self.bypass(call)
        if mode == "refresh":
            return self.refresh(call)
        return self._recall(call, pending)

    async def bypass(self, call: Call) -> Any:
        """Call the function and touch nothing."""
        started = self.clock()
        return await self._conclude(call, "bypass", await self.runtime.attempt(call.thunk), started)

    async def refresh(self, call: Call) -> Any:
        """Call the function and replace what is stored."""
        if not self.enabled:
            return await self.bypass(call)
        started = self.clock()
        faults = self.tiers.faults
        while True:
            # What is under way may be kept until this one is: the store refuses what is older than a replacement.
            self._flights.detach(Selector("key", call.key), is_outdated=False)
            landing, leads = await self.tiers.within_budget(self._leader.join(call, None, REPLACE))
            if leads or landing.outcome == "miss":  # else a thread has led a flight that only looked
                break
        if isinstance(landing.result, Answer) and landing.is_kept is None and faults == self.tiers.faults:
            await self._drop_replaced(call.key)
        result = landing.result if leads else landing.copy() or landing.result
        return await self._conclude(call, "refresh", result, started)

    async def _drop_replaced(self, key: str) -> None:
        """An answer that was to be replaced must not come back because the new one could not be kept."""
        with contextlib.suppress(InfrastructureError):  # it has been reported
            await self.tiers.store.delete_many([key])

    async def look(self, call: Call) -> Found | None:
        """What is stored and fresh, without calling or counting anything."""
        if not self.enabled:
            return None
        found = await self.tiers.within_budget(self.tiers.find_fresh(call))
        await self.deliver()
        return found

    async def look_many(self, calls: Sequence[Call]) -> dict[str, Found]:
        """As `look`, of many calls, by key."""
        if not self.enabled:
            return {}
        found = await self.tiers.within_budget(self.tiers.find_many(calls))
        await self.deliver()
        return found

    async def keep(self, call: Call, value: Any) -> None:
        """Store a value.

        Raises:
            CodecError: for a value that cannot be packed.
        """
        entry = self.tiers.pack(call, value, 0.0)
        if self.enabled:
            keeping = self.tiers.within_budget(self.tiers.keep(call, entry, value, replaces=True))
            await self._then_detach(keeping, Selector("key", call.key))
        await self.deliver()

    async def keep_many(self, calls: Sequence[tuple[Call, Any]]) -> None:
        """Store values, or raise as `keep` and store none."""
        entries = {call.key: (self.tiers.pack(call, value, 0.0), value) for call, value in calls}
        if self.enabled:
            kept = await self.tiers.within_budget(
                self.tiers.store.set_many({key: entry for key, (entry, _) in entries.items()})
            )
            for entry, value in entries.values() if kept is not None else ():
                self._flights.detach(Selector("key", entry.key))
                self.journal.kept(entry, value)
        await self.deliver()

    async def connect(self) -> bool:
        """Whether the store can be used now."""
        try:
            await self.tiers.store.connect()
        except Exception as error:
            self.journal.error("connect", "", error)
            return False
        return True

    async def delete(self, key: str) -> bool:
        """As `delete_many`, of one key. Whether it was there."""
        return await self.delete_many([key]) == 1

    async def delete_many(self, keys: Sequence[str]) -> int:
        """Remove keys, and let no computation that began before be kept or joined. How many were there.

        Raises:
            InfrastructureError: if the store did not acknowledge it.
        """
        existed = await self._then_detach(self.tiers.store.delete_many(keys), *(Selector("key", key) for key in keys))
        for key in keys:
            self.journal.deleted(key, key in existed)
        await self.deliver()
        return len(existed)

    async def page(self, cursor: str, count: int) -> tuple[list[Stored], str]:
        """Some of what is stored. Raises as `delete_many`."""
        return await self.tiers.store.page(cursor, count)

    async def sweep(self, selector: Selector) -> int:
        """Remove all that match; how many. Raises as `delete_many`."""
        count = await self._then_detach(self.tiers.store.sweep(selector), selector)
        operation = selector.name if selector.kind == "operation" else ""
        self.journal.invalidated(selector.kind, operation, count)
        await self.deliver()
        return count

    async def deliver(self) -> None:
        """Tell the hooks what has happened meanwhile."""
        if self.journal.bus.pending:
            await self.journal.bus.deliver(self.runtime)

    async def _then_detach(self, body: Coroutine[Any, Any, T], *selectors: Selector) -> T:
        try:
            return await body
        finally:
            for selector in selectors:
                self._flights.detach(selector)

    # Answering

    async def _recall(self, call: Call, pending: Pending) -> Any:
        token = self.tiers.start_call(is_spent=pending.has_faulted)
        try:
            stale, landings = pending.stale, pending.landings
            if landings is None or self.tiers.waits:
                landings = self._flights.landings
                found = stale = await self.tiers.look(call)
                if found is not None and found.entry.fresh_until > self.clock():
                    self.tiers.aim(call, found.entry)
                    if not GATE and not call.policy.hooks:  # nobody watches
                        self.journal.count("hit", call.policy.operation, found.entry, found.tier)
                        return found.value
                    answer = Answer(found.value)
                    return await self._conclude(call, "hit", answer, pending.started, found.entry, found.tier)
            return await self._answer(call, pending.started, stale, landings)
        finally:
            put_back(BUDGET, token)

    async def _answer(self, call: Call, started: float, stale: Found | None, landings: int) -> Any:
        if stale is not None and call.policy.serves_stale(stale.entry, self.clock()):
            if not self._flights.is_busy(self.runtime, call.key):
                self.runtime.spawn(self._leader.revalidate(call, stale))
            return await self._conclude(
                call, "stale", Answer(stale.value), started, stale.entry, stale.tier, "revalidate"
            )
        landing, leads = await self._leader.join(call, stale, landings)
        if leads:
            return await self._conclude(
                call, landing.outcome, landing.result, started, landing.entry, landing.tier, landing.reason
            )
        copied = landing.copy()
        if copied is None:  # an answer that cannot be copied is not shared either
            return await self._conclude(call, "miss", await self.runtime.attempt(call.thunk), started)
        outcome: Outcome = "stale" if landing.outcome == "stale" else "coalesced"
        return await self._conclude(call, outcome, copied, started, landing.entry, None, landing.reason)

    async def _conclude(
        self, call: Call, outcome: Outcome, result: Answer | Failure, started: float,
        entry: Entry | None = None, tier: Tier | None = None, reason: str = "",
    ) -> Any:  # fmt: skip
        value = result.value if isinstance(result, Answer) else None
        self.journal.lookup(
            outcome, call.key, call.policy.operation, started,
            value=value, entry=entry, tier=tier, reason=reason, hooks=call.policy.hooks,
            has_answer=isinstance(result, Answer), is_decorated=call.is_decorated,
        )  # fmt: skip
        if self.journal.bus.pending:
            await self.deliver()
        return value if isinstance(result, Answer) else result
