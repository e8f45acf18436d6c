"""`CacheFactory`: caches for common uses, in memory where Redis cannot be reached."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Final, NoReturn

from aimemo.caches.interface import Cache
from aimemo.core.policy import check_settings
from aimemo.errors import ConfigurationError, InfrastructureError, ValidationError
from aimemo.link.urls import CONNECTION_SETTINGS, has_impossible_port
from aimemo.measure.monitor import CachePerformanceMonitor
from aimemo.setup.config import redis_url_of_environment
from aimemo.setup.presets import SIZE, preset

log = logging.getLogger("aimemo")

LOCAL_REDIS: Final = "redis://localhost:6379/0"

_AI_SETTINGS: Final = ("text_hash_threshold", "operation_ttls", SIZE)

_OF_REDIS_ONLY: Final = frozenset(
    {"redis_url", "enable_l1_cache", "l1_cache_size", "client", "leases", "max_connections", "connect_timeout"}
)


class CacheFactory:
    """Makes caches that are checked before they are handed out: what comes back works.

    All faults of the settings come in one `ValidationError`. Where Redis does not answer within 2 seconds, a
    cache in memory with the same settings comes instead, or with `fail_on_connection_error=True` an
    `InfrastructureError`. Settings beyond those named are those of `GenericRedisCache`; `memory_cache_size`
    takes the place of `l1_cache_size` and is the size of a cache in memory.
    """

    def __init__(self) -> None:
        self._performance_monitor = CachePerformanceMonitor()

    async def for_web_app(
        self, redis_url: str | None = None, default_ttl: int = 1800, enable_l1_cache: bool = True,
        l1_cache_size: int = 200, compression_threshold: int = 2000, compression_level: int = 6,
        fail_on_connection_error: bool = False, **settings: Any,
    ) -> Cache:  # fmt: skip
        """A cache for sessions, pages and the like. `redis_url` is that of the environment if not given."""
        return await self._make("generic", _given(locals()))

    async def for_ai_app(
        self, redis_url: str | None = None, default_ttl: int = 3600, enable_l1_cache: bool = True,
        l1_cache_size: int = 100, compression_threshold: int = 1000, compression_level: int = 6,
        text_hash_threshold: int = 500, memory_cache_size: int | None = None,
        operation_ttls: Mapping[str, int] | None = None, use_memory_cache: bool = False,
        fail_on_connection_error: bool = False, **settings: Any,
    ) -> Cache:  # fmt: skip
        """A cache for answers of language models. `use_memory_cache` does without Redis."""
        return await self._make("ai", _given(locals()))

    async def for_testing(
        self, redis_url: str = "redis://localhost:6379/15", default_ttl: int = 60, enable_l1_cache: bool = False,
        l1_cache_size: int = 50, compression_threshold: int = 1000, compression_level: int = 1,
        use_memory_cache: bool = False, fail_on_connection_error: bool = False, **settings: Any,
    ) -> Cache:  # fmt: skip
        """A cache for tests: entries live shortly, and in a database of their own. `use_memory_cache` does without."""
        return await self._make("generic", _given(locals()))

    async def create_cache_from_config(
        self, config: Mapping[str, Any] | str, fail_on_connection_error: bool = False
    ) -> Cache:
        """A cache from a dictionary of settings, which may name a `preset` whose settings it changes.

        With settings for language models (`text_hash_threshold`, `operation_ttls`, `memory_cache_size`) it is an
        `AIResponseCache`, otherwise a `GenericRedisCache`. A string is the name of a preset; its `redis_url` is
        that of the environment.

        Raises:
            ValidationError: for faulty settings, or without a `redis_url`.
        """
        if isinstance(config, str):
            config = {"preset": config, "redis_url": redis_url_of_environment() or LOCAL_REDIS}
        if not isinstance(config, Mapping):
            raise ValidationError("config must be a dictionary or the name of a preset", {"config": "type"})
        if not config:
            raise ValidationError("config dictionary cannot be empty: redis_url is required", {"redis_url": "required"})
        own = dict(config)
        chosen = {**(preset(own.pop("preset")) if "preset" in own else {}), **own}
        if chosen.get("redis_url") is None and not chosen.get("use_memory_cache"):
            _refuse_without_url(chosen)
        kind = "ai" if any(name in chosen for name in _AI_SETTINGS) else "generic"
        return await self._make(kind, {"fail_on_connection_error": fail_on_connection_error, **chosen})

    async def _make(self, kind: str, settings: dict[str, Any]) -> Cache:
        if settings.get("redis_url") is None:
            settings["redis_url"] = redis_url_of_environment() or LOCAL_REDIS
        check_settings(settings)
        must_connect = settings.pop("fail_on_connection_error", False)
        in_memory = settings.pop("use_memory_cache", False)
        size = settings.pop(SIZE, None)
        if size is not None:
            settings["l1_cache_size"] = size
        settings.setdefault("performance_monitor", self._performance_monitor)
        if in_memory:
            return _in_memory(settings)
        try:
            return await _connected(kind, settings)
        except InfrastructureError as error:
            if must_connect:
                raise
            log.warning("%s: this process keeps what it needs in memory", str(error))
        return _in_memory(settings)


def _given(arguments: dict[str, Any]) -> dict[str, Any]:
    named = {name: value for name, value in arguments.items() if name not in ("self", "settings")}
    return {**named, **arguments["settings"]}


def _refuse_without_url(settings: Mapping[str, Any]) -> NoReturn:
    """Raise with all faults of settings whose URL is missing."""
    faults = {"redis_url": "redis_url is required"}
    try:
        check_settings({name: value for name, value in settings.items() if name != "redis_url"})
    except ValidationError as error:
        faults |= error.context
    raise ValidationError("; ".join(faults.values()), faults)


async def _connected(kind: str, settings: Mapping[str, Any]) -> Cache:
    from aimemo.caches.ai import AIResponseCache
    from aimemo.caches.redis import GenericRedisCache

    try:
        cache = _built(AIResponseCache if kind == "ai" else GenericRedisCache, settings)
    except ConfigurationError as error:
        if has_impossible_port(error):
            raise _unreachable(settings) from error
        raise
    try:
        await cache.memoizer.tiers.store.connect()
    except Exception as error:
        await cache.close()
        raise _unreachable(settings) from error
    return cache


def _unreachable(settings: Mapping[str, Any]) -> InfrastructureError:
    return InfrastructureError(f"Redis connection failed for {_without_login(settings['redis_url'])}")


def _in_memory(settings: Mapping[str, Any]) -> Cache:
    from aimemo.caches.memory import InMemoryCache

    left_out = _OF_REDIS_ONLY | CONNECTION_SETTINGS
    kept = {name: value for name, value in settings.items() if name not in left_out}
    return _built(InMemoryCache, {"max_size": settings.get("l1_cache_size", 1000), **kept})


def _built(make: Callable[..., Cache], settings: Mapping[str, Any]) -> Cache:
    try:
        return make(**settings)
    except TypeError as error:
        raise ConfigurationError(f"these settings are not known: {error}") from error


def _without_login(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.partition('?')[0].rpartition('@')[2]}"
