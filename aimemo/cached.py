"""What a decorated function is, as type checkers see it."""

from __future__ import annotations

import enum
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, Final, ParamSpec, Protocol, TypeVar, overload

from aimemo.caches.interface import Cache
from aimemo.core.stats import CacheStats

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class _Missing(enum.Enum):
    MISSING = "MISSING"

    def __repr__(self) -> str:
        return "aimemo.MISSING"

    __str__ = __repr__


MISSING: Final = _Missing.MISSING
"""What `peek` gives where nothing is stored: None is an answer."""


class _Cached(Protocol[P, R_co]):
    """What decorated functions of both worlds carry. All take the function's own arguments, `self` included."""

    operation: str
    cache: Cache | None
    """The cache in use; None before the first use where that is the process's default cache."""
    __name__: str
    __qualname__: str
    __wrapped__: Callable[..., Any]

    def key_for(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """The key of a call."""

    def stats(self) -> CacheStats:
        """The counts of this operation."""


class CachedFunction(_Cached[P, R_co], Protocol[P, R_co]):
    """A decorated plain function."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...
    @overload
    def __get__(self, instance: None, owner: type, /) -> CachedFunction[P, R_co]: ...
    @overload
    def __get__(
        self: CachedFunction[Concatenate[Any, Q], R], instance: object, owner: type | None = None, /
    ) -> Callable[Q, R]: ...
    def peek(self, *args: P.args, **kwargs: P.kwargs) -> R_co | _Missing:
        """The stored answer or `MISSING`; calls and counts nothing."""

    def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> bool:
        """Remove the answer to a call. Whether there was one."""

    def invalidate_all(self) -> int:
        """Remove all answers of the operation; how many there were."""

    def refresh(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Call the function and replace the stored answer."""

    def bypass(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Call the function and touch nothing."""


class CachedCoroutineFunction(_Cached[P, R_co], Protocol[P, R_co]):
    """A decorated `async def`; as `CachedFunction`, with awaitable methods."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R_co]: ...
    @overload
    def __get__(self, instance: None, owner: type, /) -> CachedCoroutineFunction[P, R_co]: ...
    @overload
    def __get__(
        self: CachedCoroutineFunction[Concatenate[Any, Q], R], instance: object, owner: type | None = None, /
    ) -> Callable[Q, Coroutine[Any, Any, R]]: ...
    async def peek(self, *args: P.args, **kwargs: P.kwargs) -> R_co | _Missing: ...
    async def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> bool: ...
    async def invalidate_all(self) -> int: ...
    async def refresh(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...
    async def bypass(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...


class CachingDecorator(Protocol):
    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> CachedCoroutineFunction[P, R]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, function: Callable[P, R], /) -> CachedFunction[P, R]: ...
    def __call__(self, function: Any, /) -> Any: ...
