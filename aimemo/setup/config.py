"""How a cache comes to be from a URL, from the environment, and for the whole process."""

from __future__ import annotations

import json
import os
import sys
import urllib.parse
from collections.abc import Callable, Mapping
from typing import Any, Final

from aimemo.caches.interface import Cache
from aimemo.core.policy import REDIS_SCHEMES, check_settings
from aimemo.core.runtime import fork_safe_lock
from aimemo.errors import ConfigurationError, ValidationError
from aimemo.setup.presets import SIZE, preset, preset_of_environment

_lock = fork_safe_lock()
_default: Cache | None = None
_listeners: list[Callable[[], None]] = []


def cache_from_url(url: str, **settings: Any) -> Cache:
    """The cache that a URL names.

    `memory://`, `sqlite:///relative.db`, `sqlite:////absolute.db`, or one of those that
    `GenericRedisCache` takes: `redis://`, `rediss://`, `unix://`, `redis+cluster://`, `redis+sentinel://`.

    Args:
        settings: as of the cache's class.

    Raises:
        ConfigurationError: for a URL that names no cache.
        ValidationError: for faulty settings.
    """
    if not isinstance(url, str) or "://" not in url:
        text = f"url must start with one of {', '.join(_KINDS)}; a file is sqlite:///answers.db"
        raise ConfigurationError(text, {"url": type(url).__name__})
    scheme = url.partition("://")[0]
    make = _SCHEMES.get(scheme)
    if make is None:
        raise ConfigurationError(f"url must start with one of {', '.join(_KINDS)}", {"url": "scheme"})
    try:
        return make(url, settings)
    except TypeError as error:
        raise ConfigurationError(f"{scheme}:// does not take these settings: {error}") from error


def _memory(url: str, settings: dict[str, Any]) -> Cache:
    from aimemo.caches.memory import InMemoryCache

    if url != "memory://":
        raise ConfigurationError("memory:// takes nothing after it; give max_size and the rest as settings")
    return InMemoryCache(**settings)


def _sqlite(url: str, settings: dict[str, Any]) -> Cache:
    from aimemo.caches.sqlite import SQLiteCache

    host, slash, path = url.removeprefix("sqlite://").partition("/")
    if host or not slash or not path or "?" in path or path == ":memory:":
        raise ConfigurationError(
            "a sqlite URL is sqlite:///relative.db or sqlite:////absolute.db, without anything after it"
        )
    return SQLiteCache(os.path.expanduser(urllib.parse.unquote(path)), **settings)


def _redis(url: str, settings: dict[str, Any]) -> Cache:
    from aimemo.caches.redis import GenericRedisCache

    return GenericRedisCache(url, **settings)


_SCHEMES: Final[Mapping[str, Callable[[str, dict[str, Any]], Cache]]] = {
    "memory": _memory,
    "sqlite": _sqlite,
    **{scheme.removesuffix("://"): _redis for scheme in REDIS_SCHEMES},
}
_KINDS: Final = tuple(f"{scheme}://" for scheme in _SCHEMES)


def configure(url: str | Cache | None = None, **settings: Any) -> Cache:
    """Set the process's default cache, which all functions decorated without `cache=` use from now on.

    `url` is as for `cache_from_url`, or a cache that is there already.
    What is not given comes from the environment, as `docs/configuration.md` lists it: `AIMEMO_URL`,
    `AIMEMO_PRESET`, `AIMEMO_DEFAULT_TTL` and so on.

    Raises:
        ConfigurationError, ValidationError: as `cache_from_url`, and for unreadable variables.
    """
    global _default
    if isinstance(url, Cache) and settings:
        raise ConfigurationError("a cache that is there already takes no settings")
    cache = url if isinstance(url, Cache) else _make(url, settings)
    with _lock:
        _default = cache
    _tell_listeners()
    return cache


def get_cache() -> Cache:
    """The process's default cache; made on first use from the environment, else in memory."""
    return _default if _default is not None else _make_default()


def current_cache() -> Cache | None:
    """The default cache if there is one already."""
    return _default


def on_configure(listener: Callable[[], None]) -> Callable[[], None]:
    """Call `listener` whenever the default cache is another one."""
    _listeners.append(listener)
    return listener


def _make_default() -> Cache:
    global _default
    with _lock:
        if _default is None:
            _default = _make(None, {})
        cache = _default
    _tell_listeners()
    return cache


def _tell_listeners() -> None:
    for listener in tuple(_listeners):
        listener()


def _make(url: str | None, settings: Mapping[str, Any]) -> Cache:
    place = url if url is not None else os.environ.get("AIMEMO_URL") or redis_url_of_environment() or "memory://"
    return cache_from_url(place, **{**_fitting(place, environment_settings(), settings), **settings})


def redis_url_of_environment() -> str | None:
    """The URL of Redis under the names that the seeds' documents give it."""
    return os.environ.get("CACHE_REDIS_URL") or os.environ.get("REDIS_URL") or None


def _fitting(url: str, found: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """What of the environment's settings a cache of this URL takes."""
    is_redis = str(url).startswith(REDIS_SCHEMES)
    size = found.pop(SIZE, None)
    name = "l1_cache_size" if is_redis else "max_size"
    if size is not None and (is_redis or str(url).startswith("memory:")) and name not in given:
        found[name] = size
    if not is_redis:
        found.pop("connect_timeout", None)
    return found


def environment_settings() -> dict[str, Any]:
    """The settings that the environment gives: those of a preset, changed by single variables.

    Raises:
        ConfigurationError: naming every variable that cannot be read, or whose value is out of its limits.
    """
    found, faults = _preset_settings(), {}
    for variable, (setting, read, form) in _VARIABLES.items():
        text = os.environ.get(variable)
        try:
            value = read(text) if text else None
            if value is not None:
                check_settings({setting: value})
                found[setting] = value
        except ValidationError as error:
            faults[variable] = f"{variable}: {error}"
        except ValueError:
            faults[variable] = f"{variable} must be {form}"
    if faults:
        raise ConfigurationError("; ".join(faults.values()), faults)
    return found


def _preset_settings() -> dict[str, Any]:
    name = os.environ.get("AIMEMO_PRESET") or os.environ.get("CACHE_PRESET")
    if name:
        return preset(name)
    environment = os.environ.get("CACHE_ENV")
    return preset_of_environment(environment) if environment else {}


def _read_boolean(text: str) -> bool:
    try:
        return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[text.lower()]
    except KeyError:
        raise ValueError(text) from None


def _read_disabled(text: str) -> bool:
    return not _read_boolean(text)


def _read_compression(text: str) -> int | None:
    """The threshold that no value reaches, if nothing is to be compressed."""
    return None if _read_boolean(text) else sys.maxsize


def _read_monitoring(text: str) -> Any:
    from aimemo.measure.monitor import CachePerformanceMonitor

    return CachePerformanceMonitor() if _read_boolean(text) else None


_BOOLEAN: Final = "1, true, yes, 0, false or no"

_VARIABLES: Final[Mapping[str, tuple[str, Callable[[str], Any], str]]] = {
    "CACHE_TTL": ("default_ttl", int, "a whole number of seconds"),
    "CACHE_SIZE": (SIZE, int, "a whole number of entries"),
    "ENABLE_CACHE_COMPRESSION": ("compression_threshold", _read_compression, _BOOLEAN),
    "CACHE_MONITORING_ENABLED": ("performance_monitor", _read_monitoring, _BOOLEAN),
    "REDIS_CONNECTION_TIMEOUT": ("connect_timeout", float, "a number of seconds"),
    "AIMEMO_DEFAULT_TTL": ("default_ttl", int, "a whole number of seconds"),
    "AIMEMO_OPERATION_TTLS": ("operation_ttls", json.loads, "a JSON object of whole numbers of seconds"),
    "AIMEMO_NAMESPACE": ("namespace", str, "a name"),
    "AIMEMO_TEXT_HASH_THRESHOLD": ("text_hash_threshold", int, "a whole number"),
    "AIMEMO_COMPRESSION_THRESHOLD": ("compression_threshold", int, "a whole number of bytes"),
    "AIMEMO_DISABLED": ("enabled", _read_disabled, _BOOLEAN),
}
"""By variable: the setting, how its text is read, and what it must be. Later ones come before earlier ones."""
