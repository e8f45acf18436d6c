"""The canonical form: one text per meaning of an argument, and never one text for two meanings.

Every value becomes a type tag followed by either a terminated number or a length-prefixed payload, so
that the text can be read back without doubt and two different values cannot spell the same text. What
has no such form raises; nothing is ever keyed by its `repr` or its `hash`.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import json
import sys
import types
import typing
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from aimemo.core.types import captured_names

MAX_DEPTH = 150
LONG_BYTES = 1024

Add = Callable[[str], None]
Writer = Callable[[Any, Add, int], None]


class Unkeyable(TypeError):
    """A value has no canonical form; the message names its type, never its content."""


def canonical(value: object) -> str:
    """The canonical form of a value.

    Raises:
        Unkeyable: for a value without one: an object without fields or `__cache_key__()`, a structure
            that holds itself or is nested deeper than `MAX_DEPTH`.
    """
    try:
        return _alone(value, 0)
    except RecursionError:
        raise Unkeyable("a structure nested too deeply") from None


class UnkeyableParameter(Unkeyable):
    """As `Unkeyable`, of the argument of one parameter."""

    def __init__(self, parameter: str, reason: str) -> None:
        super().__init__(reason)
        self.parameter = parameter


def canonical_arguments(names: Sequence[str], values: Sequence[Any]) -> str:
    """The canonical form of named arguments.

    Raises:
        UnkeyableParameter: for the first argument without one.
    """
    parts: list[str] = []
    for name, value in zip(names, values, strict=True):
        parts.append(f"p{len(name)}:{name}")
        if type(value) is str:  # the commonest argument, spelled without detours
            parts.append(f"s{len(value)}:{value}")
            continue
        try:
            _write(value, parts.append, 0)
        except Unkeyable as error:
            raise UnkeyableParameter(name, str(error)) from error
        except Exception as error:  # a `__cache_key__` or a property that fails, or a structure being changed
            raise UnkeyableParameter(name, f"a value whose fields raise {type(error).__name__}") from error
    return "".join(parts)


def class_name(cls: type) -> str:
    """As people write it; `_full_name` is for forms, because both of its parts may hold dots."""
    return f"{cls.__module__}.{cls.__qualname__}"


def _full_name(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _write(value: Any, add: Add, depth: int) -> None:
    (_WRITERS.get(type(value)) or _writer_for(type(value)))(value, add, depth)


def _below(depth: int) -> int:
    if depth >= MAX_DEPTH:
        raise Unkeyable(f"a structure that holds itself or is nested deeper than {MAX_DEPTH}")
    return depth + 1


def _write_str(value: str, add: Add, depth: int) -> None:
    add(f"s{len(value)}:{value}")


def _write_int(value: int, add: Add, depth: int) -> None:
    add(f"i{value:x};")


def _write_float(value: float, add: Add, depth: int) -> None:
    add(f"f{(value + 0.0).hex()};")  # adding 0.0 turns -0.0 into 0.0


def _write_complex(value: complex, add: Add, depth: int) -> None:
    add(f"c{(value.real + 0.0).hex()},{(value.imag + 0.0).hex()};")


def _write_bytes(value: bytes, add: Add, depth: int) -> None:
    if len(value) > LONG_BYTES:
        add(f"h{len(value)}:{hashlib.sha256(value).hexdigest()}")
    else:
        add(f"b{len(value)}:{value.hex()}")


def _write_sequence(tag: str) -> Writer:
    def write(value: Any, add: Add, depth: int) -> None:
        depth = _below(depth)
        add(f"{tag}{len(value)}[")
        for item in value:
            _write(item, add, depth)

    return write


def _write_set(tag: str) -> Writer:
    def write(value: Any, add: Add, depth: int) -> None:
        add(f"{tag}{len(value)}[")
        depth = _below(depth)
        for item in sorted(_alone(item, depth) for item in value):
            add(item)

    return write


def _alone(value: Any, depth: int) -> str:
    parts: list[str] = []
    _write(value, parts.append, depth)
    return "".join(parts)


_TEXTS = {str}


def _write_dict(value: dict[Any, Any], add: Add, depth: int) -> None:
    add(f"d{len(value)}[")
    depth = _below(depth)
    if set(map(type, value)) == _TEXTS:  # as nearly always: messages, parameters of a model
        for key in sorted(value):
            item = value[key]
            if type(item) is str:
                add(f"s{len(key)}:{key}s{len(item)}:{item}")
            else:
                add(f"s{len(key)}:{key}")
                _write(item, add, depth)
        return
    keys = [_alone(key, depth) for key in value]
    for key, item in sorted(zip(keys, value.values(), strict=True), key=_first):
        add(key)
        _write(item, add, depth)


def _first(pair: tuple[str, Any]) -> str:
    return pair[0]


def _tagged(tag: str, parts: Callable[[Any], tuple[Any, ...]]) -> Writer:
    """A writer for a type of which a tuple of simpler values tells everything."""

    def write(value: Any, add: Add, depth: int) -> None:
        add(f"x{len(tag)}:{tag}")
        _write(parts(value), add, _below(depth))

    return write


def _write_object(value: Any, add: Add, depth: int, state: Any) -> None:
    name = _full_name(type(value))
    add(f"o{len(name)}:{name}")
    _write(state, add, _below(depth))


def _write_cache_key(value: Any, add: Add, depth: int) -> None:
    _write_object(value, add, depth, value.__cache_key__())


def _write_enum(value: enum.Enum, add: Add, depth: int) -> None:
    _write_object(value, add, depth, (value._name_, value._value_))


def _write_dataclass(value: Any, add: Add, depth: int) -> None:
    state = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if hasattr(value, f.name)}
    # A subclass that is no dataclass itself, and InitVars, put settings where no field tells of them.
    declared = type(value).__dataclass_fields__.values()
    hides = "__dataclass_fields__" not in vars(type(value)) or any(f._field_type is _INITVAR for f in declared)
    _write_object(value, add, depth, (state, _plain_view(value), _attributes(value) if hides else None))


def _write_pydantic(value: Any, add: Add, depth: int) -> None:
    fields = type(value).__pydantic_fields__
    state = {name: item for name, item in value.__dict__.items() if name in fields}
    private = value.__pydantic_private__ or {}
    _write_object(value, add, depth, (state, value.__pydantic_extra__ or {}, private))


def _write_builtin_subclass(value: Any, add: Add, depth: int) -> None:
    factory = (value.default_factory,) if hasattr(value, "default_factory") else ()  # of a defaultdict
    _write_object(value, add, depth, (_plain_view(value), _attributes(value), *factory))


def _plain_view(value: Any) -> Any:
    """The base class's own view of an instance of a subclass of a builtin, whatever the subclass overrides."""
    return next((_PLAIN[base](value) for base in type(value).__mro__ if base in _PLAIN), None)


def _attributes(value: Any) -> dict[str, Any]:
    """All that an instance holds, in its dictionary and in its slots."""
    names = {name for cls in type(value).__mro__ if cls not in _PLAIN for name in _slots(cls)}
    held = {name: getattr(value, name) for name in names - {"__dict__", "__weakref__"} if hasattr(value, name)}
    return {**held, **getattr(value, "__dict__", {})}


def _slots(cls: type) -> list[str]:
    """The names of a class's own slots, private ones as the class mangles them."""
    slots = vars(cls).get("__slots__", ())
    names = (slots,) if isinstance(slots, str) else slots
    prefix = f"_{cls.__name__.lstrip('_')}"
    return [prefix + name if name.startswith("__") and not name.endswith("__") else name for name in names]


def _write_ndarray(value: Any, add: Add, depth: int) -> None:
    if value.dtype.hasobject or (hasattr(value, "__setitem__") and type(value) is not sys.modules["numpy"].ndarray):
        raise Unkeyable("a numpy array of objects, or of a class of its own")
    dtype = value.dtype.descr if value.dtype.names else value.dtype.str
    _write_object(value, add, depth, (dtype, value.shape, value.tobytes()))


def _write_function(value: types.FunctionType, add: Add, depth: int) -> None:
    state = (value.__module__, value.__qualname__, value.__code__, value.__defaults__, value.__kwdefaults__)
    _write_object(value, add, depth, (*state, captured_names(value), getattr(value, "__wrapped__", None)))


def _write_builtin_function(value: Any, add: Add, depth: int) -> None:
    owner = value.__self__
    if owner is not None and not isinstance(owner, types.ModuleType | type):
        raise Unkeyable(f"a method of a {class_name(type(owner))}")
    _write_object(value, add, depth, (owner if isinstance(owner, type) else value.__module__, value.__qualname__))


def _write_class(value: type, add: Add, depth: int) -> None:
    _write_object(value, add, depth, (_full_name(value), _shape(value)))


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


_OF_TYPE_NAMES = ("__supertype__", "__bound__", "__constraints__", "__covariant__", "__contravariant__")
_INITVAR = vars(dataclasses)["_FIELD_INITVAR"]

_SCHEMAS: weakref.WeakKeyDictionary[type, str] = weakref.WeakKeyDictionary()


def _pydantic_schema(cls: Any) -> str:
    schema = _SCHEMAS.get(cls)
    if schema is None:
        try:
            schema = json.dumps(cls.model_json_schema(), sort_keys=True)
        except Exception as error:
            raise Unkeyable(f"the class {class_name(cls)} (it has no JSON schema)") from error
        _SCHEMAS[cls] = schema
    return schema


def _write_generic(value: Any, add: Add, depth: int) -> None:
    star = ("*",) if getattr(value, "__unpacked__", False) else ()
    _write_object(value, add, depth, (typing.get_origin(value), typing.get_args(value), *star))


def _write_typing(value: Any, add: Add, depth: int) -> None:
    if typing.get_origin(value) is not None:
        _write_generic(value, add, depth)
        return
    names = [getattr(value, name, None) for name in ("_name", "__name__", "__forward_arg__")]
    if not any(names):
        raise Unkeyable(f"a {class_name(type(value))}")
    _write_object(value, add, depth, (names, [getattr(value, name, None) for name in _OF_TYPE_NAMES]))


def _zone(value: Any) -> Any:
    """The name of a named zone: an offset alone does not tell what other times there would be."""
    return getattr(value.tzinfo, "key", None)


_PLAIN: dict[type, Callable[[Any], Any]] = {
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

_WRITERS: dict[type, Writer] = {
    type(None): lambda value, add, depth: add("N"),
    bool: lambda value, add, depth: add("T" if value else "F"),
    type(...): lambda value, add, depth: add("E"),
    str: _write_str,
    int: _write_int,
    float: _write_float,
    complex: _write_complex,
    bytes: _write_bytes,
    bytearray: _tagged("bytearray", lambda v: (bytes(v),)),
    memoryview: _tagged("memoryview", lambda v: (v.format, v.shape, v.tobytes())),
    list: _write_sequence("l"),
    tuple: _write_sequence("t"),
    set: _write_set("S"),
    frozenset: _write_set("Z"),
    dict: _write_dict,
    types.MappingProxyType: _tagged("mappingproxy", lambda v: (dict(v),)),
    range: _tagged("range", lambda v: (v.start, v.stop, v.step)),
    slice: _tagged("slice", lambda v: (v.start, v.stop, v.step)),
    types.FunctionType: _write_function,
    types.BuiltinFunctionType: _write_builtin_function,
    types.MethodType: _tagged("method", lambda v: (v.__self__, v.__func__)),
    types.CodeType: _tagged("code", lambda v: tuple(getattr(v, name) for name in _CODE)),
    functools.partial: _tagged("partial", lambda v: (v.func, v.args, v.keywords)),
    types.GenericAlias: _write_generic,
    types.UnionType: _write_generic,
}

# Types whose modules are not imported for their sake: found by name once a value of theirs turns up.
_LATE: dict[str, Writer] = {
    "datetime.datetime": _tagged("datetime", lambda v: (v.isoformat(), v.fold, _zone(v))),
    "datetime.date": _tagged("date", lambda v: (v.isoformat(),)),
    "datetime.time": _tagged("time", lambda v: (v.isoformat(), v.fold, _zone(v))),
    "datetime.timedelta": _tagged("timedelta", lambda v: (v.days, v.seconds, v.microseconds)),
    "datetime.timezone": _tagged("timezone", lambda v: (v.utcoffset(None),)),
    "decimal.Decimal": _tagged("Decimal", lambda v: (str(v),)),
    "fractions.Fraction": _tagged("Fraction", lambda v: (v.numerator, v.denominator)),
    "uuid.UUID": _tagged("UUID", lambda v: (v.int,)),
    "re.Pattern": _tagged("Pattern", lambda v: (v.pattern, v.flags)),
    "numpy.ndarray": _write_ndarray,
}


def _writer_for(cls: type) -> Writer:
    late = _LATE.get(f"{cls.__module__}.{cls.__qualname__}")
    if late is not None and getattr(sys.modules.get(cls.__module__), cls.__qualname__, None) is cls:
        _WRITERS[cls] = late
        return late
    for recognises, writer in _KINDS:
        if recognises(cls):
            return writer
    raise Unkeyable(f"a {class_name(cls)} object")


def _derives(module: str, name: str) -> Callable[[type], bool]:
    def recognises(cls: type) -> bool:
        base = getattr(sys.modules.get(module), name, None)
        return base is not None and issubclass(cls, base)

    return recognises


_KINDS: list[tuple[Callable[[type], bool], Writer]] = [
    (lambda cls: callable(getattr(cls, "__cache_key__", None)), _write_cache_key),
    (lambda cls: issubclass(cls, enum.Enum), _write_enum),
    (lambda cls: issubclass(cls, type), _write_class),
    (dataclasses.is_dataclass, _write_dataclass),
    (_derives("pydantic", "BaseModel"), _write_pydantic),
    (_derives("numpy", "generic"), _write_ndarray),
    (_derives("numpy", "ndarray"), _write_ndarray),
    (_derives("pathlib", "PurePath"), lambda value, add, depth: _write_object(value, add, depth, str(value))),
    (lambda cls: cls.__module__ == "typing", _write_typing),
    (lambda cls: not _PLAIN.keys().isdisjoint(cls.__mro__), _write_builtin_subclass),
]
