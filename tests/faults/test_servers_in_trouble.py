"""Fifty callers, while something is wrong with the servers, and afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
import redis

from aimemo import GenericRedisCache
from tests.faults.conftest import BUDGET, Case
from tests.faults.stands import Stand
from tests.kit.crowd import Crowd
from tests.kit.servers import HOST, Server, binaries, free_port, wait_until
from tests.kit.slots import move_all

RECOVERY = 5.0

OTHERS = ["valkey behind L1", *(kind for kind in binaries() if kind != "valkey")]


def on(*kinds: str) -> Any:
    """Always without L1, which would hide faults; on the others in the long run."""
    slow = [pytest.param(kind, marks=pytest.mark.slow) for kind in kinds]
    return pytest.mark.parametrize("stand", ["valkey", *slow], indirect=True)


everywhere = on(*OTHERS, "sentinel", "cluster")
on_one_server = on(*OTHERS)

Happens = Callable[[Stand], AbstractAsyncContextManager[None]]
row = pytest.mark.row


@contextlib.asynccontextmanager
async def frozen(stand: Stand) -> AsyncIterator[None]:
    for node in stand.nodes:
        node.freeze()
    try:
        yield
    finally:
        for node in stand.nodes:
            node.thaw()


@contextlib.asynccontextmanager
async def killed(stand: Stand) -> AsyncIterator[None]:
    for node in stand.nodes:
        node.kill()
    yield
    for node in stand.nodes:
        node.__dict__.pop("client")
        node.start()


@contextlib.asynccontextmanager
async def cut(stand: Stand) -> AsyncIterator[None]:
    async def cut_again_and_again() -> None:
        while True:
            for node in stand.nodes:
                await asyncio.to_thread(node.ask, "CLIENT", "KILL", "TYPE", "normal")
            await asyncio.sleep(0.1)

    task = asyncio.create_task(cut_again_and_again())
    yield
    task.cancel()


@contextlib.asynccontextmanager
async def paused(stand: Stand) -> AsyncIterator[None]:
    stand.ask_all("CLIENT", "PAUSE", 1500, "ALL")
    yield


@contextlib.asynccontextmanager
async def configured(stand: Stand, name: str, value: str) -> AsyncIterator[None]:
    before = [node.ask("CONFIG", "GET", name)[1] for node in stand.nodes]
    stand.ask_all("CONFIG", "SET", name, value)
    yield
    for node, old in zip(stand.nodes, before, strict=True):
        node.ask("CONFIG", "SET", name, old)


@contextlib.asynccontextmanager
async def demoted(stand: Stand) -> AsyncIterator[None]:
    stand.ask_all("REPLICAOF", HOST, 1)
    yield
    stand.ask_all("REPLICAOF", "NO", "ONE")


@contextlib.asynccontextmanager
async def other_password(stand: Stand, before: str = "") -> AsyncIterator[None]:
    for node in stand.nodes:
        with redis.Redis(HOST, node.port, password=before) as admin:
            admin.config_set("requirepass", "new-secret")
            admin.client_kill_filter(_type="normal", skipme=True)
    yield
    for node in stand.nodes:
        with redis.Redis(HOST, node.port, password="new-secret") as admin:
            admin.config_set("requirepass", before)


@contextlib.asynccontextmanager
async def network(stand: Stand, **behaviour: Any) -> AsyncIterator[None]:
    assert stand.proxy is not None
    stand.proxy.behave(**behaviour)
    yield
    stand.proxy.behave()


async def goes_through(stand: Stand, case: Case, happens: Happens, **settings: Any) -> Crowd:
    """Have a crowd ask before, during and after a fault, and judge."""
    async with Crowd(stand.cache(**settings)) as crowd:
        usual = await crowd.warm_up()
        async with happens(stand):
            await crowd.load(1.0)
            if happens in SILENT:
                case.bounded(await crowd.ask_in_turn(crowd.new(100)), 0.001)
        case.crowd(crowd, usual, settings.get("deadline", BUDGET))
        case.recovers(await crowd.recovers(RECOVERY), crowd.cache.stats())
        await crowd.ask([*range(50), *crowd.new(50)])
        case.right(not crowd.wrong, crowd.wrong[:3])
    return crowd


SILENT = (frozen, killed, paused)
ANY_SERVERS: dict[str, Happens] = {
    "F01": frozen,
    "F02": killed,
    "F04": cut,
    "F05": paused,
    "F21": functools.partial(configured, name="maxmemory", value="1"),
    "F26": other_password,
}
ONE_SERVERS: dict[str, Happens] = {
    "F01": functools.partial(network, pause=(0.01, 0.01), piece=(1, 1)),
    "F06": functools.partial(network, pause=(0.03, 0.5), piece=(100, 1000)),
    "F23": demoted,
}


def each(faults: dict[str, Happens]) -> Any:
    return pytest.mark.parametrize(
        "happens", [pytest.param(way, marks=row(name), id=name) for name, way in faults.items()]
    )


@everywhere
@each(ANY_SERVERS)
async def test_servers_that_fail(stand: Stand, case: Case, happens: Happens) -> None:
    await goes_through(stand, case, happens)


@on_one_server
@each(ONE_SERVERS)
async def test_a_server_or_a_network_that_fails(stand: Stand, case: Case, happens: Happens) -> None:
    await goes_through(stand, case, happens)


@row("F06")
@on_one_server
async def test_replies_in_pieces_of_a_few_bytes_are_whole(stand: Stand, case: Case) -> None:
    crowd = await goes_through(stand, case, functools.partial(network, pause=(0, 0.001), piece=(1, 7)), deadline=5)
    case.right(crowd.cache.stats().errors == 0, "slow, not wrong")


@row("F03")
@on_one_server
async def test_a_server_that_comes_later(stand: Stand, case: Case) -> None:
    port = free_port()
    async with Crowd(stand.cache(url=f"redis://{HOST}:{port}/0")) as crowd:
        usual = await crowd.warm_up()
        await crowd.load(0.5)
        case.crowd(crowd, usual)
        with Server(port=port):
            case.recovers(await crowd.recovers(RECOVERY))


@row("F21")
@on_one_server
async def test_a_full_server_is_read(stand: Stand, case: Case) -> None:
    await is_only_read(stand, case, functools.partial(configured, name="maxmemory", value="1"))


@row("F23")
@on_one_server
async def test_a_read_only_replica_is_read(stand: Stand, case: Case) -> None:
    await is_only_read(stand, case, demoted)


async def is_only_read(stand: Stand, case: Case, happens: Happens) -> None:
    async with Crowd(stand.cache(deadline=5)) as crowd:  # a loaded machine must not turn a hit into a miss
        usual = await crowd.warm_up()
        async with happens(stand):
            before = crowd.computed.copy()
            for _ in range(10):
                await crowd.ask(crowd.new(2))
                await crowd.clear_l1()
                await crowd.ask(range(50))
            asked = [question for question in range(50) if crowd.computed[question] != before[question]]
            case.right(not asked, f"computed though they are kept: {asked}")
        case.crowd(crowd, usual, budget=5)


@row("F24")
@pytest.mark.slow
@pytest.mark.parametrize("stand", ["sentinel"], indirect=True)
@pytest.mark.parametrize("end", [Server.kill, Server.freeze], ids=["killed", "hung"])
async def test_failover(stand: Stand, case: Case, end: Callable[[Server], None]) -> None:
    watched = stand.servers
    async with Crowd(stand.cache()) as crowd:
        usual = await crowd.warm_up()
        end(watched.first)
        load = asyncio.create_task(crowd.load(5, pause=0.1))
        await asyncio.to_thread(wait_until, watched.is_promoted, "the replica is promoted", 30)
        case.recovers(await crowd.recovers(2), "not within 2 s of the promotion")
        await load
        case.crowd(crowd, usual)


@row("F25")
@pytest.mark.slow
@pytest.mark.parametrize("stand", ["cluster"], indirect=True)
async def test_slots_that_are_moved_under_load(stand: Stand, case: Case) -> None:
    async with Crowd(stand.cache()) as crowd:
        usual = await crowd.warm_up()
        load = asyncio.create_task(crowd.load(5))
        for target in stand.nodes:
            await asyncio.to_thread(move_all, stand.servers, range(6), target)
        await load
        case.crowd(crowd, usual)
        case.recovers(await crowd.recovers(RECOVERY))


@row("F26")
@on_one_server
async def test_a_changed_password_is_said_once_and_without_it(
    stand: Stand, case: Case, caplog: pytest.LogCaptureFixture
) -> None:
    stand.ask_all("CONFIG", "SET", "requirepass", "old-secret")
    with caplog.at_level(logging.DEBUG):
        async with Crowd(stand.cache(password="old-secret")) as crowd:
            usual = await crowd.warm_up()
            assert await crowd.recovers(RECOVERY), "cold connections"
            caplog.clear()
            async with other_password(stand, "old-secret"):
                async with asyncio.timeout(15):
                    await crowd.load(1.0)
                    while crowd.cache.stats().breaker != "open":
                        await crowd.load(0.1)
                loud = [said.message for said in caplog.records if said.levelno >= logging.WARNING]
            case.crowd(crowd, usual)
            case.recovers(await crowd.recovers(RECOVERY))
    case.right("secret" not in caplog.text, "a password in the log")
    case.right(len(loud) == 1 and "left alone" in loud[0], loud)


@row("F27")
@pytest.mark.parametrize("has_l1", [False, True])
async def test_three_hundred_callers_at_a_server_of_four_connections(case: Case, has_l1: bool) -> None:
    with Server(maxclients=4) as server:
        async with Crowd(GenericRedisCache(server.url, enable_l1_cache=has_l1), callers=300) as crowd:
            await crowd.ask(crowd.new(300))
            case.crowd(crowd, usual=0.5)
