"""A request that is sent again is not carried out again: whoever asks, whatever fails meanwhile (F49)."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import redis
import redis.asyncio
from redis.asyncio.retry import Retry as TaskRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from aimemo import (
    CodecError,
    IdempotencyConflictError,
    IdempotencyService,
    InfrastructureError,
    LockLostError,
    UnkeyableArgumentError,
    ValidationError,
)
from tests.kit import stalls
from tests.kit.clients import client_of, close, done, in_parallel
from tests.kit.looking import hold_up_waiting, until
from tests.kit.lossy import LossyProxy
from tests.kit.redis_caches import shared
from tests.kit.servers import HOST, free_port, wait_until
from tests.kit.service_worker import ServiceWorker

pytestmark = [pytest.mark.redis, pytest.mark.integration]

WORLDS = ["sync", "asyncio"]

_numbers = itertools.count()


@pytest.fixture(params=WORLDS)
def world(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def client(world: str) -> AsyncIterator[Any]:
    made = client_of(world)
    yield made
    await close(made)


@pytest.fixture
def name() -> str:
    return f"request {next(_numbers)}"


@contextlib.asynccontextmanager
async def client_at(world: str, port: int, retries: int | None) -> AsyncIterator[Any]:
    """A client whose own retries are as the redis package has them (None), or so many."""
    make, retry = (redis.asyncio.Redis, TaskRetry) if world == "asyncio" else (redis.Redis, Retry)
    made = make(host=HOST, port=port, **({} if retries is None else {"retry": retry(NoBackoff(), retries)}))
    yield made
    await close(made)


Crew = Callable[[int], list[ServiceWorker]]


@pytest.fixture(scope="module")
def crew() -> Iterator[Crew]:
    """Processes that are kept between tests, as long as they are well."""
    with contextlib.ExitStack() as stack:
        made: list[ServiceWorker] = []

        def take(number: int) -> list[ServiceWorker]:
            made[:] = [worker for worker in made if worker.is_running()]
            made.extend(stack.enter_context(ServiceWorker(shared("server").port)) for _ in range(number - len(made)))
            assert all(worker.ask("ping") for worker in made)
            return made[:number]

        take(2)
        yield take


def executions(name: str) -> list[int]:
    """The pids of the workers that carried a request out."""
    return [int(pid) for pid in shared("server").client.lrange(f"runs {name}", 0, -1)]


def let_end(name: str) -> None:
    """The request that a worker carries out until it is told."""
    shared("server").client.set(f"end {name}", 1)


def never() -> None:
    raise AssertionError("the function must not be called")


async def test_fifty_at_once_are_one_execution(client: Any, world: str, name: str) -> None:
    service, calls = IdempotencyService(client), []

    def work() -> dict[str, Any]:
        calls.append(threading.get_ident())
        time.sleep(0.05)
        return {"näme": [1, 2.5, None]}

    results = await in_parallel(world, *[lambda: service.run(name, {"amount": 1}, work)] * 50)
    assert results == [{"näme": [1, 2.5, None]}] * 50
    assert len(calls) == 1


async def test_fifty_tasks_share_the_execution_of_an_async_function(name: str) -> None:
    calls: list[int] = []

    async def work() -> int:
        calls.append(1)
        await asyncio.sleep(0.05)
        return len(calls)

    async with client_at("asyncio", shared("server").port, None) as client:
        service = IdempotencyService(client)
        assert await asyncio.gather(*(service.run(name, None, work) for _ in range(50))) == [1] * 50


@pytest.mark.parametrize("number", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_share_one_execution(crew: Crew, name: str, number: int) -> None:
    workers = crew(number)
    for worker in workers:
        worker.send("run", name, 5, 0.2)
    results = [worker.receive() for worker in workers]
    assert len(executions(name)) == 1
    assert results == executions(name) * number


async def test_one_id_stands_for_one_payload(client: Any, crew: Crew, name: str) -> None:
    service, [worker] = IdempotencyService(client), crew(1)
    worker.send("run", name, 5, None)
    await until(lambda: executions(name))
    assert await done(service.is_duplicate(name))
    with pytest.raises(IdempotencyConflictError, match="another payload"):
        await done(service.run(name, "other", never))
    with pytest.raises(IdempotencyConflictError, match="still"):
        await done(service.run(name, "payload", never, wait=0))
    let_end(name)
    pid = worker.receive()
    with pytest.raises(IdempotencyConflictError, match="another payload"):
        await done(service.run(name, "other", never))
    assert await done(service.run(name, "payload", never)) == pid
    assert executions(name) == [pid]


async def test_a_wait_that_is_over_is_a_conflict(client: Any, crew: Crew, name: str) -> None:
    service, [worker] = IdempotencyService(client), crew(1)
    worker.send("run", name, 5, None)
    await until(lambda: executions(name))
    started = time.monotonic()
    with pytest.raises(IdempotencyConflictError):
        await done(service.run(name, "payload", never, wait=0.1))
    assert time.monotonic() - started >= 0.1
    let_end(name)
    worker.receive()


@pytest.mark.parametrize("error", [ValueError, StopIteration, LookupError])
async def test_a_function_that_raises_leaves_the_request_open(
    client: Any, name: str, world: str, error: type[Exception]
) -> None:
    service = IdempotencyService(client)

    def fail() -> None:
        raise error("no")

    with pytest.raises(RuntimeError if (error, world) == (StopIteration, "asyncio") else error):
        await done(service.run(name, 1, fail))
    assert not await done(service.is_duplicate(name))
    assert await done(service.run(name, 2, lambda: "yes")) == "yes"


async def test_a_function_that_is_cancelled_leaves_the_request_open(name: str) -> None:
    async with client_at("asyncio", shared("server").port, None) as client:
        service, begun = IdempotencyService(client, claim=30), asyncio.Event()

        async def work() -> None:
            begun.set()
            await asyncio.sleep(60)

        task = asyncio.create_task(service.run(name, 1, work))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await service.run(name, 1, lambda: "yes", wait=20) == "yes"


@pytest.mark.parametrize("turns", range(1, 12))
async def test_who_is_cancelled_anywhere_leaves_the_request_open(name: str, turns: int) -> None:
    async with client_at("asyncio", shared("server").port, None) as client:
        service = IdempotencyService(client, claim=30)
        await service.is_duplicate(name)
        task = asyncio.create_task(service.run(name, 1, lambda: asyncio.sleep(0.05, "first")))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        expected = "second" if task.cancelled() else task.result()  # the client may swallow a cancellation
        assert await service.run(name, 1, lambda: "second", wait=20) == expected


@pytest.mark.parametrize("result", [(1, 2), {1: 2}, float("nan"), {1}, "\ud800", [b"bytes"]], ids=repr)
async def test_a_result_that_json_cannot_hold_is_with_the_error(client: Any, name: str, result: Any) -> None:
    service = IdempotencyService(client, claim=30)
    with pytest.raises(CodecError) as raised:
        await done(service.run(name, 1, lambda: result))
    assert raised.value.result is result
    assert await done(service.run(name, 1, lambda: "yes", wait=0)) == "yes"


def test_a_killed_worker_is_taken_over_from_after_its_claim(crew: Crew, name: str) -> None:
    first, second = crew(2)
    first.send("run", name, 0.5, 60)
    wait_until(lambda: executions(name), "the first one works")
    first.kill()
    started = time.monotonic()
    assert second.ask("run", name, 30, 0) == executions(name)[1]
    assert time.monotonic() - started < 2 + stalls.longest()
    assert len(executions(name)) == 2


def test_a_worker_that_was_stopped_is_told_that_it_lost_its_claim(crew: Crew, name: str) -> None:
    late, other = crew(2)
    late.send("run", name, 0.3, None)
    wait_until(lambda: executions(name), "the first one works")
    late.freeze()
    pid = other.ask("run", name, 30, 0)
    let_end(name)
    late.thaw()
    assert late.receive() == {"error": "LockLostError", "result": executions(name)[0]}
    assert other.ask("run", name, 30, 0) == pid
    assert executions(name)[1:] == [pid]


async def test_a_late_result_is_refused_and_the_other_one_stays(client: Any, name: str) -> None:
    service = IdempotencyService(client)

    def work() -> str:
        server = shared("server").client
        [key] = server.keys(f"aimemo:request:*{name}*")
        server.hset(key, mapping={"token": "another worker", "result": '"theirs"'})
        return "ours"

    with pytest.raises(LockLostError) as raised:
        await done(service.run(name, 1, work))
    assert raised.value.result == "ours"
    assert await done(service.run(name, 1, never)) == "theirs"


@pytest.mark.parametrize("at_once", [1, 10])
async def test_a_claim_is_renewed_while_the_function_works(client: Any, world: str, name: str, at_once: int) -> None:
    service, calls, server = IdempotencyService(client, claim=3), [], shared("server").client
    key = f"aimemo:request:{{{name}}}"

    def begin() -> None:
        calls.append(1)
        server.pexpire(key, 60_000)

    def is_renewed() -> bool:
        return bool(0 < server.pttl(key) <= 3000)

    def work() -> int:
        begin()
        wait_until(is_renewed, "the claim is renewed")
        return len(calls)

    async def task() -> int:
        begin()
        await until(is_renewed)
        return len(calls)

    function: Any = task if world == "asyncio" else work
    assert await in_parallel(world, *[lambda: service.run(name, 1, function)] * at_once) == [1] * at_once


@pytest.mark.parametrize("retries", [None, 0], ids=["client retries", "client does not"])
@pytest.mark.parametrize("reply", ["claim", "settle"])
async def test_a_lost_reply_neither_executes_twice_nor_loses_the_result(
    world: str, name: str, reply: str, retries: int | None
) -> None:
    calls: list[int] = []
    with LossyProxy(shared("server").port) as proxy:
        async with client_at(world, proxy.port, retries) as client:
            fails = retries is not None
            service = IdempotencyService(client, claim=0.3 if fails and reply == "claim" else 30)
            await done(service.run(f"{name} before", 1, lambda: None))

            def work() -> str:
                calls.append(1)
                proxy.losses = reply == "settle"
                return "result"

            proxy.losses = reply == "claim"
            if not fails:
                assert await done(service.run(name, 1, work)) == "result"
            else:
                with pytest.raises(InfrastructureError) as raised:
                    await done(service.run(name, 1, work))
                assert getattr(raised.value, "result", None) == ("result" if calls else None)
            assert proxy.losses == 0
            again = IdempotencyService(client, claim=30)
            assert await done(again.run(name, 1, work if not calls else never)) == "result"
            assert calls == [1]


@pytest.mark.parametrize("odd", ["{}", "{a}b", "%7B", "%s", "ключ\n🔑", "x" * 5000, " ", "a\0b", "}{"])
async def test_ids_may_be_any_text(client: Any, name: str, odd: str) -> None:
    service = IdempotencyService(client)
    assert await done(service.run(f"{odd}{name}", 1, lambda: 1)) == 1
    assert await done(service.run(f"{odd}{name}", 1, never)) == 1
    assert await done(service.get_result(f"{odd}{name}")) == 1


@pytest.mark.parametrize(("one", "other"), [("{", "%7B"), ("%", "%25"), ("a}", "a%7D")])
async def test_ids_that_look_alike_are_kept_apart(client: Any, name: str, one: str, other: str) -> None:
    service = IdempotencyService(client)
    assert [await done(service.run(f"{name}{odd}", 1, lambda odd=odd: odd)) for odd in (one, other)] == [one, other]


@pytest.mark.parametrize("request_id", ["", None, 5, b"x", "\ud800"], ids=repr)
@pytest.mark.parametrize("method", ["run", "is_duplicate", "get_result", "store_request"])
async def test_an_id_that_is_none_is_refused(client: Any, request_id: Any, method: str) -> None:
    more = {"run": (1, never), "store_request": (1,)}.get(method, ())
    with pytest.raises(ValidationError, match="request"):
        await done(getattr(IdempotencyService(client), method)(request_id, *more))


@pytest.mark.parametrize("settings", [{"ttl": 0}, {"ttl": -1}, {"ttl": "60"}, {"claim": 0}, {"claim": True}])
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(settings))):
        IdempotencyService(redis.Redis(), **settings)


async def test_a_payload_that_cannot_be_told_from_another_is_refused(client: Any, name: str) -> None:
    with pytest.raises(UnkeyableArgumentError):
        await done(IdempotencyService(client).run(name, object(), never))
    assert not await done(IdempotencyService(client).is_duplicate(name))


async def test_a_result_is_remembered_for_its_ttl(client: Any, name: str) -> None:
    service, server, key = IdempotencyService(client, ttl=60), shared("server").client, f"aimemo:request:{{{name}}}"
    assert [await done(service.run(name, 1, lambda n=n: n)) for n in range(2)] == [0, 0]
    assert 30_000 < server.pttl(key) <= 60_000
    server.pexpire(key, 1)
    await until(lambda: not server.exists(key))
    assert not await done(service.is_duplicate(name))
    assert await done(service.run(name, 2, lambda: "anew")) == "anew"


async def test_a_result_outlives_the_claim_of_its_worker(client: Any, name: str) -> None:
    service = IdempotencyService(client, ttl=60, claim=10)
    await done(service.run(name, 1, lambda: "kept"))
    assert shared("server").client.pttl(f"aimemo:request:{{{name}}}") > 30_000
    assert await done(service.get_result(name)) == "kept"


@pytest.mark.parametrize("second", ["same", "another"])
async def test_a_result_is_stored_once(client: Any, name: str, second: str) -> None:
    service = IdempotencyService(client)
    assert await done(service.store_request(name, "same")) is True
    assert await done(service.store_request(name, second)) is False
    assert await done(service.run(name, "any payload", never)) == "same"


async def test_nothing_is_called_while_the_server_is_away(world: str, name: str) -> None:
    async with client_at(world, free_port(), 0) as client:
        service = IdempotencyService(client)
        for call in (
            lambda: service.run(name, 1, never),
            lambda: service.is_duplicate(name),
            lambda: service.get_result(name),
            lambda: service.store_request(name, 1),
        ):
            with pytest.raises(InfrastructureError) as raised:
                await done(call())
            assert isinstance(raised.value.__cause__, redis.ConnectionError)


def test_threads_that_renew_end_with_their_requests(name: str) -> None:
    with contextlib.closing(client_of("sync")) as client:
        before, service = threading.active_count(), IdempotencyService(client, claim=300)
        for number in range(50):
            service.run(f"{name} {number}", 1, lambda: None)
        wait_until(lambda: threading.active_count() <= before, "they have ended")


def test_a_renewal_that_begins_while_its_request_ends_ends_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = threading.active_count()
    with contextlib.closing(client_of("sync")) as client:
        service = IdempotencyService(client, claim=300)
        begun, ended = hold_up_waiting(service._redis.runtime, monkeypatch)
        assert service.run(name, 1, lambda: begun.wait(5)) is True
        ended.set()
        wait_until(lambda: threading.active_count() <= before, "the renewal has ended", 5)
