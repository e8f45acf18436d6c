"""Messages reach whoever listens, and whoever may have missed some is told."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import json
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from aimemo import Channel, CodecError, InfrastructureError, ValidationError
from aimemo.coordination import channel as channel_module
from aimemo.core.runtime import ThreadRuntime, drive
from tests.kit.clients import client_of, close, done
from tests.kit.looking import until
from tests.kit.redis_caches import shared
from tests.kit.servers import HOST, Server, free_port, wait_until

pytestmark = [pytest.mark.redis, pytest.mark.integration]


@contextlib.asynccontextmanager
async def heard(channel: Channel, **how: Any) -> AsyncIterator[Any]:
    """A subscription in its own context, in either world."""
    subscription = channel.subscribe(**how)
    if channel._redis.is_async:
        async with subscription:
            yield subscription
    else:
        with subscription:
            yield subscription


async def take(messages: Any, number: int) -> list[Any]:
    """So many messages, in either world."""
    if messages._is_async:
        return [await asyncio.wait_for(anext(messages), 5) for _ in range(number)]
    return await asyncio.to_thread(lambda: list(itertools.islice(messages, number)))


def kill_subscriptions() -> None:
    assert shared("server").client.client_kill_filter(_type="pubsub")


def listeners() -> int:
    return sum(thread.name == "aimemo-listener" for thread in threading.enumerate())


async def test_a_thread_that_could_not_be_started_is_started_later(
    client: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    channel = Channel(client, name)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="no thread"):
            async with heard(channel):
                raise AssertionError("nobody listens")
    async with heard(channel) as messages:
        await done(channel.publish("hello"))
        assert await take(messages, 1) == ["hello"]


def refuse(*_: Any) -> None:
    raise RuntimeError("no thread")


MESSAGES = [None, 0, "тext\n", [1, {"a": [None]}], {"n": 1.5}, "", False]


async def test_every_message_reaches_every_subscriber_in_order(client: Any, name: str) -> None:
    channel = Channel(client, name)
    async with heard(channel) as first, heard(channel) as second, heard(Channel(client, f"{name} other")) as other:
        for message in MESSAGES:
            await done(channel.publish(message))
        await done(Channel(client, f"{name} other").publish("for others"))
        assert await take(first, len(MESSAGES)) == MESSAGES
        assert await take(second, len(MESSAGES)) == MESSAGES
        assert await take(other, 1) == ["for others"]
        assert [each.missed for each in (first, second, other)] == [0, 0, 0]


async def test_what_is_published_right_after_entering_is_heard(client: Any, name: str) -> None:
    channel = Channel(client, name)
    for number in range(10):
        async with heard(channel) as messages:
            await done(channel.publish(number))
            assert await take(messages, 1) == [number]


async def test_messages_cross_worlds_and_clients(client: Any, name: str) -> None:
    cluster = isinstance(client, redis.RedisCluster) or "cluster" in type(client).__module__
    with contextlib.closing(client_of("cluster" if cluster else "sync")) as other:
        async with heard(Channel(client, name)) as messages:
            other.publish(name, json.dumps({"from": "elsewhere", "ä": "\u20ac"}))
            Channel(other, name).publish(2)
            assert await take(messages, 2) == [{"from": "elsewhere", "ä": "€"}, 2]


@pytest.mark.parametrize("foreign", [b"no json", b"\xff\xfe\x00", b"", b"{", b"[" * 100_000], ids=lambda data: data[:9])
async def test_what_is_no_json_is_passed_over(client: Any, name: str, foreign: bytes) -> None:
    async with heard(Channel(client, name)) as messages:
        await done(client.execute_command("PUBLISH", name, foreign))
        await done(Channel(client, name).publish("json"))
        assert await take(messages, 1) == ["json"]
        assert messages.missed == 0


@pytest.mark.parametrize("kind", ["sync", "asyncio-decoding"])
async def test_a_lost_connection_is_made_again_and_told(client: Any, name: str) -> None:
    channel, calls = Channel(client, name), []
    async with heard(channel, on_missed=lambda: calls.append(threading.current_thread().name)) as messages:
        for times in (1, 2):
            kill_subscriptions()
            await until(lambda times=times: messages.missed == times)
            await done(channel.publish(times))
            assert await take(messages, 1) == [times]
    assert calls == ["aimemo-listener"] * 2


@pytest.mark.parametrize("kind", ["sync", "asyncio"])
async def test_an_on_missed_that_fails_costs_no_messages(
    client: Any, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise ValueError("the user's")

    async with heard(Channel(client, name), on_missed=fail) as messages:
        kill_subscriptions()
        await until(lambda: messages.missed)
        await done(Channel(client, name).publish("heard"))
        assert await take(messages, 1) == ["heard"]
        assert messages.missed == 1
    assert "ValueError" in caplog.text
    assert "the user's" not in caplog.text, "an error's text may quote a prompt"


@pytest.mark.slow
@pytest.mark.parametrize("world", ["sync", "asyncio"])
async def test_a_server_that_was_away_is_found_again(world: str) -> None:
    with Server() as server:
        client = (
            redis.asyncio.Redis(host=HOST, port=server.port) if world == "asyncio" else redis.Redis(HOST, server.port)
        )
        channel = Channel(client, "a")
        async with heard(channel) as messages:
            server.kill()
            await asyncio.sleep(0.5)
            server.start()
            await until(lambda: messages.missed == 1)
            await done(channel.publish("back"))
            assert await take(messages, 1) == ["back"]
        await close(client)


@pytest.mark.slow
async def test_a_server_that_is_silent_is_given_up() -> None:
    with Server() as server, contextlib.closing(redis.Redis(HOST, server.port)) as client:
        async with heard(Channel(client, "a")) as messages:
            server.freeze()
            await asyncio.sleep(2.5)
            server.thaw()
            await until(lambda: messages.missed == 1)


def test_close_from_another_thread_ends_a_loop(name: str) -> None:
    with contextlib.closing(client_of("sync")) as client, ThreadPoolExecutor(1) as pool:
        channel = Channel(client, name)
        with channel.subscribe() as messages:
            read: deque[int] = deque()
            loop = pool.submit(read.extend, messages)
            channel.publish(1)
            wait_until(lambda: read, "it is read")
            assert not loop.done()
            messages.close()
            loop.result(5)
            assert list(read) == [1]


@pytest.mark.parametrize("kind", ["asyncio"])
async def test_close_from_another_thread_ends_an_async_loop(client: Any, name: str) -> None:
    async with Channel(client, name).subscribe() as messages:
        read: deque[int] = deque()

        async def loop() -> None:
            async for message in messages:
                read.append(message)

        task = asyncio.create_task(loop())
        await Channel(client, name).publish(1)
        await until(lambda: read)
        assert not task.done()
        await asyncio.to_thread(messages.close)
        await asyncio.wait_for(task, 5)
        assert list(read) == [1]


@pytest.mark.parametrize("kind", ["asyncio"])
async def test_who_stops_waiting_for_a_message_may_come_back(client: Any, name: str) -> None:
    async with Channel(client, name).subscribe() as messages:
        for number in range(3):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(messages), 0.02)
            await Channel(client, name).publish(number)
            assert await take(messages, 1) == [number]


@pytest.mark.parametrize("kind", ["sync", "asyncio", "cluster"])
@pytest.mark.parametrize("how", ["closed", "abandoned"])
async def test_a_subscription_that_is_over_leaves_no_thread(client: Any, name: str, how: str) -> None:
    before, channel = listeners(), Channel(client, name)
    for _ in range(3):
        async with contextlib.AsyncExitStack() as stack:
            messages = await stack.enter_async_context(heard(channel)) if how == "closed" else await entered(channel)
            await done(channel.publish(1))
            assert await take(messages, 1) == [1]
            del messages
    gc.collect()
    await until(lambda: listeners() <= before, 3)


async def entered(channel: Channel) -> Any:
    subscription = channel.subscribe()
    return await subscription.__aenter__() if channel._redis.is_async else subscription.__enter__()


@pytest.fixture
def room_for_ten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(channel_module, "MAX_WAITING", 10)
    yield


@pytest.mark.parametrize("kind", ["sync", "asyncio-decoding"])
async def test_a_slow_reader_keeps_the_newest_and_is_told(client: Any, name: str, room_for_ten: None) -> None:
    channel, calls = Channel(client, name), []
    async with heard(channel, on_missed=lambda: calls.append(1)) as messages:
        for number in range(15):
            await done(channel.publish(number))
        await until(lambda: messages.missed == 5)
        assert await take(messages, 10) == list(range(5, 15))
        await done(channel.publish("next"))
        assert await take(messages, 1) == ["next"]
        assert messages.missed == len(calls) == 5


async def test_what_json_cannot_hold_is_not_published(client: Any, name: str) -> None:
    for message in (object(), float("nan"), (1,), "\ud800", b"bytes"):
        with pytest.raises(CodecError):
            await done(Channel(client, name).publish(message))


@pytest.mark.parametrize("kind", ["sync", "asyncio"])
async def test_the_loop_of_the_other_world_is_refused(client: Any, name: str) -> None:
    messages = Channel(client, name).subscribe()
    with pytest.raises(TypeError, match="use"):
        next(messages) if messages._is_async else await anext(messages)


async def test_a_server_that_is_away_is_an_error_of_publish() -> None:
    with (
        contextlib.closing(redis.Redis(HOST, free_port(), retry=Retry(NoBackoff(), 0))) as client,
        pytest.raises(InfrastructureError),
    ):
        Channel(client, "a").publish(1)


def test_threads_that_read_one_subscription_share_its_messages(name: str) -> None:
    with contextlib.closing(client_of("sync")) as client, ThreadPoolExecutor(4) as pool:
        channel = Channel(client, name)
        with channel.subscribe() as messages:
            read: deque[int] = deque()
            loops = [pool.submit(read.extend, messages) for _ in range(4)]
            for number in range(200):
                channel.publish(number)
            wait_until(lambda: len(read) >= 200, "all are read")
            messages.close()
            for loop in loops:
                loop.result(5)
            assert sorted(read) == list(range(200))


def test_who_ends_listening_while_the_connection_is_made_is_told_of_none(name: str) -> None:
    opening, gate = threading.Event(), threading.Event()
    connected: list[bool] = []
    before = listeners()
    with contextlib.closing(client_of("sync")) as client, ThreadPoolExecutor(1) as pool:
        messages = Channel(client, name).subscribe()
        listener = messages._listener
        make = listener._open

        def open_late() -> Any:
            opening.set()
            gate.wait(5)
            return make()

        listener._open, listener._connected = open_late, connected.append
        awakening = pool.submit(drive, listener.awake(ThreadRuntime()))
        assert opening.wait(5)
        listener.sleep()
        gate.set()
        awakening.result(5)
        wait_until(lambda: listeners() == before, "the listener's thread has ended")
    assert connected == []


@pytest.mark.parametrize("name", ["", None, 5], ids=repr)
def test_a_name_that_is_none_is_refused(name: Any) -> None:
    with pytest.raises(ValidationError, match="name"):
        Channel(redis.Redis(), name)


@pytest.mark.parametrize("odd", ["{a}", "%s", "ключ 🔑", "a\r\nb", "*"])
async def test_names_may_be_any_text(client: Any, name: str, odd: str) -> None:
    async with heard(Channel(client, odd + name)) as messages:
        await done(Channel(client, odd + name).publish(odd))
        assert await take(messages, 1) == [odd]
