"""A function made ready to be remembered: from its arguments to a call that the core answers."""

from __future__ import annotations

import functools
import inspect
import warnings
import weakref
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Final

from aimemo.cached import MISSING
from aimemo.caches.interface import Cache
from aimemo.compiled import compile_wrapper, exchange_front
from aimemo.core.call import Call, Pending
from aimemo.core.context import current_mode, current_recorders
from aimemo.core.entry import RETIRED, Address, Entry
from aimemo.core.events import GATE
from aimemo.core.memoizer import Memoizer
from aimemo.core.policy import Policy, seconds_of
from aimemo.core.ports import LocalStore, Selector
from aimemo.core.runtime import Failure, drive, fork_safe_lock
from aimemo.core.stats import CacheStats
from aimemo.core.types import expected_types
from aimemo.errors import AimemoWarning
from aimemo.identity import Identity
from aimemo.options import Options, checked_tags, innermost, origin_of
from aimemo.setup.config import cache_from_url, current_cache, get_cache, on_configure

_MAX_ADDRESS: Final = 1 << 17
_MAX_KNOWN: Final = 1024
_MAX_KNOWN_ADDRESS: Final = 8192
_ALWAYS_CLOSED: Final = (True,)
_binding_lock = fork_safe_lock()

_cache_of_url = functools.lru_cache(maxsize=None)(cache_from_url)
_on_default: weakref.WeakSet[Memoized] = weakref.WeakSet()
_default_claims: dict[str, tuple[str, str | None]] = {}


@on_configure
def _rebind_default() -> None:
    for memo in list(_on_default):
        memo.bind()


@dataclass(slots=True)
class _Binding:
    """A function on a cache."""

    cache: Cache
    memoizer: Memoizer
    policy: Policy
    front: dict[Address, Any]
    threshold: int
    has_local: bool


class _Known:
    """In the front of a cache without an in-process tier: not the answer, but the key of a call."""

    __slots__ = ("key", "policy", "tenant")

    fresh_until = RETIRED

    def __init__(self, policy: Policy, key: str, tenant: str | None) -> None:
        self.policy = policy
        self.key = key
        self.tenant = tenant


class _PassedCall(Call):
    """A call of a decorated function that touches no cache."""

    __slots__ = ()

    is_decorated = True


class _FunctionCall(Call):
    """A call of a decorated function; what only some steps need is worked out there."""

    __slots__ = ("binding", "memo", "tenant", "values")

    is_decorated = True

    def __init__(
        self, memo: Memoized, binding: _Binding, values: tuple[Any, ...], tenant: str | None,
        tags: tuple[str, ...], key: str,
    ) -> None:  # fmt: skip
        self.policy = binding.policy
        self.key = key
        self.tags = tags
        self.memo = memo
        self.binding = binding
        self.values = values
        self.tenant = tenant

    def thunk(self) -> Any:
        return self.memo.identity.apply(self.memo.function, self.values)

    def has_same_arguments(self) -> bool:
        if self.memo.identity.are_fixed(self.values):
            return True
        try:
            return self.memo.identity.key(self.values, self.tenant, self.binding.threshold) == self.key
        except Exception:  # they can no longer be keyed at all
            return False

    def aim(self, local: LocalStore, entry: Entry) -> None:
        address = self.memo.identity.address(self.values, self.tenant, _MAX_ADDRESS)
        if address is not None:
            local.aim(entry, self.binding.front, address)


class Memoized:
    """A function made ready: its identity worked out, its signature compiled, bound to the cache in force."""

    def __init__(self, function: Callable[..., Any], options: Options, names: Mapping[str, Any]) -> None:
        self.function = function
        self.options = options
        called = vars(type(function)).get("__call__")  # of an object that is called like a function
        self.is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(called)
        signature = inspect.signature(function)
        self._parameters = tuple(signature.parameters)
        self.identity = Identity(function, options, signature)
        self.compiled = compile_wrapper(
            signature, is_async=self.is_async, slow=self.slow_async if self.is_async else self.slow,
            gate=_ALWAYS_CLOSED if options.hooks.get("hit") else GATE,
            indexed=self.identity.indexed, tenant=options.scope if callable(options.scope) else None,
        )  # fmt: skip
        self._tags = None if callable(options.tags) else tuple(options.tags)
        inner = innermost(function)
        self._origin = origin_of(inner)
        self._expected = expected_types(inner, names) if "<locals>" in inner.__qualname__ else None
        self._binding: _Binding | None = None
        owner = inner.__qualname__.rpartition(".")[0]
        self._is_method = self._parameters[:1] == ("self",) and bool(owner) and not owner.endswith("<locals>")
        self.wrapper = self._dress(self.compiled.wrapper, inner)
        self._start()

    def _dress(self, wrapper: Any, inner: Callable[..., Any]) -> Any:
        functools.update_wrapper(wrapper, inner, updated=("__dict__",) if inspect.isroutine(inner) else ())
        wrapper.__wrapped__ = self.function
        wrapper.operation = self.options.operation
        wrapper.cache = None
        wrapper.key_for = self.key_for
        wrapper.stats = self.stats
        doors = {
            "peek": self._peek, "invalidate": self._invalidate, "refresh": self._refresh, "bypass": self._bypass,
        }  # fmt: skip
        for name, body in doors.items():
            setattr(wrapper, name, self._door(body))
        wrapper.invalidate_all = self._door(self._invalidate_all, takes_call=False)
        return wrapper

    def _start(self) -> None:
        if self.options.cache is None:
            _on_default.add(self)
            self._claim(_default_claims)
            if current_cache() is not None:
                self.bind()
        else:
            self._claim(self.bind().cache.claims)

    def _claim(self, claims: dict[str, tuple[str, str | None]]) -> None:
        owner = claims.setdefault(self.options.operation, self._origin)
        if owner != self._origin:
            warnings.warn(
                f"{self._origin[0]} and {owner[0]} share the operation {self.options.operation!r}: "
                "equal arguments get equal answers; give one of them another operation or a version=",
                AimemoWarning, stacklevel=5,
            )  # fmt: skip

    # On a cache

    def bind(self) -> _Binding:
        """The binding to the cache in force, which the default cache may have changed since the last call."""
        given = self.options.cache
        binding = self._binding
        if binding is not None and (given is not None or binding.cache is current_cache()):
            return binding
        cache = given if isinstance(given, Cache) else _cache_of_url(given) if given is not None else get_cache()
        with _binding_lock:
            if self._binding is None or self._binding.cache is not cache:
                self._binding = self._bind_to(cache)
                self.wrapper.cache = cache
                exchange_front(self.compiled.scope, self._binding.front, cache.clock)
            return self._binding

    def _bind_to(self, cache: Cache) -> _Binding:
        options = self.options
        if self._expected is None:
            self._expected = expected_types(innermost(self.function))
        policy = Policy(
            operation=options.operation,
            ttl=cache.ttl_for(options.operation, options.ttl),
            stale_while_revalidate=seconds_of("stale_while_revalidate", options.stale_while_revalidate or 0),
            stale_if_error=seconds_of("stale_if_error", options.stale_if_error or 0),
            jitter=options.jitter,
            store_if=options.store_if,
            facts=options.facts,
            hooks=options.hooks,
            types=cache.types_for(self._expected),
        )
        threshold = options.text_hash_threshold
        memoizer = cache.memoizer_of("tasks" if self.is_async else "threads")
        return _Binding(
            cache=cache,
            memoizer=memoizer,
            policy=policy,
            front={},
            threshold=cache.text_hash_threshold if threshold is None else threshold,
            has_local=memoizer.tiers.local is not None,
        )

    # A call

    def slow(self, values: tuple[Any, ...], seen: Any) -> Any:
        is_answer, result = self._begin(values, seen)
        if is_answer:
            return result
        result = drive(result)
        return result.throw() if type(result) is Failure else result

    async def slow_async(self, values: tuple[Any, ...], seen: Any) -> Any:
        is_answer, result = self._begin(values, seen)
        if is_answer:
            return result
        result = await result
        return result.throw() if type(result) is Failure else result

    def _begin(self, values: tuple[Any, ...], seen: Any) -> tuple[bool, Any]:
        """The answer if it is there at once, else the work that leads to it."""
        binding = self.bind()
        skip_if = self.options.skip_if
        passes = not binding.cache.enabled or (GATE and current_mode() == "bypass")
        if passes or (skip_if is not None and self.identity.apply(skip_if, values)):
            return False, self._bypass(binding, values)
        is_known = type(seen) is _Known
        call = None if is_known else self._call(binding, values)
        result = binding.memoizer.recall_at_once(call or seen)
        if type(result) is not Pending:
            return True, result
        return False, binding.memoizer.recall(call or self._call(binding, values, seen), result)

    def _call(self, binding: _Binding, values: tuple[Any, ...], seen: Any = None) -> Call:
        tags = self._tags
        if tags is None:
            tags = checked_tags(self.identity.apply(self.options.tags, values))  # type: ignore[arg-type]
        if type(seen) is _Known:
            return _FunctionCall(self, binding, values, seen.tenant, tags, seen.key)
        tenant = self.identity.tenant()
        key = self.identity.key(values, tenant, binding.threshold)
        if not binding.has_local:
            self._remember(binding, values, tenant, key)
        return _FunctionCall(self, binding, values, tenant, tags, key)

    def _remember(self, binding: _Binding, values: tuple[Any, ...], tenant: str | None, key: str) -> None:
        """Without an in-process tier the front can at least tell the key."""
        address = self.identity.address(values, tenant, _MAX_KNOWN_ADDRESS)
        if address is not None:
            if len(binding.front) >= _MAX_KNOWN:
                binding.front.clear()
            binding.front[address] = _Known(binding.policy, key, tenant)

    # What a decorated function carries

    def _door(self, body: Callable[..., Coroutine[Any, Any, Any]], *, takes_call: bool = True) -> Callable[..., Any]:
        def start(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Coroutine[Any, Any, Any]:
            return body(self.bind(), self._values(args, kwargs)) if takes_call else body(self.bind())

        async def in_tasks(*args: Any, **kwargs: Any) -> Any:
            result = await start(args, kwargs)
            return result.throw() if type(result) is Failure else result

        def in_threads(*args: Any, **kwargs: Any) -> Any:
            result = drive(start(args, kwargs))
            return result.throw() if type(result) is Failure else result

        return in_tasks if self.is_async else in_threads

    def _values(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        try:
            values = self.compiled.bind(*args, **kwargs)
        except TypeError as error:
            hint = "; give the instance as the first argument" if self._is_method else ""
            raise TypeError(f"{self.options.operation}: {error}{hint}".replace("bind()", "the call")) from None
        if self._is_method and not hasattr(type(values[0]), self.wrapper.__name__):
            raise TypeError(f"{self.options.operation} is a method: give the instance as the first argument")
        return values

    def key_for(self, *args: Any, **kwargs: Any) -> str:
        """The key of a call."""
        values = self._values(args, kwargs)
        return self.identity.key(values, self.identity.tenant(), self.bind().threshold)

    def stats(self) -> CacheStats:
        """The counts of this operation."""
        return self.bind().cache.stats().by_operation.get(self.options.operation, CacheStats())

    async def _peek(self, binding: _Binding, values: tuple[Any, ...]) -> Any:
        found = await binding.memoizer.look(self._call(binding, values))
        return MISSING if found is None else found.value

    async def _invalidate(self, binding: _Binding, values: tuple[Any, ...]) -> bool:
        return await binding.memoizer.delete(self.identity.key(values, self.identity.tenant(), binding.threshold))

    async def _invalidate_all(self, binding: _Binding) -> int:
        return await binding.memoizer.sweep(Selector("operation", self.options.operation))

    async def _refresh(self, binding: _Binding, values: tuple[Any, ...]) -> Any:
        return await binding.memoizer.refresh(self._call(binding, values))

    async def _bypass(self, binding: _Binding, values: tuple[Any, ...]) -> Any:
        thunk = functools.partial(self.identity.apply, self.function, values)
        key = ""
        if current_recorders():
            try:
                key = self.identity.key(values, self.identity.tenant(), binding.threshold)
            except Exception:
                pass  # a call that touches nothing needs no key
        return await binding.memoizer.bypass(_PassedCall(binding.policy, key, thunk))
