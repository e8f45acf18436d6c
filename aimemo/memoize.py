"""The decorator."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any, overload

from aimemo.cached import CachedCoroutineFunction, CachedFunction, CachingDecorator, P, R
from aimemo.caches.interface import Cache
from aimemo.core.events import CacheEvent, Hook
from aimemo.errors import ValidationError
from aimemo.memoized import Memoized
from aimemo.options import Options, innermost


@overload
def cached_ai_call(operation: Callable[P, Coroutine[Any, Any, R]], /) -> CachedCoroutineFunction[P, R]: ...  # type: ignore[overload-overlap]
@overload
def cached_ai_call(operation: Callable[P, R], /) -> CachedFunction[P, R]: ...
@overload
def cached_ai_call(
    operation: str | None = None, *, cache: Cache | str | None = None, ttl: Any = None, text: str | None = None,
    ignore: Iterable[str] = (), key: Callable[..., Any] | None = None, version: str | None = None,
    scope: str | Callable[[], str] | None = None, store_if: Callable[[Any], Any] | None = None,
    skip_if: Callable[..., Any] | None = None, tags: tuple[str, ...] | Callable[..., Iterable[str]] = (),
    facts: Callable[[Any], Mapping[str, Any]] | None = None, stale_while_revalidate: Any = 0,
    stale_if_error: Any = 0, jitter: float = 0.0, text_hash_threshold: int | None = None,
    on_hit: Callable[[CacheEvent], Any] | None = None, on_miss: Callable[[CacheEvent], Any] | None = None,
    on_set: Callable[[CacheEvent], Any] | None = None,
) -> CachingDecorator: ...  # fmt: skip
def cached_ai_call(
    operation: Any = None, *, cache: Cache | str | None = None, ttl: Any = None, text: str | None = None,
    ignore: Iterable[str] = (), key: Callable[..., Any] | None = None, version: str | None = None,
    scope: str | Callable[[], str] | None = None, store_if: Callable[[Any], Any] | None = None,
    skip_if: Callable[..., Any] | None = None, tags: tuple[str, ...] | Callable[..., Iterable[str]] = (),
    facts: Callable[[Any], Mapping[str, Any]] | None = None, stale_while_revalidate: Any = 0,
    stale_if_error: Any = 0, jitter: float = 0.0, text_hash_threshold: int | None = None,
    on_hit: Callable[[CacheEvent], Any] | None = None, on_miss: Callable[[CacheEvent], Any] | None = None,
    on_set: Callable[[CacheEvent], Any] | None = None,
) -> Any:  # fmt: skip
    """Remember what a function answered, so that the same question is paid for once.

    Works on plain and `async` functions, methods, `functools.partial`; with or without parentheses. The
    decorated function keeps its types, signature and docstring, and carries `key_for`, `peek`,
    `invalidate`, `invalidate_all`, `refresh`, `bypass`, `stats`, `operation` and `cache`.

    Args:
        operation: the name of this kind of call, for TTLs, counts and invalidation; `module.qualname` if
            not given.
        cache: a cache, a URL, or None for the process's default cache.
        ttl: seconds or `timedelta`; 0 never expires; None takes the cache's for the operation.
        text: the parameter that labels the key; the first one that is given a string, if not named.
        ignore: parameters that do not matter for the answer.
        key: `key(*args, **kwargs)` gives what counts in place of all arguments.
        version: counts into the key; `"auto"` is the function's code, constants and closure.
        scope: the tenant, or a callable that gives it at call time; scopes never share an answer.
        store_if: `store_if(result)` decides what may be kept. Exceptions never are, None is.
        skip_if: `skip_if(*args, **kwargs)` decides which calls go through, touching nothing. It, `key` and
            `tags` are called with all arguments of the call, defaults applied.
        tags: for `invalidate_tag`; a tuple, or a callable of the arguments that gives one.
        facts: `facts(result)` gives `model`, `tokens` and `cost`; read from SDK objects if not given.
        stale_while_revalidate: seconds after the TTL in which the old answer goes out while one caller
            renews it in the background (RFC 5861).
        stale_if_error: seconds after the TTL in which the old answer goes out if the function raises.
        jitter: fraction of the TTL by which it varies.
        text_hash_threshold: as of the cache, for this function.
        on_hit, on_miss, on_set: called with a `CacheEvent`, as `cache.on` does, for this function only.

    Raises:
        ValidationError: for faulty options.
        TypeError: for what cannot be decorated: a class, or a generator (streams are a later chapter).
        UnkeyableArgumentError: by the decorated function, before it runs, for an argument without a
            canonical form.
    """
    own = {"hit": on_hit, "miss": on_miss, "set": on_set}
    hooks = {kind: (Hook(kind, hook),) for kind, hook in own.items() if hook is not None}
    if not isinstance(ignore, Iterable):
        raise ValidationError("ignore must be a tuple of names of parameters", {"ignore": "type"})
    ignored = (ignore,) if isinstance(ignore, str) else tuple(ignore)

    def decorate(function: Any, depth: int = 1) -> Any:
        if isinstance(function, classmethod | staticmethod):
            return type(function)(decorate(function.__func__, depth + 1))
        _refuse(function)
        inner = innermost(function)
        options = Options(
            operation=f"{inner.__module__}.{inner.__qualname__}" if operation is None or is_bare else operation,
            cache=cache, ttl=ttl, text=text, ignore=ignored, key=key, version=version, scope=scope,
            store_if=store_if, skip_if=skip_if, tags=tags, facts=facts, jitter=jitter, hooks=hooks,
            stale_while_revalidate=stale_while_revalidate, stale_if_error=stale_if_error,
            text_hash_threshold=text_hash_threshold,
        )  # fmt: skip
        return Memoized(function, options, sys._getframe(depth).f_locals).wrapper

    is_bare = callable(operation) or isinstance(operation, classmethod | staticmethod)
    return decorate(operation, 2) if is_bare else decorate


def _refuse(function: Any) -> None:
    """Raise a TypeError for what cannot be decorated."""
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(f"{innermost(function).__qualname__} is a generator; cached_ai_call does not cache streams yet")
    if isinstance(function, type) or not callable(function):
        raise TypeError(f"cached_ai_call decorates functions and methods, not {function!r}")
    try:
        inspect.signature(function)
    except ValueError as error:
        raise TypeError(f"{function!r} does not tell its parameters; wrap it in a function that does") from error
