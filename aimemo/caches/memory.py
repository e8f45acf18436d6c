"""A cache in this process's memory."""

from __future__ import annotations

from typing import Any

from aimemo.caches.interface import Cache
from aimemo.core.memoizer import Memoizer
from aimemo.core.runtime import Runtime
from aimemo.core.tiers import Tiers
from aimemo.stores.memory import MemoryStore


class InMemoryCache(Cache):
    """A cache of at most `max_size` entries in this process, evicted by SIEVE.

    Values that can be changed are kept packed and unpacked for every reader; nothing is compressed.

    Args:
        max_size: entries at most.
        default_ttl: as of every `Cache`, like the settings that follow it.
        max_bytes: bytes of packed values at most; None is no limit. A larger value is not kept.
    """

    backend = "memory"

    def __init__(
        self, max_size: int = 1000, default_ttl: int = 3600, *, max_bytes: int | None = None, **settings: Any
    ) -> None:
        own = {"max_size": max_size, "max_bytes": max_bytes}
        super().__init__(default_ttl=default_ttl, own_settings=own, **settings)
        self.max_size = max_size
        self.max_bytes = max_bytes
        self._store = MemoryStore(max_size, max_bytes, clock=self.clock, left=self.journal.left)

    @classmethod
    def over(cls, store: MemoryStore, **settings: Any) -> InMemoryCache:
        """A cache over a store that is there already: the in-process tier of another cache."""
        cache = cls(store.max_size, **settings)
        cache._store = store
        return cache

    @property
    def _local(self) -> MemoryStore:
        return self._store

    def _assemble(self, runtime: Runtime) -> Memoizer:
        tiers = Tiers(store=self._store, local=self._store, guard=None, journal=self.journal, clock=self.clock)
        return Memoizer(tiers, runtime, self._flights, enabled=self.enabled)
