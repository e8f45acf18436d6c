"""What a cache can be asked by hand: each body written once, for both worlds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from aimemo.core.call import Call, Found, Pending
from aimemo.core.canonical import canonical
from aimemo.core.keys import key_prefix, make_key, operation_of
from aimemo.core.memoizer import Memoizer
from aimemo.core.policy import Policy, check_operation, seconds_of
from aimemo.core.ports import Selector
from aimemo.core.state import Unkeyable
from aimemo.core.types import TypeResolver
from aimemo.errors import UnkeyableArgumentError, ValidationError


class Surface:
    """The operations of one cache in one world. `ttl` is seconds or a `timedelta`; 0 never expires."""

    default_ttl: int
    operation_ttls: Mapping[str, int]
    text_hash_threshold: int
    types: TypeResolver

    @property
    def memoizer(self) -> Memoizer:
        raise NotImplementedError

    def ttl_for(self, operation: str, ttl: Any = None) -> float:
        """The TTL in force: `ttl`, else the operation's own, else the default.

        Raises:
            ValidationError: for a `ttl` that is none.
        """
        if ttl is not None:
            return seconds_of("ttl", ttl)
        return float(self.operation_ttls.get(operation, self.default_ttl))

    def build_key(self, text: str, operation: str, options: Mapping[str, Any] | None = None) -> str:
        """A key for use by hand, of the same form and exactness as a decorated call's.

        Raises:
            UnkeyableArgumentError: for options without a canonical form; ValidationError: for a text or an operation
                that is none.
        """
        if not isinstance(text, str):
            raise ValidationError(f"text must be a string, not {type(text).__name__}", {"text": "type"})
        check_operation(operation)
        if not isinstance(options, Mapping | None):
            raise ValidationError(f"options must be a mapping, not {type(options).__name__}", {"options": "type"})
        try:
            identity = canonical((None, operation, None, text, dict(options or {})))
        except Unkeyable as error:
            raise UnkeyableArgumentError(f"options of build_key() cannot be keyed: they hold {error}") from error
        return make_key(key_prefix(operation), text, self.text_hash_threshold, identity)

    async def get(self, key: str, default: Any = None) -> Any:
        """The fresh value of a key, or `default`."""
        call, started = self._call(key), self.memoizer.clock()
        found = await self.memoizer.look(call)
        return await self._count(call, found, started, default)

    async def _count(self, call: Call, found: Found | None, started: float, default: Any) -> Any:
        self.memoizer.journal.lookup(
            "hit" if found else "miss", call.key, call.policy.operation, started, is_decorated=False,
            value=found.value if found else None, entry=found.entry if found else None,
            tier=found.tier if found else None,
        )  # fmt: skip
        await self.memoizer.deliver()
        return found.value if found else default

    async def set(self, key: str, value: Any, ttl: Any = None) -> None:
        """Keep a value.

        Raises:
            CodecError: a `TypeError`, for a value that cannot be packed or restored.
        """
        call = self._call(key, ttl)
        await self.memoizer.keep(call, value)

    async def delete(self, key: str) -> bool:
        """Remove a key. Whether it was there.

        Raises:
            InfrastructureError: if a store did not acknowledge it.
        """
        return await self.memoizer.delete(_checked(key))

    async def exists(self, key: str) -> bool:
        """Whether a key has a fresh value."""
        return await self.memoizer.look(self._call(key)) is not None

    async def ttl(self, key: str) -> float | None:
        """Seconds for which a key stays fresh; None if it is not there or never expires."""
        found = await self.memoizer.look(self._call(key))
        if found is None or found.entry.expires_at == float("inf"):
            return None
        return found.entry.expires_at - self.memoizer.clock()

    async def clear(self) -> int:
        """Remove all entries of this namespace; how many there were. Raises as `delete`."""
        return await self.memoizer.sweep(Selector("all"))

    async def get_many(self, keys: Iterable[str]) -> dict[str, Any]:
        """The fresh values among `keys`."""
        calls = [self._call(key) for key in dict.fromkeys(keys)]
        started = self.memoizer.clock()
        found = await self.memoizer.look_many(calls)
        answers: dict[str, Any] = {}
        for call in calls:
            value = await self._count(call, found.get(call.key), started, None)
            if call.key in found:
                answers[call.key] = value
        return answers

    async def set_many(self, values: Mapping[str, Any], ttl: Any = None) -> None:
        """Keep all values, or raise as `set` and keep none."""
        await self.memoizer.keep_many([(self._call(key, ttl), value) for key, value in values.items()])

    async def delete_many(self, keys: Iterable[str]) -> int:
        """Remove keys; how many were there. Raises as `delete`."""
        return await self.memoizer.delete_many([_checked(key) for key in dict.fromkeys(keys)])

    async def invalidate_pattern(self, pattern: str) -> int:
        r"""Remove the keys that a glob matches (`*`, `?`, `[a-z]`, `[^a]`, `\`); how many. Raises as `delete`."""
        return await self.memoizer.sweep(Selector("glob", _checked(pattern, "pattern")))

    async def invalidate_operation(self, name: str) -> int:
        """Remove the entries of exactly this operation; how many. Raises as `delete`."""
        return await self.memoizer.sweep(Selector("operation", _checked(name, "name")))

    async def invalidate_tag(self, tag: str) -> int:
        """Remove the entries with this tag; how many. Raises as `delete`."""
        return await self.memoizer.sweep(Selector("tag", _checked(tag, "tag")))

    async def recall(self, key: str, compute: Callable[[], Any], ttl: Any = None) -> Any:
        """The value of a key, or what `compute` gives, kept; a `Failure` if that raises."""
        if not callable(compute):
            raise ValidationError("compute must be callable without arguments")
        call = self._call(key, ttl, compute)
        return await self.memoizer.recall(call, Pending(self.memoizer.clock()))

    def _call(self, key: str, ttl: Any = None, thunk: Callable[[], Any] = lambda: None) -> Call:
        operation = operation_of(_checked(key))
        return Call(Policy(operation=operation, ttl=self.ttl_for(operation, ttl), types=self.types), key, thunk)


def _checked(text: str, name: str = "key") -> str:
    if not isinstance(text, str) or not text:
        raise ValidationError(f"{name} must be a non-empty string", {name: type(text).__name__})
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValidationError(f"{name} must not hold lone surrogates", {name: "encoding"}) from None
    return text
