"""What a key must know of an object, a function, a class or a type hint, as plain values.

Where that cannot be told, `Unkeyable` is raised: nothing is ever keyed by its `repr` or its `hash`.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import sys
import types
import typing
import weakref
from collections.abc import Callable
from typing import Any

from aimemo.core.types import captured_names, name_of


class Unkeyable(TypeError):
    """A value has no canonical form; the message names its type, never its content."""


def class_name(cls: type) -> str:
    """As people write it; `name_of` is for forms, because both of its parts may hold dots."""
    return f"{cls.__module__}.{cls.__qualname__}"


_VIEWS: dict[type, Callable[[Any], Any]] = {
    str: str.__str__,
    bytes: bytes.__bytes__,
    int: int.__int__,
    float: float.__float__,
    complex: complex.__complex__,
    list: lambda v: list(list.__iter__(v)),
    tuple: lambda v: tuple(tuple.__iter__(v)),
    set: lambda v: set(set.__iter__(v)),
    frozenset: lambda v: frozenset(frozenset.__iter__(v)),
    dict: lambda v: list(dict.items(v)) if hasattr(v, "move_to_end") else dict(dict.items(v)),
}

_CODE = (
    *("co_argcount", "co_posonlyargcount", "co_kwonlyargcount", "co_flags"),
    *("co_code", "co_consts", "co_names", "co_varnames", "co_freevars"),
    *("co_cellvars", "co_exceptiontable"),
)
_OF_TYPE_NAMES = ("__supertype__", "__bound__", "__constraints__", "__covariant__", "__contravariant__")
_INITVAR = vars(dataclasses)["_FIELD_INITVAR"]

_schemas: weakref.WeakKeyDictionary[type, str] = weakref.WeakKeyDictionary()


def enum_state(value: enum.Enum) -> Any:
    return value._name_, value._value_


def dataclass_state(value: Any) -> Any:
    state = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if hasattr(value, f.name)}
    # A subclass that is no dataclass itself, and InitVars, put settings where no field tells of them.
    declared = type(value).__dataclass_fields__.values()
    hides = "__dataclass_fields__" not in vars(type(value)) or any(f._field_type is _INITVAR for f in declared)
    return state, _view(value), attributes(value) if hides else None


def pydantic_state(value: Any) -> Any:
    fields = type(value).__pydantic_fields__
    state = {name: item for name, item in value.__dict__.items() if name in fields}
    return state, value.__pydantic_extra__ or {}, value.__pydantic_private__ or {}


def derives_from_builtin(cls: type) -> bool:
    """Whether instances of a class have a base class's own view of them."""
    return not _VIEWS.keys().isdisjoint(cls.__mro__)


def builtin_subclass_state(value: Any) -> Any:
    factory = (value.default_factory,) if hasattr(value, "default_factory") else ()  # of a defaultdict
    return _view(value), attributes(value), *factory


def _view(value: Any) -> Any:
    """The base class's own view of an instance of a subclass of a builtin, whatever the subclass overrides."""
    return next((_VIEWS[base](value) for base in type(value).__mro__ if base in _VIEWS), None)


def attributes(value: Any) -> dict[str, Any]:
    """All that an instance holds, in its dictionary and in its slots."""
    names = {name for cls in type(value).__mro__ if cls not in _VIEWS for name in _slots(cls)}
    held = {name: getattr(value, name) for name in names - {"__dict__", "__weakref__"} if hasattr(value, name)}
    return {**held, **getattr(value, "__dict__", {})}


def _slots(cls: type) -> list[str]:
    """The names of a class's own slots, private ones as the class mangles them."""
    slots = vars(cls).get("__slots__", ())
    names = (slots,) if isinstance(slots, str) else slots
    prefix = f"_{cls.__name__.lstrip('_')}"
    return [prefix + name if name.startswith("__") and not name.endswith("__") else name for name in names]


def ndarray_state(value: Any) -> Any:
    if value.dtype.hasobject or (hasattr(value, "__setitem__") and type(value) is not sys.modules["numpy"].ndarray):
        raise Unkeyable("a numpy array of objects, or of a class of its own")
    dtype = value.dtype.descr if value.dtype.names else value.dtype.str
    scalar = value.dtype.type  # one of another package may be spelled like others
    others = () if scalar.__module__ == "numpy" else (name_of(scalar),)
    return dtype, value.shape, value.tobytes(), *others


def function_state(value: types.FunctionType) -> Any:
    code = (value.__module__, value.__qualname__, value.__code__, value.__defaults__, value.__kwdefaults__)
    return *code, captured_names(value), getattr(value, "__wrapped__", None)


def code_state(value: types.CodeType) -> tuple[Any, ...]:
    return tuple(getattr(value, name) for name in _CODE)


def builtin_function_state(value: types.BuiltinFunctionType) -> Any:
    owner = value.__self__
    if owner is not None and not isinstance(owner, types.ModuleType | type):
        raise Unkeyable(f"a method of a {class_name(type(owner))}")
    return owner if isinstance(owner, type) else value.__module__, value.__qualname__


def class_state(value: type) -> Any:
    return name_of(value), _shape(value)


def _shape(cls: type) -> Any:
    """What a class says about its instances, where it does: a schema, members or annotated fields."""
    if hasattr(cls, "model_json_schema"):
        return _pydantic_schema(cls)
    if issubclass(cls, enum.Enum):
        return [(name, member._value_) for name, member in cls.__members__.items()]
    if dataclasses.is_dataclass(cls):
        return [(field.name, field.type) for field in dataclasses.fields(cls)]
    if typing.is_typeddict(cls) or hasattr(cls, "_fields"):
        return dict(getattr(cls, "__annotations__", {})), getattr(cls, "__required_keys__", None)
    return None


def _pydantic_schema(cls: Any) -> str:
    schema = _schemas.get(cls)
    if schema is None:
        try:
            schema = json.dumps(cls.model_json_schema(), sort_keys=True)
        except Exception as error:
            raise Unkeyable(f"the class {class_name(cls)} (it has no JSON schema)") from error
        _schemas[cls] = schema
    return schema


def generic_state(value: Any) -> Any:
    star = ("*",) if getattr(value, "__unpacked__", False) else ()
    return typing.get_origin(value), typing.get_args(value), *star


def typing_state(value: Any) -> Any:
    if typing.get_origin(value) is not None:
        return generic_state(value)
    names = [getattr(value, name, None) for name in ("_name", "__name__", "__forward_arg__")]
    if not any(names):
        raise Unkeyable(f"a {class_name(type(value))}")
    return names, [getattr(value, name, None) for name in _OF_TYPE_NAMES]
