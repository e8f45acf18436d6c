"""Attributes of a cache that may be replaced at any time by somebody who is told of every operation."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final

from aimemo.core.events import CacheEvent

_KINDS: Final = ("hit", "stale", "coalesced", "miss", "set", "delete", "invalidated", "evicted")
_WRITES: Final = ("set", "delete")


class Observer:
    """A data descriptor: what is assigned is told of every operation through hooks; None ends that.

    Args:
        tell: called with what was assigned and a `CacheEvent`; what it returns may be awaitable.
    """

    def __init__(self, tell: Callable[[Any, CacheEvent], Any]) -> None:
        self._tell = tell

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, cache: Any, owner: type | None = None) -> Any:
        return self if cache is None else cache.__dict__[self._name]

    def __set__(self, cache: Any, observer: Any) -> None:
        hook = f"{self._name} hook"
        former = cache.__dict__.pop(hook, None)
        tell = None if observer is None else functools.partial(self._tell, observer)
        for kind in _KINDS:
            if former is not None:
                cache.journal.bus.unsubscribe(kind, former)
            if tell is not None:
                cache.journal.bus.subscribe(kind, tell)
        # Under the attribute's own name, where `unittest.mock.patch.object` finds what to put back.
        cache.__dict__[self._name] = observer
        if tell is not None:
            cache.__dict__[hook] = tell


def operation_of(event: CacheEvent) -> str:
    """`get`, or what else was done."""
    return "get" if event.kind in ("hit", "stale", "coalesced", "miss") else event.kind


def tell_monitor(monitor: Any, event: CacheEvent) -> Any:
    """To an object like `CachePerformanceMonitor`."""
    match operation_of(event):
        case "invalidated":
            return _call(monitor, "record_invalidation_event", event.operation, event.count, 0.0, event.reason)
        case "evicted":
            return _call(monitor, "record_eviction")
        case operation:
            return monitor.record_cache_operation_time(
                operation=operation, duration=event.seconds or 0.0,
                cache_hit=None if operation in _WRITES else event.kind != "miss", text_length=0,
                additional_data={
                    "operation": event.operation, "size_raw": event.size_raw, "size_stored": event.size_stored,
                },
            )  # fmt: skip


def _call(monitor: Any, method: str, *args: Any) -> Any:
    """Not every monitor wants to know of everything."""
    found = getattr(monitor, method, None)
    return None if found is None else found(*args)


def tell_operation(function: Callable[[str, CacheEvent], Any], event: CacheEvent) -> Any:
    """To a function that takes the operation (`get`, `set`, `delete`…) and the event."""
    return function(operation_of(event), event)


class NoClient:
    """Stands where the seeds' documents look for a client, to patch it or to close it."""

    async def close(self) -> None:
        """Nothing is open here."""
