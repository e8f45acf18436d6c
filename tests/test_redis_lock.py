"""The lock under the user's name: held by one, free again within its timeout, and honest about a loss (F50)."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
import redis.asyncio

from aimemo import ConfigurationError, InfrastructureError, RedisLock, ValidationError
from tests.kit import stalls
from tests.kit.clients import client_at, client_of, done
from tests.kit.looking import hold_up_waiting, until
from tests.kit.lossy import LossyProxy
from tests.kit.redis_caches import shared
from tests.kit.servers import HOST, Server, free_port, wait_until
from tests.kit.service_worker import ServiceWorker

pytestmark = [pytest.mark.redis, pytest.mark.integration]

WORLDS = ["sync", "asyncio"]


def left(name: str) -> int:
    """Milliseconds for which a lock is still held; negative if it is not."""
    return int(shared("server").client.pttl(f"aimemo:lock:{{{name}}}"))


async def within(lock: RedisLock, body: Any) -> Any:
    """Call `body` in the lock's own context, in either world."""
    if lock._redis.is_async:
        async with lock:
            return body()
    with lock:
        return body()


@pytest.mark.parametrize("turns", range(1, 14))
@pytest.mark.parametrize("is_warm", [True, False], ids=["connected", "not yet connected"])
@pytest.mark.parametrize("is_free", [True, False], ids=["free", "held by another"])
async def test_who_is_cancelled_while_acquiring_holds_nothing(
    name: str, turns: int, is_warm: bool, is_free: bool
) -> None:
    async with client_at("asyncio", shared("server").port) as client:
        lock, other = (RedisLock(client, name, timeout=60) for _ in range(2))
        if is_warm or not is_free:
            await other.acquire()
        if is_free and is_warm:
            await other.release()
        task = asyncio.create_task(lock.acquire(blocking=True))
        for _ in range(turns):
            await asyncio.sleep(0)
        while not task.done():  # the client may swallow a cancellation
            task.cancel()
            await asyncio.wait([task], timeout=0.02)
        if not task.cancelled():
            assert task.result() is True
            await lock.release()
        if not is_free:
            await other.release()
        assert await other.acquire(blocking=True, deadline=20)
        assert await other.release()
        assert await lock.acquire()
        assert await lock.release()


@pytest.mark.parametrize("turns", range(1, 4))
async def test_a_cancellation_is_never_swallowed(name: str, turns: int) -> None:
    async with client_at("asyncio", shared("server").port) as client:
        await RedisLock(client, f"{name} before").acquire()
        task = asyncio.create_task(RedisLock(client, name).acquire())
        for _ in range(turns):
            await asyncio.sleep(0)
        is_too_late = not task.cancel()
        await asyncio.wait([task])
        assert task.cancelled() is not is_too_late


async def test_who_is_cancelled_again_and_again_holds_nothing_for_long(name: str) -> None:
    async with client_at("asyncio", shared("server").port) as client:
        lock, other = RedisLock(client, name, timeout=0.3), RedisLock(client, name, timeout=5)
        for number in range(200):
            task = asyncio.create_task(lock.acquire())
            await asyncio.wait([task], timeout=number * 3e-6)
            task.cancel()
            await asyncio.wait([task])
        assert await other.acquire(blocking=True, deadline=5)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("retries", [None, 0], ids=["client retries", "client does not"])
async def test_acquiring_again_gets_a_lock_whose_reply_was_lost(name: str, world: str, retries: int | None) -> None:
    with LossyProxy(shared("server").port) as proxy:
        async with client_at(world, proxy.port, retries) as client:
            lock, other = RedisLock(client, name), RedisLock(client, name)
            assert await done(RedisLock(client, f"{name} before").acquire())
            proxy.losses = 1
            if retries is None:
                assert await done(lock.acquire())
            else:
                with pytest.raises(InfrastructureError):
                    await done(lock.acquire())
                assert not lock.is_held
                assert not await done(other.acquire())
                assert await done(lock.acquire())
            assert lock.is_held
            assert proxy.losses == 0
            assert await done(lock.release())
            assert await done(other.acquire())
            assert other.fencing_token > lock.fencing_token


async def test_a_loss_is_reported_by_extend_and_release(client: Any, name: str) -> None:
    late, other = RedisLock(client, name, timeout=0.05), RedisLock(client, name, timeout=5)
    assert await done(late.acquire())
    await asyncio.sleep(0.08)
    assert await done(other.acquire())
    assert late.is_held, "nobody has told it"
    assert await done(late.extend()) is False
    assert not late.is_held
    assert await done(late.release()) is False
    assert await done(other.extend()) is True
    assert await done(other.release()) is True


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("raises", [False, True], ids=["result", "error"])
async def test_a_loss_is_logged_and_the_body_comes_first(
    name: str, world: str, raises: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def body() -> str:
        time.sleep(0.08)
        if raises:
            raise KeyError("the body's")
        return "result"

    async with client_at(world, shared("server").port) as client:
        lock = RedisLock(client, name, timeout=0.05)
        if raises:
            with pytest.raises(KeyError, match="the body's"):
                await within(lock, body)
        else:
            assert await within(lock, body) == "result"
    [record] = caplog.records
    assert (record.levelno, record.name) == (logging.WARNING, "aimemo")
    assert "lost" in record.message
    assert name in record.message


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("raises", [False, True], ids=["result", "error"])
async def test_a_server_that_went_away_does_not_cost_the_bodys_result(
    world: str, raises: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with Server() as server:
        async with client_at(world, server.port) as client:

            def body() -> str:
                server.kill()
                return str({}["no"]) if raises else "result"

            with pytest.raises(KeyError) if raises else contextlib.nullcontext():
                assert await within(RedisLock(client, "a"), body) == "result"
    assert "could not be given back" in caplog.text


async def test_the_fencing_token_grows_over_release_and_expiry(client: Any, name: str) -> None:
    fences = []
    for number in range(6):
        lock = RedisLock(client, name, timeout=0.02)
        assert await done(lock.acquire(blocking=True))
        fences.append(lock.fencing_token)
        if number % 2:
            await done(lock.release())
    assert fences == sorted(set(fences))


async def test_the_fencing_token_grows_over_the_loss_of_everything(name: str) -> None:
    with Server() as server:
        fences = []
        for _ in range(3):
            with contextlib.closing(redis.Redis(HOST, server.port)) as client, RedisLock(client, name) as lock:
                fences.append(lock.fencing_token)
            server.restart()
    assert fences == sorted(set(fences))


async def test_acquiring_again_is_the_same_acquisition(client: Any, name: str) -> None:
    lock, twin = RedisLock(client, name, token="me"), RedisLock(client, name, token="me")
    assert [await done(each.acquire()) for each in (lock, lock, twin)] == [True] * 3
    assert lock.fencing_token == twin.fencing_token
    assert await done(twin.release())
    assert not await done(lock.release())


@pytest.mark.parametrize("world", WORLDS)
async def test_a_lock_is_renewed_for_as_long_as_it_was_asked(name: str, world: str) -> None:
    async with client_at(world, shared("server").port) as client:
        lock = RedisLock(client, name, timeout=1.2, renew_for=1.0)
        assert await done(lock.acquire())
        shared("server").client.pexpire(f"aimemo:lock:{{{name}}}", 60_000)
        await until(lambda: 0 < left(name) <= 1200)  # that was a renewal
        await until(lambda: left(name) < 0, 20)
        assert await done(lock.release()) is False


@pytest.mark.parametrize("world", WORLDS)
async def test_a_renewal_that_finds_the_lock_lost_says_so_and_ends(
    name: str, world: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with client_at(world, shared("server").port) as client:
        lock, other = RedisLock(client, name, timeout=0.15, renew_for=60), RedisLock(client, name, timeout=60)
        assert await done(lock.acquire())
        shared("server").client.delete(f"aimemo:lock:{{{name}}}")
        assert await done(other.acquire())
        await until(lambda: "was lost" in caplog.text)
        assert not lock.is_held
        assert left(name) > 10_000
        assert await done(other.release())


@pytest.mark.parametrize("world", WORLDS)
async def test_a_renewal_outlives_a_server_that_hangs_up(name: str, world: str) -> None:
    with LossyProxy(shared("server").port) as proxy:
        async with client_at(world, proxy.port) as client:
            lock = RedisLock(client, name, timeout=3, renew_for=60)
            assert await done(lock.acquire())
            proxy.losses = 1
            await until(lambda: proxy.losses == 0)
            shared("server").client.pexpire(f"aimemo:lock:{{{name}}}", 60_000)
            await until(lambda: 0 < left(name) <= 3000)
            assert lock.is_held
            assert await done(lock.release())


@pytest.mark.parametrize("world", WORLDS)
async def test_a_renewal_ends_with_the_release(name: str, world: str, caplog: pytest.LogCaptureFixture) -> None:
    before = threading.active_count()
    async with client_at(world, shared("server").port) as client:
        for number in range(20):
            lock = RedisLock(client, f"{name} {number}", timeout=300, renew_for=3600)
            assert await done(lock.acquire())
            assert await done(lock.release())
        await until(lambda: threading.active_count() <= before)
        await until(lambda: len(asyncio.all_tasks()) == 1)
        assert left(name) < 0
    assert not caplog.records


def test_a_renewal_that_begins_while_its_lock_is_released_ends_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = threading.active_count()
    with contextlib.closing(client_of("sync")) as client:
        lock = RedisLock(client, name, timeout=300, renew_for=3600)
        begun, released = hold_up_waiting(lock._redis.runtime, monkeypatch)
        assert lock.acquire()
        assert begun.wait(5)
        assert lock.release()
        released.set()
        wait_until(lambda: threading.active_count() <= before, "the renewal has ended", 5)


@pytest.mark.parametrize("world", WORLDS)
async def test_a_lock_released_during_its_renewal_is_not_held(
    name: str, world: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with client_at(world, shared("server").port) as client:
        for _ in range(100):
            lock = RedisLock(client, name, timeout=0.006, renew_for=60)
            assert await done(lock.acquire())
            await asyncio.sleep(0.0018)
            await done(lock.release())
            await asyncio.sleep(0.001)
            assert not lock.is_held
            assert left(name) < 0


@pytest.mark.parametrize("world", WORLDS)
async def test_a_client_that_is_closed_meanwhile_is_as_good_as_no_server(
    name: str, world: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def execute(*command: Any) -> Any:
        raise ValueError("I/O operation on closed file.")  # as the redis package does

    async with client_at(world, shared("server").port) as client:
        lock = RedisLock(client, name)
        monkeypatch.setattr(client, "execute_command", execute)
        with pytest.raises(InfrastructureError, match="ValueError"):
            await done(lock.acquire())
        monkeypatch.undo()


async def test_a_deadline_ends_the_wait(client: Any, name: str) -> None:
    lock, other = RedisLock(client, name, timeout=60), RedisLock(client, name)
    assert await done(lock.acquire())
    started = time.monotonic()
    assert not await done(other.acquire(blocking=True, deadline=0.15))
    assert 0.15 <= time.monotonic() - started < 2 + stalls.longest()
    assert await done(lock.release())
    assert await done(other.acquire(blocking=True, deadline=0))


@pytest.mark.parametrize("world", WORLDS)
async def test_the_context_of_the_other_world_is_refused(name: str, world: str) -> None:
    async with client_at(world, shared("server").port) as client:
        with pytest.raises(TypeError, match="use"):
            if world == "asyncio":
                with RedisLock(client, name):
                    pass
            else:
                async with RedisLock(client, name):
                    pass
        assert left(name) < 0


@pytest.mark.parametrize("world", WORLDS)
async def test_a_server_that_is_away_is_an_error(world: str) -> None:
    async with client_at(world, free_port()) as client:
        lock = RedisLock(client, "a")
        for method in (lock.acquire, lock.extend, lock.release):
            with pytest.raises(InfrastructureError):
                await done(method())
        assert not lock.is_held


@pytest.mark.parametrize("odd", ["{}", "{a}b", "%s %7B", "ключ\n🔑", "x" * 5000, " ", "}{"])
async def test_names_may_be_any_text(client: Any, name: str, odd: str) -> None:
    lock, other = (RedisLock(client, odd + name) for _ in range(2))
    assert await done(lock.acquire())
    assert not await done(other.acquire())
    assert await done(lock.extend())
    assert await done(lock.release())


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"name": ""}, "name"),
        ({"name": None}, "name"),
        ({"name": "\ud800"}, "name"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": "5"}, "timeout"),
        ({"renew_for": -1}, "renew_for"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        RedisLock(redis.Redis(), **{"name": "a", **settings})


def test_what_is_no_client_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="client"):
        RedisLock("redis://localhost", "a")


@pytest.mark.parametrize("kind", ["sync", "sync-decoding", "cluster"])
def test_eight_threads_never_hold_together(client: Any, name: str) -> None:
    inside: list[int] = []
    fences: list[Any] = []

    def hold(me: int) -> None:
        lock = RedisLock(client, name, timeout=5)
        for _ in range(5):
            with lock:
                inside.append(me)
                fences.append(lock.fencing_token)
                time.sleep(0.0005)
                assert inside == [me]
                inside.clear()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(hold, range(8)))
    assert fences == sorted(set(fences))


@pytest.mark.parametrize("kind", ["asyncio", "asyncio-decoding", "asyncio-cluster"])
async def test_eight_tasks_never_hold_together(client: Any, name: str) -> None:
    inside: list[int] = []

    async def hold(me: int) -> None:
        for _ in range(5):
            async with RedisLock(client, name, timeout=5):
                inside.append(me)
                await asyncio.sleep(0.0005)
                assert inside == [me]
                inside.clear()

    await asyncio.gather(*(hold(me) for me in range(8)))


@pytest.mark.slow
def test_eight_processes_never_hold_together(name: str) -> None:
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(ServiceWorker(shared("server").port)) for _ in range(8)]
        assert all(worker.ask("ping") for worker in workers)
        for worker in workers:
            worker.send("hold", name, 25)
        fences = [worker.receive() for worker in workers]
    assert all(each == sorted(each) for each in fences)
    assert len(set(itertools.chain(*fences))) == 8 * 25


@pytest.mark.parametrize("end", ["killed", "stopped"])
def test_a_holder_that_is_gone_is_followed_within_its_timeout(name: str, end: str) -> None:
    with ServiceWorker(shared("server").port) as worker, contextlib.closing(client_of("sync")) as client:
        assert worker.ask("keep", name, 0.4) is True
        worker.kill() if end == "killed" else worker.freeze()
        lock, started, remaining = RedisLock(client, name), time.monotonic(), left(name) / 1000
        assert lock.acquire(blocking=True)
        assert remaining - 0.01 < time.monotonic() - started < 2 + stalls.longest()
        if end == "stopped":
            worker.thaw()
            assert worker.ask("give_back") is False
        assert lock.release()


def test_acquiring_again_survives_the_eviction_of_the_last_fence(name: str) -> None:
    with contextlib.closing(client_of("sync")) as client:
        lock = RedisLock(client, name)
        assert lock.acquire()
        client.delete(f"aimemo:lock:{{{name}}}:fence")
        assert lock.acquire()
        assert lock.fencing_token
