"""One run of the random driver: what its callers do, what they got, and whether that may be."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from aimemo import MISSING, Cache, InMemoryCache, SQLiteCache, cached_ai_call
from tests.kit.clock import Clock
from tests.kit.interleaving import Schedule, Shared, SharingCache, step_through
from tests.kit.looking import background

Kind = Literal["memory", "sqlite", "shared", "shared behind L1", "fleet", "fleet behind L1"]
KINDS: tuple[Kind, ...] = ("memory", "sqlite", "shared", "shared behind L1", "fleet", "fleet behind L1")

KEYS = ("a", "b")
TTL, WINDOW = 10, 10
NEVER = 1 << 60


@dataclass
class Origin:
    """Where a value comes from: an execution of the function, or a set by hand."""

    key: str
    began: int
    ended_at: float = float("inf")
    is_set: bool = False
    replaced: int = 0
    """When what put it in the place of all that was older was acknowledged; 0 if it replaces nothing."""


@dataclass
class Change:
    """An invalidation or a replacement that was acknowledged: nothing older may be seen after it."""

    process: int
    key: str
    older_than: int
    ended: int
    what: str

    @property
    def replaces(self) -> bool:
        return self.what in ("set", "refresh")

    def means(self, origin: Origin) -> bool:
        """What is set by hand has no tags."""
        return origin.key == self.key and not (self.what == "tag" and origin.is_set)


@dataclass
class Run:
    """Callers of some processes on one schedule. All that they got is checked as soon as they get it.

    Attributes:
        is_calm: nobody invalidates, replaces or fails, and time stands still: one execution of each key is enough.
    """

    seed: int
    kind: Kind
    is_calm: bool = False
    origins: list[Origin] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    trace: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.schedule = Schedule(self.seed)
        self.random = self.schedule.random
        self.clock = Clock()
        self.shared: Shared | None = None
        self.failures = 0
        self.landing: list[Origin] = []

    async def go(self) -> None:
        """Run it to its end, and look once more into every process when all is quiet."""
        with tempfile.TemporaryDirectory() as folder:
            self.caches = self.make_caches(Path(folder))
            try:
                await self.run_all()
            finally:
                for cache in self.caches:
                    await cache.close()
                if self.shared is not None:
                    await self.shared.end()

    def make_caches(self, folder: Path) -> list[Cache]:
        settings: dict[str, Any] = {"clock": self.clock, "deadline": 60}
        caches: list[Cache] = []
        if self.kind == "memory":
            caches.append(InMemoryCache(**settings))
        elif self.kind == "sqlite":
            caches.extend(SQLiteCache(folder / "cache.db", **settings) for _ in range(2))
        else:
            self.shared = Shared(self.schedule, self.clock)
            l1, leases = self.kind.endswith("L1"), self.kind.startswith("fleet")
            caches.extend(SharingCache(self.shared, str(at), l1=l1, leases=leases, **settings) for at in range(2))
        for cache in caches:
            step_through(cache, self.schedule)
        return caches

    async def run_all(self) -> None:
        self.functions = [self.decorate(cache) for cache in self.caches]
        self.lookups = [0] * len(self.caches)
        self.cancelled = [0] * len(self.caches)
        callers = [asyncio.create_task(self.act(at)) for at in range(self.random.randrange(2, 7))]
        await self.schedule.run(lambda: all(caller.done() for caller in callers) and self.is_quiet())
        for caller in callers:
            caller.result()
        self.check_counts()
        last = asyncio.create_task(self.look_at_all())
        await self.schedule.run(last.done)
        last.result()

    def is_quiet(self) -> bool:
        return not background() and (self.shared is None or not self.shared.undelivered)

    # What happens

    def decorate(self, cache: Cache) -> Any:
        @cached_ai_call(
            operation="ask", cache=cache, ttl=TTL, stale_while_revalidate=WINDOW, tags=lambda key: (f"tag-{key}",)
        )
        async def ask(key: str) -> Any:
            number = len(self.origins)
            origin = Origin(key, self.schedule.moment())
            self.origins.append(origin)
            self.tell(f"execution {number} of {key} begins")
            try:
                for _ in range(self.random.randrange(3)):
                    await self.schedule.step()
                if not self.is_calm and self.random.random() < 0.1:
                    self.failures += 1  # of a renewal in the background it is counted as an error
                    raise ValueError(number)
            finally:
                origin.ended_at = self.clock.now
                self.landing.append(origin)
                self.tell(f"execution {number} of {key} ends")
            return value_of(key, number)

        return ask

    def tell(self, what: str) -> None:
        self.trace.append(f"{self.schedule.now:4} {what}")

    async def act(self, caller: int) -> None:
        for _ in range(self.random.randrange(1, 5)):
            await self.schedule.step()
            process = self.random.randrange(len(self.caches))
            names = ("call", "call", "cancelled") if self.is_calm else tuple(ACTIONS)
            name = self.random.choice(names)
            key = self.random.choice(KEYS)
            self.tell(f"caller {caller} in process {process}: {name} {key}")
            await ACTIONS[name](self, process, key)
            self.tell(f"caller {caller} is back from {name} {key}")

    async def call(self, process: int, key: str) -> None:
        began, at = self.schedule.moment(), self.clock.now
        self.lookups[process] += 1
        try:
            value = await self.functions[process](key)
        except ValueError as error:
            assert self.origins[error.args[0]].key == key
        else:
            self.check(process, key, value, began, at)

    async def cancelled_call(self, process: int, key: str) -> None:
        began, at = self.schedule.moment(), self.clock.now
        caller = asyncio.create_task(self.functions[process](key))
        for _ in range(self.random.randrange(4)):
            await self.schedule.step()
        caller.cancel()
        try:
            value = await caller
        except asyncio.CancelledError:
            self.cancelled[process] += 1  # it may have been counted
        except ValueError:
            self.lookups[process] += 1
        else:
            self.lookups[process] += 1
            self.check(process, key, value, began, at)

    async def get(self, process: int, key: str) -> None:
        began, at = self.schedule.moment(), self.clock.now
        self.lookups[process] += 1
        value = await self.caches[process].get(self.functions[process].key_for(key), MISSING)
        if value is not MISSING:
            self.check(process, key, value, began, at)

    async def bypass(self, process: int, key: str) -> None:
        executions = len(self.origins)
        with contextlib.suppress(ValueError):
            value = await self.functions[process].bypass(key)
            assert number_of(value) >= executions
            self.origins[number_of(value)].key = "of no key: it may not be stored"

    async def refresh(self, process: int, key: str) -> None:
        began, executions = self.schedule.moment(), len(self.origins)
        with contextlib.suppress(ValueError):
            value = await self.functions[process].refresh(key)
            assert number_of(value) >= executions, "a refresh gave what was computed before it"
            self.origins[number_of(value)].replaced = self.schedule.moment()
            self.changed(process, key, began, "refresh")

    async def set(self, process: int, key: str) -> None:
        number = len(self.origins)
        began = self.schedule.moment()
        self.origins.append(Origin(key, began, is_set=True, replaced=NEVER))
        self.tell(f"number {number} is set")
        await self.caches[process].set(self.functions[process].key_for(key), value_of(key, number), TTL)
        self.origins[number].replaced, self.origins[number].ended_at = self.schedule.moment(), self.clock.now
        self.changed(process, key, began, "set")

    def changed(self, process: int, key: str, older_than: int, what: str) -> None:
        self.changes.append(Change(process, key, older_than, self.schedule.moment(), what))

    async def invalidate(self, process: int, key: str) -> None:
        cache, ask = self.caches[process], self.functions[process]
        ways: dict[str, Callable[[], Any]] = {
            "delete": lambda: cache.delete(ask.key_for(key)),
            "invalidate": lambda: ask.invalidate(key),
            "tag": lambda: cache.invalidate_tag(f"tag-{key}"),
            "operation": lambda: cache.invalidate_operation("ask"),
            "glob": lambda: cache.invalidate_pattern("op:as?|*"),
            "clear": lambda: cache.clear(),
        }
        way = self.random.choice(list(ways))
        began = self.schedule.moment()
        await ways[way]()
        for meant in (key,) if way in ("delete", "invalidate", "tag") else KEYS:
            self.changed(process, meant, began, way)

    async def advance(self, process: int, key: str) -> None:
        self.clock.advance(self.random.choice((1, TTL, TTL + WINDOW)))
        if not background():
            self.landing.clear()
        for origin in self.landing:  # those who wait for it get it yet
            origin.ended_at = self.clock.now

    # What may be

    def check(self, process: int, key: str, value: Any, began: int, at: float) -> None:
        origin = self.origins[number_of(value)]
        self.tell(f"process {process}, which asked at {began}, got {value}")
        assert origin.key == key, "the answer to another question"
        assert at < origin.ended_at + TTL + WINDOW, "an answer past its time"
        for change in self.changes:
            if change.process == process and change.ended < began:
                self.check_against(origin, change)

    def check_against(self, origin: Origin, change: Change) -> None:
        if not change.means(origin):
            return
        # Of two replacements at one time either may be the later one.
        since = origin.replaced if origin.is_set or (change.replaces and origin.replaced) else origin.began
        assert since >= change.older_than, f"an answer older than the {change.what} acknowledged at {change.ended}"

    def check_counts(self) -> None:
        for process, cache in enumerate(self.caches):
            stats = cache.stats()
            counted = stats.hits + stats.stale_hits + stats.misses + stats.coalesced
            expected = self.lookups[process]
            assert counted >= expected, f"{counted} of {expected} counted"
            assert counted <= expected + self.cancelled[process], f"{counted} of {expected} counted"
            assert stats.errors <= self.failures, "a fault that nobody made"
            assert not cache._flights._flights, "a flight that nobody leads"
        if self.is_calm:
            processes = 1 if self.kind.startswith("fleet") else len(self.caches)
            for key in KEYS:
                assert sum(origin.key == key for origin in self.origins) <= processes
        if self.shared is not None:
            held = [owner for owner, *_ in self.shared.leases.values() if owner != "-"]
            assert not held, "a lease that nobody gave back"

    async def look_at_all(self) -> None:
        """When all messages have arrived, every process respects what was acknowledged in any of them."""
        for process in range(len(self.caches)):
            for key in KEYS:
                began, at = self.schedule.moment(), self.clock.now
                value = await self.functions[process].peek(key)
                if value is not MISSING:
                    self.check(process, key, value, began, at)
                    for change in self.changes:
                        self.check_against(self.origins[number_of(value)], change)


ACTIONS: dict[str, Callable[[Run, int, str], Any]] = {
    "call": Run.call,
    "call again": Run.call,
    "cancelled": Run.cancelled_call,
    "get": Run.get,
    "bypass": Run.bypass,
    "refresh": Run.refresh,
    "set": Run.set,
    "invalidate": Run.invalidate,
    "invalidate again": Run.invalidate,
    "advance": Run.advance,
}


def value_of(key: str, number: int) -> Any:
    """Of one key a text, of the other one a list, which everybody gets a copy of."""
    return f"{key} {number}" if key == "a" else [key, number]


def number_of(value: Any) -> int:
    return int(value.split()[1]) if isinstance(value, str) else int(value[1])


def run(seed: int, kind: Kind) -> None:
    """One run; an error says how to have it again."""
    one = Run(seed, kind, is_calm=seed % 5 == 0)
    try:
        asyncio.run(one.go())
    except BaseException as error:
        error.add_note(f"AIMEMO_SEED={seed} on {kind}:\n" + "\n".join(one.trace))
        raise
