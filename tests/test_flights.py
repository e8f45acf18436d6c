"""The book of flights, step by step: who leads, who may wait for whom, and what becomes of those left behind."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from aimemo import CodecError
from aimemo.core.aio import TaskRuntime
from aimemo.core.entry import PackedEntry
from aimemo.core.ports import Selector
from aimemo.core.runtime import Answer, ThreadRuntime
from aimemo.core.single_flight import Flight, Flights, Landing
from tests.kit.looking import OtherThread


def join(flights: Flights, key: str, runtime: Any = None) -> tuple[Flight, bool]:
    return flights.join(runtime or OtherThread(), key, "ask", ())


@pytest.mark.parametrize("closes", [True, False], ids=["a ring", "no ring"])
def test_nobody_waits_for_one_who_waits_for_him_over_however_many_ways(closes: bool) -> None:
    flights = Flights()
    a, b, c, d, other = (join(flights, key)[0] for key in "abcde")
    for leads, follows in ((a, b), (a, c), (b, d), (c, d)):
        assert flights.follow(follows, [leads])
    assert flights.follow(a, [d if closes else other]) is not closes


def test_who_waits_for_whom_is_found_in_no_time_over_however_many_ways() -> None:
    flights = Flights()
    start = below = join(flights, "start")[0]
    for level in range(60):
        left, right, end = (join(flights, f"{level} {side}")[0] for side in ("left", "right", "end"))
        for leads, follows in ((below, left), (below, right), (left, end), (right, end)):
            assert flights.follow(follows, [leads])
        below = end
    assert not flights.follow(start, [below])
    assert flights.follow(start, [join(flights, "other")[0]])


def test_rings_are_found_across_caches() -> None:
    one, other = Flights(), Flights()
    a, b = join(one, "a")[0], join(other, "b")[0]
    assert other.follow(b, [a])
    assert not one.follow(a, [b])


def test_those_who_may_wait_are_counted() -> None:
    flights = Flights()
    a, b = (join(flights, key)[0] for key in "ab")
    assert a.followers == 0
    assert [flights.follow(a, led) for led in ([], [], [a], [b])] == [True, True, False, True]
    assert a.followers == 3


def test_who_has_landed_leads_nothing_any_more() -> None:
    flights = Flights()
    a, b = (join(flights, key)[0] for key in "ab")
    flights.land(a, Landing(Answer("answer")))
    assert flights.follow(a, [a])
    assert flights.follow(b, [a])
    assert flights.follow(a, [b])


def test_who_has_landed_holds_nobody_up_by_what_it_waited_for() -> None:
    flights = Flights()
    a, b, c = (join(flights, key)[0] for key in "abc")
    assert flights.follow(b, [a])
    assert flights.follow(c, [b])
    flights.land(b, None)
    assert flights.follow(a, [c])


def test_nobody_waits_for_a_flight_that_the_same_thread_has_left_behind() -> None:
    """As Ctrl-C may have it, or a call within a call."""
    flights, runtime = Flights(), ThreadRuntime()
    left, _ = join(flights, "key", runtime)
    taken_over, leads = join(flights, "key", runtime)
    assert leads
    assert taken_over is not left
    flights.land(left, None)
    with ThreadPoolExecutor(1) as other:
        assert other.submit(join, flights, "key", runtime).result() == (taken_over, False)


async def test_a_key_is_busy_while_its_flight_is_under_way_in_that_world() -> None:
    flights, runtime = Flights(), OtherThread()
    flight, _ = join(flights, "key")
    assert [flights.is_busy(runtime, key) for key in ("key", "other")] == [True, False]
    assert not flights.is_busy(TaskRuntime(), "key")
    flights.land(flight, Landing(Answer("answer")))
    assert not flights.is_busy(runtime, "key")


async def test_a_key_is_not_busy_with_a_flight_whose_loop_is_closed() -> None:
    flights, runtime = Flights(), TaskRuntime()
    flight, _ = join(flights, "key", runtime)
    assert flights.is_busy(runtime, "key")
    flight.home = asyncio.new_event_loop()
    flight.home.close()
    assert not flights.is_busy(runtime, "key")


SELECTORS = [("key", "key"), ("operation", "ask"), ("tag", "news"), ("glob", "k?y"), ("all", "")]


@pytest.mark.parametrize(("kind", "name"), SELECTORS)
@pytest.mark.parametrize("is_outdated", [True, False])
def test_a_detached_flight_is_joined_by_nobody_else(kind: Any, name: str, is_outdated: bool) -> None:
    flights, runtime = Flights(), OtherThread()
    flight, _ = flights.join(runtime, "key", "ask", ("news",))
    flights.detach(Selector(kind, name), is_outdated=is_outdated)
    assert flight.is_outdated is is_outdated
    assert flights.landings == 1, "who has looked before looks again"
    other, leads = flights.join(runtime, "key", "ask", ("news",))
    assert leads
    assert not other.is_outdated
    flights.land(flight, Landing(Answer("old")))
    assert flights.join(runtime, "key", "ask", ("news",)) == (other, False)


def test_what_detaches_by_default_makes_outdated_and_nothing_makes_it_good_again() -> None:
    flights, runtime = Flights(), OtherThread()
    [kept, outdated] = [flights.join(runtime, key, "ask", ())[0] for key in ("kept", "outdated")]
    flights.detach(Selector("key", "outdated"))
    assert (kept.is_outdated, outdated.is_outdated) == (False, True)
    assert flights.join(runtime, "kept", "ask", ()) == (kept, False)
    kept.is_outdated = True
    flights.detach(Selector("all"), is_outdated=False)
    assert kept.is_outdated


def test_a_flight_lands_once() -> None:
    flights = Flights()
    flight, _ = join(flights, "key")
    first = Landing(Answer("first"))
    for landing in (first, Landing(Answer("second")), None):
        flights.land(flight, landing)
    assert (flight.landing, flights.landings, flight.waiters) == (first, 1, None)


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


def test_each_follower_gets_a_copy_of_the_spare() -> None:
    spare = Answer(["answer"])
    copies = [Landing(Answer(["answer"]), spare=spare).copy() for _ in range(2)]
    values = [copy.value for copy in copies if isinstance(copy, Answer)]
    assert values == [["answer"]] * 2
    assert len({id(value) for value in (spare.value, *values)}) == 3
    assert Landing(Answer(0), spare=Answer(threading.Lock())).copy() is None


def test_a_landing_says_why_a_stale_answer_had_to_do() -> None:
    assert Landing(Answer("answer")).reason == ""
    assert Landing(Answer("answer"), error=ValueError("a secret")).reason == "ValueError"
