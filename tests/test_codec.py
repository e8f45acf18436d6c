"""The codec: what comes back is equal and of the same type, and what would not is refused."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import datetime as dt
import decimal
import enum
import functools
import socket
import sys
import uuid
from collections.abc import Callable, Iterator
from typing import Any, Generic, NamedTuple, TypedDict, TypeVar
from zoneinfo import ZoneInfo

import msgpack
import numpy as np
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aimemo import AimemoWarning, Cache, CodecError, cached_ai_call
from aimemo.core.codec import pack, unpacker
from aimemo.core.objects import namedtuple_state, restore_namedtuple
from aimemo.core.types import TypeResolver

T = TypeVar("T")


class Colour(enum.StrEnum):
    RED = "red"


class Level(enum.IntEnum):
    LOW = 1


class Permission(enum.Flag):
    READ = 1
    WRITE = 2


class Corner(enum.Enum):
    ORIGIN = (0, 0)


class NotANumber(enum.Enum):
    NAN = float("nan")


@dataclasses.dataclass(frozen=True, slots=True)
class Point:
    x: int
    colour: Colour = Colour.RED


@dataclasses.dataclass
class Basket:
    points: list[Point]
    size: int = dataclasses.field(init=False)
    never_set: int = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.size = len(self.points)


@dataclasses.dataclass
class Wordy:
    text: str

    def __post_init__(self) -> None:
        self.words = self.text.split()


@dataclasses.dataclass
class Output(dict[str, int]):
    size: int = 0


@dataclasses.dataclass
class WithNew:
    x: int

    def __new__(cls, x: int) -> WithNew:
        return super().__new__(cls)


class Pair(NamedTuple):
    left: int
    right: list[int]


class Movie(TypedDict):
    title: str


class Address(pydantic.BaseModel):
    street: str = "Main"
    number: int = 1


class Person(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    name: str
    address: Address = Address()
    _seen: list[int] = pydantic.PrivateAttr(default_factory=list)

    @functools.cached_property
    def initial(self) -> str:
        return self.name[0]


class Page(pydantic.BaseModel, Generic[T]):
    items: list[T]


class Names(pydantic.RootModel[list[str]]):
    pass


class Slotted:
    __slots__ = ("note",)


@dataclasses.dataclass
class Remarked(Slotted):
    text: str


CLASSES = (Colour, Level, Permission, Corner, NotANumber, Point, Basket, Wordy, Output, WithNew, Pair, Remarked)
MODELS = (Address, Person, Page, Names)


def round_trip(value: Any) -> Any:
    types = TypeResolver((*CLASSES, *MODELS))
    return unpacker(types)(pack(value, types))


def shape(value: Any) -> str:
    """A text that is equal only for values of the same types and the same content."""
    if isinstance(value, (list, tuple)):
        inner = list(map(shape, value))
    elif type(value) in (set, frozenset):
        inner = sorted(map(shape, value))
    elif type(value) is dict:
        inner = [f"{shape(key)}: {shape(item)}" for key, item in value.items()]
    elif dataclasses.is_dataclass(value):
        inner = [shape(getattr(value, field.name, None)) for field in dataclasses.fields(value)]
    else:
        return f"{type(value).__qualname__} {value!r}"
    return f"{type(value).__qualname__}({', '.join(inner)})"


BERLIN = ZoneInfo("Europe/Berlin")
AUTUMN = dt.datetime(2024, 10, 27, 2, 30, fold=1)
FIXED = dt.timezone(dt.timedelta(hours=-3, seconds=30))
CET = dt.timezone(dt.timedelta(hours=1), "CET")

PLAIN: list[Any] = [
    "", "NFC \u00e9", "NFD e\u0301", "nul \0", "lone \ud800", "two \ud83d\ude00", "\U0001f600", b"", b"\xff\0", None,
    True, False, 0, -1, 2**63, 2**64, -(2**63) - 1, 10**500, -(10**500), 0.0, -0.0, 5e-324,
    float("nan"), float("inf"), float("-inf"), 1 - 2j, complex("nan-infj"),
    [], (), {}, set(), frozenset(), [(1, [2, (3,)])], ({"a": ({1, 2}, frozenset({(1, "x")}))},),
    {1: "int", "1": "str", 1.5: "float", None: "none", b"1": "bytes", (1, (2,)): "tuple", frozenset({1}): "set"},
    {True: 1, "z": 2, "a": 3}, {10**30: 10**30}, [1, True, 1.0, "1"],
    AUTUMN, AUTUMN.replace(tzinfo=BERLIN), AUTUMN.replace(tzinfo=BERLIN, fold=0), AUTUMN.replace(tzinfo=dt.UTC),
    AUTUMN.replace(tzinfo=CET), dt.time(1, tzinfo=CET),
    AUTUMN.replace(tzinfo=FIXED), dt.datetime.min, dt.datetime.max, dt.date(1, 1, 1), dt.time(23, 59, 59, 999999),
    dt.time(1, fold=1), dt.time(1, tzinfo=FIXED), dt.timedelta(days=-1, microseconds=1), dt.timedelta.max,
    decimal.Decimal("-0.10"), decimal.Decimal("1E+400"), decimal.Decimal("sNaN"), decimal.Decimal("-Infinity"),
    uuid.UUID(int=1), Movie(title="M"), {"__aimemo__": "tuple", "value": [1]}, {"__type__": "set", "__ext__": 1},
]  # fmt: skip
OBJECTS: list[Any] = [
    Colour.RED, Level.LOW, Permission.READ, Permission.READ | Permission.WRITE, Permission(0), Corner.ORIGIN,
    {Colour.RED: Level.LOW}, Point(1), {Point(1): {Point(2)}}, Pair(1, [2]), [Pair(1, [])],
    Address(), Person(name="A", address=Address(number=2)), Page[Address](items=[Address()]), Page[int](items=[1]),
    Page[Page[str]](items=[Page[str](items=["a"])]), Names(["a"]), Person.model_construct(name=5, address=None),
]  # fmt: skip


def named(values: list[Any]) -> list[Any]:
    return [pytest.param(value, id=f"{at}-{type(value).__name__}") for at, value in enumerate(values)]


@pytest.mark.parametrize("value", named(PLAIN + OBJECTS))
@pytest.mark.parametrize("wrap", [lambda v: v, lambda v: [v], lambda v: ({"k": v},)], ids=["bare", "list", "deep"])
def test_a_value_comes_back_equal_and_of_the_same_type(value: Any, wrap: Callable[[Any], Any]) -> None:
    assert shape(round_trip(wrap(value))) == shape(wrap(value))


scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.complex_numbers(), st.binary(max_size=9),
    st.text(st.characters(exclude_categories=()), max_size=9), st.decimals(allow_nan=False), st.uuids(), st.dates(),
    st.times(), st.datetimes(timezones=st.none() | st.timezones()), st.timedeltas(), st.sampled_from(OBJECTS[:6]),
)  # fmt: skip
keys = scalars | st.lists(scalars, max_size=2).map(tuple) | st.frozensets(scalars, max_size=2)
containers = [lambda inner: st.lists(inner, max_size=4), lambda inner: st.lists(inner, max_size=4).map(tuple)]
containers += [lambda inner: st.sets(keys, max_size=3), lambda inner: st.dictionaries(keys, inner, max_size=4)]
containers += [lambda inner: st.builds(Pair, inner, inner), lambda inner: st.builds(Point, inner)]
nested = st.recursive(keys, lambda inner: st.one_of(*(make(inner) for make in containers)), max_leaves=12)


@settings(max_examples=100)
@given(nested)
def test_any_nested_value_comes_back_equal_and_of_the_same_type(value: Any) -> None:
    assert shape(round_trip(value)) == shape(value)


def test_a_dataclass_is_restored_without_its_constructor() -> None:
    basket = Basket([Point(1)])
    basket.size = 99
    restored = round_trip(basket)
    assert vars(restored) == vars(basket)
    assert not hasattr(restored, "never_set")


def test_a_dataclass_keeps_slots_that_are_no_fields() -> None:
    noted = Remarked("a")
    noted.note = "b"
    assert round_trip(noted).note == "b"


def test_a_pydantic_model_keeps_all_its_state() -> None:
    person = Person.model_validate({"name": "Ann", "age": 7})
    person._seen.append(1)
    assert person.initial == "A"
    restored = round_trip(person)
    assert restored == person
    assert restored.__pydantic_fields_set__ == {"name", "age"}
    assert restored.__pydantic_extra__ == {"age": 7}
    assert restored._seen == [1]
    assert restored.initial == "A"


ARRAYS = [
    np.arange(6, dtype=">i2").reshape(2, 3).T, np.zeros((0, 3)), np.array(5), np.array(["a", ""]), np.array([b"x"]),
    np.array([True]), np.array([1 + 2j]), np.array(["2024-01-01", "NaT"], "M8[s]"), np.float32(1.5), np.int64(-1),
    np.bool_(True), np.str_("é"), np.datetime64("NaT", "s"), np.timedelta64(3, "h"), np.float64("nan"),
]  # fmt: skip


@pytest.mark.parametrize("value", named(ARRAYS))
def test_a_numpy_value_comes_back_with_dtype_shape_and_bytes(value: Any) -> None:
    restored = round_trip([value])[0]
    assert (type(restored), restored.dtype, restored.shape) == (type(value), value.dtype, value.shape)
    assert restored.tobytes() == value.tobytes()


@pytest.mark.parametrize("value", [np.str_(""), np.bytes_(b""), NotANumber.NAN, WithNew(1)], ids=lambda v: repr(v)[:20])
def test_what_can_be_packed_can_be_restored(value: Any) -> None:
    try:
        pack(value, TypeResolver(CLASSES))
    except CodecError:
        return  # refusing it is as good
    assert shape(round_trip([value])) == shape([value])


def test_an_answer_that_cannot_be_restored_never_fails_a_later_call(cache: Cache) -> None:
    @cached_ai_call(operation="op", cache=cache)
    def ask(text: str) -> WithNew:
        return WithNew(1)

    try:
        assert ask("q") == WithNew(1)
        assert ask("q") == WithNew(1)
    except AimemoWarning:
        pytest.fail("the answer did not go out")


def faithful_or_refused(value: Any, read: Callable[[Any], Any]) -> None:
    try:
        restored = round_trip(value)
    except CodecError:
        return
    assert read(restored) == read(value)


def test_what_a_dataclass_holds_besides_its_fields_is_not_lost() -> None:
    faithful_or_refused(Wordy("a b"), lambda value: getattr(value, "words", None))


def test_what_a_dataclass_holds_as_a_dict_is_not_lost() -> None:
    output = Output(size=1)
    output["a"] = 1
    faithful_or_refused(output, lambda value: dict(value))


class Text(str):
    pass


class Number(int):
    pass


@dataclasses.dataclass
class Unregistered:
    x: int = 1


class UnregisteredModel(pydantic.BaseModel):
    x: int = 1


UNFIT: dict[str, Any] = {
    "object": object(), "function": len, "class": int, "error": ValueError("x"), "generator": (i for i in ()),
    "bytearray": bytearray(b"x"), "memoryview": memoryview(b"x"), "ext": msgpack.ExtType(1, b"\x90"),
    "timestamp": msgpack.Timestamp(1), "str subclass": Text("x"), "int subclass": Number(1),
    "dict subclass": collections.OrderedDict(a=1), "deque": collections.deque([1]), "range": range(3),
    "objects": np.array([object()]), "records": np.zeros(1, [("a", int)]), "masked": np.ma.array([1]),
    "strings": np.array(["a"], np.dtypes.StringDType()), "dataclass": Unregistered(), "model": UnregisteredModel(),
    "time of a named zone": dt.time(9, tzinfo=BERLIN),
}  # fmt: skip
INSIDE: dict[str, Callable[[Any], Any]] = {
    "bare": lambda v: v, "list": lambda v: [[v]], "dict": lambda v: {"a": v}, "tuple": lambda v: (v,),
    "dataclass": lambda v: Point(v), "namedtuple": lambda v: Pair(1, v),
    "model": lambda v: Address.model_construct(street=v), "extra": lambda v: Person.model_construct(name="a", b=v),
}  # fmt: skip


@pytest.mark.parametrize("inside", INSIDE.values(), ids=INSIDE)
@pytest.mark.parametrize("unfit", UNFIT.values(), ids=UNFIT)
def test_what_would_not_come_back_as_it_was_is_refused(unfit: Any, inside: Callable[[Any], Any]) -> None:
    with pytest.raises(CodecError):
        pack(inside(unfit), TypeResolver((*CLASSES, *MODELS)))


@pytest.mark.parametrize("wrap", [lambda v: {v: 1}, lambda v: {(v,): 1}, lambda v: {v}], ids=["key", "in key", "set"])
@pytest.mark.parametrize("unfit", [Text("x"), msgpack.ExtType(1, b"\x90"), memoryview(b"x"), Number(1)])
def test_an_unfit_key_or_member_is_refused(unfit: Any, wrap: Callable[[Any], Any]) -> None:
    with pytest.raises(CodecError):
        pack(wrap(unfit), TypeResolver())


@pytest.mark.parametrize("unfit", [Unregistered(), UnregisteredModel(), [Unregistered()]])
def test_the_error_for_an_unregistered_class_names_the_remedy(unfit: Any) -> None:
    with pytest.raises(CodecError, match="register_type"):
        pack(unfit, TypeResolver())


def test_the_error_for_a_coroutine_names_the_remedy() -> None:
    async def ask() -> None: ...

    body = ask()
    with pytest.raises(CodecError, match="async def"):
        pack(body, TypeResolver())
    body.close()


class Noted(Pair):
    """A named tuple whose objects can have attributes."""


def test_a_named_tuple_with_attributes_besides_its_fields_is_refused() -> None:
    value, types = Noted(1, [2]), TypeResolver([Noted])
    assert unpacker(types)(pack(value, types)) == value
    value.note = "lost"  # type: ignore[attr-defined]
    with pytest.raises(CodecError, match="besides its fields"):
        pack(value, types)


@pytest.mark.parametrize("values", [[], [1], [1, [2], 3]])
def test_a_stored_named_tuple_of_another_length_is_refused(values: list[Any]) -> None:
    signature, fields = namedtuple_state(Pair(1, [2]))
    assert restore_namedtuple(Pair, signature, fields) == Pair(1, [2])
    with pytest.raises(CodecError, match="have changed"):
        restore_namedtuple(Pair, signature, values)


def test_a_stored_array_does_not_import_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = pack(np.zeros(3), TypeResolver())
    monkeypatch.delitem(sys.modules, "numpy")
    with pytest.raises(CodecError, match="not loaded"):
        unpacker(TypeResolver())(packed)
    assert "numpy" not in sys.modules


@dataclasses.dataclass
class Lazy:
    x: int = dataclasses.field(init=False)

    def __getattr__(self, name: str) -> Any:
        return getattr(self, name)


def test_an_object_whose_attributes_have_no_end_is_refused() -> None:
    with pytest.raises(CodecError):
        pack(Lazy(), TypeResolver([Lazy]))


def self_holding() -> Iterator[Any]:
    items: list[Any] = []
    items.append(items)
    yield items
    table: dict[str, Any] = {}
    table["a"] = [table, table]
    yield table
    mixed: list[Any] = []
    mixed.append((mixed, mixed))
    yield mixed[0]
    basket = Basket([])
    basket.points = [basket]  # type: ignore[list-item]
    yield basket
    person = Person(name="A")
    person.address = person  # type: ignore[assignment]
    yield person
    deep: Any = 1
    for _ in range(100_000):
        deep = [deep]
    yield deep


@pytest.mark.parametrize("value", list(self_holding()), ids=["list", "dict", "tuple", "dataclass", "model", "deep"])
def test_what_holds_itself_or_is_too_deep_is_refused(value: Any) -> None:
    with pytest.raises(CodecError):
        pack(value, TypeResolver((*CLASSES, *MODELS)))


def test_setting_what_cannot_be_packed_raises_a_type_error_and_keeps_nothing(cache: Cache) -> None:
    with socket.socket() as unfit, pytest.raises(TypeError) as caught:
        cache.blocking.set("key", {"socket": unfit})
    assert isinstance(caught.value, CodecError)
    assert cache.blocking.get("key", "nothing") == "nothing"


def test_a_dict_that_looks_like_a_type_tag_comes_back_equal(cache: Cache) -> None:
    value = {"__aimemo__": "set", "items": [{"__aimemo__": {}}]}
    cache.blocking.set("key", value)
    assert cache.blocking.get("key") == value


CHANGES: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "list": (lambda: [1, [2]], lambda v: v[1].append(3)),
    "dict": (lambda: {"a": {"b": 1}}, lambda v: v["a"].clear()),
    "set": (lambda: {1}, lambda v: v.add(2)),
    "tuple": (lambda: (1, [2]), lambda v: v[1].append(3)),
    "array": (lambda: np.arange(3), lambda v: v.__setitem__(0, 9)),
    "dataclass": (lambda: Basket([Point(1)]), lambda v: v.points.clear()),
    "namedtuple": (lambda: Pair(1, [2]), lambda v: v.right.clear()),
    "model": (lambda: Person(name="A", tags=["x"]), lambda v: (v.tags.clear(), setattr(v.address, "number", 9))),
}


@pytest.mark.parametrize(("make", "change"), CHANGES.values(), ids=CHANGES)
def test_changing_an_answer_never_changes_the_next_hit(cache: Cache, make: Any, change: Any) -> None:
    calls: list[str] = []

    @cached_ai_call(operation="op", cache=cache)
    def ask(text: str) -> Basket | Pair | Person | Any:
        calls.append(text)
        return make()

    for _ in range(4):
        answer = ask("q")
        assert shape(answer) == shape(make())
        change(answer)
    assert calls == ["q"]


@pytest.mark.parametrize("kind", ["list", "dict", "set", "tuple", "array"])
def test_changing_what_was_set_or_got_by_hand_changes_nothing(cache: Cache, kind: str) -> None:
    make, change = CHANGES[kind]
    value = make()
    cache.blocking.set("key", value)
    change(value)
    for read in (lambda: cache.blocking.get("key"), lambda: cache.blocking.get_many(["key"])["key"]) * 2:
        assert shape(read()) == shape(make())
        change(read())


async def test_those_who_waited_for_one_call_get_answers_of_their_own(cache: Cache) -> None:
    @cached_ai_call(operation="op", cache=cache)
    async def ask(text: str) -> list[int]:
        await asyncio.sleep(0)
        return [1]

    answers = await asyncio.gather(*(ask("q") for _ in range(5)))
    for answer in answers:
        assert answer == [1]
        answer.append(2)


def test_an_argument_changed_during_the_call_is_never_answered_from_the_store(cache: Cache) -> None:
    @cached_ai_call(operation="op", cache=cache)
    def ask(items: list[int]) -> int:
        items.append(1)
        return len(items)

    for items in ([0], [0], [0, 1]):
        with pytest.warns(AimemoWarning):
            assert ask(items) == len(items)
