"""Which classes packed bytes may be restored to, and how a class is named inside them.

Stored bytes never cause an import. A name is resolved among the classes of the function's return
annotation, those given to `register_type`, and those found in modules that are already loaded and lie
under a trusted prefix.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import operator
import sys
import types
import typing
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from aimemo.errors import CodecError, ValidationError

TRUSTED_MODULES = (
    *("openai", "anthropic", "google.genai", "mistralai", "cohere", "groq", "together"),
    *("litellm", "langchain_core", "llama_index", "instructor", "ollama"),
)

_PLAIN: dict[str, Any] = {
    **{cls.__name__: cls for cls in (str, bytes, int, float, bool, complex, list, dict, tuple, set, frozenset)},
    "None": type(None),
    "Any": Any,
    "...": ...,
}
_UNIONS: dict[str, Callable[..., Any]] = {
    "|": lambda *arguments: functools.reduce(operator.or_, arguments),
    "Union": lambda *arguments: typing.Union[arguments],
}

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
        self._trusted_found: dict[str, Any] = {}
        self._names: weakref.WeakKeyDictionary[type, Any] = weakref.WeakKeyDictionary()

    def name(self, cls: type) -> Any:
        """A packable name for a class: text, or `[generic class, its arguments]`.

        Raises:
            CodecError: if a reader with the same rules could not resolve it; the text says the remedy.
        """
        found = self._names.get(cls)
        if found is None:
            found = self._spell(cls)
            if not self._restores(found, cls):
                raise CodecError(
                    f"a reader could not restore {name_of(cls)}: name it in the function's return annotation, "
                    f"or call aimemo.register_type({cls.__qualname__})"
                )
            self._names[cls] = found
        return found

    def _restores(self, name: Any, cls: type) -> bool:
        try:
            return self.resolve(name) is cls
        except CodecError:
            return False

    def _spell(self, cls: Any) -> Any:
        generic = getattr(cls, "__pydantic_generic_metadata__", None)
        if generic and generic["origin"] is not None:
            return [name_of(generic["origin"]), *map(self._spell, generic["args"])]
        origin, arguments = typing.get_origin(cls), typing.get_args(cls)
        if origin is typing.Literal:
            return ["Literal", *arguments]
        if origin in (typing.Union, types.UnionType):
            return ["Union" if origin is typing.Union else "|", *map(self._spell, arguments)]
        if isinstance(origin, type):
            return [self._spell(origin), *map(self._spell, arguments)]
        if isinstance(cls, TypeVar):
            return f"{cls.__module__}:{cls.__name__}"
        plain = next((name for name, known in _PLAIN.items() if known is cls), None)
        if plain is None and not isinstance(cls, type):
            raise CodecError(f"a type argument of the kind {type(cls).__name__} cannot be stored")
        return plain or name_of(cls)

    def resolve(self, name: Any) -> Any:
        """The class that `name` stands for.

        Raises:
            CodecError: if it is not among the classes that may be restored.
        """
        if isinstance(name, list) and name:
            return self._resolve_generic(name[0], name[1:])
        if not isinstance(name, str):
            raise CodecError("a type name is damaged")
        found = _PLAIN.get(name) or self._expected.get(name) or _registered.get(name) or self._find_trusted(name)
        if found is None:
            raise CodecError(f"{name} is not among the types that may be restored; aimemo.register_type() allows it")
        return found

    def _resolve_generic(self, name: Any, spelled: list[Any]) -> Any:
        try:
            if name == "Literal":
                return typing.Literal[tuple(spelled)]
            arguments = tuple(map(self.resolve, spelled))
            if name in _UNIONS:
                return _UNIONS[name](*arguments)
            origin: Any = self.resolve(name)
            return origin[arguments if len(arguments) > 1 else arguments[0]]
        except (TypeError, IndexError) as error:
            raise CodecError(f"{name} does not take these type arguments") from error

    def _find_trusted(self, name: str) -> Any:
        """A class, or a type variable, of a module that is loaded; nothing of it is run, not even `__getattr__`."""
        found = self._trusted_found.get(name)
        if found is None:
            module, _, path = name.partition(":")
            if any(module == prefix or module.startswith(prefix + ".") for prefix in self._trusted):
                found = sys.modules.get(module)
                for part in path.split("."):
                    found = getattr(found, "__dict__", {}).get(part)
            if isinstance(found, TypeVar) or (
                isinstance(found, type) and is_restorable(found) and name_of(found) == name
            ):
                self._trusted_found[name] = found
            else:
                found = None
        return found


def expected_types(function: Callable[..., Any], names: Mapping[str, Any] | None = None) -> list[type]:
    """The restorable classes that a function's return annotation speaks of, through their fields too.

    `names` are what a postponed annotation may use besides the function's globals and captured names.
    """
    found: dict[type, None] = {}
    try:
        _collect(_return_annotation(function, names or {}), found, names or {})
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


def _collect(annotation: Any, found: dict[type, None], names: Mapping[str, Any]) -> None:
    annotation = getattr(annotation, "__supertype__", annotation)  # of a NewType
    generic = getattr(annotation, "__pydantic_generic_metadata__", None) or {}
    for argument in (*typing.get_args(annotation), *generic.get("args", ())):
        _collect(type(argument) if isinstance(argument, enum.Enum) else argument, found, names)
    origin = generic.get("origin") or typing.get_origin(annotation) or annotation
    if not isinstance(origin, type) or origin in found:
        return
    if typing.is_typeddict(origin) or is_restorable(origin):
        found[origin] = None
        for hint in _field_hints(origin, names):
            _collect(hint, found, names)


def _field_hints(cls: Any, names: Mapping[str, Any]) -> Iterable[Any]:
    if is_pydantic(cls):
        return [field.annotation for field in cls.__pydantic_fields__.values()]
    try:
        return typing.get_type_hints(cls, localns=dict(names)).values()
    except Exception:  # a field's forward reference that cannot be evaluated: that field names nothing
        return []
