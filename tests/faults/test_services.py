"""What goes on around the calls: the limiter, requests sent again, locks, the management API (F48 to F51)."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import itertools
import statistics
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import redis
import redis.asyncio
from redis.asyncio.cluster import RedisCluster as TaskCluster
from redis.cluster import RedisCluster
from redis.crc import key_slot

from aimemo import Cache, IdempotencyConflictError, IdempotencyService, InMemoryCache, RateLimiter, RedisLock
from aimemo.link.borrowed import tagged
from aimemo.management import problems
from tests.faults.conftest import Case
from tests.faults.stands import Stand
from tests.kit import stalls
from tests.kit.clients import close, done
from tests.kit.crowd import CALLERS
from tests.kit.looking import until
from tests.kit.servers import HOST, ClusterOfThree, Server, wait_until
from tests.kit.service_worker import ServiceWorker
from tests.test_api import KEY, KEYS, STEERING, WRONG
from tests.test_api import client_of as api_client
from tests.test_rate_limiter import admissions, most_in_a_window

row = pytest.mark.row
on_servers = pytest.mark.parametrize(
    "stand", ["valkey", pytest.param("cluster", marks=pytest.mark.slow)], indirect=True
)

CLIENTS: dict[str, tuple[Any, Any]] = {
    "threads": (redis.Redis, RedisCluster),
    "tasks": (redis.asyncio.Redis, TaskCluster),
}


@contextlib.asynccontextmanager
async def client_on(stand: Stand, world: str) -> AsyncIterator[Any]:
    """A client of a user's, with its connection made."""
    made = CLIENTS[world][len(stand.nodes) > 1](host=HOST, port=stand.nodes[0].port)
    await done(made.ping())
    yield made
    await close(made)


def node_of(stand: Stand, key: str) -> Server:
    return stand.nodes[key_slot(key.encode()) // (ClusterOfThree.SLOTS // len(stand.nodes) + 1)]


async def all_at_once(
    tasks: Callable[[int], Awaitable[Any]], threads: Callable[[int], Any], callers: int = CALLERS
) -> list[Any]:
    """What so many callers get, of whom half are tasks and half are threads: results and errors."""
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(callers) as pool:
        asked = [
            loop.run_in_executor(pool, threads, number) if number % 2 else tasks(number) for number in range(callers)
        ]
        return await asyncio.gather(*asked, return_exceptions=True)


# The limiter


def log_writes(node: Server) -> None:
    node.ask("CONFIG", "SET", "appendfsync", "no")
    node.ask("CONFIG", "SET", "appendonly", "yes")
    wait_until(lambda: any(node.folder.glob("appendonlydir/*.incr.aof")), "writes are logged")


@row("F48")
@on_servers
@pytest.mark.parametrize(
    ("limit", "window", "seconds"), [(50, 0.3, 1.5), pytest.param(200, 1, 10, marks=pytest.mark.slow)]
)
async def test_eight_processes_with_skewed_clocks_are_never_over_the_limit(
    stand: Stand, case: Case, limit: int, window: float, seconds: float
) -> None:
    async with client_on(stand, "tasks") as client, contextlib.AsyncExitStack() as stack:
        limiter = RateLimiter(client, limit, window)
        node = node_of(stand, limiter._keys("all")[0])
        log_writes(node)
        workers = [stack.enter_context(ServiceWorker(node.port, ahead=1000 * number)) for number in range(8)]
        assert all(worker.ask("ping") for worker in workers)
        for worker in workers:
            worker.send("spend", "all", limit, window, 1, seconds)
        spent = asyncio.gather(*(asyncio.to_thread(worker.receive) for worker in workers))
        late, own = [], 0
        while not spent.done():
            started = time.monotonic()
            own += await limiter.acquire("all", deadline=0.2)
            late.append(time.monotonic() - started - 0.2)
        counted, admitted = sum(await spent) + own, admissions(node)
        case.right(most_in_a_window(admitted, window) <= limit, most_in_a_window(admitted, window))
        case.nothing_lost(counted == len(admitted), f"{counted} were let in, {len(admitted)} are known")
        awake = max(seconds - stalls.longest(), 0)
        case.nothing_lost(counted >= 0.7 * limit * awake / window, f"only {counted} were let in")
        case.bounded(max(late))
        case.recovers(await limiter.acquire("all", deadline=5))


# Requests that are sent again


def name_on(stand: Stand, node: Server) -> str:
    """Of a request, so that it and what a worker notes of it are on one node of a cluster."""
    names = (f"request {number}" for number in itertools.count())
    return next(
        name for name in names if {node_of(stand, tagged("request", name)), node_of(stand, f"runs {name}")} == {node}
    )


def runs(node: Server, name: str) -> int:
    """How often workers have carried a request out."""
    return int(node.ask("LLEN", f"runs {name}"))


class Requests:
    """Callers of both worlds who send the same request; `runs` has the payload each time it is carried out."""

    def __init__(self, task_client: Any, thread_client: Any, name: str, claim: float = 10) -> None:
        self.runs: list[Any] = []
        self._tasks, self._threads = (IdempotencyService(each, claim=claim) for each in (task_client, thread_client))
        self._name = name

    async def send(self, payload_of: Callable[[int], Any]) -> list[Any]:
        return await all_at_once(
            lambda number: self._tasks.run(self._name, payload_of(number), lambda: self._task(payload_of(number))),
            lambda number: self._threads.run(self._name, payload_of(number), lambda: self._thread(payload_of(number))),
        )

    async def _task(self, payload: Any) -> Any:
        self.runs.append(payload)
        await asyncio.sleep(0.1)
        return {"to": payload}

    def _thread(self, payload: Any) -> Any:
        self.runs.append(payload)
        time.sleep(0.1)
        return {"to": payload}


@contextlib.asynccontextmanager
async def requests_on(stand: Stand, name: str, **settings: Any) -> AsyncIterator[Requests]:
    async with client_on(stand, "tasks") as tasks, client_on(stand, "threads") as threads:
        yield Requests(tasks, threads, name, **settings)


@row("F49")
@on_servers
async def test_of_fifty_requests_at_once_with_one_id_one_is_carried_out(stand: Stand, case: Case) -> None:
    async with requests_on(stand, "id") as requests:
        started = time.monotonic()
        results = await requests.send(lambda number: number % 5)
        case.bounded(time.monotonic() - started - 0.1, 1)
        case.right(len(requests.runs) == 1, requests.runs)
        [payload] = requests.runs
        same = [results[at] for at in range(CALLERS) if at % 5 == payload]
        others = [results[at] for at in range(CALLERS) if at % 5 != payload]
        case.nothing_lost(same == [{"to": payload}] * (CALLERS // 5), same)
        case.right({type(other) for other in others} == {IdempotencyConflictError}, others)
        again = await requests.send(lambda _: payload)
        case.recovers(again == [{"to": payload}] * CALLERS and len(requests.runs) == 1, again)


@row("F49")
@on_servers
async def test_a_killed_worker_is_taken_over_from_once_within_its_claim(stand: Stand, case: Case) -> None:
    claim, node = 3, stand.nodes[0]  # renewed every second: a slow machine must not let it run out
    name = name_on(stand, node)
    async with requests_on(stand, name, claim=claim) as requests:
        with ServiceWorker(node.port) as worker:
            worker.send("run", name, claim, 60)
            await until(lambda: runs(node, name), 30)
            waiting = asyncio.create_task(requests.send(lambda _: "payload"))
            await asyncio.sleep(claim)
            case.right(not requests.runs, "carried out though somebody is at it")
            worker.kill()
            started = time.monotonic()
            results = await waiting
            case.bounded(time.monotonic() - started - claim - 0.1, 1)
        case.recovers(requests.runs == ["payload"], requests.runs)
        case.right(runs(node, name) == 1)
        case.nothing_lost(results == [{"to": "payload"}] * CALLERS, results[:3])


# The lock


@row("F50")
@on_servers
async def test_who_is_cancelled_while_acquiring_holds_the_lock_no_longer_than_its_timeout(
    stand: Stand, case: Case
) -> None:
    async with client_on(stand, "tasks") as client:
        lock, other = RedisLock(client, "a", timeout=0.3), RedisLock(client, "a", timeout=5)
        for number in range(200):
            task = asyncio.create_task(lock.acquire(blocking=True))
            await asyncio.wait([task], timeout=number * 5e-6)
            task.cancel()
            await asyncio.wait([task])
        started = time.monotonic()
        case.recovers(await other.acquire(blocking=True, deadline=5))
        case.bounded(time.monotonic() - started - 0.3)
        case.right(not await lock.release() and await other.extend(), "two hold it")
        case.right(other.fencing_token > (lock.fencing_token or 0), other.fencing_token)


@row("F50")
@on_servers
@pytest.mark.parametrize("end", [ServiceWorker.kill, ServiceWorker.freeze], ids=["killed", "stopped"])
async def test_a_holder_that_overruns_is_followed_within_its_timeout_and_told(
    stand: Stand, case: Case, end: Callable[[ServiceWorker], None]
) -> None:
    node = node_of(stand, tagged("lock", "a"))
    async with client_on(stand, "tasks") as client:
        first, second = RedisLock(client, "a"), RedisLock(client, "a")
        async with first:
            pass
        with ServiceWorker(node.port) as worker:
            assert worker.ask("keep", "a", 0.4) is True
            end(worker)
            started = time.monotonic()
            case.recovers(await second.acquire(blocking=True, deadline=5))
            case.bounded(time.monotonic() - started - 0.4)
            case.right(second.fencing_token >= first.fencing_token + 2, "it grows with every acquisition")
            if worker.is_running():
                worker.thaw()
                case.right(worker.ask("give_back") is False, "the loss is not told")
        case.right(await second.release(), "it was taken from who holds it")


@row("F50")
@on_servers
@pytest.mark.parametrize("world", CLIENTS)
async def test_a_release_after_the_loss_says_so_and_takes_nothing(stand: Stand, case: Case, world: str) -> None:
    async with client_on(stand, world) as client:
        late, other = RedisLock(client, "a", timeout=0.05), RedisLock(client, "a", timeout=5)
        assert await done(late.acquire())
        case.recovers(await done(other.acquire(blocking=True, deadline=5)))
        case.right(await done(late.release()) is False, "the loss is not told")
        case.right(await done(late.extend()) is False and not late.is_held)
        case.right(other.fencing_token > late.fencing_token, "the token does not grow")
        case.right(await done(other.release()) is True, "it was taken from who holds it")


@row("F50")
@on_servers
async def test_fifty_callers_hold_a_lock_one_after_another(stand: Stand, case: Case) -> None:
    inside: list[int] = []
    crowded: list[list[int]] = []
    fences: list[Any] = []

    def enter(number: int, lock: RedisLock) -> None:
        inside.append(number)
        fences.append(lock.fencing_token)

    def leave() -> None:
        crowded.append(inside.copy())
        inside.clear()

    async with client_on(stand, "tasks") as tasks, client_on(stand, "threads") as threads:

        async def in_task(number: int) -> None:
            async with RedisLock(tasks, "a", timeout=20) as lock:
                enter(number, lock)
                await asyncio.sleep(0.001)
                leave()

        def in_thread(number: int) -> None:
            with RedisLock(threads, "a", timeout=20) as lock:
                enter(number, lock)
                time.sleep(0.001)
                leave()

        results = await all_at_once(in_task, in_thread)
    case.nothing_lost(results == [None] * CALLERS, results)
    case.right(all(len(each) == 1 for each in crowded), crowded)
    case.right(len(fences) == CALLERS and fences == sorted(set(fences)), fences)


# The management API


@contextlib.asynccontextmanager
async def api_of(cache: Cache) -> AsyncIterator[httpx.AsyncClient]:
    async with api_client(cache) as made:
        yield made
    if others := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait(others, timeout=5)


@row("F51", on="API")
async def test_a_thousand_wrong_keys_open_nothing_and_hold_nobody_up(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(problems, "FAILURE_SECONDS", 0.05)
    cache = InMemoryCache()
    await cache.set("key", 1)
    async with api_of(cache) as api:

        async def attack(attacker: int) -> list[int]:
            wrong = [*WRONG, *({"X-API-Key": f"wrong {attacker} {number}"} for number in range(20 - len(WRONG)))]
            ways = zip(wrong, itertools.cycle(STEERING[attacker % 4 :] + STEERING[: attacker % 4]), strict=False)
            return [(await api.request(method, path, headers=headers)).status_code for headers, (method, path) in ways]

        attacks = asyncio.gather(*map(attack, range(CALLERS)))
        waited: list[float] = []
        while not attacks.done():
            started = time.monotonic()
            await asyncio.sleep(0)  # a rightful request has its turn among the others
            case.recovers((await api.get("/entries", headers=KEY)).status_code == 200)
            waited.append(time.monotonic() - started)
            await asyncio.sleep(0.02)
        statuses = [*itertools.chain(*await attacks)]
        case.right(statuses == [401] * 1000, set(statuses))
        case.bounded(statistics.median(waited), 2)
        case.right(await cache.get("key") == 1)


@row("F51", on="API")
async def test_a_given_key_is_compared_with_every_key_and_in_constant_time(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[int, int]] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return hmac_compare(one, other)

    hmac_compare = hmac.compare_digest
    monkeypatch.setattr(problems.hmac, "compare_digest", compare)
    monkeypatch.setattr(problems, "FAILURE_SECONDS", 0)
    async with api_of(InMemoryCache()) as api:
        for headers in [*({"X-API-Key": key.encode()} for key in KEYS), *WRONG]:
            compared.clear()
            status = (await api.get("/entries", headers=headers)).status_code
            case.right(status == (401 if headers in WRONG else 200), headers)
            case.right(compared == [(32, 32)] * len(KEYS), (headers, compared))


@row("F51", on="API")
@pytest.mark.parametrize(
    "headers", [{"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}]
)
async def test_pages_of_other_sites_steer_nothing_even_with_a_key(case: Case, headers: dict[str, str]) -> None:
    cache = InMemoryCache()
    await cache.set("key", 1)
    async with api_of(cache) as api:
        for method, path in STEERING:
            case.right((await api.request(method, path, headers=KEY | headers)).status_code == 403)
    assert cache.stats().deletes == 0


@row("F51")
@pytest.mark.parametrize("stand", ["valkey"], indirect=True)
async def test_globs_that_are_huge_or_meant_to_be_slow_are_bounded(stand: Stand, case: Case) -> None:
    cache = stand.cache(deadline=5)
    async with api_of(cache) as api:
        await cache.set_many({f"{'a' * 400} {number}": number for number in range(1000)})
        for glob, status in (
            ("*" * 10_000, 422),
            ("[" * 10_000, 422),
            ("*a" * 250 + "b", 200),
            ("a*" * 250 + "b", 200),
        ):
            started = time.monotonic()
            answer = await api.post("/invalidate", params={"pattern": glob}, headers=KEY)
            case.bounded(time.monotonic() - started, 1)
            case.right((answer.status_code, answer.json().get("keys_invalidated", 0)) == (status, 0), answer.text)
        case.right(await cache.get(f"{'a' * 400} 7") == 7)


class Pings:
    """How long a server keeps others waiting, in seconds."""

    def __init__(self, node: Server) -> None:
        self.seconds: list[float] = []
        self._node = node
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._ping)

    def _ping(self) -> None:
        with redis.Redis(HOST, self._node.port) as client:
            while not self._is_over.wait(0.002):
                started = time.monotonic()
                client.ping()
                self.seconds.append(time.monotonic() - started)

    def __enter__(self) -> Pings:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()


async def list_all(api: httpx.AsyncClient) -> int:
    digests: set[str] = set()
    cursor: str | None = ""
    while cursor is not None:
        page = (await api.get("/entries", params={"cursor": cursor, "limit": 1000}, headers=KEY)).json()
        digests |= {entry["digest"] for entry in page["entries"]}
        cursor = page["cursor"]
    return len(digests)


@row("F51")
@on_servers
@pytest.mark.parametrize("count", [10_000, pytest.param(100_000, marks=pytest.mark.slow)])
async def test_redis_answers_others_while_very_many_entries_are_listed_and_invalidated(
    stand: Stand, case: Case, count: int
) -> None:
    cache = stand.cache(deadline=30)
    async with api_of(cache) as api:
        await cache.set("other", 1)
        for first in range(0, count, 1000):
            await cache.set_many({f"old {number}": number for number in range(first, first + 1000)})
        stand.ask_all("CONFIG", "SET", "slowlog-log-slower-than", 1000)
        stand.ask_all("SLOWLOG", "RESET")
        with Pings(stand.nodes[0]) as pings:
            listed = await list_all(api)
            gone = await api.post("/invalidate", params={"pattern": "old *"}, headers=KEY)
        case.right(listed == count + 1, listed)
        case.nothing_lost(gone.json().get("keys_invalidated") == count, gone.text)
        case.right(await cache.get("other") == 1 and await cache.get("old 7") is None)
        case.bounded(max(pings.seconds))
        slowest = max((each["duration"] for node in stand.nodes for each in node.client.slowlog_get(128)), default=0)
        case.bounded(slowest / 1e6, 0.1)
