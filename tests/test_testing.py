"""What users test their own code with."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from aimemo import Cache, InfrastructureError, InMemoryCache, cached_ai_call, refresh
from aimemo.testing import FailingCache, FakeClock, assert_cached, disabled


def counting(cache: Cache, operation: str = "ask", **options: Any) -> Any:
    """A decorated function that gives the number of its execution."""
    calls: list[str] = []

    @cached_ai_call(operation=operation, cache=cache, **options)
    def ask(text: str) -> int:
        calls.append(text)
        return len(calls)

    return ask


def test_a_fake_clock_lets_an_answer_expire() -> None:
    clock = FakeClock()
    ask = counting(InMemoryCache(clock=clock), ttl=60)
    assert (ask("a"), ask("a")) == (1, 1)
    clock.advance(59)
    assert ask("a") == 1
    clock.advance(2)
    assert ask("a") == 2


def test_nothing_is_cached_anywhere_while_caches_are_disabled() -> None:
    ask = counting(InMemoryCache())
    found: list[int] = []
    with disabled():
        thread = threading.Thread(target=lambda: found.append(ask("a")))
        thread.start()
        thread.join()
        found.append(ask("a"))
        with refresh():
            found.append(ask("a"))
    assert found == [1, 2, 3]
    assert (ask("a"), ask("a")) == (4, 4)


def test_hits_are_asserted() -> None:
    ask, other = counting(InMemoryCache()), counting(InMemoryCache(), "other")
    ask("a")
    with assert_cached(ask) as calls:
        ask("a")
        other("a")
    assert [call.outcome for call in calls] == ["hit", "miss"]
    with pytest.raises(AssertionError, match=r"1 of 2 calls were computed: ask \(miss\)"), assert_cached():
        ask("a")
        ask("secret")


def test_no_call_at_all_is_no_hit() -> None:
    ask = counting(InMemoryCache())
    with pytest.raises(AssertionError, match="no call of ask was made"), assert_cached(ask):
        pass
    with pytest.raises(AssertionError, match="no call of a decorated function was made"), assert_cached():
        pass


def test_an_error_in_the_context_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError), assert_cached():
        _ = 1 / 0


async def test_hits_of_tasks_are_asserted() -> None:
    @cached_ai_call(operation="ask", cache=InMemoryCache())
    async def ask(text: str) -> str:
        await asyncio.sleep(0)
        return text

    await ask("a")
    with assert_cached(ask):
        assert await asyncio.gather(ask("a"), ask("a")) == ["a", "a"]


async def test_a_store_fails_on_demand_and_its_callers_are_answered() -> None:
    cache = FailingCache()
    ask = counting(cache)
    assert (ask("a"), ask("a")) == (1, 1)
    cache.fail()
    assert (ask("a"), ask("a")) == (2, 3)
    assert await cache.get("k") is None
    with pytest.raises(InfrastructureError):
        await cache.delete("k")
    assert cache.stats().errors >= 3
    cache.recover()
    assert ask("a") == 1


async def test_a_store_that_failed_often_is_left_alone() -> None:
    cache = FailingCache(strict=True)
    cache.fail(OSError("gone"))
    for _ in range(6):
        with pytest.raises(InfrastructureError):
            await cache.get("k")
    assert cache.stats().breaker == "open"
    assert "gone" not in str(cache.stats())


async def test_a_failing_cache_does_all_that_a_cache_does() -> None:
    cache = FailingCache()
    await cache.set_many({"a": 1, "b": 2})
    assert await cache.connect()
    assert await cache.get_many(["a", "b", "c"]) == {"a": 1, "b": 2}
    assert len([entry async for entry in entries(cache)]) == 2
    assert await cache.invalidate_pattern("*a*") == 1
    assert await cache.clear() == 1
    await cache.close()


async def entries(cache: FailingCache) -> Any:
    stored, _ = await cache.memoizer.tiers.store.page("", 10)
    for entry in stored:
        yield entry
