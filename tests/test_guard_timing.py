"""The guard's timers on an event loop. In real time, because it is the loop's own timers that are looked at."""

from __future__ import annotations

import asyncio
import time

import pytest

from aimemo import InfrastructureError
from aimemo.core.guard import FAILURES_TO_OPEN
from tests.kit import stalls
from tests.kit.scripted_store import ENTRY, Bench


@pytest.fixture
def on_a_loop() -> Bench:
    return Bench("tasks", time.monotonic)


async def test_a_hung_store_costs_one_budget_in_all(on_a_loop: Bench) -> None:
    on_a_loop.store.trouble = lambda: asyncio.sleep(3600)
    on_a_loop.guard.start_call()
    started = time.monotonic()
    assert await on_a_loop.get(30) == [None] * 30
    assert 0.09 < time.monotonic() - started < 1 + stalls.longest()
    [(_, _, error)] = on_a_loop.reports
    assert isinstance(error, TimeoutError)  # `HeldUp`, which is one, where the machine held the loop at the end


async def test_a_removal_on_a_hung_store_ends_too(on_a_loop: Bench) -> None:
    on_a_loop.store.trouble = lambda: asyncio.sleep(3600)
    started = time.monotonic()
    with pytest.raises(InfrastructureError):
        await asyncio.wait_for(on_a_loop.guard.delete_many(["k"]), 10)
    assert time.monotonic() - started < 1 + stalls.longest()


async def hold_the_loop(seconds: float = 0.2) -> None:
    time.sleep(seconds)


async def test_a_held_event_loop_is_not_taken_for_a_slow_store(on_a_loop: Bench) -> None:
    on_a_loop.store.trouble = lambda: asyncio.sleep(0.005)
    on_a_loop.guard.start_call()
    holder = asyncio.create_task(hold_the_loop())
    assert await on_a_loop.get() == [ENTRY]
    await holder
    assert await on_a_loop.guard.set("k", ENTRY) is True, "the time that user code took counted against the store"
    assert on_a_loop.reports == []


async def test_a_timer_that_fired_late_never_counts_against_the_store() -> None:
    bench = Bench("tasks", time.monotonic, seconds=0.03)
    bench.store.trouble = lambda: asyncio.sleep(0.2)
    for _ in range(FAILURES_TO_OPEN):
        holder = asyncio.create_task(hold_the_loop(0.08))
        await bench.get()
        await holder
    assert bench.guard.breaker.state == "closed"


async def test_a_cancelled_caller_is_not_the_stores_failure(on_a_loop: Bench) -> None:
    ended = asyncio.Event()

    async def wait_long() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.set()

    on_a_loop.store.trouble = wait_long
    for _ in range(FAILURES_TO_OPEN):
        caller = asyncio.create_task(on_a_loop.get())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
    await asyncio.wait_for(ended.wait(), 1)
    assert on_a_loop.guard.breaker.state == "closed"
    assert on_a_loop.reports == []
