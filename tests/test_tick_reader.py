"""Reads that are asked for within one tick of an event loop: which of them travel together."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from aimemo.link.aio import EARLIER, LATER, TickReader


class Places:
    """Reads places, and notes which were read together. The value at a place is the place."""

    def __init__(self) -> None:
        self.read: list[list[Any]] = []

    async def __call__(self, places: list[Any]) -> list[Any]:
        self.read.append(places)
        await asyncio.sleep(0)
        return places


async def test_reads_travel_together_where_tasks_begin_at_once() -> None:
    """As with `asyncio.eager_task_factory`."""

    def begin(loop: Any, body: Any, **options: Any) -> Any:
        raise AssertionError("its first step would be taken before there is anything to read")

    places, loop = Places(), asyncio.get_running_loop()
    read = TickReader(places)
    loop.set_task_factory(begin)
    try:
        first, second = read("first", 0.0), read("second", 0.0)
    finally:
        loop.set_task_factory(None)
    assert await asyncio.gather(first, second) == ["first", "second"]
    assert places.read == [["first", "second"]]


@pytest.mark.parametrize("limit", [-EARLIER, 0.0, LATER])
async def test_reads_whose_limits_are_near_travel_together(limit: float) -> None:
    places = Places()
    read = TickReader(places)
    assert await asyncio.gather(read("first", 0.0), read("second", limit)) == ["first", "second"]
    assert places.read == [["first", "second"]]


@pytest.mark.parametrize("limit", [-EARLIER - 0.001, LATER + 0.001])
async def test_a_read_whose_limit_differs_travels_alone(limit: float) -> None:
    """It is neither late because of the first, nor given up with it."""
    places = Places()
    read = TickReader(places)
    assert await asyncio.gather(read("first", 0.0), read("second", limit), read("third", limit)) == [
        "first", "second", "third",
    ]  # fmt: skip
    assert places.read == [["first"], ["second", "third"]]
