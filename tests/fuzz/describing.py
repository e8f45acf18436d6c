"""Values as JSON: two values have one description only where they are of the same types and the same content."""

from __future__ import annotations

import dataclasses
import enum
import struct
from typing import Any

import numpy as np
import pydantic


def describe(value: Any) -> Any:
    """A description of a value that has nothing to do with how it is stored."""
    return [_name(type(value)), _content(value)]


def _name(cls: type) -> str:
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}:{cls.__qualname__}"


def _content(value: Any) -> Any:
    match value:
        case enum.Enum():
            return [value.name, describe(value.value)]
        case np.ndarray() | np.generic():
            return [value.dtype.str, list(value.shape), value.tobytes().hex()]
        case float():
            return f"{value!r} {struct.pack('>d', value).hex()}"
        case complex():
            return [_content(value.real), _content(value.imag)]
        case bytes():
            return value.hex()
        case None | bool() | int() | str():
            return ascii(value)
        case list() | tuple():
            return [describe(item) for item in value]
        case set() | frozenset():
            return sorted((describe(item) for item in value), key=repr)
        case dict():
            return [[describe(key), describe(item)] for key, item in value.items()]
        case pydantic.BaseModel():
            state = (value.__dict__, value.__pydantic_extra__, value.__pydantic_private__)
            return [*map(describe, state), sorted(value.__pydantic_fields_set__)]
        case _ if dataclasses.is_dataclass(value):
            return [[field.name, describe(getattr(value, field.name))] for field in dataclasses.fields(value)]
    return f"{value!r} fold={getattr(value, 'fold', None)}"
