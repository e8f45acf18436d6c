"""Objects as plain state, and back: without their constructors, their validators or any import."""

from __future__ import annotations

import dataclasses
import enum
import functools
import sys
import weakref
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

from aimemo.core.state import attributes
from aimemo.errors import CodecError

_CONTENTS: Final = (list, dict, set, frozenset, tuple, str, bytes, int, float, complex, BaseException)


class _Absent:
    """Stands for a declared field that an object does not have."""


ABSENT: Final = _Absent()


class _Fields(NamedTuple):
    """The names of a class's fields, and a signature of them and their types: a class whose fields have changed
    since a value was stored must not be given that value."""

    names: tuple[str, ...]
    signature: int

    def check(self, cls: type, signature: int) -> None:
        if signature != self.signature:
            raise CodecError(f"the fields of {cls.__qualname__} have changed")


_known: weakref.WeakKeyDictionary[type, tuple[Any, _Fields]] = weakref.WeakKeyDictionary()


def _fields(cls: type, declared: tuple[Any, ...], hints: Callable[[], Mapping[str, Any]]) -> _Fields:
    """The fields of a class, worked out anew only when what declares them is something else."""
    known = _known.get(cls)
    if known is None or known[0] != declared:
        fields = hints()
        text = "\n".join(f"{name}: {hint}" for name, hint in fields.items())
        known = _known[cls] = (declared, _Fields(tuple(fields), zlib.crc32(text.encode())))
    return known[1]


def _besides(cls: type, held: dict[str, Any], fields: Iterable[str]) -> dict[str, Any] | None:
    """What an object holds besides its fields; what it has merely cached is worked out again."""
    others = held.keys() - set(fields)
    cached = (name for name in others if isinstance(getattr(cls, name, None), functools.cached_property))
    return {name: held[name] for name in others.difference(cached)} or None


def enum_state(value: enum.Enum) -> list[Any]:
    return [value._name_, value._value_]


def restore_enum(cls: type[enum.Enum], name: str | None, value: Any) -> enum.Enum:
    member = cls.__members__.get(name or "")
    if member is None and issubclass(cls, enum.Flag):
        member = cls(value)  # a combination of members
    if member is None or not (member._value_ == value or (value != value and member._value_ != member._value_)):
        raise CodecError(f"the members of {cls.__qualname__} have changed")
    return member


def _dataclass_fields(cls: Any) -> _Fields:
    def hints() -> dict[str, Any]:
        return {field.name: field.type for field in dataclasses.fields(cls)}

    return _fields(cls, (id(cls.__dataclass_fields__),), hints)


def dataclass_state(value: Any) -> list[Any]:
    if isinstance(value, _CONTENTS):
        raise CodecError(f"a dataclass derived from a builtin type cannot be stored: {type(value).__qualname__}")
    fields = _dataclass_fields(type(value))
    held = [getattr(value, name, ABSENT) for name in fields.names]
    return [fields.signature, held, _besides(type(value), attributes(value), fields.names)]


def restore_dataclass(cls: Any, signature: int, values: list[Any], others: dict[str, Any] | None) -> Any:
    fields = _dataclass_fields(cls)
    fields.check(cls, signature)
    restored = object.__new__(cls)
    for name, value in (*zip(fields.names, values, strict=True), *(others or {}).items()):
        if value is not ABSENT:
            object.__setattr__(restored, name, value)
    return restored


def _namedtuple_fields(cls: Any) -> _Fields:
    types = getattr(cls, "__annotations__", {})
    return _fields(cls, (cls._fields, id(types)), lambda: {name: types.get(name) for name in cls._fields})


def namedtuple_state(value: Any) -> list[Any]:
    if _besides(type(value), attributes(value), ()):
        raise CodecError(
            f"a NamedTuple with attributes besides its fields cannot be stored: {type(value).__qualname__}"
        )
    return [_namedtuple_fields(type(value)).signature, list(tuple.__iter__(value))]


def restore_namedtuple(cls: Any, signature: int, values: list[Any]) -> Any:
    fields = _namedtuple_fields(cls)
    fields.check(cls, signature)
    if len(values) != len(fields.names):
        raise CodecError(f"the fields of {cls.__qualname__} have changed")
    return tuple.__new__(cls, values)


def _pydantic_fields(cls: Any) -> _Fields:
    def hints() -> dict[str, Any]:
        return {name: field.annotation for name, field in cls.__pydantic_fields__.items()}

    # A model that names others which come later is completed in place.
    return _fields(cls, (id(cls.__pydantic_fields__), cls.__pydantic_complete__), hints)


def pydantic_state(value: Any) -> list[Any]:
    fields = _pydantic_fields(type(value))
    return [
        fields.signature,
        [value.__dict__.get(name, ABSENT) for name in fields.names],
        _besides(type(value), value.__dict__, fields.names),
        sorted(value.__pydantic_fields_set__),
        value.__pydantic_extra__,
        value.__pydantic_private__,
    ]


def restore_pydantic(
    cls: Any, signature: int, values: list[Any], others: Any, fields_set: list[str], extra: Any, private: Any
) -> Any:
    fields = _pydantic_fields(cls)
    fields.check(cls, signature)
    state = {name: item for name, item in zip(fields.names, values, strict=True) if item is not ABSENT}
    state.update(others or {})
    restored = object.__new__(cls)
    put = object.__setattr__
    put(restored, "__dict__", state)
    put(restored, "__pydantic_fields_set__", set(fields_set))
    put(restored, "__pydantic_extra__", extra)
    put(restored, "__pydantic_private__", private)
    return restored


def is_numpy(cls: type) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and (cls is numpy.ndarray or issubclass(cls, numpy.generic))


def ndarray_state(value: Any) -> list[Any]:
    if value.dtype.hasobject or value.dtype.kind == "V":
        raise CodecError("a numpy array of objects or records cannot be stored; return plain arrays")
    is_scalar = not isinstance(value, sys.modules["numpy"].ndarray)
    return [value.dtype.str, list(value.shape), value.tobytes(), is_scalar]


def restore_ndarray(dtype: str, shape: list[int], data: bytes, is_scalar: bool) -> Any:
    numpy = sys.modules.get("numpy")
    if numpy is None:
        raise CodecError("numpy is not loaded in this process")
    kind = numpy.dtype(dtype)
    if kind.hasobject or kind.kind == "V":
        raise CodecError("a numpy array of objects or records cannot be restored")
    if kind.itemsize:
        array = numpy.frombuffer(data, kind).reshape(shape).copy()
    elif not shape:
        array = numpy.zeros((), kind)  # a scalar without text
    else:
        raise CodecError("a numpy array of texts without length cannot be restored")  # numpy gives each one a byte
    return array[()] if is_scalar else array
