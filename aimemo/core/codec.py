"""Values to bytes and back: msgpack, with extension types from a fixed list.

A user's own dict can never look like a type tag, because tags are msgpack extension types.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import functools
import inspect
import uuid
from collections.abc import Callable
from typing import Any, Final

import msgpack

from aimemo.core.objects import (
    ABSENT,
    dataclass_state,
    enum_state,
    is_numpy,
    namedtuple_state,
    ndarray_state,
    pydantic_state,
    restore_dataclass,
    restore_enum,
    restore_namedtuple,
    restore_ndarray,
    restore_pydantic,
)  # fmt: skip
from aimemo.core.types import TypeResolver, is_namedtuple, is_pydantic
from aimemo.errors import CodecError

MAX_DEPTH: Final = 100
MAX_RAW: Final = 64 * 1024 * 1024

_TUPLE, _SET, _FROZENSET, _BIGINT, _COMPLEX = 1, 2, 3, 4, 5
_DATETIME, _DATE, _TIME, _TIMEDELTA, _DECIMAL, _UUID = 10, 11, 12, 13, 14, 15
_ENUM, _DATACLASS, _NAMEDTUPLE, _PYDANTIC, _NDARRAY, _ABSENT_FIELD = 20, 21, 22, 23, 24, 25

_IMMUTABLE: Final = frozenset(
    {str, bytes, int, float, bool, type(None), complex, decimal.Decimal, uuid.UUID}
    | {datetime.datetime, datetime.date, datetime.time, datetime.timedelta}
)
_NATIVE: Final = frozenset({str, bytes, int, float, bool, type(None)})


_Class = tuple[int, Callable[[type], bool], Callable[[Any], list[Any]], Callable[..., Any]]

_CLASSES: Final[list[_Class]] = [
    (_ENUM, lambda cls: issubclass(cls, enum.Enum), enum_state, restore_enum),
    (_DATACLASS, dataclasses.is_dataclass, dataclass_state, restore_dataclass),
    (_NAMEDTUPLE, is_namedtuple, namedtuple_state, restore_namedtuple),
    (_PYDANTIC, is_pydantic, pydantic_state, restore_pydantic),
]
_REBUILD: Final = {code: (recognises, rebuild) for code, recognises, _, rebuild in _CLASSES}


def is_immutable(value: object) -> bool:
    """Whether one object can be handed to everybody."""
    cls = type(value)
    if cls is tuple or cls is frozenset:
        return all(map(is_immutable, value))  # type: ignore[call-overload]
    return cls in _IMMUTABLE or issubclass(cls, enum.Enum)


def pack(value: object, types: TypeResolver) -> bytes:
    """A value as msgpack.

    Raises:
        CodecError: for a value that could not be restored as it is: a type that is not on the list, or
            not resolvable by `types`; a structure that holds itself or is nested too deeply.
    """
    try:
        packed = _Packing(types, 0).pack(value)
    except CodecError:
        raise
    except RecursionError:
        raise CodecError("a value that holds itself, or is nested too deeply, cannot be stored") from None
    except Exception as error:  # whatever an object's own methods raise
        raise CodecError(f"a {type(value).__name__} cannot be stored: {type(error).__name__}") from error
    if len(packed) > MAX_RAW:
        raise CodecError(f"a packed value of {len(packed):,} bytes is over the limit of {MAX_RAW:,}")
    if not is_immutable(value):
        unpacker(types)(packed)  # what could not be restored is refused now, not missed later
    return packed


def unpacker(types: TypeResolver) -> Callable[[bytes], Any]:
    """A function that gives the value in packed bytes.

    It raises `CodecError` if the bytes were not packed by `pack`, or hold a class that `types` does not
    resolve.
    """
    unpack = _Unpacking(types, 0).unpack

    def value_in(data: bytes) -> Any:
        try:
            value = unpack(data)
            if value is ABSENT or type(value) is msgpack.Timestamp:
                raise CodecError("stored bytes hold something that was never a value")
            return value
        except CodecError:
            raise
        except Exception as error:  # whatever damaged bytes provoke, in msgpack or in a class's own state
            raise CodecError(f"stored bytes cannot be restored: {type(error).__name__}") from error

    return value_in


class _Packing:
    """Packs one level of extension types; the next level gets a packer of its own."""

    def __init__(self, types: TypeResolver, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise CodecError(f"a value that holds itself or is nested deeper than {MAX_DEPTH} cannot be stored")
        self.types = types
        self.depth = depth

    def pack(self, value: object) -> bytes:
        if type(value) in (list, dict):
            _refuse_lookalikes(value, 0)
        elif type(value) not in _NATIVE:
            value = self.extend(value)
        packed: bytes = msgpack.packb(
            value, default=self.extend, strict_types=True, use_bin_type=True, unicode_errors="surrogatepass"
        )
        return packed

    def extend(self, value: Any) -> msgpack.ExtType:
        code, state = self._state(value)
        return msgpack.ExtType(code, _Packing(self.types, self.depth + 1).pack(state))

    def _state(self, value: Any) -> tuple[int, Any]:
        cls = type(value)
        plain = _PLAIN.get(cls)
        if plain is not None:
            return plain[0], plain[1](value)
        for code, recognises, state, _ in _CLASSES:
            if recognises(cls):
                return code, [self.types.name(cls), *state(value)]
        if is_numpy(cls):
            return _NDARRAY, ndarray_state(value)
        if value is ABSENT:
            return _ABSENT_FIELD, None
        if inspect.iscoroutine(value):
            raise CodecError("a coroutine cannot be stored; decorate an `async def`, so that it is awaited")
        raise CodecError(
            f"a {cls.__module__}.{cls.__qualname__} cannot be stored; return plain data, a dataclass, "
            "an Enum, a NamedTuple or a pydantic model instead"
        )


class _Unpacking:
    def __init__(self, types: TypeResolver, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise CodecError("stored bytes are nested too deeply")
        self.types = types
        self.depth = depth
        self._deeper: _Unpacking | None = None
        self.unpack: Callable[[bytes], Any] = functools.partial(
            msgpack.unpackb, ext_hook=self.restore, raw=False, strict_map_key=False, unicode_errors="surrogatepass"
        )

    def restore(self, code: int, data: bytes) -> Any:
        if len(data) * self.depth > MAX_RAW:
            raise CodecError("stored bytes are too large for how deeply they are nested")  # each level has a copy
        if self._deeper is None:
            self._deeper = _Unpacking(self.types, self.depth + 1)
        state = self._deeper.unpack(data)
        restore = _RESTORE.get(code)
        if restore is not None:
            return restore(state)
        if code not in _REBUILD:
            raise CodecError(f"unknown extension type {code}")
        recognises, rebuild = _REBUILD[code]
        cls = self.types.resolve(state[0])
        if not recognises(cls):
            raise CodecError(f"{cls.__qualname__} has become another kind of class")
        return rebuild(cls, *state[1:])


def _refuse_lookalikes(value: Any, depth: int) -> None:
    """Refuse what msgpack would pack by itself, but give back as something else."""
    if depth > MAX_DEPTH:
        raise CodecError(f"a value that holds itself or is nested deeper than {MAX_DEPTH} cannot be stored")
    for items in (value, value.values()) if type(value) is dict else (value,):
        for item in items:
            cls = type(item)
            if cls in _NATIVE:
                continue
            if cls is list or cls is dict:
                _refuse_lookalikes(item, depth + 1)
            elif cls in _LOOKALIKES:
                raise CodecError(f"a {cls.__name__} inside a list or dict cannot be stored; make it bytes")


_LOOKALIKES: Final = frozenset({bytearray, memoryview, msgpack.ExtType, msgpack.Timestamp})


def _datetime_state(value: datetime.datetime) -> list[Any]:
    zone = value.tzinfo
    home = type(zone).__module__.partition(".")[0]
    if home not in ("builtins", "datetime", "zoneinfo", "pydantic_core"):
        raise CodecError(f"a datetime in a {home} zone cannot be stored as it is; use datetime.timezone or zoneinfo")
    key = getattr(zone, "key", None)
    return [value.isoformat(), value.fold, _own_name(zone) if zone is not None and key is None else key]


def _own_name(zone: Any) -> list[str] | None:
    """The name of a zone of one offset, if it is not that."""
    name = zone.tzname(None)
    return None if name == datetime.timezone(zone.utcoffset(None)).tzname(None) else [name]


def _datetime(state: list[Any]) -> datetime.datetime:
    text, fold, key = state
    value = datetime.datetime.fromisoformat(text).replace(fold=fold)
    if key is None:
        return value
    if isinstance(key, list):
        return value.replace(tzinfo=_named(value, key))
    import zoneinfo  # seldom needed, and slow to import

    return value.replace(tzinfo=zoneinfo.ZoneInfo(key))


def _time_state(value: datetime.time) -> list[Any]:
    if value.tzinfo is not None and value.utcoffset() is None:
        raise CodecError("a time whose zone has no fixed offset cannot be stored; use a datetime")
    name = None if value.tzinfo is None else _own_name(value.tzinfo)
    return [value.isoformat(), value.fold] if name is None else [value.isoformat(), value.fold, name]


def _time(state: list[Any]) -> datetime.time:
    value = datetime.time.fromisoformat(state[0]).replace(fold=state[1])
    return value.replace(tzinfo=_named(value, state[2])) if len(state) > 2 else value


def _named(value: datetime.datetime | datetime.time, name: list[str]) -> datetime.timezone:
    """The zone of one offset that a time is in, with a name of its own."""
    return datetime.timezone(value.utcoffset() or datetime.timedelta(), *name)


def _bigint(data: bytes) -> int:
    return int.from_bytes(data, "big", signed=True)


_PLAIN: Final[dict[type, tuple[int, Callable[[Any], Any]]]] = {
    tuple: (_TUPLE, list),
    set: (_SET, list),
    frozenset: (_FROZENSET, list),
    int: (_BIGINT, lambda v: v.to_bytes(v.bit_length() // 8 + 1, "big", signed=True)),
    complex: (_COMPLEX, lambda v: [v.real, v.imag]),
    datetime.datetime: (_DATETIME, _datetime_state),
    datetime.date: (_DATE, datetime.date.isoformat),
    datetime.time: (_TIME, _time_state),
    datetime.timedelta: (_TIMEDELTA, lambda v: [v.days, v.seconds, v.microseconds]),
    decimal.Decimal: (_DECIMAL, str),
    uuid.UUID: (_UUID, lambda v: v.bytes),
}

_RESTORE: Final[dict[int, Callable[[Any], Any]]] = {
    _TUPLE: tuple,
    _SET: set,
    _FROZENSET: frozenset,
    _BIGINT: _bigint,
    _COMPLEX: lambda state: complex(*state),
    _DATETIME: _datetime,
    _DATE: datetime.date.fromisoformat,
    _TIME: _time,
    _TIMEDELTA: lambda state: datetime.timedelta(*state),
    _DECIMAL: decimal.Decimal,
    _UUID: lambda data: uuid.UUID(bytes=data),
    _NDARRAY: lambda state: restore_ndarray(*state),
    _ABSENT_FIELD: lambda state: ABSENT,
}
