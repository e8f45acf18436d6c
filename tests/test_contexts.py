"""`bypass()`, `refresh()`, `record_calls()`, what is counted, and what a decorated function carries."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import aimemo
from aimemo import (
    MISSING,
    AimemoWarning,
    Cache,
    CacheStats,
    InMemoryCache,
    SQLiteCache,
    ValidationError,
    cached_ai_call,
)
from aimemo.core.events import GATE
from tests.kit.clock import Clock
from tests.kit.looking import followers, nearest_tier, until

Remember = Callable[..., Any]


class Service:
    """Answers with the number of the call, or fails; takes two seconds of the clock."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.calls = 0
        self.error: Exception | None = None

    def __call__(self, text: str) -> list[int]:
        self.calls += 1
        self.clock.advance(2)
        if self.error is not None:
            raise self.error
        return [self.calls]


@pytest.fixture
def service(clock: Clock) -> Service:
    return Service(clock)


@pytest.fixture(params=["tasks", "threads"])
def remember(request: pytest.FixtureRequest, cache: Cache, service: Service) -> Remember:
    """Decorates the service in one of the two worlds."""

    def decorate(operation: str = "ask", *, on: Cache = cache, **options: Any) -> Any:
        async def ask_in_tasks(text: str) -> Any:
            return service(text)

        def ask(text: str) -> Any:
            return service(text)

        return cached_ai_call(operation=operation, cache=on, **options)(ask_in_tasks if is_async else ask)

    is_async = request.param == "tasks"
    return decorate


async def settled(result: Any) -> Any:
    return await result if inspect.isawaitable(result) else result


def lookups(stats: CacheStats) -> int:
    return stats.hits + stats.stale_hits + stats.misses + stats.coalesced


async def test_bypass_calls_and_touches_nothing(remember: Remember, cache: Cache) -> None:
    ask = remember()
    assert await settled(ask("q")) == [1]
    before = cache.stats()
    with aimemo.bypass():
        assert await settled(ask("q")) == [2]
        assert await settled(ask("new")) == [3]
    assert cache.stats() == before
    assert await settled(ask.bypass("q")) == [4]
    assert await settled(ask("q")) == [1]
    assert await settled(ask.peek("new")) is MISSING


async def test_refresh_calls_and_replaces(remember: Remember) -> None:
    ask = remember()
    assert await settled(ask("q")) == [1]
    with aimemo.refresh():
        assert await settled(ask("q")) == [2]
    assert await settled(ask("q")) == [2]
    assert await settled(ask.refresh("q")) == [3]
    assert await settled(ask("q")) == [3]


async def test_a_refresh_that_fails_raises_and_leaves_the_answer(remember: Remember, service: Service) -> None:
    ask = remember(stale_if_error=100)
    await settled(ask("q"))
    service.error = ValueError("no")
    with pytest.raises(ValueError, match="no"):
        await settled(ask.refresh("q"))
    assert await settled(ask("q")) == [1]


async def test_the_inner_of_two_nested_contexts_is_in_force(remember: Remember) -> None:
    ask = remember()
    with aimemo.refresh():
        with aimemo.bypass():
            assert await settled(ask("q")) == [1]
        assert await settled(ask.peek("q")) is MISSING
        assert await settled(ask("q")) == [2]
    assert await settled(ask("q")) == [2]


@pytest.mark.parametrize("context", [aimemo.bypass, aimemo.refresh])
async def test_a_context_ends_with_an_error(remember: Remember, context: Any) -> None:
    ask = remember()
    await settled(ask("q"))
    with pytest.raises(ValueError, match="no"), context():
        raise ValueError("no")
    assert await settled(ask("q")) == [1]


@pytest.mark.parametrize("context", [aimemo.bypass, aimemo.refresh, aimemo.record_calls])
async def test_a_context_holds_for_its_own_task_only(cache: Cache, context: Any) -> None:
    calls: list[str] = []

    @cached_ai_call(operation="ask", cache=cache)
    async def ask(text: str) -> str:
        calls.append(text)
        return text

    entered, asked = asyncio.Event(), asyncio.Event()

    async def in_context() -> Any:
        with context() as recorded:
            entered.set()
            await asked.wait()
            return recorded

    await ask("q")
    inside = asyncio.create_task(in_context())
    await entered.wait()
    assert await ask("q") == "q"
    asked.set()
    assert not await inside
    assert calls == ["q"]


async def test_a_task_that_outlives_the_context_it_was_started_in_does_not_depend_on_hooks(cache: Cache) -> None:
    @cached_ai_call(operation="ask", cache=cache)
    async def ask(text: str) -> list[str]:
        calls.append(text)
        return [text]

    async def call_later(text: str) -> None:
        await left.wait()
        await ask(text)
        await ask(text)

    calls: list[str] = []
    for text, hooks in (("without", []), ("with", [print])):
        left = asyncio.Event()
        with aimemo.bypass():
            outliving = asyncio.create_task(call_later(text))
            await asyncio.sleep(0)
        for hook in hooks:
            cache.on("hit", hook)
        left.set()
        await outliving
    cache.off("hit", print)
    assert calls.count("without") == calls.count("with")


async def test_records_say_what_became_of_each_call(remember: Remember, cache: Cache, clock: Clock) -> None:
    ask = remember(ttl=10, facts=lambda answer: {"tokens": 7, "cost": 0.5}, skip_if=lambda text: text == "skipped")
    tier = nearest_tier(cache)
    with aimemo.record_calls() as calls:
        await settled(ask("q"))
        clock.advance(3)
        await settled(ask("q"))
        await settled(ask.refresh("q"))
        await settled(ask.bypass("q"))
        await settled(ask("skipped"))
    assert [(call.outcome, call.tier) for call in calls] == [
        *(("miss", None), ("hit", tier), ("refresh", None), ("bypass", None), ("bypass", None))
    ]
    miss, hit, *others = calls
    assert {call.operation for call in calls} == {"ask"}
    assert {call.digest for call in calls[:4]} == {ask.key_for("q").rpartition("|")[2]}
    assert (miss.age, miss.seconds, miss.tokens_saved, miss.cost_saved) == (None, 2, None, None)
    assert (hit.age, hit.seconds, hit.tokens_saved, hit.cost_saved) == (3, 0, 7, 0.5)
    assert [(call.tokens_saved, call.seconds) for call in others] == [(None, 2)] * 3
    stats = cache.stats()
    assert (stats.tokens_saved, stats.cost_saved, stats.seconds_saved) == (7, 0.5, pytest.approx(2))


async def test_a_stale_answer_is_recorded_as_stale(remember: Remember, service: Service, clock: Clock) -> None:
    ask = remember(ttl=10, stale_if_error=100, facts=lambda answer: {"tokens": 7})
    await settled(ask("q"))
    clock.advance(11)
    service.error = ValueError("no")
    with aimemo.record_calls() as calls:
        await settled(ask("q"))
    assert [(call.outcome, call.age, call.tokens_saved) for call in calls] == [("stale", 13, 7)]


async def test_followers_are_recorded_as_coalesced(cache: Cache) -> None:
    gate = asyncio.Event()

    @cached_ai_call(operation="ask", cache=cache, facts=lambda answer: {"tokens": 7})
    async def ask(text: str) -> str:
        await gate.wait()
        return text

    with aimemo.record_calls() as calls:
        callers = [asyncio.create_task(ask("q")) for _ in range(3)]
        await until(lambda: followers(cache) == 3)
        gate.set()
        await asyncio.gather(*callers)
    assert sorted((call.outcome, call.tokens_saved or 0) for call in calls) == [
        *(("coalesced", 7), ("coalesced", 7), ("miss", 0))
    ]


async def test_nested_recorders_all_see_the_calls_made_in_them(remember: Remember) -> None:
    ask = remember()
    with aimemo.record_calls() as outer:
        await settled(ask("q"))
        with aimemo.record_calls() as inner:
            await settled(ask("q"))
        await settled(ask("q"))
    await settled(ask("q"))
    assert [call.outcome for call in outer] == ["miss", "hit", "hit"]
    assert [call.outcome for call in inner] == ["hit"]


async def test_reads_by_hand_are_counted_but_not_recorded(cache: Cache) -> None:
    with aimemo.record_calls() as calls:
        await cache.get("by hand")
    assert calls == []
    assert cache.stats().misses == 1


async def test_every_lookup_is_counted_once_under_its_operation(
    remember: Remember, cache: Cache, service: Service, clock: Clock
) -> None:
    ask, other = remember(ttl=10, stale_if_error=100), remember("other")
    for text in ("a", "b", "a", "a"):
        await settled(ask(text))
    await settled(other("a"))
    by_hand = cache.build_key("text", "ask")
    await cache.get(by_hand)
    await cache.set(by_hand, 1)
    await cache.get(by_hand)
    await cache.get_many([by_hand, "free"])
    await cache.get("free")
    await settled(ask.peek("a"))
    await cache.exists(by_hand)
    clock.advance(11)
    service.error = ValueError("no")
    await settled(ask("a"))
    with pytest.raises(ValueError, match="no"):
        await settled(ask("c"))
    stats = cache.stats()
    counts = {name: (s.hits, s.stale_hits, s.misses, s.coalesced) for name, s in stats.by_operation.items()}
    assert counts == {"ask": (4, 1, 4, 0), "other": (0, 0, 1, 0), "": (0, 0, 2, 0)}
    assert lookups(stats) == 12
    assert stats.hits == stats.l1_hits + stats.l2_hits
    assert stats.hit_rate == pytest.approx(5 / 12)
    assert ask.stats() == stats.by_operation["ask"]


async def test_store_if_decides_what_is_kept(remember: Remember, cache: Cache) -> None:
    ask = remember(store_if=lambda answer: answer != [1])
    assert [await settled(ask("q")) for _ in range(3)] == [[1], [2], [2]]
    assert cache.stats().sets == 1


async def test_a_store_if_that_fails_keeps_nothing_and_harms_nobody(remember: Remember, cache: Cache) -> None:
    ask = remember(store_if=lambda answer: answer[7])
    assert [await settled(ask("q")) for _ in range(2)] == [[1], [2]]
    assert cache.stats().errors == 2


class Stop(BaseException):
    """Of a kind that no `except Exception` sees."""


def stop(*_: Any) -> Any:
    raise Stop


async def test_what_store_if_and_facts_raise_ends_no_call(remember: Remember, cache: Cache) -> None:
    ask = remember(store_if=stop, facts=stop)
    with pytest.warns(AimemoWarning, match="Stop"):
        assert await settled(ask("q")) == [1]
    assert cache.stats().errors == 2


@pytest.mark.parametrize("option", ["store_if", "skip_if", "facts", "key", "tags", "scope"])
async def test_an_async_option_is_refused_because_nobody_would_await_it(remember: Remember, option: str) -> None:
    async def decide(*_: Any) -> bool:
        return False

    with pytest.raises(ValidationError, match=option):
        remember(**{option: decide})


@pytest.mark.parametrize("context", [aimemo.bypass, aimemo.refresh, aimemo.record_calls])
def test_a_context_that_is_left_elsewhere_ends_all_the_same(context: Any) -> None:
    """As the fixtures of some frameworks leave theirs."""
    entered, before = context(), len(GATE)
    contextvars.copy_context().run(entered.__enter__)
    entered.__exit__(None, None, None)
    assert len(GATE) == before


async def test_facts_that_fail_count_nothing_and_harm_nobody(remember: Remember, cache: Cache) -> None:
    ask = remember(facts=lambda answer: answer[7])
    with pytest.warns(AimemoWarning, match="IndexError"):
        assert await settled(ask("q")) == [1]
    assert await settled(ask("q")) == [1]
    stats = cache.stats()
    assert (stats.errors, stats.sets, stats.hits, stats.tokens_saved) == (1, 1, 1, 0)


async def test_skip_if_calls_through(remember: Remember, cache: Cache) -> None:
    ask = remember(skip_if=lambda text: text == "skipped")
    assert [await settled(ask("skipped")) for _ in range(2)] == [[1], [2]]
    assert await settled(ask.peek("skipped")) is MISSING
    assert (cache.stats().sets, lookups(cache.stats())) == (0, 0)
    assert [await settled(ask("q")) for _ in range(2)] == [[3], [3]]


async def test_a_decorated_function_finds_and_removes_its_answers(remember: Remember, cache: Cache) -> None:
    ask, longer = remember(), remember("ask_long")
    assert await settled(ask.peek("a")) is MISSING
    for text in "abc":
        await settled(ask(text))
    await settled(longer("a"))
    assert await settled(ask.peek("a")) == await cache.get(ask.key_for("a")) == [1]
    assert await settled(ask.invalidate("a")) is True
    assert await settled(ask.invalidate("a")) is False
    assert await settled(ask.peek("a")) is MISSING
    assert await settled(ask.invalidate_all()) == 2
    assert await settled(longer.peek("a")) == [4]
    assert (ask.operation, ask.cache) == ("ask", cache)
    assert ask.key_for("a") == ask.key_for(text="a") != longer.key_for("a")


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_a_disabled_cache_calls_through(remember: Remember, tmp_path: Path, kind: str) -> None:
    cache = InMemoryCache(enabled=False) if kind == "memory" else SQLiteCache(tmp_path / "off.db", enabled=False)
    ask = remember(on=cache)
    assert [await settled(ask("q")) for _ in range(2)] == [[1], [2]]
    assert await settled(ask.refresh("q")) == [3]
    assert await settled(ask.peek("q")) is MISSING
    await cache.set("key", 1)
    assert await cache.get("key", "nothing") == "nothing"
    assert await cache.get_or_compute("key", lambda: 5) == 5
    assert cache.stats().sets == 0
    await cache.close()
