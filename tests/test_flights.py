"""The book of flights, step by step: who leads, who may wait for whom, and what becomes of those left behind."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from aimemo import CodecError
from aimemo.core.aio import TaskRuntime
from aimemo.core.entry import PackedEntry
from aimemo.core.runtime import Answer, ThreadRuntime
from aimemo.core.single_flight import Flight, Flights, Landing


def join(flights: Flights, key: str, runtime: Any = None) -> tuple[Flight, bool]:
    return flights.join(runtime or ThreadRuntime(), key, "ask", ())


@pytest.mark.parametrize("closes", [True, False], ids=["a ring", "no ring"])
def test_nobody_waits_for_one_who_waits_for_him_over_however_many_ways(closes: bool) -> None:
    flights = Flights()
    a, b, c, d, other = (join(flights, key)[0] for key in "abcde")
    for leads, follows in ((a, b), (a, c), (b, d), (c, d)):
        assert flights.follow(follows, [leads])
    assert flights.follow(a, [d if closes else other]) is not closes


async def test_a_flight_whose_loop_is_closed_leaves_its_followers_without_a_landing_and_its_key_free() -> None:
    flights, runtime = Flights(), TaskRuntime()
    flight, leads = join(flights, "key", runtime)
    assert leads
    assert join(flights, "key", runtime) == (flight, False)
    flight.home = asyncio.new_event_loop()
    flight.home.close()
    assert await asyncio.wait_for(flights.landing(flight, runtime), 1) is None
    flights.land(flight, Landing(Answer("too late")))
    assert (flight.landing, flights.landings) == (None, 1)
    assert join(flights, "key", runtime)[1]


def test_an_answer_that_cannot_be_restored_is_no_ones_copy() -> None:
    def damaged(data: bytes) -> Any:
        raise CodecError("no")

    entry = PackedEntry("key", b"", created=0.0, fresh_until=1.0, usable_until=1.0)
    entry.unpack = damaged
    assert Landing(Answer(["answer"]), entry=entry).copy() is None
    assert Landing(Answer(["answer"])).copy() is None
