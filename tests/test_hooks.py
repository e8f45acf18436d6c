"""Hooks and callbacks: who is told what, and that no hook harms a caller (F44)."""

from __future__ import annotations

import asyncio
import collections
import functools
import gc
import inspect
import logging
import sys
import threading
import time
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest.mock import AsyncMock, MagicMock

import pytest

from aimemo import Cache, CacheEvent, InMemoryCache, ValidationError, cached_ai_call, compose_callbacks
from aimemo.core.aio import TaskRuntime
from aimemo.core.events import GATE, KINDS, SEED_EVENTS, EventBus
from aimemo.core.runtime import ThreadRuntime, drive
from aimemo.core.stats import Stats
from tests.kit import stalls
from tests.kit.clock import Clock
from tests.kit.looking import followers, nearest_tier, until

Remember = Callable[..., Any]
PATIENCE = 1.0
"""Longer than a caller may be held by its hooks (0.1 s), with room for a slow machine."""


@pytest.fixture(params=["tasks", "threads"])
def remember(request: pytest.FixtureRequest, cache: Cache) -> Remember:
    """Decorates a function of a text in one of the two worlds."""

    def decorate(body: Callable[[str], Any] = lambda text: [text], operation: str = "ask", **options: Any) -> Any:
        async def ask_in_tasks(text: str) -> Any:
            return body(text)

        def ask(text: str) -> Any:
            return body(text)

        return cached_ai_call(operation=operation, cache=cache, **options)(ask_in_tasks if is_async else ask)

    is_async = request.param == "tasks"
    return decorate


@pytest.fixture
def listen(cache: Cache) -> Iterator[Callable[..., Any]]:
    """Registers a hook for the length of the test; gives the list of what it is told if none is given."""
    registered = []

    def register(kind: str, function: Callable[..., Any] | None = None) -> list[Any]:
        told: list[Any] = []
        hook = function or (lambda *args: told.append(args))
        (cache.on if kind in KINDS else cache.register_callback)(kind, hook)
        registered.append((kind, hook))
        return told

    yield register
    for kind, hook in registered:
        (cache.off if kind in KINDS else cache.unregister_callback)(kind, hook)


async def settled(result: Any) -> Any:
    return await result if inspect.isawaitable(result) else result


def hook_of(kind: str, body: Callable[..., Any]) -> Callable[..., Any]:
    async def in_tasks(*args: Any) -> Any:
        return body(*args)

    return in_tasks if kind == "async" else body


async def test_seed_callbacks_get_key_and_value(remember: Remember, listen: Any) -> None:
    told = {event: listen(event) for event in SEED_EVENTS}
    ask = remember()
    key = ask.key_for("q")
    await settled(ask("q"))
    await settled(ask("q"))
    await settled(ask.invalidate("q"))
    assert told == {
        "get_miss": [(key,)], "set_success": [(key, ["q"])], "get_success": [(key, ["q"])], "delete_success": [(key,)],
    }  # fmt: skip


async def test_seed_callbacks_are_told_of_reads_and_writes_by_hand(cache: Cache, listen: Any) -> None:
    told = {event: listen(event) for event in SEED_EVENTS}
    await cache.get("k")
    await cache.set("k", [1])
    cache.blocking.get("k")
    cache.blocking.delete("k")
    assert told == {
        "get_miss": [("k",)], "set_success": [("k", [1])], "get_success": [("k", [1])], "delete_success": [("k",)],
    }  # fmt: skip


async def test_a_call_that_fails_is_no_success_for_those_who_joined_it(cache: Cache, listen: Any) -> None:
    told = listen("get_success")
    gate = asyncio.Event()

    @cached_ai_call(operation="ask", cache=cache)
    async def ask(text: str) -> str:
        await gate.wait()
        raise ValueError("no")

    callers = [asyncio.create_task(ask("q")) for _ in range(3)]
    await until(lambda: followers(cache) == 3)
    gate.set()
    await asyncio.gather(*callers, return_exceptions=True)
    assert told == []


async def test_events_tell_what_happened(remember: Remember, cache: Cache, listen: Any, clock: Clock) -> None:
    told = {kind: listen(kind) for kind in ("hit", "miss", "set", "delete", "invalidated")}
    ask = remember(facts=lambda answer: {"tokens": 7, "cost": 0.5})
    await settled(ask("q"))
    clock.advance(3)
    await settled(ask("q"))
    await settled(ask.invalidate("q"))
    await settled(ask.invalidate_all())
    hit: CacheEvent = told["hit"][0][0]
    tier = nearest_tier(cache)
    assert (hit.kind, hit.operation, hit.tier, hit.age, hit.tokens, hit.cost) == ("hit", "ask", tier, 3, 7, 0.5)
    assert all(len(events) == 1 for events in told.values())
    assert {told[kind][0][0].digest for kind in ("hit", "miss", "set", "delete")} == {ask.key_for("q")[-32:]}
    assert (told["invalidated"][0][0].reason, told["invalidated"][0][0].count) == ("operation", 0)
    with pytest.raises(AttributeError):
        hit.kind = "miss"  # type: ignore[misc]


async def test_the_hooks_of_a_function_are_told_of_its_own_calls(remember: Remember) -> None:
    told: list[tuple[str, str]] = []
    note = lambda event: told.append((event.kind, event.operation))
    ask, other = remember(on_hit=note, on_miss=note, on_set=note), remember(operation="other")
    for _ in range(3):
        await settled(ask("q"))
        await settled(other("q"))
    assert sorted(told) == [("hit", "ask"), ("hit", "ask"), ("miss", "ask"), ("set", "ask")]


async def test_hooks_run_in_order_of_registration_sync_or_async(remember: Remember, listen: Any) -> None:
    order: list[int] = []
    for at, kind in enumerate(("sync", "async", "async", "sync")):
        listen("get_miss", hook_of(kind, lambda *_, at=at: order.append(at)))
    await settled(remember()("q"))
    assert order == [0, 1, 2, 3]


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("error", [ValueError("canary"), StopIteration(), asyncio.CancelledError()], ids=repr)
async def test_a_failing_hook_is_logged_and_counted_and_harms_nobody(
    remember: Remember, cache: Cache, listen: Any, caplog: Any, kind: str, error: BaseException
) -> None:
    def fail(*_: Any) -> None:
        raise error

    listen("get_miss", hook_of(kind, fail))
    told = listen("get_miss")
    ask = remember()
    with caplog.at_level(logging.INFO, "aimemo"):
        assert await settled(ask("q")) == ["q"]
    assert told == [(ask.key_for("q"),)]
    assert cache.stats().callback_errors == cache.stats().by_operation["ask"].callback_errors == 1
    assert "get_miss" in caplog.text
    assert "canary" not in caplog.text


@pytest.mark.slow_hooks
@pytest.mark.leaves("hooks that hang")
@pytest.mark.parametrize("count", [1, 30])
async def test_hanging_hooks_hold_a_caller_for_a_moment_and_later_callers_not_at_all(
    remember: Remember, cache: Cache, listen: Any, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(count):

        async def hang(event: CacheEvent) -> None:
            await asyncio.Event().wait()

        listen("miss", hang)
    ask = remember()
    started = time.perf_counter()
    assert await settled(ask("a")) == ["a"]
    assert time.perf_counter() - started < PATIENCE + stalls.longest()
    waited_for: list[Any] = []
    for memoizer in cache._memoizers.values():
        monkeypatch.setattr(memoizer.runtime, "call_hook", waited_for.append)
    for text in "bcd":
        assert await settled(ask(text)) == [text]
    assert waited_for == []
    assert cache.stats().callback_errors >= count


@pytest.mark.slow_hooks
@pytest.mark.leaves("hooks that hang")
async def test_a_slow_hook_that_fails_beside_the_callers_is_counted_too(
    remember: Remember, cache: Cache, listen: Any, caplog: Any
) -> None:
    async def slow_then_failing(event: CacheEvent) -> None:
        told.append(event)
        if len(told) == 1:
            await asyncio.sleep(0.12)
        else:
            raise ValueError("canary")

    told: list[CacheEvent] = []
    before = threading.enumerate()
    listen("miss", slow_then_failing)
    ask = remember()
    await settled(ask("a"))
    await settled(ask("b"))
    with caplog.at_level(logging.INFO, "aimemo"):
        await until(lambda: len(told) == 2 and cache.stats().callback_errors == 2)
    for thread in set(threading.enumerate()) - set(before):
        if thread.name == "aimemo-hook":
            thread.join(5)
    assert cache.stats().callback_errors == 2
    assert "canary" not in caplog.text


@pytest.mark.slow_hooks
@pytest.mark.leaves("hooks that hang")
def test_a_slow_hook_left_behind_by_a_loop_is_told_on_the_next_one(cache: Cache, listen: Any) -> None:
    async def slow_at_first(event: CacheEvent) -> None:
        told.append(event)
        if len(told) == 1:
            await asyncio.sleep(0.12)

    @cached_ai_call(operation="ask", cache=cache)
    async def ask(text: str) -> str:
        return text

    async def call_and_wait() -> None:
        before = len(told)
        await ask("third")
        await until(lambda: len(told) > before)

    told: list[CacheEvent] = []
    listen("miss", slow_at_first)
    asyncio.run(ask("first"))
    asyncio.run(ask("second"))  # the loop ends before the hook, which is not waited for, begins
    gc.collect()  # what that loop left behind goes here, and not in the middle of some other test
    asyncio.run(asyncio.wait_for(call_and_wait(), 10))


async def test_what_was_kept_is_told_although_every_caller_was_cancelled(cache: Cache, listen: Any) -> None:
    told = listen("set")
    gate = asyncio.Event()

    @cached_ai_call(operation="ask", cache=cache)
    async def ask(text: str) -> str:
        await gate.wait()
        return text

    caller = asyncio.create_task(ask("q"))
    await until(lambda: followers(cache) == 1)
    caller.cancel()
    await asyncio.sleep(0)
    gate.set()
    while others := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait(others)
    assert cache.stats().sets == 1
    assert len(told) == 1


async def test_hooks_see_every_hit_also_of_answers_that_were_there_before(remember: Remember, cache: Cache) -> None:
    ask = remember()
    before = len(GATE)
    for event, register, undo in (
        ("hit", cache.on, cache.off),
        ("get_success", cache.register_callback, cache.unregister_callback),
    ):
        told: list[Any] = []
        note = lambda *args, told=told: told.append(args)
        await settled(ask("q"))
        register(event, note)
        for _ in range(3):
            await settled(ask("q"))
        assert len(told) == 3
        assert undo(event, note) is True
        assert undo(event, note) is False
        await settled(ask("q"))
        assert (len(told), len(GATE)) == (3, before)


def test_a_forgotten_cache_with_hooks_leaves_the_gate_open() -> None:
    before = len(GATE)
    cache = InMemoryCache()
    cache.on("hit", print)
    assert len(GATE) == before + 1
    del cache
    gc.collect()
    assert len(GATE) == before


@pytest.mark.parametrize("cache", ["memory"], indirect=True)
@pytest.mark.parametrize("event", [*SEED_EVENTS, *KINDS])
def test_deregistration_leaves_no_reference_and_no_memory_behind(cache: Cache, event: str) -> None:
    on, off = (cache.on, cache.off) if event in KINDS else (cache.register_callback, cache.unregister_callback)

    def turn() -> weakref.ref[Any]:
        hook = lambda *args: None
        on(event, hook)
        assert off(event, hook)
        return weakref.ref(hook)

    assert turn()() is None
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(10_000 // len((*SEED_EVENTS, *KINDS))):
        turn()
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 20_000


async def test_a_hook_is_not_told_of_what_it_does_with_the_cache_itself(cache: Cache, listen: Any) -> None:
    async def delete_again(event: CacheEvent) -> None:
        told.append(event)
        await cache.delete("key")

    told: list[CacheEvent] = []
    listen("delete", delete_again)
    await cache.delete("key")
    assert len(told) == 1


class Contested(collections.deque[Any]):
    """Another thread takes what waits between the look and the taking."""

    def __bool__(self) -> bool:
        waits = len(self) > 0
        self.clear()
        return waits


async def test_what_another_thread_tells_meanwhile_is_not_told_again(cache: Cache, listen: Any) -> None:
    told = listen("delete")
    bus = cache.journal.bus
    bus.pending = Contested()
    bus.post("delete", "ask", ("event",))
    await bus.deliver(TaskRuntime())
    assert (told, len(bus.pending)) == ([], 0)
    bus.pending = collections.deque()


@pytest.mark.parametrize("event", ["", "hot", "get_successes", None])
def test_unknown_events_and_what_cannot_be_called_are_refused(cache: Cache, event: Any) -> None:
    for register in (cache.on, cache.register_callback):
        with pytest.raises(ValidationError):
            register(event, print)
    for register, known in ((cache.on, "hit"), (cache.register_callback, "get_success")):
        with pytest.raises(ValidationError):
            register(known, "not callable")  # type: ignore[arg-type]


async def test_a_composed_callback_calls_all_in_order_whatever_one_of_them_does(
    remember: Remember, cache: Cache, listen: Any
) -> None:
    told: list[Any] = []

    def fail(*args: Any) -> None:
        told.append("fail")
        raise ValueError("no")

    note = lambda *args: told.append(args)
    listen("get_miss", compose_callbacks(note, fail, hook_of("async", fail), hook_of("async", note), note))
    ask = remember()
    assert await settled(ask("q")) == ["q"]
    assert sorted(map(str, told)) == sorted(map(str, ["fail", "fail", *[(ask.key_for("q"),)] * 3]))
    assert told[:2] == [(ask.key_for("q"),), "fail"]
    assert ask.stats().callback_errors == 2


def test_what_is_composed_must_be_callable() -> None:
    with pytest.raises(ValidationError, match="callable"):
        compose_callbacks(print, "print")  # type: ignore[arg-type]


async def test_no_event_holds_a_prompt_or_a_value(cache: Cache, clock: Clock, listen: Any, caplog: Any) -> None:
    canary = "canary"
    told = {kind: listen(kind) for kind in KINDS}
    answers = iter([[canary], ValueError(canary), object(), [canary], ValueError(canary)])

    @cached_ai_call(operation="ask", cache=cache, ttl=10, stale_if_error=10, tags=(canary,))
    async def ask(text: str, more: list[str]) -> Any:
        await asyncio.sleep(0)
        more.append(canary) if text == canary * 2 else None
        if isinstance(answer := next(answers), Exception):
            raise answer
        return answer

    with caplog.at_level(logging.INFO, "aimemo"):
        await ask(canary, [canary])
        await ask(canary, [canary])
        clock.advance(11)
        await ask(canary, [canary])
        await asyncio.gather(ask("new" + canary, []), ask("new" + canary, []), return_exceptions=True)
        await ask(canary * 2, [])
        with pytest.raises(ValueError, match=canary):
            await ask("failing" + canary, [])
        await cache.set(canary, canary)
        await cache.delete(canary)
        await cache.invalidate_pattern(f"*{canary}*")
        await cache.invalidate_tag(canary)
    assert {kind for kind in KINDS if told[kind]} >= {
        "hit",
        "miss",
        "set",
        "delete",
        "stale",
        "invalidated",
        "not_kept",
    }
    assert canary not in repr(told)
    assert canary not in caplog.text
    assert canary not in repr(cache.stats())


def test_hooks_of_threads_that_register_at_once_are_all_told() -> None:
    bus, told, count = EventBus(Stats()), collections.Counter[int](), 200
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def register(thread: int) -> None:
        for number in range(count):
            bus.subscribe("set", functools.partial(told.update, [thread]))
            passing = functools.partial(told.update, [thread, number])
            bus.subscribe("set", passing)
            assert bus.unsubscribe("set", passing)

    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(register, range(4)))
    finally:
        sys.setswitchinterval(before)
    bus.post("set", "", ())
    drive(bus.deliver(ThreadRuntime()))
    assert told == dict.fromkeys(range(4), count)


@pytest.mark.parametrize("mock", [MagicMock, AsyncMock])
async def test_a_performance_monitor_is_told_of_every_operation(remember: Remember, cache: Cache, mock: Any) -> None:
    monitor = MagicMock()
    monitor.record_cache_operation_time = mock()
    cache._performance_monitor = monitor
    await settled(remember()("q"))
    await settled(remember()("q"))
    cache.blocking.set("k", 1)
    cache._performance_monitor = None
    await cache.get("k")
    calls = [call.kwargs for call in monitor.record_cache_operation_time.call_args_list]
    assert [(call["operation"], call["cache_hit"]) for call in calls if call["operation"] == "get"] == [
        *(("get", False), ("get", True))
    ]
    assert [call["operation"] for call in calls].count("set") == 2
    assert all(isinstance(call["duration"], float) for call in calls)


async def test_a_broken_performance_monitor_harms_nobody(remember: Remember, cache: Cache) -> None:
    cache._performance_monitor = MagicMock()
    cache._performance_monitor.record_cache_operation_time.side_effect = RuntimeError("no")
    assert await settled(remember()("q")) == ["q"]
    assert cache.stats().callback_errors == 2
    cache._performance_monitor = None
