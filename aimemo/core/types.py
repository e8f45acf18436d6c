"""Which classes packed bytes may be restored to, and how a class is named inside them.

Stored bytes never cause an import. A name is resolved among the classes of the function's return
annotation, those given to `register_type`, and those found in modules that are already loaded and lie
under a trusted prefix.
"""

from __future__ import annotations

import dataclasses
import enum
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from aimemo.errors import CodecError, ValidationError

TRUSTED_MODULES = (
    *("openai", "anthropic", "google.genai", "mistralai", "cohere", "groq", "together"),
    *("litellm", "langchain_core", "llama_index", "instructor", "ollama"),
)

_BUILTINS: dict[str, Any] = {
    cls.__name__: cls for cls in (str, bytes, int, float, bool, complex, list, dict, tuple, set, frozenset)
}
_BUILTINS["None"] = type(None)

C = TypeVar("C", bound=type)

_registered: dict[str, type] = {}


def register_type(cls: C) -> C:
    """Allow instances of a class to be restored from a store; usable as a class decorator.

    Raises:
        ValidationError: if the class is not a dataclass, an Enum, a NamedTuple or a pydantic model.
    """
    if not (isinstance(cls, type) and is_restorable(cls)):
        raise ValidationError(
            f"register_type() takes a dataclass, an Enum, a NamedTuple or a pydantic model, not {cls!r}"
        )
    _registered[name_of(cls)] = cls
    return cls


def is_restorable(cls: type) -> bool:
    return issubclass(cls, enum.Enum) or dataclasses.is_dataclass(cls) or is_namedtuple(cls) or is_pydantic(cls)


def is_namedtuple(cls: type) -> bool:
    return issubclass(cls, tuple) and isinstance(getattr(cls, "_fields", None), tuple)


def is_pydantic(cls: type) -> bool:
    return hasattr(cls, "__pydantic_fields__") and hasattr(cls, "__pydantic_generic_metadata__")


def name_of(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


class TypeResolver:
    """Resolves class names for one function: its return annotation, the registered, the trusted."""

    def __init__(self, expected: Iterable[type] = (), trusted_modules: Iterable[str] = TRUSTED_MODULES) -> None:
        self._expected = {name_of(cls): cls for cls in expected}
        self._trusted = tuple(trusted_modules)
        self._resolved: dict[str, type] = {}
        self._names: dict[type, Any] = {}

    def name(self, cls: type) -> Any:
        """A packable name for a class: text, or `[generic class, its arguments]`.

        Raises:
            CodecError: if a reader with the same rules could not resolve it; the text says the remedy.
        """
        found = self._names.get(cls)
        if found is None:
            found = self._spell(cls)
            if self.resolve(found) is not cls:
                raise CodecError(
                    f"a reader could not restore {name_of(cls)}: name it in the function's return annotation, "
                    f"or call aimemo.register_type({cls.__qualname__})"
                )
            self._names[cls] = found
        return found

    def _spell(self, cls: Any) -> Any:
        generic = getattr(cls, "__pydantic_generic_metadata__", None)
        if generic and generic["origin"] is not None:
            return [name_of(generic["origin"]), *map(self._spell, generic["args"])]
        origin = typing.get_origin(cls)
        if origin in (typing.Union, types.UnionType):
            return ["|", *map(self._spell, typing.get_args(cls))]
        if origin is not None and isinstance(origin, type):
            return [self._spell(origin), *map(self._spell, typing.get_args(cls))]
        if cls is type(None):
            return "None"
        if isinstance(cls, type):
            known: type = cls
            return known.__name__ if _BUILTINS.get(known.__name__) is known else name_of(known)
        raise CodecError(f"a type argument of the kind {type(cls).__name__} cannot be stored")

    def resolve(self, name: Any) -> Any:
        """The class that `name` stands for.

        Raises:
            CodecError: if it is not among the classes that may be restored.
        """
        if isinstance(name, list) and name:
            return self._resolve_generic(name[0], [self.resolve(argument) for argument in name[1:]])
        if not isinstance(name, str):
            raise CodecError("a type name is damaged")
        found = self._resolved.get(name) or self._find(name)
        if found is None:
            raise CodecError(f"{name} is not among the types that may be restored; aimemo.register_type() allows it")
        self._resolved[name] = found
        return found

    def _resolve_generic(self, name: Any, arguments: list[Any]) -> Any:
        try:
            if name == "|":
                return typing.Union[tuple(arguments)]
            origin: Any = self.resolve(name)
            return origin[tuple(arguments)] if len(arguments) > 1 else origin[arguments[0]]
        except (TypeError, IndexError) as error:
            raise CodecError(f"{name} does not take these type arguments") from error

    def _find(self, name: str) -> type | None:
        found = _BUILTINS.get(name) or self._expected.get(name) or _registered.get(name)
        return found or self._find_trusted(name)

    def _find_trusted(self, name: str) -> type | None:
        module, _, path = name.partition(":")
        if not any(module == prefix or module.startswith(prefix + ".") for prefix in self._trusted):
            return None
        found: Any = sys.modules.get(module)
        for part in path.split("."):
            found = getattr(found, part, None)
        return found if isinstance(found, type) and is_restorable(found) else None


def expected_types(function: Callable[..., Any], names: Mapping[str, Any] | None = None) -> list[type]:
    """The restorable classes that a function's return annotation speaks of, through their fields too.

    `names` are what a postponed annotation may use besides the function's globals and captured names.
    """
    found: dict[type, None] = {}
    try:
        _collect(_return_annotation(function, names or {}), found)
    except Exception:  # an annotation that cannot be evaluated names nothing; packing will say the remedy
        return []
    return list(found)


def _return_annotation(function: Callable[..., Any], names: Mapping[str, Any]) -> Any:
    annotation = getattr(function, "__annotations__", {}).get("return")
    holder = types.SimpleNamespace(__annotations__={"return": annotation})
    known = {**names, **captured_names(function)}
    return typing.get_type_hints(holder, getattr(function, "__globals__", {}), known)["return"]


def captured_names(function: Callable[..., Any]) -> dict[str, Any]:
    """The names that a function captured from around it, with their values where they have one."""
    code, cells = getattr(function, "__code__", None), getattr(function, "__closure__", None)
    names = zip(code.co_freevars, cells, strict=True) if code and cells else ()
    return {name: cell.cell_contents for name, cell in names if cell != types.CellType()}


def _collect(annotation: Any, found: dict[type, None]) -> None:
    generic = getattr(annotation, "__pydantic_generic_metadata__", None) or {}
    for argument in (*typing.get_args(annotation), *generic.get("args", ())):
        _collect(argument, found)
    origin = generic.get("origin") or typing.get_origin(annotation) or annotation
    if not isinstance(origin, type) or origin in found:
        return
    if typing.is_typeddict(origin) or is_restorable(origin):
        found[origin] = None
        for hint in _field_hints(origin):
            _collect(hint, found)


def _field_hints(cls: Any) -> Iterable[Any]:
    if is_pydantic(cls):
        return [field.annotation for field in cls.__pydantic_fields__.values()]
    try:
        return typing.get_type_hints(cls).values()
    except Exception:  # a field's forward reference that cannot be evaluated: that field names nothing
        return []
