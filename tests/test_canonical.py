"""The canonical form: what is one meaning and what is two, as DESIGN's chapter 'Keys' says."""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import functools
import pathlib
import re
import threading
import types
import typing
import unicodedata
import uuid
import weakref
import zoneinfo
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypedDict, TypeVar

import numpy as np
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimemo.core.canonical import UnkeyableParameter, canonical, canonical_arguments
from aimemo.core.state import Unkeyable, ndarray_state

Colour = enum.Enum("Colour", {"RED": 1, "BLUE": 2})
Shade = enum.Enum("Shade", {"RED": 1})
Level = enum.IntEnum("Level", {"ONE": 1})
Style = enum.StrEnum("Style", {"ONE": "1"})
Point = dataclasses.make_dataclass("Point", ["x", ("y", Any, 0)])
Vector = dataclasses.make_dataclass("Vector", ["x", ("y", Any, 0)])
Output = dataclasses.make_dataclass("Output", ["x"], bases=(dict,))
Tagged = type("Tagged", (str,), {})
Slotted = type("Slotted", (str,), {"__slots__": ("language",)})
OneSlot = type("OneSlot", (str,), {"__slots__": "language"})
PrivateSlot = type("PrivateSlot", (str,), {"__slots__": ("__language",)})
Named = type("Named", (str,), {})
Loose = type("Loose", (str,), {"__slots__": ("__dict__", "__weakref__")})
OtherInt = type("OtherInt", (int,), {})


class Pair(NamedTuple):
    x: int
    y: int


class Model(pydantic.BaseModel, extra="allow"):
    name: str = "m"
    _seed: int = 0


class Twin(pydantic.BaseModel, extra="allow"):
    name: str = "m"
    _seed: int = 0


class EndlessKey:
    def __cache_key__(self) -> Any:
        return self.__cache_key__()


class FailingKey:
    def __cache_key__(self) -> Any:
        raise ValueError("a secret")


class OwnKey:
    def __init__(self, key: Any) -> None:
        self.key = key

    def __cache_key__(self) -> Any:
        return self.key


class Fixed(dt.tzinfo):
    def __init__(self, name: str | None = "MET") -> None:
        self.name = name

    def utcoffset(self, _: Any) -> dt.timedelta:
        return dt.timedelta(hours=1)

    def dst(self, _: Any) -> dt.timedelta:
        return dt.timedelta()

    def tzname(self, _: Any) -> str | None:
        return self.name


class Wandering(Fixed):
    """Its offset depends on the moment."""

    def __init__(self, zone: str | None = None) -> None:
        self.zone = zone

    def utcoffset(self, when: Any) -> Any:
        return when and super().utcoffset(when)


def with_attributes(value: Any, **attributes: Any) -> Any:
    for name, attribute in attributes.items():
        setattr(value, name, attribute)
    return value


def with_items(value: Any, **items: Any) -> Any:
    value.update(items)
    return value


def schema(**fields: Any) -> type[pydantic.BaseModel]:
    return pydantic.create_model("Answer", **fields)


def typed_dict(**fields: Any) -> Any:
    return TypedDict("Answer", fields)  # type: ignore[operator]


def partial_dict(**fields: Any) -> Any:
    return TypedDict("Answer", fields, total=False)  # type: ignore[operator]


def of_class(module: str, qualname: str) -> Any:
    return type("Answer", (str,), {"__module__": module, "__qualname__": qualname})("a")


def named_tuple(**fields: Any) -> Any:
    return NamedTuple("Answer", list(fields.items()))  # type: ignore[misc]


def capturing(captured: Any, default: Any = 0) -> Callable[..., Any]:
    return lambda x=default, *, y=default: (captured, x, y)


def compiled(source: str) -> Callable[..., Any]:
    names: dict[str, Any] = {}
    exec(f"def f(x):\n {source}", names)
    return names["f"]


NOON = dt.datetime(2024, 1, 1, 12, tzinfo=dt.UTC)
ONE_EAST = dt.timezone(dt.timedelta(hours=1))
CET = dt.timezone(dt.timedelta(hours=1), "CET")
LONDON, LISBON = zoneinfo.ZoneInfo("Europe/London"), zoneinfo.ZoneInfo("Europe/Lisbon")

# fmt: off
# Everything here differs from everything else in its own group.
DIFFERENT: dict[str, list[Any]] = {
    "scalars": [1, 1.0, True, "1", b"1", 1 + 0j, "True", OtherInt(1), Level.ONE, np.int64(1), np.float64(1), np.True_],
    "nothings": [None, "None", float("nan"), "", b"", 0, False, "nan", (), [], {}, set(), ..., np.float64("nan")],
    "infinities": [float("inf"), float("-inf"), "inf", 2**1024, -(2**1024)],
    "big ints": [10**400, 10**400 + 1, -(10**400), f"{10**400}", 2**64, 2**64 + 1, 2.0**64],
    "floats": [0.1, 0.1 + 2**-56, 5e-324, -5e-324, 0.0],
    "sequences": [[1], (1,), {1}, frozenset({1}), (1.0,), (True,), ("1",), [[1]], [1, 1], range(1, 2), Pair(1, 2)],
    "bytes": [b"ab", bytearray(b"ab"), memoryview(b"ab"), "ab", b"a" * 2000, b"a" * 2001, b"a" * 1999 + b"b"],
    "dict keys": [{key: "a"} for key in (1, "1", 1.0, b"1", None, "None", (1,), (True,))] + [{True: "a"}],
    "dicts": [{"a": 1}, {"a": 1.0}, {"a": None}, {}, [("a", 1)], collections.OrderedDict(a=1), {"a": {"a": 1}}],
    "ordered dicts": [collections.OrderedDict(items) for items in ([("a", 1), ("b", 2)], [("b", 2), ("a", 1)])],
    "text": [*(unicodedata.normalize(form, "é") for form in ("NFC", "NFD")), "\ud800", "\ud83d\ude00", "\U0001f600"],
    "str subclasses": ["a", Tagged("a"), Tagged("b"), Named("a"), with_attributes(Tagged("a"), language="de")],
    "str subclasses with slots": [with_attributes(Slotted("a"), language=language) for language in ("de", "fr")],
    "str subclasses with one slot": [with_attributes(OneSlot("a"), language=language) for language in ("de", "fr")],
    "private slots": [with_attributes(PrivateSlot("a"), _PrivateSlot__language=language) for language in ("de", "fr")],
    "dicts with defaults": [collections.defaultdict(of) for of in (None, list, int)] + [{}],
    "datetimes": [NOON, NOON.astimezone(ONE_EAST), NOON.replace(tzinfo=None), NOON.isoformat(), NOON.date()],
    "times": [dt.time(9), dt.time(9, tzinfo=dt.UTC), dt.time(9, fold=1), dt.timedelta(hours=9), dt.timedelta(hours=-9)],
    "times of named zones": [dt.time(9), dt.time(9, tzinfo=LONDON), dt.time(9, tzinfo=LISBON)],
    "datetimes of named zones": [NOON.replace(tzinfo=LONDON), NOON.replace(tzinfo=LISBON)],  # `%Z` differs
    "datetimes of zones of one offset": [NOON.replace(tzinfo=zone) for zone in (ONE_EAST, CET, Fixed(), Fixed("X"))],
    "times of zones of one offset": [dt.time(9, tzinfo=zone) for zone in (ONE_EAST, CET, Fixed(), Fixed("X"))],
    "zones of one offset": [ONE_EAST, CET],
    "zones that pytz names": [dt.time(9, tzinfo=Wandering(zone)) for zone in ("A", "B")],
    "numbers": [decimal.Decimal(1), fractions.Fraction(1), decimal.Decimal("1.5"), fractions.Fraction(3, 2), 1.5],
    "identifiers": [uuid.UUID(int=1), uuid.UUID(int=2), str(uuid.UUID(int=1)), pathlib.PurePosixPath("a"), "a"],
    "patterns": [re.compile("a"), re.compile("a", re.IGNORECASE), re.compile(b"a"), re.compile("b")],
    "enums": [Colour.RED, Colour.BLUE, Shade.RED, 1, "RED", Level.ONE, Colour, Style.ONE, "1"],
    "members of enums": [enum.Enum("Answer", members) for members in ({"A": 1}, {"A": 2}, {"A": 1, "B": 2})],
    "dataclasses": [Point(1), Point(True), Point(2), Point(1, 1), Vector(1), {"x": 1, "y": 0}, Point, Vector],
    "dataclass types": [dataclasses.make_dataclass("Answer", [("a", of)]) for of in (int, str)],
    "models": [Model(), Model(name="n"), Model(extra=1), Model(extra=1.0), with_attributes(Model(), _seed=1), Model],
    "models of two classes": [Model(), Twin()],
    "schemas": [schema(a=(int, 0)), schema(a=(str, "")), schema(b=(int, 0)), schema(a=(int, 1)), schema(a=(int, ...))],
    "typed dicts": [typed_dict(), typed_dict(a=int), typed_dict(a=str), typed_dict(b=int), partial_dict(a=int)],
    "named tuples": [named_tuple(), named_tuple(a=int), named_tuple(a=str), named_tuple(b=int)],
    "dtypes": [*(np.zeros(4, dtype) for dtype in ("<i4", ">i4", "<f4", "<i8", "M8[s]", "M8[ms]")), [0] * 4],
    "fields of arrays": [np.zeros(1, [(name, kind)]) for name, kind in (("a", "<i4"), ("b", "<i4"), ("a", "<f4"))],
    "shapes": [np.zeros(4), np.zeros((2, 2)), np.zeros((4, 1)), np.zeros((0, 4)), np.zeros((4, 0)), np.float64(0)],
    "array contents": [np.array(["a"]), np.array(["b"]), np.array([b"a"]), np.array([1]), np.array([2])],
    "functions": [capturing(1), capturing(True), capturing(2), capturing(1, default=1), capturing, len, max, "len"],
    "wrappers": [with_attributes(capturing(1), __wrapped__=wrapped) for wrapped in (len, max)],
    "code": [compiled(f"return x {rest}") for rest in ("+ 1", "- 1", "+ 2", "+ True", "+ y", "+ z")],
    "guarded lines": [compiled("try: a(); b()\n except E: pass"), compiled("a()\n try: b()\n except E: pass")],
    "partials": [functools.partial(max, 1), functools.partial(max, True), functools.partial(min, 1), max],
    "methods": [Point(1).__eq__, Point(2).__eq__, Point.__eq__, Vector(1).__eq__],
    "types": [int, str, list, list[int], list[str], int | str, Literal[1], Literal[True], Any, OwnKey],
    "unpacked types": [tuple[int], *tuple[int]],
    "type variables": [TypeVar("A"), *(TypeVar("A", bound=of) for of in (int, str)), TypeVar("A", int, str)],
    "variance": [TypeVar("A"), TypeVar("A", covariant=True), TypeVar("A", contravariant=True)],
    "dots in names": [of_class("a", "b.c"), of_class("a.b", "c")],
    "names of typing": [*map(TypeVar, "AB"), *map(typing.ForwardRef, "AB"), Any, Literal[1]],
    "new types": [typing.NewType("A", int), typing.NewType("A", str), typing.NewType("B", int)],
    "own keys": [OwnKey(1), OwnKey(True), OwnKey("1"), 1],
}
SAME: dict[str, tuple[Any, Any]] = {
    "zeros": ([0.0, (0.0,)], [-0.0, (-0.0,)]),
    "NaNs": (float("nan"), -float("nan")),
    "complex zeros": (complex(0.0, 0.0), complex(-0.0, -0.0)),
    "order of a dict": ({"a": 1, "b": 2, 3: 4}, {3: 4, "b": 2, "a": 1}),
    "order of a subclass of dict": (collections.Counter("ab"), collections.Counter("ba")),
    "order of a set": ({"a", "b", "c", 1, None}, {1, None, "c", "b", "a"}),
    "sets in sets": ({frozenset({1, 2}), 3}, {3, frozenset({2, 1})}),
    "equal dataclasses": (Point(1, [2]), Point(1, [2])),
    "equal models": (Model(name="a", extra=1), Model(extra=1, name="a")),
    "equal schemas": (schema(a=(int, 0)), schema(a=(int, 0))),
    "one schema twice": ([Model, Model], [Model, Model]),
    "order in memory": (np.array([[1, 2], [3, 4]], order="F"), np.array([[1, 2], [3, 4]], order="C")),
    "strided arrays": (np.arange(10)[::2], np.array([0, 2, 4, 6, 8])),
    "equal settings": (capturing("a"), capturing("a")),
}
# What is in stores already was kept under keys made from these: another form loses it.
INT = "o13:builtins:typet2[s12:builtins:intN"
LIST_OF_INT = f"o18:types:GenericAliast2[o13:builtins:typet2[s13:builtins:listNt1[{INT}"
AS_EVER: list[tuple[Any, str]] = [
    (None, "N"), (True, "T"), (False, "F"), (..., "E"), ("é", "s1:é"), (255, "iff;"), (-1, "i-1;"),
    (0.5, "f0x1.0000000000000p-1;"), (1 + 2j, "c0x1.0000000000000p+0,0x1.0000000000000p+1;"),
    (b"a", "b1:61"), (b"a" * 1024, "b1024:" + "61" * 1024),
    (b"a" * 1025, "h1025:4a82297889eb505cf6b5cbdf69977afab4632d6557539782f657bd7dc78091a5"),
    (bytearray(b"a"), "x9:bytearrayt1[b1:61"), (memoryview(b"a"), "x10:memoryviewt3[s1:Bt1[i1;b1:61"),
    ([1], "l1[i1;"), ((1,), "t1[i1;"), ({1, 2}, "S2[i1;i2;"), (frozenset({1}), "Z1[i1;"),
    ({"b": 1, "a": [2]}, "d2[s1:al1[i2;s1:bi1;"), (types.MappingProxyType({}), "x12:mappingproxyt1[d0["),
    (range(1, 5, 2), "x5:ranget3[i1;i5;i2;"), (slice(1, None), "x5:slicet3[i1;NN"),
    (len, "o35:builtins:builtin_function_or_methodt2[s8:builtinss3:len"),
    (int, INT), (int.from_bytes, f"o35:builtins:builtin_function_or_methodt2[{INT}s14:int.from_bytes"),
    (list[int], LIST_OF_INT),
    (typing.List[int], LIST_OF_INT.replace("18:types:", "20:typing:_")),  # noqa: UP006
    (Colour.RED, "o27:tests.test_canonical:Colourt2[s3:REDi1;"), (Point(1), "o11:types:Pointt3[d2[s1:xi1;s1:yi0;NN"),
    (Model(extra=1), "o26:tests.test_canonical:Modelt3[d1[s4:names1:md1[s5:extrai1;d1[s5:_seedi0;"),
    (OwnKey(1), "o27:tests.test_canonical:OwnKeyi1;"), (Tagged("a"), "o27:tests.test_canonical:Taggedt2[s1:ad0["),
    (with_attributes(Loose("a"), x=1), "o26:tests.test_canonical:Looset2[s1:ad1[s1:xi1;"),
    (NOON, "x8:datetimet3[s25:2024-01-01T12:00:00+00:00i0;N"), (NOON.date(), "x4:datet1[s10:2024-01-01"),
    (dt.time(9), "x4:timet3[s8:09:00:00i0;N"), (dt.timedelta(1, 2, 3), "x9:timedeltat3[i1;i2;i3;"),
    (dt.UTC, "x8:timezonet1[x9:timedeltat3[i0;i0;i0;"), (decimal.Decimal("1.0"), "x7:Decimalt1[s3:1.0"),
    (fractions.Fraction(1, 2), "x8:Fractiont2[i1;i2;"), (uuid.UUID(int=7), "x4:UUIDt1[i7;"),
    (re.compile("a"), "x7:Patternt2[s1:ai20;"), (np.zeros(2, "<i2"), "o13:numpy:ndarrayt3[s3:<i2t1[i2;b4:00000000"),
]
# Few and easily confused, so that generated pairs are often equal, or almost.
CONFUSABLE = (
    0, 1, True, False, 0.0, -0.0, 1.0, 2**70, 2.0**70, "", "1", "True", "None", "é", "e\u0301", "\ud800",
    b"", b"1", None, Colour.RED, Shade.RED, Level.ONE, Style.ONE, Tagged("1"), OtherInt(1),
)
# fmt: on


@pytest.mark.parametrize("group", DIFFERENT)
def test_different_meanings_have_different_forms(group: str) -> None:
    forms: dict[str, Any] = {}
    for value in DIFFERENT[group]:
        twin = forms.setdefault(canonical(value), value)
        assert twin is value, f"{value!r} has the form of {twin!r}"


@pytest.mark.parametrize("pair", SAME.values(), ids=list(SAME))
def test_one_meaning_has_one_form(pair: tuple[Any, Any]) -> None:
    assert canonical(pair[0]) == canonical(pair[1])


@pytest.mark.parametrize(("value", "form"), AS_EVER, ids=[type(value).__name__ for value, _ in AS_EVER])
def test_a_form_never_changes(value: Any, form: str) -> None:
    assert canonical(value) == form
    assert canonical_arguments(("a", "bc"), (value, "x")) == f"p1:a{form}p2:bcs1:x"


def test_numbers_of_other_packages_that_numpy_spells_alike_differ() -> None:
    def one(kind: type) -> Any:
        dtype = types.SimpleNamespace(hasobject=False, names=None, str="<V1", type=kind)
        return types.SimpleNamespace(dtype=dtype, shape=(), tobytes=lambda: b"1")

    kinds = [type(name, (), {}) for name in ("float8_e4m3fn", "float8_e5m2")]
    states = [ndarray_state(one(kind)) for kind in kinds]
    assert canonical(states[0]) != canonical(states[1])


def test_the_order_of_a_schemas_fields_never_matters() -> None:
    one, other = schema(a=(int, 0), b=(str, "")), schema(b=(str, ""), a=(int, 0))
    assert canonical(one) == canonical(other) != canonical(schema(a=(int, 0)))


def test_who_watches_a_value_does_not_matter() -> None:
    value = Loose("a")
    form = canonical(value)
    watching = weakref.ref(value)
    assert watching() is value
    assert canonical(value) == form


def test_keys_with_one_form_need_no_order_among_their_values() -> None:
    assert canonical({float("nan"): {}, float("nan"): []}) == "d2[fnan;d0[fnan;l0["


def test_as_many_names_as_values_are_asked_for() -> None:
    with pytest.raises(ValueError):
        canonical_arguments(("a", "b"), (1,))


def is_same(left: Any, right: Any) -> bool:
    """The design's sameness written a second time: of one type and equal, all the way down; NaN is NaN."""
    if type(left) is not type(right):
        return False
    if isinstance(left, float):
        return left == right or (left != left and right != right)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(is_same, left, right))
    if isinstance(left, dict | set | frozenset):
        ours, theirs = (list(v.items()) if isinstance(v, dict) else list(v) for v in (left, right))
        return len(ours) == len(theirs) and all(any(is_same(mine, other) for other in theirs) for mine in ours)
    return bool(left == right)


keys = st.sampled_from((*CONFUSABLE, (), (1,), (True,), (1.0,), ("1",)))
leaves = st.sampled_from((*CONFUSABLE, float("nan"))) | st.integers() | st.floats() | st.text(max_size=3)
values = st.recursive(
    leaves | st.frozensets(keys, max_size=2) | st.sets(keys, max_size=2),
    lambda some: st.lists(some, max_size=2) | st.tuples(some) | st.dictionaries(keys, some, max_size=2),
    max_leaves=3,
)


@given(values, values)
def test_forms_are_equal_exactly_where_types_and_values_are(left: Any, right: Any) -> None:
    assert (canonical(left) == canonical(right)) == is_same(left, right)


@given(st.dictionaries(keys, values), st.randoms())
def test_the_order_of_a_dict_never_matters(original: dict[Any, Any], random: Any) -> None:
    shuffled = random.sample(list(original.items()), len(original))
    assert canonical(dict(shuffled)) == canonical(original)


@given(st.tuples(st.text(max_size=3), st.text(max_size=3), st.text(max_size=3)), st.sampled_from("0123456789:;[s"))
def test_no_text_can_move_the_seam_between_two_texts(parts: tuple[str, str, str], other_seam: str) -> None:
    a, b, c = parts
    form = canonical(["<", ">" + b])
    for seam in (form[form.index("<") + 1 : form.index(">")], other_seam):
        assert canonical([a + seam + b, c]) != canonical([a, b + seam + c])
        encoded = [part.encode("utf-8", "surrogatepass") for part in (a + seam + b, c, a, b + seam + c)]
        assert canonical(encoded[:2]) != canonical(encoded[2:])


@given(values)
def test_what_spells_a_form_is_not_the_value_it_spells(value: Any) -> None:
    form = canonical(value)
    spelt = form.encode("utf-8", "surrogatepass")
    assert len({form, canonical(form), canonical(spelt), canonical([form]), canonical([value])}) == 5


NEIGHBOURS = [
    (("a", "bc"), ("ab", "c")),
    (("a", ""), ("", "a")),
    (("a", "b"), ("as1:b",)),
    (("", 2), ("p1:bi2;",)),
    (([], 1), ([1],)),
    (([1], 2), ([1, 2],)),
    (({"a": 1}, 2), ({"a": 1, "b": 2},)),
]


@pytest.mark.parametrize(("left", "right"), NEIGHBOURS)
def test_neighbours_do_not_bleed_into_each_other(left: tuple[Any, ...], right: tuple[Any, ...]) -> None:
    assert canonical(left) != canonical(right)
    assert canonical_arguments("ab"[: len(left)], left) != canonical_arguments("ab"[: len(right)], right)


def test_the_name_of_a_parameter_counts() -> None:
    assert canonical_arguments(("a", "b"), (1, 2)) != canonical_arguments(("b", "a"), (1, 2))


class Heir(Point):  # type: ignore[misc, valid-type]
    def __init__(self, tone: str) -> None:
        super().__init__(1)
        self.tone = tone  # no field, because Heir itself is no dataclass


@pytest.mark.parametrize("make", [Heir, lambda tone: with_items(Output(1), tone=tone)], ids=["attribute", "item"])
def test_settings_that_a_dataclass_holds_beside_its_fields_are_not_left_out(make: Callable[[str], Any]) -> None:
    try:
        assert canonical(make("kind")) != canonical(make("rude"))
    except Unkeyable:
        pass  # saying that it cannot be keyed is right too


def holding_itself(made: Any, put: Callable[[Any], Any]) -> Any:
    put(made)
    return made


UNKEYABLE: dict[str, Callable[[], Any]] = {
    "object": object,
    "plain instance": lambda: type("Client", (), {})(),
    "lock": threading.Lock,
    "generator": lambda: (x for x in ()),
    "iterator": lambda: iter([]),
    "module": lambda: re,
    "masked array": lambda: np.ma.array([1, 2], mask=[0, 1]),
    "array of objects": lambda: np.array([object()]),
    "method of a list": lambda: [].append,
    "class without a schema": lambda: schema(a=(Callable[[], int], ...)),
    "instance of a class of typing": typing.IO,
    "own key without an end": EndlessKey,
    "list holding itself": lambda: holding_itself([], lambda made: made.append(made)),
    "dict holding itself": lambda: holding_itself({}, lambda made: made.update(a=made)),
    "dataclass holding itself": lambda: holding_itself(Point(1), lambda made: setattr(made, "x", made)),
    "time of a zone without a name": lambda: NOON.replace(tzinfo=Wandering()),
    "deep nesting": lambda: functools.reduce(lambda inner, _: [inner], range(10_000), 0),
}


@pytest.mark.parametrize("make", UNKEYABLE.values(), ids=list(UNKEYABLE))
@pytest.mark.parametrize("wrap", [lambda v: v, lambda v: [v], lambda v: {"a": (v,)}], ids=["alone", "in list", "deep"])
def test_what_has_no_form_raises_and_names_its_parameter(make: Callable[[], Any], wrap: Callable[[Any], Any]) -> None:
    value = wrap(make())
    with pytest.raises(Unkeyable):
        canonical(value)
    with pytest.raises(UnkeyableParameter) as caught:
        canonical_arguments(("fine", "bad"), (1, value))
    assert caught.value.parameter == "bad"


REASONS: list[tuple[Any, str]] = [
    (threading.Lock(), "a _thread.lock object"),
    ([].append, "a method of a builtins.list"),
    (np.array([object()]), "a numpy array of objects, or of a class of its own"),
    (schema(a=(Callable[[], int], ...)), "the class tests.test_canonical.Answer (it has no JSON schema)"),
    (typing.IO(), "a typing.IO"),
    (holding_itself([], lambda made: made.append(made)), "a structure that holds itself or is nested deeper than 150"),
]


@pytest.mark.parametrize(("value", "reason"), REASONS, ids=[reason for _, reason in REASONS])
def test_the_message_names_the_type(value: Any, reason: str) -> None:
    for attempt in (lambda: canonical(value), lambda: canonical_arguments(("a",), (value,))):
        with pytest.raises(Unkeyable) as caught:
            attempt()
        assert str(caught.value) == reason


def nested(depth: int, wrap: Callable[[Any], Any]) -> Any:
    return functools.reduce(lambda inner, _: wrap(inner), range(depth), 0)


WRAPS: dict[str, Callable[[Any], Any]] = {
    "list": lambda inner: [inner], "dict": lambda inner: {"a": inner}, "tuple": lambda inner: (inner,),
    "set": lambda inner: frozenset({inner}), "dataclass": Point, "slice": lambda inner: slice(inner),
}  # fmt: skip
DEEPEST = {"list": 150, "dict": 150, "tuple": 150, "set": 150, "dataclass": 50, "slice": 75}


@pytest.mark.parametrize("kind", WRAPS)
def test_levels_are_counted_exactly(kind: str) -> None:
    deepest, deeper = (nested(DEEPEST[kind] + more, WRAPS[kind]) for more in (0, 1))
    assert canonical_arguments(("a",), (deepest,)).endswith(canonical(deepest))
    for attempt in (lambda: canonical(deeper), lambda: canonical_arguments(("a",), (deeper,))):
        with pytest.raises(Unkeyable, match="150"):
            attempt()


def test_levels_are_counted_in_the_keys_of_a_dict_too() -> None:
    canonical({nested(149, WRAPS["tuple"]): 0})
    with pytest.raises(Unkeyable, match="150"):
        canonical({nested(150, WRAPS["tuple"]): 0})


def test_an_own_key_that_fails_names_its_parameter_and_the_error_but_not_its_text() -> None:
    with pytest.raises(UnkeyableParameter, match="ValueError") as caught:
        canonical_arguments(("fine", "bad"), (1, FailingKey()))
    assert caught.value.parameter == "bad"
    assert "secret" not in str(caught.value)


def test_a_hundred_levels_are_not_too_deep_and_each_counts() -> None:
    depths = (98, 99, 100)
    assert len({canonical(functools.reduce(lambda inner, _: [inner], range(d), 0)) for d in depths}) == len(depths)
