"""The order of steps of a cached call: look up, join a flight, compute, keep. Written once, for both worlds.

A memoizer is one world's assembly of the parts of one cache. The parts that both worlds share (the
in-process store, the flights, the journal) are handed in.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Coroutine, Sequence
from contextvars import ContextVar, Token
from typing import Any, Final, TypeVar

from aimemo.core.call import Call, Found, Pending
from aimemo.core.context import Outcome, current_mode, put_back
from aimemo.core.entry import Entry
from aimemo.core.events import GATE, Tier
from aimemo.core.fleet import Fleet
from aimemo.core.guard import BUDGET
from aimemo.core.ports import Selector
from aimemo.core.runtime import Answer, Failure, Runtime
from aimemo.core.single_flight import Flight, Flights, Landing
from aimemo.core.tiers import UNREADABLE, Tiers
from aimemo.errors import CodecError, InfrastructureError

T = TypeVar("T")

_LEADING: Final[ContextVar[tuple[Flight, ...]]] = ContextVar("aimemo_leading", default=())
"""The flights whose computations this context is part of."""

MAX_LEADS: Final = 3
"""How often one caller starts a computation that is cancelled under it."""

_REPLACES: Final = -2
"""In place of a count of landings: whatever is stored, it is to be computed anew."""


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
        self._fleet = fleet

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
        self._flights.detach(Selector("key", call.key))
        landing, leads = await self._within_budget(self._join(call, None, _REPLACES))
        if isinstance(landing.result, Answer) and not landing.is_kept:
            await self._drop_replaced(call.key)
        result = landing.result if leads else _copy(landing) or landing.result
        return await self._conclude(call, "refresh", result, started)

    async def _drop_replaced(self, key: str) -> None:
        """An answer that was to be replaced must not come back because the new one could not be kept."""
        with contextlib.suppress(InfrastructureError):  # it has been reported
            await self.tiers.store.delete_many([key])

    async def look(self, call: Call) -> Found | None:
        """What is stored and fresh, without calling or counting anything."""
        if not self.enabled:
            return None
        found = await self._within_budget(self.tiers.find_fresh(call))
        await self.deliver()
        return found

    async def look_many(self, calls: Sequence[Call]) -> dict[str, Found]:
        """As `look`, of many calls, by key."""
        if not self.enabled:
            return {}
        found = await self._within_budget(self.tiers.find_many(calls))
        await self.deliver()
        return found

    async def keep(self, call: Call, value: Any) -> None:
        """Store a value.

        Raises:
            CodecError: for a value that cannot be packed.
        """
        entry = self.tiers.pack(call, value, 0.0)
        if self.enabled:
            await self._then_detach(self.tiers.keep(call, entry, value), Selector("key", call.key))
        await self.deliver()

    async def keep_many(self, calls: Sequence[tuple[Call, Any]]) -> None:
        """Store values, or raise as `keep` and store none."""
        entries = {call.key: (self.tiers.pack(call, value, 0.0), value) for call, value in calls}
        if self.enabled:
            kept = await self.tiers.store.set_many({key: entry for key, (entry, _) in entries.items()})
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

    def _start_call(self, *, is_spent: bool = False) -> Token[Any] | None:
        return None if self.tiers.guard is None else self.tiers.guard.start_call(is_spent=is_spent)

    async def _within_budget(self, body: Coroutine[Any, Any, T]) -> T:
        token = self._start_call()
        try:
            return await body
        finally:
            put_back(BUDGET, token)

    # Answering

    async def _recall(self, call: Call, pending: Pending) -> Any:
        token = self._start_call(is_spent=pending.has_faulted)
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
                self.runtime.spawn(self._revalidate(call, stale))
            return await self._conclude(
                call, "stale", Answer(stale.value), started, stale.entry, stale.tier, "revalidate"
            )
        landing, leads = await self._join(call, stale, landings)
        if leads:
            return await self._conclude(
                call, landing.outcome, landing.result, started, landing.entry, landing.tier, _reason(landing)
            )
        copied = _copy(landing)
        if copied is None:  # an answer that cannot be copied is not shared either
            return await self._conclude(call, "miss", await self.runtime.attempt(call.thunk), started)
        outcome: Outcome = "stale" if landing.outcome == "stale" else "coalesced"
        return await self._conclude(call, outcome, copied, started, landing.entry, None, _reason(landing))

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

    # Flights

    async def _join(self, call: Call, stale: Found | None, landings: int) -> tuple[Landing, bool]:
        leads_left = MAX_LEADS
        while True:
            flight, leads = self._flights.join(self.runtime, call.key, call.policy.operation, call.tags)
            if not leads and not self._flights.follow(flight, _LEADING.get()):
                # Each would wait for the other for ever: this one computes for itself.
                return Landing(await self.runtime.attempt(call.thunk)), True
            if leads:
                ended = functools.partial(self._flights.land, flight, None)
                await self.runtime.launch(self._fly(flight, call, stale, landings), ended)
            landing = await self._flights.landing(flight, self.runtime)
            leads_left -= leads
            if landing is None and not leads_left:
                return Landing(Failure.of(self.runtime.interruption())), True
            if landing is not None and (leads or not landing.is_private):
                return landing, leads

    async def _revalidate(self, call: Call, stale: Found) -> None:
        landings = self._flights.landings - 1  # the flight looks again: this may run much later than it was asked for
        flight, leads = self._flights.join(self.runtime, call.key, call.policy.operation, call.tags)
        if leads:
            await self._within_budget(self._fly(flight, call, stale, landings))
            landing = flight.landing
            if landing is not None and landing.error is not None:
                self.journal.error("revalidate", call.key, landing.error)
            await self.deliver()

    async def _fly(self, flight: Flight, call: Call, stale: Found | None, landings: int) -> None:
        landing = None
        token = _LEADING.set((*_LEADING.get(), flight))
        try:
            landing = await self._lead(flight, call, stale, landings)
        except Exception as error:  # a strict store's; a user's own error travels as a Failure
            landing = Landing(Failure.of(error), error=error)
        finally:
            put_back(_LEADING, token)
            self._flights.land(flight, landing)
        await self.deliver()

    async def _lead(self, flight: Flight, call: Call, stale: Found | None, landings: int) -> Landing:
        if landings not in (_REPLACES, self._flights.landings):  # a flight has landed since the caller looked
            found = await self.tiers.find_fresh(call)
            if found is not None:
                return self._land_found(call, found)
        if self._fleet is None or landings == _REPLACES:
            return await self._compute(flight, call, stale)
        turn = await self._fleet.turn(call, is_nested=len(_LEADING.get()) > 1)
        if isinstance(turn, Found):
            return self._land_found(call, turn)
        landing = None
        try:
            landing = await self._compute(flight, call, stale)
        finally:
            await self._fleet.leave(call, turn, landing)
        return landing

    def _land_found(self, call: Call, found: Found) -> Landing:
        self.tiers.aim(call, found.entry)
        return Landing(Answer(found.value), "hit", found.entry, found.tier)

    async def _compute(self, flight: Flight, call: Call, stale: Found | None) -> Landing:
        ticket = await self.tiers.store.ticket(call.key, call.policy.operation, call.tags)
        started = self.clock()
        token = BUDGET.set(None)  # what the function asks of caches is not this call's
        try:
            result = await self.runtime.attempt(call.thunk)
        finally:
            put_back(BUDGET, token)
        if not call.has_same_arguments():
            operation = call.policy.operation
            self.journal.not_kept(call.key, operation, "arguments_changed")
            self.journal.warn(f"an argument of {operation} was changed while the call ran: its answer was not kept")
            return Landing(result, is_private=True)
        if isinstance(result, Failure):
            return await self._land_failure(call, result, stale)
        return await self._land_answer(flight, call, result, self.clock() - started, ticket)

    async def _land_failure(self, call: Call, failure: Failure, stale: Found | None) -> Landing:
        if stale is not None:
            still = await self.tiers.look(call)  # it may have been invalidated meanwhile
            if still is not None and call.policy.covers_error(still.entry, self.clock()):
                return Landing(Answer(still.value), "stale", still.entry, still.tier, error=failure.error)
        return Landing(failure, error=failure.error)

    async def _land_answer(self, flight: Flight, call: Call, answer: Answer, seconds: float, ticket: Any) -> Landing:
        operation = call.policy.operation
        may_keep = self.tiers.may_keep(call, answer.value)
        try:
            entry = self.tiers.pack(call, answer.value, seconds)
        except CodecError as error:
            self.journal.not_kept(call.key, operation, "not_storable", error)
            if may_keep:
                self.journal.warn(f"an answer of {operation} was not kept: {error}")
            return Landing(answer, spare=_spare(answer) if flight.followers else None)
        is_kept = False
        if flight.is_detached:
            self.journal.not_kept(call.key, operation, "invalidated")
        elif not may_keep:
            self.journal.not_kept(call.key, operation, "store_if")
        else:
            is_kept = await self.tiers.keep(call, entry, answer.value, ticket)
        return Landing(answer, entry=entry, is_kept=is_kept)


def _copy(landing: Landing) -> Answer | Failure | None:
    """A landing's result for one follower; None if it cannot be copied."""
    if isinstance(landing.result, Failure):
        return landing.result
    try:
        if landing.entry is not None:
            return Answer(landing.entry.value)
        return _spare(landing.spare) if landing.spare is not None else None
    except CodecError:
        return None


def _spare(answer: Answer) -> Answer | None:
    try:
        return Answer(copy.deepcopy(answer.value))
    except Exception:  # a socket, a lock, a stream
        return None


def _reason(landing: Landing) -> str:
    return type(landing.error).__name__ if landing.error is not None else ""
