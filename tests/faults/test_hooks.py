"""Hooks that raise, are slow or hang, under fifty callers (F44)."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import pytest

from aimemo import Cache
from aimemo.core.runtime import HOOK_DEADLINE
from tests.faults.conftest import Case
from tests.kit.crowd import CALLERS, Crowd, answer_to
from tests.kit.looking import until

EVENTS = ("hit", "miss", "set")
SLOW = 0.15
"""Seconds of a hook that is slow: longer than it is waited for."""

OVER = threading.Event()
"""The test is over, and what hangs may end."""

row = pytest.mark.row("F44")
KINDS = ["memory", "redis"]
pytestmark = pytest.mark.slow_hooks

everywhere = pytest.mark.parametrize(
    "cache",
    [*KINDS, *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("sqlite", "redis behind L1", "cluster"))],
    indirect=True,
)

Hook = Callable[[Any], Any]


def raises(_: Any) -> None:
    raise ValueError("the hook's")


async def raises_in_a_task(_: Any) -> None:
    raise ValueError("the hook's")


def is_slow(_: Any) -> None:
    time.sleep(SLOW)


async def is_slow_in_a_task(_: Any) -> None:
    await asyncio.sleep(SLOW)


async def hangs_in_a_task(_: Any) -> None:
    while not OVER.is_set():
        await asyncio.sleep(0.05)


@pytest.fixture
async def crowd(cache: Cache) -> AsyncIterator[Crowd]:
    OVER.clear()
    made = Crowd(cache)
    yield made
    OVER.set()
    bus = cache.journal.bus
    for kind, hook in [(kind, hook) for kind, hooks in bus._hooks.items() for hook in hooks]:
        bus.unsubscribe(kind, hook.function)
    await made.close()
    if others := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait(others, timeout=5)


@row
@everywhere
@pytest.mark.parametrize("hook", [raises, raises_in_a_task], ids=lambda hook: hook.__name__)
async def test_a_hook_that_raises_is_counted_each_time_and_the_next_one_is_told(
    crowd: Crowd, case: Case, hook: Hook, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[Any] = []
    usual = await crowd.warm_up()
    for kind in EVENTS:
        crowd.cache.on(kind, hook)
        crowd.cache.on(kind, told.append)
    await crowd.ask(range(CALLERS))
    await crowd.ask(crowd.new(CALLERS))
    case.crowd(crowd, usual, len(EVENTS) * HOOK_DEADLINE)
    events = 3 * CALLERS  # hits, misses and sets; what a busy hook is not told is counted
    await until(lambda: len(told) + crowd.cache.stats().callback_errors >= 2 * events, 15)
    ends = len(told) + crowd.cache.stats().callback_errors
    late = sum("TimeoutError" in said.getMessage() for said in caplog.records)  # on a slow machine; that is counted too
    case.nothing_lost(2 * events <= ends <= 2 * events + late, (len(told), ends, late))
    case.recovers(await crowd.recovers(5), crowd.cache.stats())


@row
@everywhere
@pytest.mark.parametrize("hook", [is_slow, is_slow_in_a_task, hangs_in_a_task], ids=lambda hook: hook.__name__)
async def test_a_hook_that_is_slow_or_hangs_holds_callers_once_and_then_nobody(
    crowd: Crowd, case: Case, hook: Hook
) -> None:
    usual = await crowd.warm_up()
    for kind in EVENTS:
        crowd.cache.on(kind, hook)
    await crowd.ask(range(CALLERS))
    await crowd.ask(crowd.new(CALLERS))
    case.crowd(crowd, usual, len(EVENTS) * SLOW)
    case.nothing_lost(crowd.cache.stats().callback_errors > 0, "a slow hook that is not counted")
    case.bounded(await crowd.ask_in_turn([*range(10), *crowd.new(10)]), HOOK_DEADLINE)
    case.recovers(await crowd.recovers(5), crowd.cache.stats())


@row
@pytest.mark.parametrize("cache", ["memory", "redis"], indirect=True)
async def test_a_plain_hook_that_never_returns_holds_nobody_who_comes_later(crowd: Crowd, case: Case) -> None:
    begun, returns = threading.Event(), threading.Event()

    def hang(_: Any) -> None:
        begun.set()
        returns.wait(20)

    usual = await crowd.warm_up()
    crowd.cache.on("miss", hang)
    with ThreadPoolExecutor(CALLERS) as threads:
        try:
            held = threads.submit(crowd.in_threads, -1)
            await until(begun.is_set)
            await asyncio.sleep(1.5 * HOOK_DEADLINE)
            started = time.monotonic()
            others = {question: threads.submit(crowd.in_threads, question) for question in crowd.new(CALLERS - 1)}
            _, waiting = wait(others.values(), timeout=10)
            case.nothing_lost(not waiting, f"{len(waiting)} others are held too")
            case.bounded(time.monotonic() - started - 2 * usual)
            case.right(all(other.result() == answer_to(question) for question, other in others.items()))
        finally:
            returns.set()
        case.nothing_lost(held.result() == answer_to(-1))
        case.recovers(await crowd.recovers(5), crowd.cache.stats())
