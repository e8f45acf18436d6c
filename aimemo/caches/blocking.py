"""The same cache for code that does not await."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from aimemo.caches.surface import Surface
from aimemo.core.memoizer import Memoizer
from aimemo.core.runtime import Failure, drive
from aimemo.errors import ValidationError

if TYPE_CHECKING:
    from aimemo.caches.interface import Cache


class _ThreadSurface(Surface):
    def __init__(self, cache: Surface, memoizer: Memoizer) -> None:
        self.default_ttl = cache.default_ttl
        self.operation_ttls = cache.operation_ttls
        self.text_hash_threshold = cache.text_hash_threshold
        self.types = cache.types
        self._memoizer = memoizer

    @property
    def memoizer(self) -> Memoizer:
        return self._memoizer


class BlockingCache:
    """The surface of a cache as plain methods, over the same entries. Each promises what its twin does."""

    def __init__(self, cache: Cache, memoizer: Memoizer) -> None:
        self._surface = _ThreadSurface(cache, memoizer)
        self.default_ttl = cache.default_ttl
        self.operation_ttls = cache.operation_ttls
        self.namespace = cache.namespace
        self.stats = cache.stats
        self.on = cache.on
        self.off = cache.off
        self.register_callback = cache.register_callback
        self.unregister_callback = cache.unregister_callback

    def get(self, key: str, default: Any = None) -> Any:
        return drive(self._surface.get(key, default))

    def set(self, key: str, value: Any, ttl: Any = None) -> None:
        drive(self._surface.set(key, value, ttl))

    def delete(self, key: str) -> bool:
        return drive(self._surface.delete(key))

    def exists(self, key: str) -> bool:
        return drive(self._surface.exists(key))

    def ttl(self, key: str) -> float | None:
        return drive(self._surface.ttl(key))

    def clear(self) -> int:
        return drive(self._surface.clear())

    def get_many(self, keys: Iterable[str]) -> dict[str, Any]:
        return drive(self._surface.get_many(keys))

    def set_many(self, values: Mapping[str, Any], ttl: Any = None) -> None:
        drive(self._surface.set_many(values, ttl))

    def delete_many(self, keys: Iterable[str]) -> int:
        return drive(self._surface.delete_many(keys))

    def get_or_compute(self, key: str, compute: Callable[[], Any], ttl: Any = None) -> Any:
        if inspect.iscoroutinefunction(compute):
            raise ValidationError("compute must be a plain function here; an async one needs the awaitable twin")
        result = drive(self._surface.recall(key, compute, ttl))
        return result.throw() if isinstance(result, Failure) else result

    def invalidate_pattern(self, pattern: str) -> int:
        return drive(self._surface.invalidate_pattern(pattern))

    def invalidate_operation(self, name: str) -> int:
        return drive(self._surface.invalidate_operation(name))

    def invalidate_tag(self, tag: str) -> int:
        return drive(self._surface.invalidate_tag(tag))

    def build_key(self, text: str, operation: str, options: Mapping[str, Any] | None = None) -> str:
        return self._surface.build_key(text, operation, options)

    def connect(self) -> bool:
        return drive(self._surface.memoizer.connect())

    def ping(self) -> bool:
        return self.connect()

    def close(self) -> None:
        drive(self._surface.memoizer.tiers.store.close())

    def __enter__(self) -> BlockingCache:
        self.connect()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
