"""Leading a flight: whose turn it is, the computation, and what becomes of its answer."""

from __future__ import annotations

import functools
from contextvars import ContextVar
from typing import Any, Final

from aimemo.core.call import Call, Found
from aimemo.core.context import put_back
from aimemo.core.fleet import Fleet
from aimemo.core.guard import BUDGET
from aimemo.core.runtime import Answer, Failure, Runtime
from aimemo.core.single_flight import Flight, Flights, Landing, spare_of
from aimemo.core.tiers import Tiers
from aimemo.errors import CodecError

_LEADING: Final[ContextVar[tuple[Flight, ...]]] = ContextVar("aimemo_leading", default=())
"""The flights whose computations this context is part of."""

MAX_LEADS: Final = 3
"""How often one caller starts a computation that is cancelled under it."""

LOOK_AGAIN: Final = -1
"""In place of a count of landings: time may have passed since the tiers were looked into."""

REPLACE: Final = -2
"""In place of a count of landings: whatever is stored, it is to be computed anew."""


class Leader:
    """Joins the flights of one cache in one world, and leads those that nobody leads.

    Args:
        fleet: the processes that share the store, if they compute each key only once.
    """

    def __init__(self, tiers: Tiers, runtime: Runtime, flights: Flights, fleet: Fleet | None) -> None:
        self._tiers = tiers
        self._runtime = runtime
        self._journal = tiers.journal
        self._flights = flights
        self._fleet = fleet

    async def join(self, call: Call, stale: Found | None, seen: int) -> tuple[Landing, bool]:
        """How the flight of a call landed, and whether this caller led it.

        Args:
            stale: what to answer if the function fails, as far as the policy allows.
            seen: how many flights had landed when the tiers were looked into, or `LOOK_AGAIN`, or `REPLACE`.
        """
        leads_left = MAX_LEADS
        while True:
            flight, leads = self._flights.join(self._runtime, call.key, call.policy.operation, call.tags)
            if not leads and not self._flights.follow(flight, _LEADING.get()):
                # Each would wait for the other for ever: this one computes for itself.
                return Landing(await self._runtime.attempt(call.thunk)), True
            if leads:
                ended = functools.partial(self._flights.land, flight, None)
                try:
                    await self._runtime.launch(self._fly(flight, call, stale, seen), ended)
                except BaseException:  # where recursion ends or Ctrl-C comes, a flight's own end may fail too
                    ended()
                    raise
            landing = await self._flights.landing(flight, self._runtime)
            leads_left -= leads
            if landing is None and not leads_left:
                return Landing(Failure.of(self._runtime.interruption())), True
            if landing is not None and (leads or not landing.is_private):
                return landing, leads

    async def revalidate(self, call: Call, stale: Found) -> None:
        """Renew a stale answer, unless somebody is at it."""
        flight, leads = self._flights.join(self._runtime, call.key, call.policy.operation, call.tags)
        if leads:
            await self._tiers.within_budget(self._fly(flight, call, stale, LOOK_AGAIN))
            landing = flight.landing
            if landing is not None and landing.error is not None:
                self._journal.error("revalidate", call.key, landing.error)
            await self._journal.bus.deliver(self._runtime)

    async def _fly(self, flight: Flight, call: Call, stale: Found | None, seen: int) -> None:
        landing = None
        token = _LEADING.set((*(leading for leading in _LEADING.get() if leading.waiters is not None), flight))
        try:
            landing = await self._lead(flight, call, stale, seen)
        except Exception as error:  # a strict store's; a user's own error travels as a Failure
            landing = Landing(Failure.of(error), error=error)
        finally:
            put_back(_LEADING, token)
            self._flights.land(flight, landing)
        await self._journal.bus.deliver(self._runtime)

    async def _lead(self, flight: Flight, call: Call, stale: Found | None, seen: int) -> Landing:
        if seen not in (REPLACE, self._flights.landings):  # a flight has ended since the caller looked
            found = await self._tiers.find_fresh(call)
            if found is not None:
                return self._land_found(call, found)
        if self._fleet is None or seen == REPLACE:
            return await self._compute(flight, call, stale, seen)
        turn = await self._fleet.turn(call, is_nested=any(leading.landing is None for leading in _LEADING.get()[:-1]))
        if isinstance(turn, Found):
            return self._land_found(call, turn)
        landing = None
        try:
            landing = await self._compute(flight, call, stale, seen)
        finally:
            await self._fleet.leave(call, turn, landing)
        return landing

    def _land_found(self, call: Call, found: Found) -> Landing:
        self._tiers.aim(call, found.entry)
        return Landing(Answer(found.value), "hit", found.entry, found.tier)

    async def _compute(self, flight: Flight, call: Call, stale: Found | None, seen: int) -> Landing:
        flight.is_outdated = False  # an invalidation before this moment means nothing that is computed now
        ticket = await self._tiers.store.ticket(call.key, call.policy.operation, call.tags)
        started = self._tiers.clock()
        token = BUDGET.set(None)  # what the function asks of caches is not this call's
        is_as_asked = call.has_same_arguments()
        try:
            result = await self._runtime.attempt(call.thunk)
        finally:
            put_back(BUDGET, token)
        if not (is_as_asked and call.has_same_arguments()):
            operation = call.policy.operation
            self._journal.not_kept(call.key, operation, "arguments_changed")
            self._journal.warn(f"an argument of {operation} was changed while the call ran: its answer was not kept")
            return Landing(result, is_private=True)
        if isinstance(result, Failure):
            return await self._land_failure(call, result, stale)
        seconds = self._tiers.clock() - started
        return await self._land_answer(flight, call, result, seconds, ticket, replaces=seen == REPLACE)

    async def _land_failure(self, call: Call, failure: Failure, stale: Found | None) -> Landing:
        if stale is not None:
            still = await self._tiers.look(call)  # it may have been invalidated meanwhile
            if still is not None and call.policy.covers_error(still.entry, self._tiers.clock()):
                return Landing(Answer(still.value), "stale", still.entry, still.tier, error=failure.error)
        return Landing(failure, error=failure.error)

    async def _land_answer(
        self, flight: Flight, call: Call, answer: Answer, seconds: float, ticket: Any, *, replaces: bool
    ) -> Landing:
        operation = call.policy.operation
        may_keep = self._tiers.may_keep(call, answer.value)
        try:
            entry = self._tiers.pack(call, answer.value, seconds)
        except CodecError as error:
            self._journal.not_kept(call.key, operation, "not_storable", error)
            if may_keep:
                self._journal.warn(f"an answer of {operation} was not kept: {error}")
            return Landing(answer, spare=spare_of(answer) if flight.followers else None)
        is_kept: bool | None = None
        if flight.is_outdated and not replaces:  # what replaces asks the store, which knows what came after its ticket
            is_kept = False
            self._journal.not_kept(call.key, operation, "invalidated")
        elif not may_keep:
            self._journal.not_kept(call.key, operation, "store_if")
        else:
            is_kept = await self._tiers.keep(call, entry, answer.value, ticket, replaces=replaces)
        return Landing(answer, entry=entry, is_kept=is_kept)
