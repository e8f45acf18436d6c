"""For the tests of those who use aimemo: a clock to move by hand, a store that fails, calls that must be hits.

Works with any test framework; nothing here is imported by the library itself.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from aimemo.caches.memory import InMemoryCache
from aimemo.core.context import CallRecord, disabled, record_calls
from aimemo.core.entry import Entry, PackedEntry
from aimemo.core.memoizer import Memoizer
from aimemo.core.ports import LocalStore, Selector, Stored
from aimemo.core.runtime import Runtime
from aimemo.core.tiers import Tiers
from aimemo.stores.memory import MemoryStore

__all__ = ["FailingCache", "FakeClock", "assert_cached", "disabled"]

_ANSWERED: Final = ("hit", "stale", "coalesced")


class FakeClock:
    """Seconds that pass only when they are told to: give it to a cache as `clock=`.

    On Redis the entries live by the server's own time too, which no clock here moves.
    """

    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@contextlib.contextmanager
def assert_cached(*functions: Callable[..., Any]) -> Iterator[list[CallRecord]]:
    """Every decorated call made in the context is answered without its function being run for it.

    Args:
        functions: decorated functions that this is about; all, if none is named.

    Raises:
        AssertionError: at the end, if a call was computed, or if there was none.
    """
    operations = {function.operation for function in functions}  # type: ignore[attr-defined]
    with record_calls() as calls:
        yield calls
    concerned = [call for call in calls if not operations or call.operation in operations]
    if not concerned:
        raise AssertionError(f"no call of {' or '.join(sorted(operations)) or 'a decorated function'} was made")
    computed = [f"{call.operation} ({call.outcome})" for call in concerned if call.outcome not in _ANSWERED]
    if computed:
        raise AssertionError(f"{len(computed)} of {len(concerned)} calls were computed: {', '.join(computed)}")


class FailingCache(InMemoryCache):
    """A cache in memory whose store fails when it is told to, as a Redis does that is gone.

    Its settings are those of `InMemoryCache`.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._error: Exception | None = None

    def fail(self, error: Exception | None = None) -> None:
        """From now on everything that is asked of the store raises `error`, a `ConnectionError` if none is given."""
        self._error = error or ConnectionError("the store was told to fail")

    def recover(self) -> None:
        """The store works again; what it kept before is there."""
        self._error = None

    @property
    def _local(self) -> MemoryStore | None:  # type: ignore[override]
        return None

    def _assemble(self, runtime: Runtime) -> Memoizer:
        guard = self._guarded(_FailingStore(self._store, lambda: self._error), runtime)
        tiers = Tiers(store=guard, local=None, guard=guard, journal=self.journal, clock=self.clock)
        return Memoizer(tiers, runtime, self._flights, enabled=self.enabled)


class _FailingStore:
    reads_inline = False
    keeps_time = True

    def __init__(self, store: LocalStore, error: Callable[[], Exception | None]) -> None:
        self._store = store
        self._error = error

    def _working(self) -> LocalStore:
        error = self._error()
        if error is not None:
            raise copy.copy(error)  # each fault is an error of its own: one that comes again counts once
        return self._store

    def find(self, key: str) -> Entry | None:
        raise AssertionError("its reads are not inline")

    async def connect(self) -> None:
        await self._working().connect()

    async def get(self, key: str) -> Entry | None:
        return await self._working().get(key)

    async def get_many(self, keys: Iterable[str]) -> Mapping[str, Any]:
        return await self._working().get_many(keys)

    async def ticket(self, key: str, operation: str, tags: tuple[str, ...]) -> Any:
        return await self._working().ticket(key, operation, tags)

    async def set(self, key: str, entry: Entry, ticket: Any = None, *, replaces: bool = False) -> bool | None:
        # No live value, as in other stores.
        return await self._working().set(key, PackedEntry.like(entry), ticket, replaces=replaces)

    async def set_many(self, entries: Mapping[str, Entry]) -> int | None:
        return await self._working().set_many({key: PackedEntry.like(entry) for key, entry in entries.items()})

    async def delete_many(self, keys: Iterable[str]) -> frozenset[str]:
        return await self._working().delete_many(keys)

    async def sweep(self, selector: Selector) -> int:
        return await self._working().sweep(selector)

    async def page(self, cursor: str, count: int) -> tuple[list[Stored], str]:
        return await self._working().page(cursor, count)

    async def close(self) -> None:
        await self._store.close()
