"""`Cache`: what every cache is to its users, whatever it is made of."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Self

from aimemo.caches.blocking import BlockingCache
from aimemo.caches.observing import NoClient, Observer, tell_monitor, tell_operation
from aimemo.caches.surface import Surface
from aimemo.core.events import KINDS, SEED_EVENTS, CacheEvent
from aimemo.core.guard import Guard
from aimemo.core.journal import Journal
from aimemo.core.memoizer import Memoizer
from aimemo.core.policy import check_settings
from aimemo.core.ports import Clock, LocalStore, Store
from aimemo.core.runtime import Failure, Runtime, ThreadRuntime
from aimemo.core.single_flight import Flights
from aimemo.core.stats import CacheStats
from aimemo.core.types import TRUSTED_MODULES, TypeResolver
from aimemo.errors import ValidationError


class Cache(Surface):
    """A cache: its settings, the parts that both worlds share, and one assembly for each world.

    Its methods are awaitable; `blocking` has the same ones for code that does not await.

    Args:
        default_ttl: seconds (an integer) that an entry stays fresh; 0 never expires.
        operation_ttls: the same for single operations.
        text_hash_threshold: up to so many characters of a call's text stay readable in its key.
        compression_threshold: packed values over so many bytes are compressed where they are stored.
        compression_level: of zstd, 1 to 9.
        namespace: keeps apart what shares a store; letters, digits, `_`, `.` and `-`.
        performance_monitor: an object with `record_cache_operation_time()`, told of every operation.
        deadline: seconds that the stores may add to one call.
        l1_max_ttl: seconds that the in-process tier may keep what other processes share.
        strict: raise the stores' faults as `InfrastructureError` instead of hiding them.
        trusted_modules: prefixes of modules whose loaded classes stored values may be restored to.
        clock: gives seconds; the monotonic clock (in shared stores: the store's time) if not given.
        enabled: False calls through and keeps nothing.
        own_settings: what a kind of cache adds, to be checked together with the rest.

    Raises:
        ValidationError: naming every faulty setting.
    """

    backend: ClassVar[str] = ""
    """What keeps the entries: `memory`, `sqlite` or `redis`."""

    _performance_monitor = Observer(tell_monitor)
    _on_cache_operation = Observer(tell_operation)
    _redis_client: Any = NoClient()
    """Nothing: the seeds' documents patch and close it. Connections are not one client (`link/`)."""

    def __init__(
        self, *, default_ttl: int = 3600, operation_ttls: Mapping[str, int] | None = None,
        text_hash_threshold: int = 0, compression_threshold: int = 1000, compression_level: int = 3,
        namespace: str = "aimemo", performance_monitor: Any = None, deadline: float = 0.1,
        l1_max_ttl: float = 60, strict: bool = False, trusted_modules: Iterable[str] = TRUSTED_MODULES,
        clock: Clock | None = None, enabled: bool = True, own_settings: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        check_settings({**locals(), **(own_settings or {})})
        self.default_ttl = default_ttl
        self.operation_ttls = dict(operation_ttls or {})
        self.text_hash_threshold = text_hash_threshold
        self.compression_threshold = compression_threshold
        self.compression_level = compression_level
        self.namespace = namespace
        self.deadline = deadline
        self.l1_max_ttl = l1_max_ttl
        self.strict = strict
        self.enabled = enabled
        if isinstance(trusted_modules, str):
            raise ValidationError(
                "trusted_modules must be a tuple of prefixes, not one string", {"trusted_modules": "type"}
            )
        self.trusted_modules = tuple(trusted_modules)
        self.clock: Clock = clock or time.monotonic
        self.wall_clock: Clock = clock or time.time
        self.types = self.types_for(())
        self.journal = Journal(self.clock)
        self._guards: list[Guard] = []
        self._flights = Flights()
        self._memoizers: dict[str, Memoizer] = {}
        self.claims: dict[str, tuple[str, str | None]] = {}
        self._performance_monitor = performance_monitor
        self._on_cache_operation = None

    # What the kinds of caches differ in

    def _assemble(self, runtime: Runtime) -> Memoizer:
        raise NotImplementedError

    @property
    def _local(self) -> LocalStore | None:
        return None

    def _guarded(self, store: Store, runtime: Runtime) -> Guard:
        guard = Guard(
            store, runtime, clock=time.monotonic, seconds=self.deadline, strict=self.strict,
            report=self.journal.error, changed=self.journal.breaker,
        )  # fmt: skip
        self._guards.append(guard)
        return guard

    # The two worlds

    def memoizer_of(self, world: str) -> Memoizer:
        """The assembly for `tasks` or for `threads`."""
        found = self._memoizers.get(world)
        if found is None:
            if world == "threads":
                runtime: Runtime = ThreadRuntime()
            else:
                from aimemo.core.aio import TaskRuntime  # asyncio is imported only where it is used

                runtime = TaskRuntime()
            found = self._memoizers.setdefault(world, self._assemble(runtime))
        return found

    @property
    def memoizer(self) -> Memoizer:
        return self.memoizer_of("tasks")

    @property
    def blocking(self) -> BlockingCache:
        """The same methods for code that does not await, over the same entries."""
        return BlockingCache(self, self.memoizer_of("threads"))

    def types_for(self, expected: Iterable[type]) -> TypeResolver:
        return TypeResolver(expected, self.trusted_modules)

    async def get_or_compute(self, key: str, compute: Callable[[], Any], ttl: Any = None) -> Any:
        """The value of a key, or what `compute` (plain or async) gives, kept; computed once for all who wait."""
        result = await self.recall(key, compute, ttl)
        return result.throw() if isinstance(result, Failure) else result

    async def connect(self) -> bool:
        """Whether the store can be used now. May be called at any time, and need not be."""
        return await self.memoizer.connect()

    async def ping(self) -> bool:
        """Whether the store answers."""
        return await self.memoizer.connect()

    async def close(self) -> None:
        """Release what the cache holds open; it opens again when used again."""
        await self.memoizer.tiers.store.close()

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # Watching

    def stats(self) -> CacheStats:
        """A snapshot of the counts, in all and by operation."""
        snapshot = self.journal.stats.snapshot(self._local.entries() if self._local is not None else ())
        is_open = any(guard.is_leaving_alone for guard in self._guards)
        return dataclasses.replace(snapshot, breaker="open") if is_open else snapshot

    def on(self, kind: str, function: Callable[[CacheEvent], Any]) -> None:
        """Call `function`, plain or async, with the `CacheEvent` of everything of this kind.

        Raises:
            ValidationError: for an unknown kind or something that cannot be called.
        """
        self._subscribe(KINDS, kind, function)

    def off(self, kind: str, function: Callable[[CacheEvent], Any]) -> bool:
        """Undo `on`. Whether there was anything to undo."""
        return self.journal.bus.unsubscribe(kind, function)

    def register_callback(self, event: str, function: Callable[..., Any]) -> None:
        """Call `function`, plain or async, on `get_success(key, value)`, `get_miss(key)`,
        `set_success(key, value)` or `delete_success(key)`. Raises as `on`."""
        self._subscribe(SEED_EVENTS, event, function)

    def unregister_callback(self, event: str, function: Callable[..., Any]) -> bool:
        """Undo `register_callback`. Whether there was anything to undo."""
        return self.journal.bus.unsubscribe(event, function)

    def _subscribe(self, kinds: tuple[str, ...], kind: str, function: Callable[..., Any]) -> None:
        if kind not in kinds:
            raise ValidationError(f"unknown event {kind!r}; events here are {', '.join(kinds)}", {"event": kind})
        self.journal.bus.subscribe(kind, function)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} namespace={self.namespace!r} default_ttl={self.default_ttl}>"


CacheInterface = Cache
"""The name that the seeds' documents give it."""
