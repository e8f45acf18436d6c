"""Classes of every kind that can be stored and keyed, for golden blobs, golden keys and the fuzz targets.

The golden blobs and keys hold the names and fields of these classes: they must never change. There is no
`from __future__ import annotations` here, because the signature of the fields would then differ from one Python
to the next.
"""

import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import re
import typing
import uuid
import zoneinfo

import numpy
import pydantic

T = typing.TypeVar("T")


class Colour(enum.Enum):
    RED = 1
    BLUE = "blue"


class Shade(enum.Enum):
    RED = 1


class Level(enum.IntEnum):
    ONE = 1


class Style(enum.StrEnum):
    ONE = "1"


class Permission(enum.Flag):
    READ = 1
    WRITE = 2


class Silent(str, enum.Enum):  # noqa: UP042
    """Its members are all the same text, but have values of their own."""

    A = "a"
    B = "b"

    def __new__(cls, value: str) -> "Silent":
        member = str.__new__(cls)
        member._value_ = value
        return member


@dataclasses.dataclass(frozen=True)
class Point:
    x: typing.Any
    y: typing.Any = 0


@dataclasses.dataclass(frozen=True)
class Vector:
    x: typing.Any
    y: typing.Any = 0


class Pair(typing.NamedTuple):
    left: typing.Any
    right: typing.Any


class Address(pydantic.BaseModel):
    street: str = "Main"
    number: int = 1


class Person(pydantic.BaseModel, extra="allow"):
    name: str
    address: Address = Address()
    _seen: list[int] = pydantic.PrivateAttr(default_factory=list)


class Page(pydantic.BaseModel, typing.Generic[T]):
    items: list[T]


class Tagged(str):
    pass


class OtherInt(int):
    pass


class Hidden(str):
    """A text with a private slot."""

    __slots__ = ("__language",)

    def __new__(cls, text: str, language: str) -> "Hidden":
        made = str.__new__(cls, text)
        made.__language = language
        return made


def seen(person: Person, *pages: int) -> Person:
    person._seen.extend(pages)
    return person


def of_class(module: str, qualname: str) -> typing.Any:
    """An object of a class with this name."""
    return type("Named", (str,), {"__module__": module, "__qualname__": qualname})("a")


CLASSES: tuple[type, ...] = (
    Colour,
    Shade,
    Level,
    Style,
    Permission,
    Silent,
    Point,
    Vector,
    Pair,
    Address,
    Person,
    Page,
)

NAMES: dict[str, typing.Any] = {
    **{cls.__name__: cls for cls in (*CLASSES, Tagged, OtherInt, Hidden)},
    **{module.__name__: module for module in (collections, functools, re, typing)},
    "dt": datetime, "Decimal": decimal.Decimal, "Fraction": fractions.Fraction, "UUID": uuid.UUID,
    "ZoneInfo": zoneinfo.ZoneInfo, "np": numpy, "inf": float("inf"), "nan": float("nan"),
    "seen": seen, "of_class": of_class,
}  # fmt: skip
"""What the expressions of the corpus and of the golden keys may speak of."""


def evaluate(expression: str) -> typing.Any:
    return eval(expression, dict(NAMES))
