"""Fuzzing the canonical form: one form exactly where DESIGN says that two arguments mean the same."""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import itertools
import random
import types
import unicodedata
import uuid
from typing import Any

import numpy as np
import pydantic
import pytest
from hypothesis import strategies as st

from aimemo import InMemoryCache, cached_ai_call
from aimemo.core.canonical import canonical, canonical_arguments
from aimemo.core.keys import digest_of
from tests.fuzz.kinds import (
    Address,
    Colour,
    Level,
    OtherInt,
    Pair,
    Permission,
    Person,
    Point,
    Shade,
    Silent,
    Style,
    Tagged,
    Vector,
    evaluate,
)  # fmt: skip
from tests.fuzz.reading import read_arguments, read_form
from tests.fuzz.running import fuzz
from tests.fuzz.sealing import CORPUS

# What means the same: the design's words as a function


def means_same(left: Any, right: Any) -> bool:
    """Whether two arguments mean the same: of one class, and of the same content all the way down."""
    if type(left) is not type(right):
        return False
    match left:
        case enum.Enum():
            return left is right
        case float() if type(left) is float:
            return left == right or (left != left and right != right)  # -0.0 is 0.0, NaN is NaN
        case complex():
            return means_same(left.real, right.real) and means_same(left.imag, right.imag)
        case np.ndarray() | np.generic():
            return (left.dtype, left.shape, left.tobytes()) == (right.dtype, right.shape, right.tobytes())
        case dt.datetime() | dt.time():
            zones = [getattr(each.tzinfo, "key", each.utcoffset()) for each in (left, right)]
            return zones[0] == zones[1] and left.replace(tzinfo=None) == right.replace(tzinfo=None)
        case decimal.Decimal():
            return left.as_tuple() == right.as_tuple()
        case set() | frozenset():
            return _same_in_any_order(list(left), list(right))
        case dict():
            return _same_in_any_order(list(left.items()), list(right.items()))
        case list() | tuple():
            return len(left) == len(right) and all(map(means_same, left, right))
        case pydantic.BaseModel():
            states = [(v.__dict__, v.__pydantic_extra__, v.__pydantic_private__) for v in (left, right)]
            return means_same(*states)
        case range() | slice():
            return (left.start, left.stop, left.step) == (right.start, right.stop, right.step)
        case types.MappingProxyType():
            return means_same(dict(left), dict(right))
        case _ if dataclasses.is_dataclass(left):
            return all(means_same(getattr(left, f.name), getattr(right, f.name)) for f in dataclasses.fields(left))
    return bool(left == right) and means_same(*[list(getattr(v, "__dict__", {}).items()) for v in (left, right)])


def _same_in_any_order(left: list[Any], right: list[Any]) -> bool:
    remaining = list(right)
    for item in left:
        at = next((at for at, other in enumerate(remaining) if means_same(item, other)), None)
        if at is None:
            return False
        del remaining[at]
    return not remaining


# Values that are easily confused

NOON = dt.datetime(2024, 10, 27, 2, 30)
BERLIN, PARIS = evaluate("ZoneInfo('Europe/Berlin')"), evaluate("ZoneInfo('Europe/Paris')")
ONE_EAST = dt.timezone(dt.timedelta(hours=1))
# fmt: off
CONFUSABLE = (
    0, 1, -1, True, False, 0.0, -0.0, 1.0, 0j, 1 + 0j, complex(-0.0, 0.0), 16, 2**70, 2.0**70,
    float("nan"), float("inf"),
    "", "1", "True", "None", "nan", "N", "T", "i1;", "s1:a", "l0[", "é", "e\u0301", "\ud800",
    "\ud83d\ude00", "\U0001f600", b"", b"1", b"True", b"N", bytes(1024), bytes(1025), bytearray(b"1"),
    None, ..., Colour.RED, Shade.RED, Level.ONE,
    Style.ONE, Silent.A, Silent.B, Permission.READ, Permission(3), Tagged("1"), Tagged(""), OtherInt(1),
    Point(1), Vector(1), Pair(1, 2), Address(), Person(name="1"), Person(name="1", extra=1),
    np.int64(1), np.float64(1), np.float64("nan"),
    np.zeros(2), np.zeros((2, 1)), np.zeros(2, "i8"), NOON, NOON.replace(tzinfo=dt.UTC), NOON.replace(tzinfo=ONE_EAST),
    NOON.replace(tzinfo=BERLIN), NOON.replace(tzinfo=PARIS), NOON.replace(tzinfo=BERLIN, fold=1),
    NOON.date(), NOON.time(),
    decimal.Decimal(1), decimal.Decimal("1.0"), decimal.Decimal("-0"), uuid.UUID(int=1), range(1), slice(0, 1),
    dt.timedelta(1), dt.timedelta(hours=23), "2024-10-27", (), [], {}, set(), frozenset(), types.MappingProxyType({}),
)
# fmt: on
HASHABLE = [value for value in CONFUSABLE if type(value).__hash__ and not isinstance(value, types.MappingProxyType)]
HASHABLE = [value for value in HASHABLE if not isinstance(value, pydantic.BaseModel | slice)]
FRAGMENTS = [*"NTFEifcsbhltSZdxop0123456789:;[,-", "s1:", "i1;", "l2[", "p1:a", "x8:datetime", "\ud800"]
IMITATIONS = st.lists(st.sampled_from(FRAGMENTS), max_size=8).map("".join)
TEXTS = st.text(st.characters(exclude_categories=()), max_size=4)
leaves = (
    st.sampled_from(CONFUSABLE) | st.integers() | st.floats() | TEXTS
    | IMITATIONS | IMITATIONS.map(lambda text: text.encode("utf-8", "surrogatepass")) | IMITATIONS.map(Tagged)
)  # fmt: skip
keys = st.sampled_from(HASHABLE) | IMITATIONS | st.tuples(st.sampled_from(HASHABLE)) | st.integers(-2, 2)
nested = st.recursive(
    leaves | st.frozensets(keys, max_size=3) | st.sets(keys, max_size=3),
    lambda some: (
        st.lists(some, max_size=3) | st.lists(some, max_size=3).map(tuple) | st.dictionaries(keys, some, max_size=3)
        | st.builds(Point, some, some) | st.builds(Vector, some, some) | st.builds(Pair, some, some)
        | st.builds(lambda **fields: Person.model_construct(**fields), name=some, extra=some)
    ),
    max_leaves=6,
)  # fmt: skip


def confused(value: Any, chance: random.Random) -> Any:
    """A value like another: sometimes the same in other words, sometimes another that looks like it."""
    if chance.random() < 0.3 and (alike := _looks_like(value)):
        return chance.choice(alike)
    cls = type(value)
    if cls in (list, tuple):
        items = [confused(item, chance) for item in value]
        return (list if cls is tuple else tuple)(items) if chance.random() < 0.05 else cls(items)
    if cls is dict:
        items = [(key, confused(item, chance)) for key, item in value.items()]
        chance.shuffle(items)
        return dict(items)
    if cls in (Point, Vector):
        return chance.choice([cls, cls, cls, Point, Vector])(confused(value.x, chance), confused(value.y, chance))
    if cls is Pair:
        return Pair(*(confused(item, chance) for item in value))
    return value


def _looks_like(value: Any) -> list[Any]:
    match value:
        case bool() | int() | float() if value == value and abs(value) < 2**53:
            return [int(value), float(value), bool(value), str(value), OtherInt(value), -value, np.int64(value)]
        case str():
            forms = [unicodedata.normalize(form, value) for form in ("NFC", "NFD")] if value.isprintable() else []
            return [
                Tagged(value),
                str(value),
                value.encode("utf-8", "surrogatepass"),
                [value],
                canonical(value),
                *forms,
            ]
        case bytes():
            return [bytearray(value), value.decode("latin-1"), memoryview(value), value.hex()]
        case list() | tuple():
            return [tuple(value), [*value, None], [value], dict(enumerate(value)), [*value[1:], *value[:1]]]
        case dict():
            return [list(value.items()), tuple(value), types.MappingProxyType(value), {**value, None: None}]
        case set() | frozenset():
            return [set(value), frozenset(value), list(value), dict.fromkeys(value)]
    return []


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Any, Any]:
    value = draw(nested)
    chance = random.Random(draw(st.integers(0, 2**32)))
    return (value, confused(value, chance)) if draw(st.integers(0, 4)) else (value, draw(nested))


def has_doubtful_order(value: Any) -> bool:
    """Whether a value holds a dict with two keys of one meaning, as two NaNs: their order does matter."""
    if type(value) is dict and len({canonical(key) for key in value}) < len(value):
        return True
    parts = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list | tuple) else []
    parts = [value.x, value.y] if isinstance(value, Point | Vector) else parts
    parts = [value.__dict__, value.__pydantic_extra__] if isinstance(value, pydantic.BaseModel) else parts
    return any(map(has_doubtful_order, parts))


# One form for one meaning


@fuzz(pairs(), examples=70)
def test_two_values_have_one_form_exactly_where_they_mean_the_same(pair: tuple[Any, Any]) -> None:
    left, right = pair
    if means_same(left, right):
        assert canonical(left) == canonical(right) or has_doubtful_order(left)
    else:
        assert canonical(left) != canonical(right)


@fuzz(st.lists(nested | leaves, min_size=8, max_size=12), examples=15)
def test_among_many_values_no_two_that_differ_have_one_form(values: list[Any]) -> None:
    for left, right in itertools.combinations(values, 2):
        assert canonical(left) != canonical(right) or means_same(left, right)


# No form can be read in two ways


@fuzz(nested, st.text(max_size=5) | IMITATIONS | nested.map(canonical), examples=40)
def test_a_form_can_be_read_in_one_way_whatever_follows_it(value: Any, behind: str) -> None:
    form = canonical(value)
    tree, end = read_form(form + behind)
    assert end == len(form)
    assert read_form(form) == (tree, end)


plain = st.recursive(
    st.none() | st.booleans() | IMITATIONS | st.integers() | st.binary(max_size=5),
    lambda some: st.lists(some, max_size=3) | st.lists(some, max_size=3).map(tuple),
    max_leaves=8,
)  # fmt: skip


def tree_of(value: Any) -> Any:
    """What a reader of a form should find of plain values."""
    match value:
        case None | bool():
            return ({None: "N", True: "T", False: "F"}[value],)
        case str():
            return "s", value
        case bytes():
            return "b", value.hex()
        case int():
            return "i", format(value, "x")
    return "t" if type(value) is tuple else "l", *map(tree_of, value)


names = st.lists(IMITATIONS, max_size=3, unique=True)


@fuzz(names, st.lists(plain, min_size=3, max_size=3), examples=40)
def test_from_the_form_of_arguments_they_can_be_read_back(parameters: list[str], values: list[Any]) -> None:
    form = canonical_arguments(parameters, values[: len(parameters)])
    assert read_arguments(form) == [(name, tree_of(value)) for name, value in zip(parameters, values, strict=False)]


# Keys and the front

CACHE = InMemoryCache()
parts = st.sampled_from(["a", "s1:a", "N", "", "ab", "p1:a", "|", "%7C"]) | IMITATIONS
identities = st.tuples(st.none() | parts, parts.filter(bool), st.none() | parts, st.lists(plain, max_size=2).map(tuple),
                       st.dictionaries(parts, plain, max_size=2))  # fmt: skip


def star(*args: Any, **kwargs: Any) -> None: ...


def key_of(
    scope: str | None, operation: str, version: str | None, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> str:
    ask = cached_ai_call(operation=operation, version=version, scope=scope, cache=CACHE)(star)
    return digest_of(ask.key_for(*args, **kwargs))


@fuzz(st.lists(identities, min_size=2, max_size=4), examples=15)
def test_no_part_of_an_identity_bleeds_into_another(calls: list[Any]) -> None:
    for left, right in itertools.combinations(calls, 2):
        assert (key_of(*left) == key_of(*right)) == means_same(left, right)


@cached_ai_call(operation="tell", cache=CACHE)
def tell(first: Any, second: Any = 1) -> Any:
    return None


IDENTITY = tell.key_for.__self__.identity
scalars = st.sampled_from(HASHABLE) | st.integers(-1, 1) | IMITATIONS | st.floats(-1, 1)
calls = st.tuples(scalars, scalars)


def alike(call: tuple[Any, Any], chance: random.Random) -> tuple[Any, Any]:
    return confused(call[0], chance), confused(call[1], chance)


def find_confusion(left: tuple[Any, Any], right: tuple[Any, Any]) -> bool:
    """Whether the front takes two calls for one that do not mean the same."""
    ours, theirs = (IDENTITY.address(values, None, 1 << 17) for values in (left, right))
    return ours is not None and ours == theirs and not means_same(left, right)


@fuzz(calls, calls, st.integers(0, 2**32), examples=60)
def test_the_front_takes_no_two_calls_for_one_that_the_key_does_not(left: Any, right: Any, number: int) -> None:
    for other in (right, alike(left, random.Random(number)), (left[0], right[1]), left[::-1]):
        assert not find_confusion(left, other)
        same = tell.key_for(*left) == tell.key_for(*other)
        assert same == means_same(left, other)


# What was found, and what is worth keeping


def corpus(folder: str) -> list[Any]:
    paths = sorted((CORPUS / folder).iterdir())
    return [pytest.param(path.read_text().splitlines(), id=path.stem) for path in paths]


@pytest.mark.parametrize("expressions", corpus("different"))
def test_values_of_the_corpus_that_differ_have_different_forms(expressions: list[str]) -> None:
    values = [evaluate(expression) for expression in expressions]
    assert len({canonical(value) for value in values}) == len(values) > 1


@pytest.mark.parametrize("expressions", corpus("same"))
def test_values_of_the_corpus_that_mean_the_same_have_one_form(expressions: list[str]) -> None:
    values = [evaluate(expression) for expression in expressions]
    assert len(values) > 1
    assert len({canonical(value) for value in values}) == 1


def test_members_of_an_enum_that_are_one_text_are_told_apart_by_the_front() -> None:
    ask = cached_ai_call(operation="ask", cache=InMemoryCache())(lambda member: member.value)
    assert [ask(member) for member in (Silent.A, Silent.A, Silent.B)] == ["a", "a", "b"]
