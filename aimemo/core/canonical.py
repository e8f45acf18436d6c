"""The canonical form: one text per meaning of an argument, and never one text for two meanings.

Every value becomes a type tag followed by either a terminated number or a length-prefixed payload, so
that the text can be read back without doubt and two different values cannot spell the same text. What
is no plain value itself is told by plain values (`state.py`).
"""

from __future__ import annotations

import dataclasses
import datetime
import enum
import functools
import hashlib
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

from aimemo.core.state import (
    Unkeyable,
    builtin_function_state,
    builtin_subclass_state,
    class_name,
    class_state,
    code_state,
    dataclass_state,
    derives_from_builtin,
    enum_state,
    function_state,
    generic_state,
    ndarray_state,
    pydantic_state,
    typing_state,
)
from aimemo.core.types import name_of

MAX_DEPTH = 150
LONG_BYTES = 1024

Add = Callable[[str], None]
Writer = Callable[[Any, Add, int], None]


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


def _object(state: Callable[[Any], Any]) -> Writer:
    """A writer for objects of which a class and a state tell everything."""

    def write(value: Any, add: Add, depth: int) -> None:
        name = name_of(type(value))
        add(f"o{len(name)}:{name}")
        _write(state(value), add, _below(depth))

    return write


def _zone(value: Any) -> Any:
    """What a zone is called: an offset alone does not tell what other times there would be, or what they are called."""
    zone = value.tzinfo
    name = getattr(zone, "key", None) or getattr(zone, "zone", None)  # of zoneinfo, of pytz
    if zone is None or name is not None:
        return name
    if zone.utcoffset(None) is None:
        raise Unkeyable(f"a time in a {class_name(type(zone))}, which has no name; a zoneinfo.ZoneInfo has one")
    return _zone_name(zone)


def _zone_name(zone: Any) -> str | None:
    """What a zone of one offset is called, if not by that."""
    name, usual = zone.tzname(None), datetime.timezone(zone.utcoffset(None)).tzname(None)
    return None if name in (None, usual, usual.removeprefix("UTC")) else name


def _zone_parts(zone: Any) -> tuple[Any, ...]:
    name = _zone_name(zone)
    return zone.utcoffset(None), *(() if name is None else (name,))


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
    types.FunctionType: _object(function_state),
    types.BuiltinFunctionType: _object(builtin_function_state),
    types.MethodType: _tagged("method", lambda v: (v.__self__, v.__func__)),
    types.CodeType: _tagged("code", code_state),
    functools.partial: _tagged("partial", lambda v: (v.func, v.args, v.keywords)),
    types.GenericAlias: _object(generic_state),
    types.UnionType: _object(generic_state),
}

# Types whose modules are not imported for their sake: found by name once a value of theirs turns up.
_LATE: dict[str, Writer] = {
    "datetime.datetime": _tagged("datetime", lambda v: (v.isoformat(), v.fold, _zone(v))),
    "datetime.date": _tagged("date", lambda v: (v.isoformat(),)),
    "datetime.time": _tagged("time", lambda v: (v.isoformat(), v.fold, _zone(v))),
    "datetime.timedelta": _tagged("timedelta", lambda v: (v.days, v.seconds, v.microseconds)),
    "datetime.timezone": _tagged("timezone", _zone_parts),
    "decimal.Decimal": _tagged("Decimal", lambda v: (str(v),)),
    "fractions.Fraction": _tagged("Fraction", lambda v: (v.numerator, v.denominator)),
    "uuid.UUID": _tagged("UUID", lambda v: (v.int,)),
    "re.Pattern": _tagged("Pattern", lambda v: (v.pattern, v.flags)),
    "numpy.ndarray": _object(ndarray_state),
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
    (lambda cls: callable(getattr(cls, "__cache_key__", None)), _object(lambda value: value.__cache_key__())),
    (lambda cls: issubclass(cls, enum.Enum), _object(enum_state)),
    (lambda cls: issubclass(cls, type), _object(class_state)),
    (dataclasses.is_dataclass, _object(dataclass_state)),
    (_derives("pydantic", "BaseModel"), _object(pydantic_state)),
    (_derives("numpy", "generic"), _object(ndarray_state)),
    (_derives("numpy", "ndarray"), _object(ndarray_state)),
    (_derives("pathlib", "PurePath"), _object(str)),
    (lambda cls: cls.__module__ == "typing", _object(typing_state)),
    (derives_from_builtin, _object(builtin_subclass_state)),
]
