"""Fresh, stale, expired: on a clock that is moved by hand, in both worlds."""

from __future__ import annotations

import asyncio
import datetime
import inspect
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimemo import MISSING, Cache, CacheEvent, InMemoryCache, SQLiteCache, cached_ai_call
from tests.kit.clock import Clock
from tests.kit.looking import until

Remember = Callable[..., Any]


class Service:
    """Answers with the number of the call, or fails."""

    def __init__(self) -> None:
        self.calls = 0
        self.error: Exception | None = None

    def __call__(self, text: str) -> list[int]:
        error = self.error
        self.calls += 1
        if error is not None:
            raise error
        return [self.calls]


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture(params=["tasks", "threads"])
def remember(request: pytest.FixtureRequest, cache: Cache) -> Remember:
    """Decorates a function of a text in one of the two worlds."""

    def decorate(body: Callable[[str], Any], **options: Any) -> Any:
        async def ask_in_tasks(text: str) -> Any:
            return body(text)

        def ask(text: str) -> Any:
            return body(text)

        return cached_ai_call(operation="ask", cache=cache, **options)(ask_in_tasks if is_async else ask)

    is_async = request.param == "tasks"
    return decorate


async def settled(result: Any) -> Any:
    return await result if inspect.isawaitable(result) else result


class Seen:
    """A hook that keeps what it is told, and can be waited for from either world."""

    def __init__(self) -> None:
        self.events: list[CacheEvent] = []
        self.told = threading.Semaphore(0)

    def __call__(self, event: CacheEvent) -> None:
        self.events.append(event)
        self.told.release()

    async def once(self) -> None:
        assert await asyncio.to_thread(self.told.acquire, timeout=5)


async def test_an_answer_is_fresh_until_its_ttl_and_then_asked_anew(
    remember: Remember, service: Service, clock: Clock
) -> None:
    ask = remember(service, ttl=10)
    assert await settled(ask("q")) == [1]
    clock.advance(9.9)
    assert await settled(ask("q")) == [1]
    clock.advance(0.2)
    assert await settled(ask("q")) == [2]


@pytest.mark.parametrize("ttl", [0, 0.0, datetime.timedelta(0)], ids=repr)
async def test_a_ttl_of_zero_never_expires(
    remember: Remember, cache: Cache, service: Service, clock: Clock, ttl: Any
) -> None:
    ask = remember(service, ttl=ttl)
    await settled(ask("q"))
    clock.advance(100 * 365 * 24 * 3600)
    assert await settled(ask("q")) == [1]
    assert await cache.exists(ask.key_for("q"))
    assert await cache.ttl(ask.key_for("q")) is None


@pytest.mark.parametrize("ttl", [90, 90.0, datetime.timedelta(minutes=1, seconds=30)], ids=repr)
async def test_a_ttl_is_seconds_or_a_timedelta(remember: Remember, cache: Cache, service: Service, ttl: Any) -> None:
    ask = remember(service, ttl=ttl)
    await settled(ask("q"))
    assert await cache.ttl(ask.key_for("q")) == pytest.approx(90)
    await cache.set("by hand", 1, ttl)
    assert await cache.ttl("by hand") == pytest.approx(90)


@pytest.mark.parametrize(
    ("operation", "ttl", "expected"),
    [("ask", None, 20), ("ask", 30, 30), ("other", None, 10), ("other", 30, 30)],
)
@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_ttl_goes_before_operation_ttls_before_default_ttl(
    tmp_path: Any, clock: Clock, kind: str, operation: str, ttl: int | None, expected: int
) -> None:
    settings: dict[str, Any] = {"default_ttl": 10, "operation_ttls": {"ask": 20}, "clock": clock}
    cache = InMemoryCache(**settings) if kind == "memory" else SQLiteCache(tmp_path / "ttl.db", deadline=5, **settings)

    @cached_ai_call(operation=operation, cache=cache, ttl=ttl)
    async def ask(text: str) -> str:
        return text

    await ask("q")
    assert await cache.ttl(ask.key_for("q")) == pytest.approx(expected)
    by_hand = cache.build_key("q", operation)
    await cache.set(by_hand, 1, ttl)
    assert await cache.ttl(by_hand) == pytest.approx(expected)
    await cache.close()


async def test_doors_speak_of_fresh_entries_only(
    remember: Remember, cache: Cache, service: Service, clock: Clock
) -> None:
    ask = remember(service, ttl=10, stale_while_revalidate=100, stale_if_error=100)
    await settled(ask("q"))
    key = ask.key_for("q")
    clock.advance(4)
    assert await settled(ask.peek("q")) == await cache.get(key) == [1]
    assert await cache.exists(key)
    assert await cache.ttl(key) == pytest.approx(6)
    clock.advance(7)
    assert await settled(ask.peek("q")) is MISSING
    assert await cache.get(key, "nothing") == "nothing"
    assert await cache.get_many([key]) == {}
    assert not await cache.exists(key)
    assert await cache.ttl(key) is None
    assert service.calls == 1


async def test_a_stale_answer_goes_out_at_once_and_is_renewed_in_the_background(
    remember: Remember, cache: Cache, service: Service, clock: Clock
) -> None:
    ask = remember(service, ttl=10, stale_while_revalidate=20)
    await settled(ask("q"))
    renewed = Seen()
    cache.on("set", renewed)
    clock.advance(11)
    assert await settled(ask("q")) == [1]
    await renewed.once()
    assert await settled(ask("q")) == [2]
    assert (cache.stats().stale_hits, cache.stats().hits, cache.stats().misses) == (1, 1, 1)


async def test_many_who_find_a_stale_answer_start_one_refresh(cache: Cache, clock: Clock) -> None:
    calls: list[asyncio.Event] = []

    @cached_ai_call(operation="ask", cache=cache, ttl=10, stale_while_revalidate=20)
    async def ask(text: str) -> list[int]:
        calls.append(asyncio.Event())
        if len(calls) > 1:
            await calls[-1].wait()
        return [len(calls)]

    await ask("q")
    renewed = Seen()
    cache.on("set", renewed)
    clock.advance(11)
    assert await asyncio.gather(*(ask("q") for _ in range(50))) == [[1]] * 50
    await until(lambda: len(calls) == 2)
    assert await ask("q") == [1]
    calls[-1].set()
    await renewed.once()
    assert await ask("q") == [2]
    assert len(calls) == 2
    assert cache.stats().stale_hits == 51


async def test_past_its_stale_window_an_answer_is_not_served(
    remember: Remember, service: Service, clock: Clock
) -> None:
    ask = remember(service, ttl=10, stale_while_revalidate=20)
    await settled(ask("q"))
    clock.advance(30.1)
    assert await settled(ask("q")) == [2]


@pytest.mark.parametrize("stale_if_error", [0, 600])
async def test_a_background_refresh_that_fails_is_told_and_the_next_one_tries_again(
    remember: Remember, cache: Cache, service: Service, clock: Clock, stale_if_error: int
) -> None:
    ask = remember(service, ttl=10, stale_while_revalidate=20, stale_if_error=stale_if_error)
    await settled(ask("q"))
    failed, renewed = Seen(), Seen()
    cache.on("error", failed)
    cache.on("set", renewed)
    clock.advance(11)
    service.error = ValueError("no")
    assert await settled(ask("q")) == [1]
    while service.calls == 1:
        await asyncio.sleep(0.001)
    service.error = None
    await failed.once()
    assert failed.events[0].error == "ValueError"
    assert await settled(ask("q")) == [1]
    await renewed.once()
    assert await settled(ask("q")) == [3]


async def test_a_stale_answer_stands_in_for_an_error_and_an_event_says_why(
    remember: Remember, cache: Cache, service: Service, clock: Clock
) -> None:
    ask = remember(service, ttl=10, stale_if_error=20)
    await settled(ask("q"))
    stale = Seen()
    cache.on("stale", stale)
    clock.advance(11)
    service.error = ValueError("no")
    assert await settled(ask("q")) == [1]
    assert [(event.reason, event.age) for event in stale.events] == [("ValueError", pytest.approx(11))]
    assert cache.stats().stale_hits == 1
    service.error = None
    assert await settled(ask("q")) == [3]
    assert len(stale.events) == 1


async def test_past_the_window_of_stale_if_error_the_error_goes_out(
    remember: Remember, service: Service, clock: Clock
) -> None:
    ask = remember(service, ttl=10, stale_while_revalidate=5, stale_if_error=20)
    await settled(ask("q"))
    clock.advance(30.1)
    service.error = ValueError("no")
    with pytest.raises(ValueError, match="no"):
        await settled(ask("q"))


def test_a_stale_answer_goes_out_even_where_no_thread_can_be_started(
    cache: Cache, service: Service, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    @cached_ai_call(operation="ask", cache=cache, ttl=10, stale_while_revalidate=20)
    def ask(text: str) -> list[int]:
        return service(text)

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    ask("q")
    clock.advance(11)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert ask("q") == [1]


@given(ttl=st.integers(1, 30 * 24 * 3600), jitter=st.floats(0, 0.99))
def test_jitter_stays_within_its_fraction_of_the_ttl(ttl: int, jitter: float) -> None:
    cache = InMemoryCache(clock=Clock(0.0))

    @cached_ai_call(operation="ask", cache=cache, ttl=ttl, jitter=jitter)
    def ask(text: str) -> str:
        return text

    ask("q")
    left = cache.blocking.ttl(ask.key_for("q"))
    assert left is not None
    assert ttl * (1 - jitter) * 0.999999 <= left <= ttl * (1 + jitter) * 1.000001
