"""aimemo remembers what an AI call answered, so that the same question is paid for once.

    from aimemo import cached_ai_call

    @cached_ai_call(operation="summarize", ttl=86400)
    async def summarize(text: str, *, model: str = "small") -> str: ...

Importing aimemo imports nothing else; each public name brings what it needs when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import aimemo.seed_paths  # noqa: F401 - from now on the module paths of the seeds are found

__version__ = "0.1.0"

_HOMES = {
    "aimemo.memoize": ("cached_ai_call",),
    "aimemo.cached": ("MISSING", "CachedCoroutineFunction", "CachedFunction"),
    "aimemo.core.context": ("CallRecord", "bypass", "record_calls", "refresh"),
    "aimemo.core.events": ("CacheEvent", "compose_callbacks"),
    "aimemo.core.stats": ("CacheStats",),
    "aimemo.core.types": ("register_type",),
    "aimemo.caches.interface": ("Cache", "CacheInterface"),
    "aimemo.caches.memory": ("InMemoryCache",),
    "aimemo.caches.sqlite": ("SQLiteCache",),
    "aimemo.caches.redis": ("GenericRedisCache",),
    "aimemo.caches.ai": ("AIResponseCache",),
    "aimemo.measure.monitor": ("CachePerformanceMonitor",),
    "aimemo.coordination.cache_service": ("CacheService",),
    "aimemo.coordination.channel": ("Channel",),
    "aimemo.coordination.idempotency": ("IdempotencyService",),
    "aimemo.coordination.rate_limiter": ("RateLimit", "RateLimiter", "rate_limited"),
    "aimemo.coordination.redis_lock": ("RedisLock",),
    "aimemo.setup.factory": ("CacheFactory",),
    "aimemo.setup.config": ("cache_from_url", "configure", "get_cache"),
    "aimemo.errors": (
        "AimemoError", "AimemoWarning", "CodecError", "ConfigurationError", "IdempotencyConflictError",
        "InfrastructureError", "LockLostError", "RateLimitedError", "UnkeyableArgumentError", "ValidationError",
    ),
}  # fmt: skip
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)  # noqa: PLE0605 - one table of names, not two


def __getattr__(name: str) -> Any:
    module = _HOME_OF.get(name)
    if module is None:
        raise AttributeError(f"module 'aimemo' has no attribute {name!r}")
    found = globals()[name] = getattr(importlib.import_module(module), name)
    return found


def __dir__() -> list[str]:
    return [*globals(), *__all__]


if TYPE_CHECKING:
    from aimemo.cached import MISSING as MISSING
    from aimemo.cached import CachedCoroutineFunction as CachedCoroutineFunction
    from aimemo.cached import CachedFunction as CachedFunction
    from aimemo.caches.ai import AIResponseCache as AIResponseCache
    from aimemo.caches.interface import Cache as Cache
    from aimemo.caches.interface import CacheInterface as CacheInterface
    from aimemo.caches.memory import InMemoryCache as InMemoryCache
    from aimemo.caches.redis import GenericRedisCache as GenericRedisCache
    from aimemo.caches.sqlite import SQLiteCache as SQLiteCache
    from aimemo.coordination.cache_service import CacheService as CacheService
    from aimemo.coordination.channel import Channel as Channel
    from aimemo.coordination.idempotency import IdempotencyService as IdempotencyService
    from aimemo.coordination.rate_limiter import RateLimit as RateLimit
    from aimemo.coordination.rate_limiter import RateLimiter as RateLimiter
    from aimemo.coordination.rate_limiter import rate_limited as rate_limited
    from aimemo.coordination.redis_lock import RedisLock as RedisLock
    from aimemo.core.context import CallRecord as CallRecord
    from aimemo.core.context import bypass as bypass
    from aimemo.core.context import record_calls as record_calls
    from aimemo.core.context import refresh as refresh
    from aimemo.core.events import CacheEvent as CacheEvent
    from aimemo.core.events import compose_callbacks as compose_callbacks
    from aimemo.core.stats import CacheStats as CacheStats
    from aimemo.core.types import register_type as register_type
    from aimemo.errors import AimemoError as AimemoError
    from aimemo.errors import AimemoWarning as AimemoWarning
    from aimemo.errors import CodecError as CodecError
    from aimemo.errors import ConfigurationError as ConfigurationError
    from aimemo.errors import IdempotencyConflictError as IdempotencyConflictError
    from aimemo.errors import InfrastructureError as InfrastructureError
    from aimemo.errors import LockLostError as LockLostError
    from aimemo.errors import RateLimitedError as RateLimitedError
    from aimemo.errors import UnkeyableArgumentError as UnkeyableArgumentError
    from aimemo.errors import ValidationError as ValidationError
    from aimemo.measure.monitor import CachePerformanceMonitor as CachePerformanceMonitor
    from aimemo.memoize import cached_ai_call as cached_ai_call
    from aimemo.setup.config import cache_from_url as cache_from_url
    from aimemo.setup.config import configure as configure
    from aimemo.setup.config import get_cache as get_cache
    from aimemo.setup.factory import CacheFactory as CacheFactory
