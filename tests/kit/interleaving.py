"""Caches whose every step waits for a schedule, so that an order of steps can be chosen by a seed and had again.

The schedule knows no real time: it lets the tasks of one event loop come to rest, and then lets one step go on.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from aimemo import Cache
from aimemo.core.aio import TaskRuntime
from aimemo.core.entry import Entry, PackedEntry
from aimemo.core.fleet import Fleet
from aimemo.core.keys import operation_of
from aimemo.core.memoizer import Memoizer
from aimemo.core.ports import Lease, Selector
from aimemo.core.runtime import Runtime
from aimemo.core.single_flight import Flights
from aimemo.core.tiers import Tiers
from aimemo.stores.memory import MemoryStore
from aimemo.stores.tiered import TieredStore

T = TypeVar("T")

Told = Callable[[Selector], None]

PATIENCE = 1000
"""Turns of the event loop in which something has to reach a step, if anything is to go on at all."""

UNKEPT = "-"


class Stuck(AssertionError):
    """Tasks wait for what nobody is going to do."""


class Schedule:
    """The steps that wait, of which one after another, drawn by a seed, may go on."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 0
        """How many moments there have been: every step and every look at it is one."""
        self._waiting: list[asyncio.Future[None]] = []

    def moment(self) -> int:
        self.now += 1
        return self.now

    async def step(self) -> None:
        """Wait until it is this step's turn."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        finally:
            if turn in self._waiting:
                self._waiting.remove(turn)

    async def run(self, is_over: Callable[[], bool]) -> None:
        """Let one step after another go on until it is over."""
        idle = 0
        while not is_over():
            for _ in range(self.random.randrange(1, 4)):
                await asyncio.sleep(0)
            idle = 0 if self._waiting else idle + 1
            if idle > PATIENCE:
                raise Stuck
            if self._waiting:
                self.moment()
                turn = self._waiting.pop(self.random.randrange(len(self._waiting)))
                if not turn.done():
                    turn.set_result(None)


class SteppedRuntime(TaskRuntime):
    """Tasks that sleep, and call what blocks, for a number of steps instead of a time."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule

    async def sleep(self, seconds: float) -> None:
        await self._schedule.step()

    async def offload(self, function: Callable[..., T], *args: Any) -> T:
        await self._schedule.step()
        result = function(*args)
        await self._schedule.step()
        return result


class Shared:
    """What processes share: entries, a log of invalidations, leases and a channel, with the rules of Redis."""

    def __init__(self, schedule: Schedule, clock: Callable[[], float]) -> None:
        self.schedule = schedule
        self.clock = clock
        self.entries: dict[str, dict[str, Any]] = {}
        self.log: list[Selector] = []
        self.leases: dict[str, tuple[str, int, tuple[str, ...], float]] = {}
        self.undelivered = 0
        self._listeners: dict[str, tuple[Told, asyncio.Queue[Selector]]] = {}
        self._deliverers: list[asyncio.Task[None]] = []

    def listen(self, name: str, told: Told) -> None:
        queue: asyncio.Queue[Selector] = asyncio.Queue()
        self._listeners[name] = (told, queue)
        self._deliverers.append(asyncio.create_task(self._deliver(told, queue)))

    async def _deliver(self, told: Told, queue: asyncio.Queue[Selector]) -> None:
        while True:
            selector = await queue.get()
            await self.schedule.step()
            told(selector)
            self.undelivered -= 1

    def publish(self, sender: str, selector: Selector) -> None:
        for name, (_, queue) in self._listeners.items():
            if name != sender:
                self.undelivered += 1
                queue.put_nowait(selector)

    async def end(self) -> None:
        for deliverer in self._deliverers:
            deliverer.cancel()
        await asyncio.gather(*self._deliverers, return_exceptions=True)

    def is_void(self, ticket: int, key: str, operation: str, tags: tuple[str, ...]) -> bool:
        return any(selector.matches(key, operation, tags) for selector in self.log[ticket:])

    def usable(self, key: str) -> Entry | None:
        held = self.entries.get(key)
        return PackedEntry(**held) if held is not None and held["usable_until"] > self.clock() else None

    def keep(self, sender: str, entry: Entry, *, replaces: bool) -> None:
        assert entry.payload is not None
        if replaces:
            self.log.append(Selector("key", entry.key))
        if replaces or self.usable(entry.key) is not None:
            self.publish(sender, Selector("key", entry.key))
        self.entries[entry.key] = {
            "key": entry.key, "payload": entry.payload, "created": entry.created,
            "fresh_until": entry.expires_at, "usable_until": entry.usable_until,
            "operation": entry.operation, "tags": entry.tags,
        }  # fmt: skip

    def remove(self, selector: Selector) -> list[str]:
        meant = [key for key, held in self.entries.items() if selector.matches(key, held["operation"], held["tags"])]
        return [key for key in meant if self.entries.pop(key)["usable_until"] > self.clock()]


class SharedStore:
    """One process's way to what all share: a request travels, does its work at once, and its reply travels."""

    reads_inline = False
    keeps_time = True

    def __init__(self, shared: Shared, name: str) -> None:
        self.shared = shared
        self.name = name

    async def _ask(self, work: Callable[[], T]) -> T:
        await self.shared.schedule.step()
        result = work()
        await self.shared.schedule.step()
        return result

    def find(self, key: str) -> Entry | None:
        raise NotImplementedError

    async def connect(self) -> None: ...

    async def get(self, key: str) -> Entry | None:
        return await self._ask(lambda: self.shared.usable(key))

    async def get_many(self, keys: Iterable[str]) -> Mapping[str, Any]:
        return await self._ask(lambda: {key: entry for key in keys if (entry := self.shared.usable(key))})

    async def ticket(self, key: str, operation: str, tags: tuple[str, ...]) -> Any:
        return await self._ask(lambda: (len(self.shared.log),))

    async def set(self, key: str, entry: Entry, ticket: Any = None, *, replaces: bool = False) -> bool | None:
        def work() -> bool:
            if ticket is not None and self.shared.is_void(ticket[0], key, entry.operation, entry.tags):
                return False
            self.shared.keep(self.name, entry, replaces=replaces)
            return True

        return await self._ask(work)

    async def set_many(self, entries: Mapping[str, Entry]) -> int | None:
        for entry in entries.values():
            await self._ask(lambda entry=entry: self.shared.keep(self.name, entry, replaces=True))
        return len(entries)

    async def delete_many(self, keys: Iterable[str]) -> frozenset[str]:
        removed: list[str] = []
        for key in keys:
            selector = Selector("key", key)
            removed += await self._ask(lambda selector=selector: self._remove_and_tell(selector))
        return frozenset(removed)

    def _remove_and_tell(self, selector: Selector) -> list[str]:
        self.shared.log.append(selector)
        self.shared.publish(self.name, selector)
        return self.shared.remove(selector)

    async def sweep(self, selector: Selector) -> int:
        await self._ask(lambda: self.shared.log.append(selector))
        removed = await self._ask(lambda: self.shared.remove(selector))
        await self._ask(lambda: self.shared.publish(self.name, selector))
        return len(removed)

    async def page(self, cursor: str, count: int) -> tuple[list[Any], str]:
        return [], ""

    async def close(self) -> None: ...


class SharedLock:
    """The leases of one process. They last until they are given back, or an invalidation means them."""

    def __init__(self, shared: Shared, name: str) -> None:
        self._shared = shared
        self._name = name

    async def acquire(self, name: str, tags: tuple[str, ...] = ()) -> Lease:
        await self._shared.schedule.step()
        try:
            return self._take(name, tags)
        finally:
            await self._shared.schedule.step()

    def _take(self, name: str, tags: tuple[str, ...]) -> Lease:
        owner, since, held_tags, until = self._shared.leases.get(name, ("", 0, (), 0.0))
        if (
            owner
            and not self._shared.is_void(since, name, operation_of(name), held_tags)
            and self._shared.clock() < until
        ):
            return Lease(name, "free" if owner in (UNKEPT, self._name) else "theirs")
        self._shared.leases[name] = (self._name, len(self._shared.log), tags, float("inf"))
        return Lease(name, "ours", str(len(self._shared.log)))

    def abandon(self, lease: Lease) -> None: ...

    async def release(self, lease: Lease, *, unkept: bool = False) -> bool:
        await self._shared.schedule.step()
        owner, since, tags, _ = self._shared.leases.get(lease.name, ("", 0, (), 0.0))
        is_held = owner == self._name and str(since) == lease.token
        if is_held and unkept:
            self._shared.leases[lease.name] = (UNKEPT, since, tags, self._shared.clock() + 1)
        elif is_held:
            del self._shared.leases[lease.name]
        return is_held


class SharingCache(Cache):
    """One process of those that share: put together as the Redis cache is, with or without an L1 and leases."""

    def __init__(self, shared: Shared, name: str, *, l1: bool, leases: bool, **settings: Any) -> None:
        super().__init__(**settings)
        self.shared = shared
        self.name = name
        self.l1 = MemoryStore(100, None, clock=self.clock, left=self.journal.left) if l1 else None
        self._has_leases = leases
        shared.listen(name, _told(self.l1, self._flights))

    @property
    def _local(self) -> MemoryStore | None:
        return self.l1

    def _assemble(self, runtime: Runtime) -> Memoizer:
        guard = self._guarded(SharedStore(self.shared, self.name), runtime)
        store = guard if self.l1 is None else TieredStore(self.l1, guard)
        tiers = Tiers(store=store, local=self.l1, guard=guard, journal=self.journal, clock=self.clock)
        fleet = Fleet(SharedLock(self.shared, self.name), tiers, guard, runtime) if self._has_leases else None
        return Memoizer(tiers, runtime, self._flights, fleet=fleet, enabled=self.enabled)


def _told(l1: MemoryStore | None, flights: Flights) -> Told:
    def told(selector: Selector) -> None:
        if l1 is not None:
            l1.invalidate(selector)
        flights.detach(selector)

    return told


def step_through(cache: Cache, schedule: Schedule) -> None:
    """Let the tasks of a cache wait for the schedule wherever they would wait for something else."""
    cache._memoizers["tasks"] = cache._assemble(SteppedRuntime(schedule))
