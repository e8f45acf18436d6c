"""The guard: whatever a store does wrong costs time within a budget, and no errors."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from aimemo import InfrastructureError
from aimemo.core.envelope import DamagedEntry
from aimemo.core.guard import BUDGET, FAILURES_TO_OPEN, NO_TICKET, PROBE_INTERVAL, Guard
from aimemo.core.ports import Selector
from tests.kit.clock import Clock
from tests.kit.scripted_store import ENTRY, Bench


@pytest.fixture(params=["tasks", "threads"])
def bench(request: pytest.FixtureRequest, clock: Clock) -> Bench:
    return Bench(request.param, clock)


@pytest.fixture
def one_call(bench: Bench) -> Iterator[None]:
    """All that the test asks belongs to one call."""
    token = BUDGET.set(None)
    bench.guard.start_call()
    yield
    BUDGET.reset(token)


async def test_a_working_store_is_passed_through(bench: Bench) -> None:
    guard = bench.guard
    assert await bench.get() == [ENTRY]
    ticket = await bench.run(guard.ticket("k", "qa", ()))
    assert ticket == 1
    assert await bench.run(guard.set("k", ENTRY, ticket)) is True
    assert await bench.run(guard.set_many({"k": ENTRY})) == 1
    assert await bench.run(guard.delete_many(["k"])) == {"k"}
    assert await bench.run(guard.sweep(Selector("all"))) == 3
    assert bench.reports == []


async def test_the_first_fault_ends_the_stores_part_in_a_call(bench: Bench, one_call: None) -> None:
    bench.guard.start_call()
    bench.fail()
    assert await bench.get() == [None]
    bench.work()
    ticket = await bench.run(bench.guard.ticket("k", "qa", ()))
    assert ticket is NO_TICKET
    assert await bench.run(bench.guard.set("k", ENTRY, ticket)) is None
    assert bench.store.asked == ["get"]
    assert [(stage, key) for stage, key, _ in bench.reports] == [("get", "k")]


async def test_without_a_ticket_nothing_is_written(bench: Bench) -> None:
    bench.fail()
    ticket = await bench.run(bench.guard.ticket("k", "qa", ()))
    bench.work()
    assert await bench.run(bench.guard.set("k", ENTRY, ticket)) is None
    assert bench.store.asked == ["ticket"]


async def test_the_call_after_a_fault_asks_again(bench: Bench) -> None:
    bench.fail()
    assert await bench.get() == [None]
    bench.work()
    assert await bench.get() == [ENTRY]


@pytest.mark.parametrize("reads_inline", [False, True])
@pytest.mark.parametrize("world", ["tasks", "threads"])
async def test_a_store_that_used_up_the_budget_is_not_asked_again_in_the_call(
    world: str, reads_inline: bool, clock: Clock
) -> None:
    bench = Bench(world, clock, reads_inline=reads_inline)
    bench.store.trouble = lambda: clock.advance(0.11)
    bench.guard.start_call()
    await bench.get(3)
    assert bench.store.asked == ["get"]


async def test_after_five_failures_in_a_row_the_store_is_left_alone(bench: Bench) -> None:
    bench.fail()
    await bench.get(FAILURES_TO_OPEN - 1)
    assert bench.guard.breaker.state == "closed"
    await bench.get()
    assert bench.guard.breaker.state == "open"
    assert await bench.get(100) == [None] * 100
    assert len(bench.store.asked) == len(bench.reports) == FAILURES_TO_OPEN == 5


@pytest.mark.parametrize("reads_inline", [False, True])
@pytest.mark.parametrize("answer", ["work", "find_damage"])
async def test_failures_with_an_answer_in_between_are_not_in_a_row(
    bench: Bench, answer: str, reads_inline: bool
) -> None:
    bench.guard.reads_inline = reads_inline
    for _ in range(3):
        bench.fail()
        await bench.get(FAILURES_TO_OPEN - 1)
        getattr(bench, answer)()
        await bench.get()
    assert bench.guard.breaker.state == "closed"


async def test_an_open_breaker_lets_one_probe_through_per_interval(bench: Bench) -> None:
    bench.fail()
    await bench.get(FAILURES_TO_OPEN)
    bench.store.asked.clear()
    for probes in (1, 2, 3):
        bench.clock.advance(PROBE_INTERVAL)
        await bench.get(10)
        assert len(bench.store.asked) == probes


async def test_a_probe_that_succeeds_closes_the_breaker(bench: Bench) -> None:
    bench.fail()
    await bench.get(FAILURES_TO_OPEN)
    bench.work()
    assert await bench.get() == [None]
    bench.clock.advance(PROBE_INTERVAL)
    assert await bench.get(10) == [ENTRY] * 10
    assert bench.guard.breaker.state == "closed"


async def test_a_store_that_is_read_again_is_written_to_again_without_another_interval(bench: Bench) -> None:
    async def write() -> Any:
        return await bench.run(bench.guard.ticket("k", "qa", ()))

    bench.fail()
    for _ in range(FAILURES_TO_OPEN):
        await write()
    await bench.get(FAILURES_TO_OPEN)
    bench.work()
    bench.clock.advance(PROBE_INTERVAL)
    assert await write() is NO_TICKET, "what is not even read is not written to"
    assert await bench.get() == [ENTRY]
    assert await write() == 1


async def test_damage_is_reported_but_is_not_the_stores_failure(bench: Bench, one_call: None) -> None:
    bench.guard.start_call()
    bench.find_damage()
    assert await bench.get(2 * FAILURES_TO_OPEN) == [None] * 2 * FAILURES_TO_OPEN
    assert bench.guard.breaker.state == "closed"
    assert all(isinstance(error, DamagedEntry) for _, _, error in bench.reports)
    bench.work()
    assert await bench.run(bench.guard.set("k", ENTRY)) is True, "what is damaged has to be replaced"


async def test_one_damaged_entry_among_many_costs_only_itself(bench: Bench) -> None:
    assert await bench.run(bench.guard.get_many(["good", "bad"])) == {"good": ENTRY}
    assert [(stage, key) for stage, key, _ in bench.reports] == [("get", "bad")]


each_removal = pytest.mark.parametrize(
    "removal", [lambda g: g.delete_many(["k"]), lambda g: g.sweep(Selector("all"))], ids=["delete", "sweep"]
)


@pytest.mark.parametrize("state", ["closed", "open", "budget spent"])
@each_removal
async def test_a_removal_that_failed_always_raises(bench: Bench, removal: Callable[[Guard], Any], state: str) -> None:
    bench.fail()
    if state == "open":
        await bench.get(FAILURES_TO_OPEN)
    if state == "budget spent":
        bench.guard.start_call()
        await bench.get()
    with pytest.raises(InfrastructureError) as raised:
        await bench.run(removal(bench.guard))
    assert isinstance(raised.value.__cause__, ConnectionError)
    bench.work()
    assert await bench.run(removal(bench.guard))


@each_removal
async def test_a_removal_that_met_damage_raises_but_is_not_the_stores_failure(
    bench: Bench, removal: Callable[[Guard], Any]
) -> None:
    bench.find_damage()
    for _ in range(2 * FAILURES_TO_OPEN):
        with pytest.raises(InfrastructureError):
            await bench.run(removal(bench.guard))
    assert bench.guard.write_breaker.state == "closed"
    assert len(bench.reports) == 2 * FAILURES_TO_OPEN


def test_outside_of_a_call_there_is_no_budget_to_renew(bench: Bench) -> None:
    bench.guard.renew_budget()
    assert BUDGET.get() is None


async def test_an_abandoned_read_can_be_closed_in_another_context(clock: Clock) -> None:
    bench = Bench("tasks", clock)
    bench.store.trouble = asyncio.Event().wait  # type: ignore[assignment]
    body = bench.guard.get("k")
    contextvars.copy_context().run(body.send, None)
    body.close()
    assert bench.store.asked == ["get"]
    assert bench.reports == []
    assert BUDGET.get() is None


@pytest.mark.parametrize("world", ["tasks", "threads"])
@pytest.mark.parametrize("ask", [lambda g: g.get("k"), lambda g: g.set("k", ENTRY)], ids=["get", "set"])
async def test_a_strict_guard_raises_the_fault_with_its_cause(
    world: str, ask: Callable[[Guard], Any], clock: Clock
) -> None:
    bench = Bench(world, clock, strict=True)
    bench.fail()
    with pytest.raises(InfrastructureError) as raised:
        await bench.run(ask(bench.guard))
    assert isinstance(raised.value.__cause__, ConnectionError)


async def test_one_fault_that_many_waited_for_counts_once(bench: Bench) -> None:
    error = ConnectionError("down")
    for _ in range(2 * FAILURES_TO_OPEN):
        bench.guard.breaker.failed(error)
    assert bench.guard.breaker.failures == 1


@pytest.mark.parametrize("world", ["tasks", "threads"])
@pytest.mark.parametrize(
    "ask", [lambda g: g.get_many(["k"]), lambda g: g.ticket("k", "qa", ()), lambda g: g.set("k", ENTRY)]
)
async def test_a_strict_guard_says_that_the_store_is_left_alone_and_why(
    world: str, ask: Callable[[Guard], Any], clock: Clock
) -> None:
    bench = Bench(world, clock, strict=True)
    bench.fail()
    for _ in range(FAILURES_TO_OPEN):
        with pytest.raises(InfrastructureError):
            await bench.get()
    bench.store.asked.clear()
    with pytest.raises(InfrastructureError, match="left alone") as raised:
        await bench.run(ask(bench.guard))
    assert isinstance(raised.value.__cause__, ConnectionError)
    assert bench.store.asked == []
