"""The neighbours, each decorating one and the same function in its own way."""

from __future__ import annotations

import functools
import importlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

Call = Callable[..., Any]
Decorate = Callable[[Any], Callable[[Call], Call]]
"""Gives a decorator, from the peer's module."""

LEFT_OUT: Final[dict[str, str]] = {}
"""Who is not measured, and why."""

_FOLDER: Final = tempfile.TemporaryDirectory(prefix="aimemo-peers-")


def optional(name: str) -> Any:
    """A peer's module, or None where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        LEFT_OUT[name] = str(error)
        return None


def _cashews(module: Any, url: str = "mem://") -> Callable[[Call], Call]:
    cache = module.Cache()
    cache.setup(url)
    decorate: Callable[[Call], Call] = cache(ttl=3600)
    return decorate


def _dogpile(module: Any) -> Callable[[Call], Call]:
    region = module.make_region().configure("dogpile.cache.memory", expiration_time=3600)
    return lambda call: region.cache_on_arguments(function_key_generator=_dogpile_key)(call)


def _dogpile_key(namespace: Any, call: Call, **_: Any) -> Call:
    return lambda *args, **kwargs: f"{call.__qualname__}|{args!r}|{sorted(kwargs.items())!r}"


_SYNC: Final[Mapping[str, tuple[str, Decorate]]] = {
    "cachebox (Rust)": ("cachebox", lambda module: module.cached(module.TTLCache(1000, 3600))),
    "cachetools TTLCache": ("cachetools", lambda module: module.cached(module.TTLCache(1000, 3600))),
    "theine": ("theine", lambda module: module.Memoize(1000, None)),
    "dogpile.cache memory": ("dogpile.cache", _dogpile),
    "cachier memory": ("cachier", lambda module: module.cachier(backend="memory")),
    "diskcache.memoize": ("diskcache", lambda module: module.Cache(f"{_FOLDER.name}/disk").memoize()),
    "joblib.Memory": ("joblib", lambda module: module.Memory(f"{_FOLDER.name}/joblib", verbose=0).cache),
}
_ASYNC: Final[Mapping[str, tuple[str, Decorate]]] = {
    "cachebox (Rust)": ("cachebox", lambda module: module.cached(module.TTLCache(1000, 3600))),
    "async-lru": ("async_lru", lambda module: module.alru_cache(maxsize=1000, ttl=3600)),
    "aiocache memory": ("aiocache", lambda module: module.cached(ttl=3600)),
    "cashews memory": ("cashews", _cashews),
}


def of_world(world: str, function: Call, only: tuple[str, ...] | None = None) -> Iterator[tuple[str, Call]]:
    """The function decorated by each peer that is installed and takes it."""
    for name, (module, decorate) in (_SYNC if world == "sync" else _ASYNC).items():
        found = optional(module) if only is None or name in only else None
        if found is None:
            continue
        try:
            # A copy: some look at the function's file, or mark it.
            yield name, decorate(found)(_copy(function))
        except Exception as error:
            LEFT_OUT[name] = f"{type(error).__name__}: {error}"


def _copy(function: Call) -> Call:
    import types

    made = types.FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    made.__kwdefaults__ = function.__kwdefaults__
    return functools.update_wrapper(made, function)
