"""The lock between processes: one holder at a time, never for longer than its lease unless it is renewed."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import threading
import time
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pytest

from aimemo.coordination import lock
from aimemo.coordination.lock import LeaseLock, Renewer
from aimemo.core.aio import TaskRuntime
from aimemo.core.ports import Lease
from aimemo.core.runtime import ThreadRuntime, drive
from aimemo.link.build import make_link
from aimemo.link.layout import Layout
from aimemo.link.link import Link
from aimemo.link.urls import parse
from tests.kit.fleet_worker import renews_nothing
from tests.kit.redis_caches import shared
from tests.kit.servers import Server, wait_until

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

T = TypeVar("T")

SHORT_LEASE = 1.0
"""Seconds, where a test waits for the end of a lease."""

NAME = "op:ask|txt:|" + "0" * 32

_numbers = itertools.count()


@pytest.fixture
def short_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    wait_until(renews_nothing, "nobody sleeps for a third of a longer lease")
    monkeypatch.setattr(lock, "LEASE_SECONDS", SHORT_LEASE)


class Bench:
    """Locks in one world, and a look at what they leave on the servers."""

    def __init__(self, url: str, world: str) -> None:
        self.world = world
        self._url = url
        self._layout = Layout(f"lock{next(_numbers)}")
        self._blocking_link = self._make_link(ThreadRuntime())
        self._link = self._make_link(TaskRuntime()) if world == "tasks" else self._blocking_link
        self.renewer = Renewer(self._blocking_link, self._layout)
        self._locks: dict[str, LeaseLock] = {}
        self._held_by: dict[str, str] = {}

    def _make_link(self, runtime: Any) -> Link:
        return make_link(parse(self._url, {}), self._layout, runtime, connect_timeout=2, max_connections=50)

    def lock(self, owner: str) -> LeaseLock:
        """The lock of the process that is called so."""
        made = LeaseLock(self._link, self._layout, self.renewer, owner=lambda: owner)
        return self._locks.setdefault(owner, made)

    async def acquire(self, owner: str, name: str = NAME) -> Lease:
        lease = await self._run(self.lock(owner).acquire(name))
        self._held_by[lease.token] = owner
        return lease

    async def release(self, lease: Lease, **how: bool) -> bool:
        return await self._run(self.lock(self._held_by.get(lease.token, "nobody")).release(lease, **how))

    async def _run(self, body: Coroutine[Any, Any, T]) -> T:
        return await body if self.world == "tasks" else drive(body)

    def ask(self, command: str, *arguments: Any, name: str = NAME) -> Any:
        """The reply to a command about the lease of a name."""
        bucket, key, _ = self._layout.lock(name)
        [reply] = drive(self._blocking_link.ask(bucket, (command, key, *arguments)))
        return reply

    def forget_fence(self, name: str = NAME) -> int:
        bucket, _, fence = self._layout.lock(name)
        [reply] = drive(self._blocking_link.ask(bucket, ("DEL", fence)))
        return int(reply)

    def close(self) -> None:
        drive(self._blocking_link.close())


KINDS = ["server", "cluster"]
WORLDS = ["tasks", "threads"]


@contextlib.contextmanager
def bench_on(url: str, world: str) -> Iterator[Bench]:
    bench = Bench(url, world)
    try:
        yield bench
    finally:
        bench.close()


@pytest.fixture(params=itertools.product(KINDS, WORLDS), ids="-".join)
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    kind, world = request.param
    with bench_on(shared(kind).url, world) as bench:
        yield bench


@pytest.fixture
def threads() -> Iterator[Bench]:
    """Locks in the world of threads on a server."""
    with bench_on(shared("server").url, "threads") as bench:
        yield bench


@pytest.fixture
def own_server() -> Iterator[Server]:
    with Server() as server:
        yield server
        server.thaw()


async def test_one_process_holds_a_lock_and_the_others_are_told_that_it_is_theirs(bench: Bench) -> None:
    mine = await bench.acquire("a")
    assert (mine.name, mine.state) == (NAME, "ours")
    assert [(await bench.acquire(owner)).state for owner in "bcb"] == ["theirs"] * 3
    assert bench.ask("GET").decode() == mine.token
    assert await bench.release(mine) is True


async def test_a_process_is_not_told_to_wait_for_itself(bench: Bench) -> None:
    mine = await bench.acquire("a")
    assert (await bench.acquire("a")).state == "free"
    assert (await bench.acquire("a1")).state == "theirs"
    assert (await bench.acquire("")).state == "theirs"
    assert await bench.release(mine) is True


async def test_locks_of_two_names_are_two_locks(bench: Bench) -> None:
    leases = [await bench.acquire(owner, f"{NAME}{owner}") for owner in "abcdefgh"]
    assert {lease.state for lease in leases} == {"ours"}
    assert [await bench.release(lease) for lease in leases] == [True] * 8


async def test_a_lock_that_was_given_back_can_be_had_at_once_by_another(bench: Bench) -> None:
    assert await bench.release(await bench.acquire("a")) is True
    assert bench.ask("EXISTS") == 0
    lease = await bench.acquire("b")
    assert lease.state == "ours"
    assert await bench.release(lease) is True


async def test_every_lease_has_a_token_of_its_own(bench: Bench) -> None:
    tokens = set()
    for _ in range(20):
        lease = await bench.acquire("a")
        tokens.add(lease.token)
        await bench.release(lease)
    assert len(tokens) == 20


async def test_only_its_holder_gives_a_lease_back(bench: Bench) -> None:
    mine = await bench.acquire("a")
    theirs = await bench.acquire("b")
    forged = [theirs, Lease(NAME, "ours"), Lease(NAME, "ours", "b:0"), Lease(NAME, "ours", mine.token[:-1])]
    for lease, unkept in itertools.product(forged, (False, True)):
        assert await bench.release(lease, unkept=unkept) is False
    assert bench.ask("GET").decode() == mine.token
    assert await bench.release(mine) is True
    assert await bench.release(mine) is False


async def test_fencing_numbers_grow_with_every_lease(bench: Bench) -> None:
    fences = []
    for _ in range(50):
        lease = await bench.acquire("a")
        fences.append(lease.fence)
        await bench.release(lease)
    assert all(earlier < later for earlier, later in itertools.pairwise(fences))


async def test_fencing_numbers_grow_although_the_last_one_is_forgotten(bench: Bench) -> None:
    fences = []
    for _ in range(10):
        lease = await bench.acquire("a")
        fences.append(lease.fence)
        await bench.release(lease)
        assert bench.forget_fence() == 1
    assert all(earlier < later for earlier, later in itertools.pairwise(fences))


async def test_the_fencing_number_grows_also_when_a_lease_was_lost_or_left_a_mark(bench: Bench) -> None:
    lost = await bench.acquire("a")
    bench.ask("DEL")
    marked = await bench.acquire("b")
    await bench.release(marked, unkept=True)
    bench.ask("DEL")
    last = await bench.acquire("c")
    assert lost.fence < marked.fence < last.fence
    await bench.release(last)
    await bench.release(lost)


async def test_what_is_not_ours_has_no_token_and_no_fencing_number(bench: Bench) -> None:
    mine = await bench.acquire("a")
    others = [await bench.acquire("a"), await bench.acquire("b")]
    assert [(lease.token, lease.fence) for lease in others] == [("", 0)] * 2
    await bench.release(mine)


async def test_a_lease_that_was_lost_is_reported(bench: Bench) -> None:
    lost = await bench.acquire("a")
    bench.ask("DEL")
    assert await bench.release(lost) is False


async def test_the_release_of_a_lost_lease_does_not_free_the_new_holders(bench: Bench) -> None:
    lost = await bench.acquire("a")
    bench.ask("DEL")
    new = await bench.acquire("b")
    assert await bench.release(lost) is False
    assert await bench.release(lost, unkept=True) is False
    assert bench.ask("GET").decode() == new.token
    assert await bench.release(new) is True


async def test_an_unkept_answer_leaves_a_mark_for_a_while_which_nobody_waits_for(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "UNKEPT_SECONDS", 60.0)
    assert await bench.release(await bench.acquire("a"), unkept=True) is True
    left = bench.ask("PTTL")
    assert 30_000 < left <= 60_000
    states = [(await bench.acquire(owner)).state for owner in "ab"]
    assert states == ["free", "free"]
    assert bench.ask("PTTL") <= left, "asking does not prolong it"
    bench.ask("PEXPIRE", 1)
    wait_until(lambda: not bench.ask("EXISTS"), "the mark is gone")
    lease = await bench.acquire("b")
    assert lease.state == "ours"
    assert await bench.release(lease) is True


def test_a_mark_ends_by_itself(threads: Bench) -> None:
    lease, at = drive(threads.acquire("a")), time.monotonic()
    drive(threads.release(lease, unkept=True))
    wait_until(lambda: not threads.ask("EXISTS"), "the mark is gone")
    assert time.monotonic() - at > 0.8


async def test_a_lease_never_is_without_an_end(bench: Bench) -> None:
    seen: list[int] = []
    is_over = threading.Event()

    def look() -> None:
        while not is_over.is_set():
            seen.append(bench.ask("PTTL"))

    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(look)
        for number in range(150):
            lease = await bench.acquire("a")
            await asyncio.sleep(0.001)
            await bench.release(lease, unkept=number % 3 == 0)
            bench.ask("DEL")
        is_over.set()
        looking.result()
    assert set(seen) != {-2}
    assert -1 not in seen
    assert max(seen) <= lock.LEASE_SECONDS * 1000


def is_held(bench: Bench, lease: Lease) -> bool:
    left = bench.ask("PTTL", name=lease.name)
    token = bench.ask("GET", name=lease.name)
    return token == lease.token.encode() and 0 < left <= lock.LEASE_SECONDS * 1000


def wait_for_renewal(bench: Bench, lease: Lease) -> None:
    """Without one, the time that a lease has left only becomes less."""
    ends = time.monotonic() + lock.LEASE_SECONDS
    least = bench.ask("PTTL", name=lease.name)
    while (left := bench.ask("PTTL", name=lease.name)) <= least:
        assert is_held(bench, lease)
        assert time.monotonic() < ends
        least = min(least, left)
        time.sleep(0.01)


def test_a_lease_is_renewed_in_every_world_and_on_every_kind_of_server() -> None:
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(4) as pool:
        benches = [
            stack.enter_context(bench_on(shared(kind).url, world)) for kind, world in itertools.product(KINDS, WORLDS)
        ]

        def hold(bench: Bench) -> bool:
            async def held() -> bool:
                lease = await bench.acquire("a")
                for _ in range(2):
                    wait_for_renewal(bench, lease)  # the event loop is held meanwhile
                return await bench.release(lease)

            return asyncio.run(held())

        assert list(pool.map(hold, benches)) == [True] * 4


@pytest.mark.slow
def test_a_lease_is_renewed_for_as_long_as_it_is_held(threads: Bench) -> None:
    lease = drive(threads.acquire("a"))
    ends = time.monotonic() + 4 * lock.LEASE_SECONDS
    while time.monotonic() < ends:
        wait_for_renewal(threads, lease)
    assert drive(threads.release(lease)) is True


def test_a_renewal_needs_no_script_that_was_loaded_before(threads: Bench) -> None:
    lease = drive(threads.acquire("a"))
    shared("server").client.script_flush()
    wait_for_renewal(threads, lease)
    assert drive(threads.release(lease)) is True


def test_a_renewal_that_failed_is_tried_again_sooner(threads: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    failures = iter([TimeoutError(), TimeoutError()])

    class Hurried(threading.Condition):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout or 0)
            return super().wait(0.01)

    def ask(*command: Any) -> Any:
        for failure in failures:
            raise failure
        return asked(*command)

    threads.ask("SET", "token")
    asked = threads.renewer._link.ask
    monkeypatch.setattr(threads.renewer._link, "ask", ask)
    monkeypatch.setattr(threads.renewer, "_changed", Hurried())
    lease = Lease(NAME, "ours", "token")
    threads.renewer.add(lease, lambda: True)
    wait_until(lambda: len(waits) >= 4, "it is renewed")
    threads.renewer.remove(lease)
    wait_until(renews_nothing, "the thread has ended")
    usual = lock.LEASE_SECONDS / 3
    assert waits[:4] == [usual, lock.LEASE_SECONDS / 10, lock.LEASE_SECONDS / 10, usual]


@pytest.mark.slow
def test_a_lost_lease_is_not_taken_back_by_its_renewal(threads: Bench) -> None:
    lost = drive(threads.acquire("a"))
    threads.ask("DEL")
    time.sleep(lock.LEASE_SECONDS / 3 + 0.2)
    assert threads.ask("EXISTS") == 0
    new = drive(threads.acquire("b"))
    wait_for_renewal(threads, new)
    assert drive(threads.release(lost)) is False
    assert drive(threads.release(new)) is True


def test_who_renews_leases_ends_when_there_are_none_and_begins_again(threads: Bench) -> None:
    for _ in range(2):
        lease = drive(threads.acquire("a"))
        assert not renews_nothing()
        drive(threads.release(lease))
        wait_until(renews_nothing, "the thread has ended", lock.LEASE_SECONDS)


def test_one_thread_renews_all_leases_of_a_process(threads: Bench) -> None:
    leases = [drive(threads.acquire("a", f"{NAME}{number}")) for number in range(40)]
    assert sum(thread.name == "aimemo-leases" for thread in threading.enumerate()) == 1
    usual = lock.LEASE_SECONDS * 1000
    for lease in leases:
        threads.ask("PEXPIRE", 20_000, name=lease.name)
    wait_until(lambda: all(0 < threads.ask("PTTL", name=lease.name) <= usual for lease in leases), "all are renewed")
    assert all(drive(threads.release(lease)) for lease in leases)


def test_leases_that_come_while_their_renewer_ends_are_looked_after(
    threads: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "LEASE_SECONDS", 0.03)
    dice = random.Random(1)
    for number in range(100):
        is_seen = threading.Event()
        threads.renewer.add(Lease(f"{number}", "ours"), lambda is_seen=is_seen: is_seen.set() is not None)
        assert is_seen.wait(5)
        time.sleep(dice.uniform(0, 0.002))
    wait_until(renews_nothing, "none is left")


CONTENTION = [
    ("server", "threads", 50), ("server", "tasks", 15), ("cluster", "threads", 15), ("cluster", "tasks", 15),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "world", "times"), CONTENTION)
def test_eight_threads_never_hold_a_lock_together(kind: Any, world: str, times: int) -> None:
    inside: list[int] = []
    fences: list[int] = []

    async def hold_often(me: int) -> None:
        mine = bench.lock(f"process {me}")
        for _ in range(times):
            while (lease := await mine.acquire(NAME)).state != "ours":
                time.sleep(0.0005)
            inside.append(me)
            fences.append(lease.fence)
            time.sleep(0)
            assert inside == [me]
            inside.clear()
            assert await mine.release(lease) is True

    with bench_on(shared(kind).url, world) as bench, ThreadPoolExecutor(8) as pool:
        run = asyncio.run if world == "tasks" else drive
        list(pool.map(lambda me: run(hold_often(me)), range(8)))
    assert len(fences) == 8 * times
    assert all(earlier < later for earlier, later in itertools.pairwise(fences))


async def test_who_is_cancelled_while_asking_holds_nothing_for_longer_than_a_lease(short_leases: None) -> None:
    dice = random.Random(1)
    with bench_on(shared("server").url, "tasks") as bench:
        await bench.release(await bench.acquire("a"))
        names = [f"{NAME}{number}" for number in range(200)]
        for name in names:
            caller = asyncio.create_task(bench.acquire("a", name))
            await asyncio.wait([caller], timeout=dice.uniform(0, 0.0006))
            if not caller.cancel():
                await bench.release(caller.result())
            await asyncio.wait([caller])
        await bench._link.close()  # it may be connecting
        wait_until(lambda: not any(bench.ask("EXISTS", name=name) for name in names), "all have ended")


@pytest.mark.slow
def test_a_server_that_hangs_costs_no_lease_on_another(threads: Bench, own_server: Server) -> None:
    with bench_on(own_server.url, "threads") as hung:
        theirs = [drive(hung.acquire("a", f"{NAME}{number}")) for number in range(5)]
        lease = drive(threads.acquire("a"))
        own_server.freeze()
        try:
            for _ in range(2):
                wait_for_renewal(threads, lease)
        finally:
            own_server.thaw()
            for each in theirs:
                drive(hung.release(each))
        assert drive(threads.release(lease)) is True


@pytest.mark.slow
def test_a_lease_outlives_a_server_that_hangs_for_a_moment(own_server: Server) -> None:
    with bench_on(own_server.url, "threads") as bench:
        lease = drive(bench.acquire("a"))
        own_server.freeze()
        time.sleep(lock.LEASE_SECONDS / 2)
        own_server.thaw()
        wait_for_renewal(bench, lease)
        assert drive(bench.release(lease)) is True


@pytest.mark.slow
def test_a_forked_child_renews_its_own_leases_and_not_its_parents(threads: Bench, short_leases: None) -> None:
    test_is_over, end_test = os.pipe()
    child_is_ready, say_ready = os.pipe()
    parent = os.fork()
    if parent == 0:
        try:
            os.close(end_test)
            drive(threads.acquire("parent", "the parent's"))
            if os.fork() == 0:
                lease = drive(threads.acquire("child", "the child's"))
                os.write(say_ready, lease.token.encode())
                os.read(test_is_over, 1)
        finally:
            os._exit(0)
    assert os.waitpid(parent, 0)[1] == 0
    childs = Lease("the child's", "ours", os.read(child_is_ready, 100).decode())
    wait_until(lambda: not threads.ask("EXISTS", name="the parent's"), "the parent's has ended", SHORT_LEASE + 0.5)
    wait_for_renewal(threads, childs)
    os.close(end_test)
    wait_until(lambda: not threads.ask("EXISTS", name="the child's"), "the child's has ended", SHORT_LEASE + 0.5)
    for end in (test_is_over, child_is_ready, say_ready):
        os.close(end)


def test_a_parent_goes_on_to_renew_after_a_fork(threads: Bench) -> None:
    lease = drive(threads.acquire("a"))
    child = os.fork()
    if child == 0:
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    wait_for_renewal(threads, lease)
    assert drive(threads.release(lease)) is True
