"""The sliding window is exact for all processes together, by the server's clock (F48)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import secrets
import time
from typing import Any

import pytest
import redis
import redis.asyncio
from hypothesis import given, settings
from hypothesis import strategies as st

from aimemo import InMemoryCache, RateLimitedError, RateLimiter, ValidationError, cached_ai_call, rate_limited
from aimemo.core.events import CacheEvent
from tests.kit import stalls
from tests.kit.clients import client_at, client_of, done, in_parallel
from tests.kit.lossy import LossyProxy
from tests.kit.redis_caches import shared
from tests.kit.servers import Server, free_port
from tests.kit.service_worker import ServiceWorker

pytestmark = [pytest.mark.redis, pytest.mark.integration]

WORLDS = ["sync", "asyncio"]

_ZADD = re.compile(rb"ZADD\r\n\$\d+\r\n[^\r]+\r\n\$\d+\r\n(\d+)\r\n\$\d+\r\n(\d+):")


def admissions(server: Server) -> list[tuple[int, int]]:
    """All that a server has ever admitted, from its log of writes: microseconds by its clock, and weight."""
    [log] = server.folder.glob("appendonlydir/*.incr.aof")
    return [(int(at), int(weight)) for at, weight in _ZADD.findall(log.read_bytes())]


def most_in_a_window(admitted: list[tuple[int, int]], window: float) -> int:
    """The greatest weight in any window; the greatest one ends with an admission."""
    most = weight = first = 0
    for at, more in admitted:
        weight += more
        while admitted[first][0] <= at - window * 1_000_000:
            weight -= admitted[first][1]
            first += 1
        most = max(most, weight)
    return most


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limit", "window", "weights", "seconds"),
    [
        (50, 0.3, [1] * 8, 2),
        pytest.param(200, 1, [1] * 8, 10, marks=pytest.mark.slow),
        pytest.param(1000, 0.5, [1, 3, 7, 20, 50, 99, 200, 500], 4, marks=pytest.mark.slow),
    ],
)
def test_eight_processes_with_skewed_clocks_are_never_over_the_limit(
    limit: int, window: float, weights: list[int], seconds: float
) -> None:
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(Server(appendonly="yes", appendfsync="no"))
        workers = [stack.enter_context(ServiceWorker(server.port, ahead=100 * number)) for number in range(8)]
        assert all(worker.ask("ping") for worker in workers)
        for worker, weight in zip(workers, weights, strict=True):
            worker.send("spend", "all", limit, window, weight, seconds)
        counted = sum(worker.receive() for worker in workers)
        admitted = admissions(server)
    assert counted == len(admitted)
    assert most_in_a_window(admitted, window) <= limit
    used = sum(weight for _, weight in admitted)
    assert used >= 0.9 * limit * seconds / window if set(weights) == {1} else used > limit


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(1, 5), st.sampled_from([0, 0, 1, 2, 5, 9])), max_size=25))
def test_the_limiter_does_as_a_simple_model(steps: list[tuple[int, int]]) -> None:
    """Times are the server's: a refusal is right at the beginning of a call, an admission at its own moment."""
    limit, window, who = 5, 10_000, f"model {secrets.token_hex(8)}"
    model: list[tuple[int, int]] = []

    def load(at: int) -> int:
        return sum(weight for admitted, weight in model if at - window < admitted)

    def now() -> int:
        seconds, microseconds = client.time()
        return int(seconds) * 1_000_000 + int(microseconds)

    with contextlib.closing(client_of("sync")) as client:
        limiter = RateLimiter(client, limit, window / 1_000_000)
        [key, _] = limiter._keys(who)
        for weight, pause in steps:
            time.sleep(pause / 1000)
            earliest = now()
            if limiter.is_allowed(who, weight):
                latest = now()
                newest = client.zrange(key, -1, -1, withscores=True)
                if not newest:
                    continue  # it has ended meanwhile, and all before it
                at = int(newest[0][1])
                assert earliest <= at <= latest
                model.append((at, weight))
                assert load(at) <= limit
            else:
                assert load(earliest) + weight > limit


async def test_weights_count_as_much_as_they_say(client: Any, name: str) -> None:
    limiter = RateLimiter(client, 10, 60)
    assert [await done(limiter.is_allowed(name, weight)) for weight in (6, 5, 3, 2, 1)] == [1, 0, 1, 0, 1]
    assert (await done(limiter.check(name))).remaining == 0


async def test_a_check_counts_nothing(client: Any, name: str) -> None:
    limiter = RateLimiter(client, 5, 60)
    assert [(await done(limiter.check(name, 5))).is_allowed for _ in range(5)] == [True] * 5
    assert await done(limiter.is_allowed(name, 2))
    limit = await done(limiter.check(name, 4))
    assert (limit.is_allowed, limit.remaining) == (False, 3)
    assert (await done(limiter.check(name, 3))).is_allowed


async def test_names_and_limiters_are_counted_apart(client: Any, name: str) -> None:
    limiters = [RateLimiter(client, 1, 60), RateLimiter(client, 1, 60, name="tokens"), RateLimiter(client, 1, 30)]
    for limiter in limiters:
        for who in (name, f"{{{name}}}", f"%7B{name}", "ключ" + name):
            assert [await done(limiter.is_allowed(who)) for _ in range(2)] == [True, False]


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("retries", [None, 0], ids=["client retries", "client does not"])
async def test_a_lost_reply_is_not_counted_twice(name: str, world: str, retries: int | None) -> None:
    with LossyProxy(shared("server").port) as proxy:
        async with client_at(world, proxy.port, retries) as client:
            limiter = RateLimiter(client, 3, 60)
            await done(limiter.check(name))
            proxy.losses = 1
            assert await done(limiter.is_allowed(name))
            assert proxy.losses == 0
            assert (await done(limiter.check(name))).remaining == 2
            for left in (1, 0):
                proxy.losses = 1
                assert await done(limiter.is_allowed(name))
                assert (await done(limiter.check(name))).remaining == left


@pytest.mark.parametrize(("part", "remaining"), [("", 10), (":sum", 4)], ids=["requests", "sum"])
async def test_a_key_that_was_evicted_alone_does_no_harm(client: Any, name: str, part: str, remaining: int) -> None:
    limiter = RateLimiter(client, 10, 60)
    assert [await done(limiter.is_allowed(name, weight)) for weight in (4, 2)] == [True, True]
    [key] = [key for key in limiter._keys(name) if key.endswith(":sum") == bool(part)]
    assert await done(client.delete(key)) == 1
    assert (await done(limiter.check(name))).remaining == remaining
    assert await done(limiter.is_allowed(name, remaining))
    assert not await done(limiter.is_allowed(name))


async def test_a_script_cache_that_was_emptied_does_no_harm(name: str) -> None:
    async with client_at("sync", shared("server").port) as client:
        limiter = RateLimiter(client, 2, 60)
        for _ in range(2):
            client.script_flush()
            assert limiter.is_allowed(name)
        assert not limiter.is_allowed(name)


async def test_keys_end_with_their_window(client: Any, name: str) -> None:
    limiter = RateLimiter(client, 2, 0.05)
    assert await done(limiter.is_allowed(name))
    await asyncio.sleep(0.08)
    assert [await done(client.exists(key)) for key in limiter._keys(name)] == [0, 0]


@pytest.mark.parametrize("kind", WORLDS)
async def test_retry_after_is_when_there_is_room(client: Any, name: str) -> None:
    limiter, server = RateLimiter(client, 5, 60), shared("server").client

    def grow_older(seconds: float, *weights: int) -> None:
        """What was admitted with these weights: the limiter goes by the server's clock."""
        for member in server.zrange(limiter._keys(name)[0], 0, -1):
            if int(member.partition(b":")[0]) in weights:
                server.zincrby(limiter._keys(name)[0], -seconds * 1_000_000, member)

    for weight in (3, 2):
        assert await done(limiter.is_allowed(name, weight))
    grow_older(20, 3)
    ends = [at / 1_000_000 + 60 for _, at in server.zrange(limiter._keys(name)[0], 0, -1, withscores=True)]
    for weight, end in zip((3, 4), ends, strict=True):
        earliest, limit, latest = server.time(), await done(limiter.check(name, weight)), server.time()
        assert end - seconds_of(latest) <= limit.retry_after <= end - seconds_of(earliest)
    grow_older(ends[0] - seconds_of(server.time()) - 10, 3, 2)
    assert not (await done(limiter.check(name, 3))).is_allowed
    grow_older(10, 3, 2)
    assert (await done(limiter.check(name, 3))).is_allowed
    assert not (await done(limiter.check(name, 4))).is_allowed


def seconds_of(time_of_server: tuple[int, int]) -> float:
    seconds, microseconds = time_of_server
    return seconds + microseconds / 1_000_000


async def test_a_wait_is_as_exact_over_the_longest_window(client: Any, name: str) -> None:
    seconds = 365 * 24 * 60 * 60
    limiter = RateLimiter(client, 1, seconds)
    assert await done(limiter.is_allowed(name))
    assert seconds - 100 < (await done(limiter.check(name))).retry_after <= seconds


async def test_acquire_waits_for_room(client: Any, name: str) -> None:
    limiter, asked = RateLimiter(client, 1, 0.4), []
    admit = limiter._admit

    async def counted(*args: Any) -> Any:
        asked.append(args)
        return await admit(*args)

    limiter._admit = counted  # type: ignore[method-assign]
    started = time.monotonic()
    assert await done(limiter.acquire(name))
    assert await done(limiter.acquire(name, deadline=20))
    assert time.monotonic() - started >= 0.4
    assert len(asked) < 10, "the server is not asked all the time"


async def test_acquire_does_not_wait_for_what_cannot_be_in_time(client: Any, name: str) -> None:
    limiter = RateLimiter(client, 1, 60)
    started = time.monotonic()
    assert await done(limiter.acquire(name))
    assert not await done(limiter.acquire(name, deadline=30))
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("kind", WORLDS)
async def test_those_who_wait_are_all_admitted_in_time(client: Any, kind: str, name: str) -> None:
    limiter = RateLimiter(client, 4, 0.1)
    started = time.monotonic()
    assert await in_parallel(kind, *[lambda: limiter.acquire(name, deadline=20)] * 12) == [True] * 12
    assert 0.2 <= time.monotonic() - started < 3 + stalls.longest()


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("how", ["open", "closed"])
async def test_a_server_that_is_away_is_decided_upon_and_told(
    world: str, how: Any, caplog: pytest.LogCaptureFixture
) -> None:
    events: list[CacheEvent] = []
    async with client_at(world, free_port()) as client:
        limiter = RateLimiter(client, 3, 2, name="mine", when_away=how, on_error=events.append)
        assert await done(limiter.is_allowed("a")) is (how == "open")
        assert (await done(limiter.check("a"))).retry_after == (0 if how == "open" else 2)
        assert await done(limiter.acquire("a", deadline=0.1)) is (how == "open")
    assert [(event.kind, event.operation, event.reason) for event in events] == [
        ("error", "mine", f"limiter_{how}")
    ] * 3
    assert events[0].error == "ConnectionError"
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 3


async def test_a_hook_that_fails_does_not_reach_the_caller(caplog: pytest.LogCaptureFixture) -> None:
    def fail(event: CacheEvent) -> None:
        raise ValueError("the hook's")

    async with client_at("sync", free_port()) as client:
        assert RateLimiter(client, 3, 2, on_error=fail).is_allowed("a")
    assert "ValueError" in caplog.text
    assert "the hook's" not in caplog.text, "an error's text may quote a prompt"


async def test_hits_spend_no_quota_of_a_plain_function(name: str) -> None:
    async with client_at("sync", shared("server").port) as client:
        limiter = RateLimiter(client, 2, 60)

        @cached_ai_call(operation="ask", cache=InMemoryCache())
        @rate_limited(limiter, who=name)
        def ask(text: str) -> str:
            return text.upper()

        assert [ask("a") for _ in range(5)] + [ask("b") for _ in range(5)] == ["A"] * 5 + ["B"] * 5
        with pytest.raises(RateLimitedError) as raised:
            ask("c")
        assert 55 < raised.value.retry_after <= 60
        assert ask("a") == "A"


async def test_hits_spend_no_quota_of_an_async_function(name: str) -> None:
    async with client_at("asyncio", shared("server").port) as client:
        limiter = RateLimiter(client, 10, 60)

        @cached_ai_call(operation="ask", cache=InMemoryCache())
        @rate_limited(limiter, who=lambda text: f"{name} {text[0]}", weight=len)
        async def ask(text: str) -> str:
            return text.upper()

        assert await asyncio.gather(*(ask("aaaaaa") for _ in range(5))) == ["AAAAAA"] * 5
        assert await ask("aaaa") == "AAAA"
        with pytest.raises(RateLimitedError):
            await ask("aaa")
        assert await ask("bbb") == "BBB", "another one's quota"
        await client.delete(*limiter._keys(f"{name} a"))
        assert await ask("aaa") == "AAA", "a refusal is not kept"


async def test_a_limited_function_may_wait_for_room(name: str) -> None:
    async with client_at("asyncio", shared("server").port) as client:

        @rate_limited(RateLimiter(client, 1, 0.1), who=name, deadline=20)
        async def ask(text: str) -> str:
            return text

        started = time.monotonic()
        assert await asyncio.gather(*map(ask, "abc")) == ["a", "b", "c"]
        assert time.monotonic() - started >= 0.2


@pytest.mark.parametrize(("world", "needed"), [("sync", "an asyncio client"), ("asyncio", "a sync client")])
async def test_a_limiter_of_the_other_world_is_refused_with_what_is_needed(world: str, needed: str) -> None:
    async def task() -> None: ...

    async with client_at(world, shared("server").port) as client:
        with pytest.raises(ValidationError, match=f"needs a limiter over {needed}"):
            rate_limited(RateLimiter(client, 1, 1))(task if world == "sync" else str)


@pytest.mark.parametrize("weight", [0, -1, 4, 1.0, True, "1", None], ids=repr)
@pytest.mark.parametrize("method", ["is_allowed", "check", "acquire"])
async def test_a_weight_that_is_never_admitted_is_refused(weight: Any, method: str) -> None:
    async with client_at("sync", free_port()) as client:
        with pytest.raises(ValidationError, match="weight") as raised:
            getattr(RateLimiter(client, 3, 1), method)("a", weight=weight)
        assert raised.value.context == {"weight": weight}


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"max_requests": 0}, "max_requests"),
        ({"max_requests": 1.5}, "max_requests"),
        ({"max_requests": True}, "max_requests"),
        ({"window_seconds": 0}, "window_seconds"),
        ({"window_seconds": -1}, "window_seconds"),
        ({"window_seconds": 0.000999}, "window_seconds must be at least 0.001"),
        ({"max_requests": 2**31 + 1}, "max_requests"),
        ({"window_seconds": "60"}, "window_seconds"),
        ({"when_away": "ajar"}, "when_away"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        RateLimiter(redis.Redis(), **{"max_requests": 1, "window_seconds": 1, **settings})


@pytest.mark.parametrize("limit", [1, 2**31])
def test_the_least_and_the_greatest_settings_are_taken(limit: int) -> None:
    assert RateLimiter(redis.Redis(), limit, 0.001).max_requests == limit


def test_what_a_limiter_counts_is_kept_where_it_ever_was() -> None:
    """Under other names, a new version would forget what was admitted in the window."""
    start = "aimemo:limit:{limit:1500000:a%7Bb}"
    assert RateLimiter(redis.Redis(), 1, 1.5)._keys("a{b") == [start, f"{start}:sum"]


async def test_without_a_hook_a_server_that_is_away_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    async with client_at("sync", free_port()) as client:
        limit = RateLimiter(client, 3, 2, name="mine").check("a")
    assert (limit.is_allowed, limit.remaining, limit.retry_after) == (True, 0, 0)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "'mine' fails open" in caplog.text


@pytest.mark.parametrize("world", WORLDS)
async def test_a_limited_function_spends_its_weight_for_everybody_and_keeps_its_name(name: str, world: str) -> None:
    async with client_at(world, shared("server").port) as client:
        limiter = RateLimiter(client, 5, 60, name=name)

        def ask(text: str) -> str:
            return text

        async def ask_in_task(text: str) -> str:
            return text

        function = ask if world == "sync" else ask_in_task
        limited = rate_limited(limiter, weight=3)(function)
        assert limited.__name__ == function.__name__
        assert await done(limited("a")) == "a"
        assert (await done(limiter.check("everybody"))).remaining == 2
        with pytest.raises(RateLimitedError, match=re.escape(f"{name}: no room for this request for ")):
            await done(limited("b"))


@pytest.mark.parametrize("who", [None, 5, b"a", "\ud800"], ids=repr)
def test_who_must_be_a_text(who: Any) -> None:
    with pytest.raises(ValidationError):
        RateLimiter(redis.Redis(), 1, 1).is_allowed(who)
