"""What the decorator is given, checked, and what a function brings along by itself."""

from __future__ import annotations

import dis
import functools
import inspect
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from aimemo.caches.interface import Cache
from aimemo.core.canonical import canonical
from aimemo.core.codec import is_immutable
from aimemo.core.events import Hook
from aimemo.core.policy import check_operation, check_settings, seconds_of
from aimemo.core.types import captured_names
from aimemo.errors import ValidationError


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the decorator was given, checked."""

    operation: str
    cache: Cache | str | None
    ttl: Any
    text: str | None
    ignore: tuple[str, ...]
    key: Callable[..., Any] | None
    version: str | None
    scope: str | Callable[[], str] | None
    store_if: Callable[[Any], Any] | None
    skip_if: Callable[..., Any] | None
    tags: tuple[str, ...] | Callable[..., Iterable[str]]
    facts: Callable[[Any], Mapping[str, Any]] | None
    stale_while_revalidate: Any
    stale_if_error: Any
    jitter: float
    text_hash_threshold: int | None
    hooks: Mapping[str, tuple[Hook, ...]]

    def __post_init__(self) -> None:
        check_settings({"jitter": self.jitter, "text_hash_threshold": self.text_hash_threshold})
        for name in ("key", "store_if", "skip_if", "facts"):
            if getattr(self, name) is not None and not callable(getattr(self, name)):
                raise ValidationError(f"{name} must be callable", {name: "type"})
        for name in ("key", "store_if", "skip_if", "facts", "tags", "scope"):
            if inspect.iscoroutinefunction(getattr(self, name)):
                raise ValidationError(f"{name} must be a plain function: nobody awaits it", {name: "async"})
        for name in ("ttl", "stale_while_revalidate", "stale_if_error"):
            if getattr(self, name) is not None:
                seconds_of(name, getattr(self, name))
        check_operation(self.operation)
        if not (self.version is None or isinstance(self.version, str)):
            raise ValidationError("version must be a string", {"version": "type"})
        if not (self.scope is None or isinstance(self.scope, str) or callable(self.scope)):
            raise ValidationError("scope must be a string or a callable that gives one", {"scope": "type"})
        if not (self.cache is None or isinstance(self.cache, Cache | str)):
            raise ValidationError("cache must be a cache, a URL or None", {"cache": "type"})
        if not callable(self.tags):
            object.__setattr__(self, "tags", checked_tags(self.tags))
        if not all(isinstance(name, str) for name in self.ignore):
            raise ValidationError("ignore must be a tuple of names of parameters", {"ignore": "type"})


def checked_tags(tags: Any) -> tuple[str, ...]:
    checked = tuple(tags) if isinstance(tags, Iterable) and not isinstance(tags, str) else (None,)
    if not all(isinstance(tag, str) and tag.isprintable() and tag for tag in checked):
        raise ValidationError("tags must be a tuple of non-empty printable strings", {"tags": "type"})
    return checked


def innermost(function: Callable[..., Any]) -> Any:
    while isinstance(function, functools.partial):
        function = function.func
    return function if hasattr(function, "__qualname__") else type(function)


def bound_values(function: Callable[..., Any]) -> dict[str, Any]:
    """What a callable brings along besides its parameters: a method its instance, a partial its arguments."""
    if isinstance(function, functools.partial):
        given = inspect.signature(function.func).bind_partial(*function.args).arguments
        parameters = inspect.signature(function).parameters  # what it gives by such a name stays one, with a default
        others = {f"**{name}": value for name, value in function.keywords.items() if name not in parameters}
        return {**bound_values(function.func), **given, **others}
    if isinstance(function, types.MethodType):
        return {"self": function.__self__}
    return {} if inspect.isroutine(function) else {"self": function}


_CHANGES: Final = frozenset({"STORE_SUBSCR", "DELETE_SUBSCR", "STORE_ATTR", "DELETE_ATTR"})
_CHANGERS: Final = frozenset(
    {"append", "add", "extend", "insert", "update", "setdefault", "pop", "popleft", "clear", "remove", "discard"}
)


def version_of(function: Callable[..., Any], version: str | None) -> Any:
    """What of a function's own making counts into its keys: its version and the settings it captured."""
    layers = list(_layers(innermost(function)))
    settings = [_settings(layer, set()) for layer in layers]
    settings += [given for layer in layers[:-1] if (given := _defaults(layer))]  # the last one's are parameters
    return (version, settings, [getattr(layer, "__code__", None) for layer in layers]) if version == "auto" else (
        version, settings,
    )  # fmt: skip


def _settings(function: Any, seen: set[int]) -> Any:
    """The captured values that have a canonical form, also those of captured functions.

    What the function rebinds is a counter, not a setting. In a function that changes anything at all, what can
    be changed may be a record of its calls, and only what cannot counts.
    """
    seen.add(id(function))
    code = getattr(function, "__code__", None)
    steps = list(dis.get_instructions(code)) if code else []
    rebound = {step.argval for step in steps if step.opname == "STORE_DEREF"}
    changes = any(step.opname in _CHANGES or step.argval in _CHANGERS for step in steps)
    found: dict[str, Any] = {}
    for name, value in captured_names(function).items():
        if name in rebound or id(value) in seen or (changes and not _is_fixed(value)):
            continue
        found[name] = _setting(value, seen)
    return found


def _setting(value: Any, seen: set[int]) -> Any:
    """One captured value: what of it has a canonical form."""
    form = None if inspect.isfunction(value) else form_of(value)
    if form is not None or id(value) in seen:
        return form
    seen.add(id(value))
    held = getattr(value, "__dict__", None)
    # Not `getattr`: there are objects that have an attribute of every name.
    wrapped = held.get("__wrapped__") if isinstance(held, dict) else None
    if wrapped is not None or inspect.isfunction(value):
        own = () if hasattr(value, "key_for") else (origin_of(value), _defaults(value), _settings(value, seen))
        return [*own, _setting(wrapped, seen)]
    match value:
        case functools.partial():
            return [_setting(part, seen) for part in (value.func, value.args, value.keywords)]
        case dict():
            return {form_of(key): _setting(item, seen) for key, item in value.items()}
        case list() | tuple():
            return [_setting(item, seen) for item in value]
    return None


def _defaults(function: Any) -> Any:
    named = getattr(function, "__kwdefaults__", None) or {}
    return [form_of(value) for value in (*(getattr(function, "__defaults__", None) or ()), *named.values())]


def _is_fixed(value: Any) -> bool:
    """Whether a value cannot be the record of a function's calls."""
    frozen = getattr(getattr(value, "__dataclass_params__", None), "frozen", False)
    return frozen or is_immutable(value) or callable(value)


def _layers(function: Any) -> Iterator[Any]:
    """A function, and what it wraps."""
    while function is not None:
        yield function
        function = getattr(function, "__wrapped__", None)


def form_of(value: Any) -> str | None:
    """The canonical form of a value, if it has one."""
    try:
        return canonical(value)
    except Exception:  # no form, or an object whose own methods fail
        return None


def origin_of(function: Any) -> tuple[str, str | None]:
    """What tells a function from every other one, also of its name."""
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{function.__module__}.{name}", form_of(getattr(function, "__code__", None))
