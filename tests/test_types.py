"""Which classes an answer may be restored to, and what happens where it could not be."""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import enum
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, NewType, Optional, TypedDict, TypeVar

import msgpack
import pydantic
import pytest

from aimemo import AimemoWarning, Cache, CodecError, SQLiteCache, ValidationError, cached_ai_call, register_type
from aimemo.core.codec import pack, unpacker
from aimemo.core.types import TypeResolver, expected_types
from tests.kit.clock import Clock

T = TypeVar("T")


@dataclasses.dataclass
class Box:
    size: int


@dataclasses.dataclass
class Crate:
    boxes: dict[str, list[Box | None]]


class Hue(enum.Enum):
    RED = 1


class Load(TypedDict):
    box: Box


class Page(pydantic.BaseModel, Generic[T]):
    items: list[T]


class Shelf(pydantic.BaseModel):
    page: Optional[Page[Crate]] = None  # noqa: UP045 - both spellings are to be understood


BoxId = NewType("BoxId", Box)

BOX = Box(1)
ANNOTATED: dict[str, tuple[Any, Any]] = {
    "class": (Box, BOX),
    "optional": (Optional[Box], BOX),  # noqa: UP045
    "union": (int | Box | None, BOX),
    "list": (list[Box], [BOX]),
    "dict": (dict[str, tuple[Box, ...]], {"a": (BOX,)}),
    "annotated": (Annotated[Box, "note"], BOX),
    "literal": (Literal[Hue.RED], Hue.RED),
    "new type": (BoxId, BOX),
    "typed dict": (Load, {"box": BOX}),
    "field": (Crate, Crate({"a": [BOX, None]})),
    "text": ("Box | None", BOX),
    "text inside": (list["Crate"], [Crate({"a": [BOX]})]),
    "generic": (Page[Box], Page[Box](items=[BOX])),
    "generic of optional": (Page[Optional[Box]], Page[Optional[Box]](items=[BOX])),  # noqa: UP045
    "generic of union": (Page[Box | None], Page[Box | None](items=[BOX])),
    "generic of any": (Page[Any], Page[Any](items=[BOX.size])),
    "generic of literal": (Page[Literal["a"]], Page[Literal["a"]](items=["a"])),
    "generic of list": (Page[list[Box]], Page[list[Box]](items=[[BOX]])),
    "generic of generic": (Page[Page[Box]], Page[Page[Box]](items=[Page[Box](items=[BOX])])),
    "generic bare": (Page, Page(items=[1])),
    "generic in field": (Shelf, Shelf(page=Page[Crate](items=[Crate({})]))),
}


@pytest.mark.parametrize(("annotation", "answer"), ANNOTATED.values(), ids=ANNOTATED)
def test_the_return_annotation_names_the_classes_of_an_answer(cache: Cache, annotation: Any, answer: Any) -> None:
    answers = [answer]

    @cached_ai_call(operation="op", cache=cache)
    def ask(text: str) -> annotation:
        return answers.pop()

    assert ask("q") == answer
    again = ask("q")
    assert again == answer
    assert type(again) is type(answer)


def test_a_local_class_is_found_by_a_postponed_annotation(cache: Cache) -> None:
    @dataclasses.dataclass
    class Local:
        x: int

    answers = [Local(1)]

    @cached_ai_call(operation="op", cache=cache)
    def ask(text: str) -> Local | None:
        return answers.pop()

    assert [ask("q"), ask("q")] == [Local(1), Local(1)]


def test_a_local_class_is_found_in_the_field_of_another(cache: Cache) -> None:
    @dataclasses.dataclass
    class Inner:
        x: int

    @dataclasses.dataclass
    class Outer:
        inner: Inner

    answers = [Outer(Inner(1))]

    @cached_ai_call(operation="op", cache=cache)
    def ask(text: str) -> Outer:
        return answers.pop()

    assert [ask("q"), ask("q")] == [Outer(Inner(1))] * 2


def test_an_annotation_that_names_nothing_known_is_no_error() -> None:
    def ask() -> Missing: ...  # type: ignore[name-defined]  # noqa: F821

    assert expected_types(ask) == []


def test_a_registered_class_needs_no_annotation(cache: Cache) -> None:
    @register_type
    @dataclasses.dataclass
    class Registered:
        x: int

    cache.blocking.set("key", [Registered(1)])
    assert cache.blocking.get("key") == [Registered(1)]


def test_a_class_registered_again_replaces_the_former(cache: Cache) -> None:
    for size in (1, 2):  # as a notebook does when its cell runs again
        again = register_type(dataclasses.make_dataclass("Again", ["x"]))
        cache.blocking.set("key", [again(size)])
        assert cache.blocking.get("key") == [again(size)]


async def test_an_answer_of_a_class_registered_anew_with_other_fields_is_a_counted_miss(cache: Cache) -> None:
    before = register_type(dataclasses.make_dataclass("Renewed", ["x"]))
    await cache.set("key", [before(1)])
    register_type(dataclasses.make_dataclass("Renewed", ["y"]))
    assert await cache.get("key", "nothing") == "nothing"
    assert cache.stats().errors >= 1


def test_a_generic_of_what_is_no_class_is_refused() -> None:
    noted = Page[Annotated[int, "note"]]
    with pytest.raises(CodecError, match="type argument"):
        pack(noted(items=[1]), TypeResolver([Page, noted]))


@pytest.mark.parametrize("unfit", [object, type("Plain", (), {}), dict, 5, Box(1)])
def test_only_what_can_be_restored_may_be_registered(unfit: Any) -> None:
    with pytest.raises(ValidationError):
        register_type(unfit)


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Makes a loaded module with one dataclass, `Thing`, in it."""

    def load(name: str) -> Any:
        module: Any = types.ModuleType(name)
        module.Thing = dataclasses.make_dataclass("Thing", ["x"], namespace={"__module__": name})
        module.Thing.__module__ = name
        monkeypatch.setitem(sys.modules, name, module)
        return module

    return load  # type: ignore[return-value]


@pytest.mark.parametrize(("name", "trusted"), [("pkg", True), ("pkg.sub.mod", True), ("pkgs", False), ("x.pkg", False)])
def test_loaded_classes_under_a_trusted_prefix_need_no_annotation(modules: Any, name: str, trusted: bool) -> None:
    thing, resolver = modules(name).Thing(1), TypeResolver(trusted_modules=("pkg",))
    if trusted:
        assert unpacker(resolver)(pack(thing, resolver)) == thing
    else:
        with pytest.raises(CodecError, match="register_type"):
            pack(thing, resolver)


def stored_as(name: str) -> bytes:
    """A stored answer whose class is called `name`: `Thing`, packed and its name exchanged."""
    resolver = TypeResolver([Box])
    data = msgpack.unpackb(pack(Box(1), resolver))
    fields = msgpack.unpackb(data.data)
    return msgpack.packb(msgpack.ExtType(data.code, msgpack.packb([name, *fields[1:]])))


def test_stored_bytes_never_import_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "aimemo_unloaded.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("aimemo_unloaded:Thing", "aimemo_unloaded.sub:Thing", "this:Thing", "pkg:Thing.this"):
        with pytest.raises(CodecError):
            unpacker(TypeResolver(trusted_modules=("aimemo_unloaded", "this", "pkg")))(stored_as(name))
    assert not {"aimemo_unloaded", "this"} & set(sys.modules)


def test_stored_bytes_never_wake_the_lazy_imports_of_a_trusted_module(modules: Any) -> None:
    asked: list[str] = []
    modules("pkg").__getattr__ = asked.append
    with pytest.raises(CodecError):
        unpacker(TypeResolver(trusted_modules=("pkg",)))(stored_as("pkg:Lazy"))
    assert asked == []


def test_stored_bytes_reach_no_untrusted_class_through_a_trusted_module(modules: Any) -> None:
    trusted, other = modules("pkg"), modules("other")
    trusted.other, trusted.Alias, trusted.Box = other, other.Thing, Box
    for name in ("pkg:other.Thing", "pkg:Alias", "pkg:Box"):
        with pytest.raises(CodecError):
            unpacker(TypeResolver(trusted_modules=("pkg",)))(stored_as(name))


def versions() -> dict[str, tuple[Any, Any, Callable[[Any], Any]]]:
    """Classes before and after a change of the code, and what was stored before it."""
    dataclass, named = dataclasses.make_dataclass, collections.namedtuple
    model = lambda **fields: pydantic.create_model("Answer", **dict.fromkeys(fields, (int, 0)))
    return {
        "renamed field": (dataclass("Answer", ["a", "b"]), dataclass("Answer", ["a", "c"]), lambda cls: cls(1, 2)),
        "new field": (dataclass("Answer", ["a"]), dataclass("Answer", ["a", ("b", int, 0)]), lambda cls: cls(1)),
        "fewer fields": (named("Answer", "a b"), named("Answer", "a", defaults=[0]), lambda cls: cls(*cls._fields)),
        "swapped fields": (named("Answer", "a b"), named("Answer", "b a"), lambda cls: cls(1, 2)),
        "model": (model(a=1, b=1), model(a=1, c=1), lambda cls: cls()),
        "removed member": (enum.Enum("Answer", "LOW HIGH"), enum.Enum("Answer", "LOW"), lambda cls: list(cls)[-1]),
        "renumbered member": (
            enum.Enum("Answer", "LOW HIGH"), enum.Enum("Answer", "LOW MIDDLE HIGH"), lambda cls: cls.HIGH,
        ),
        "another kind": (
            dataclass("Answer", ["a"]), pydantic.create_model("Answer", __module__="types", a=int), lambda c: c(a=1),
        ),
    }  # fmt: skip


@pytest.mark.parametrize("change", versions())
def test_an_answer_of_a_class_that_has_changed_is_a_miss(change: str, tmp_path: Path, clock: Clock) -> None:
    before, after, make = versions()[change]
    calls: list[str] = []

    def ask_again(answer_class: Any, answers: list[Any]) -> Any:
        @cached_ai_call(operation="op", cache=SQLiteCache(tmp_path / "cache.db", clock=clock, deadline=5))
        def ask(text: str) -> answer_class:
            calls.append(text)
            return answers[0]

        return ask("q")

    assert ask_again(before, [make(before)]) == make(before)
    assert ask_again(before, []) == make(before)
    assert calls == ["q"]
    answer = ask_again(after, [make(after)])
    assert answer == make(after)
    assert calls == ["q", "q"]


class BrokenZone(dt.tzinfo):
    def utcoffset(self, when: dt.datetime | None) -> dt.timedelta:
        raise RuntimeError("no offset")


UNRESTORABLE: dict[str, tuple[Any, str]] = {
    "unregistered class": (Box(1), "register_type"),
    "plain object": ([object()], "dataclass"),
    "datetime in a zone of one's own": (dt.datetime(2024, 1, 1, tzinfo=BrokenZone()), "zoneinfo"),
    "fails while it is packed": (dt.time(9, tzinfo=BrokenZone()), "RuntimeError"),
}


@pytest.mark.parametrize(("answer", "remedy"), UNRESTORABLE.values(), ids=UNRESTORABLE)
@pytest.mark.parametrize("is_async", [False, True], ids=["threads", "tasks"])
async def test_an_answer_that_could_not_be_restored_goes_out_and_is_not_kept(
    cache: Cache, answer: Any, remedy: str, is_async: bool
) -> None:
    events: list[Any] = []
    cache.on("not_kept", events.append)

    answers = [answer]

    def ask(text: str) -> Any:
        return answers[0]

    async def ask_later(text: str) -> Any:
        return answers[0]

    decorated: Any = cached_ai_call(operation="op", cache=cache)(ask_later if is_async else ask)
    with pytest.warns(AimemoWarning, match=remedy) as caught:
        given = await decorated("q") if is_async else decorated("q")
    assert given is answer
    assert len(caught) == 1
    assert [(event.operation, event.reason) for event in events] == [("op", "not_storable")]
    assert cache.stats().sets == 0


def test_nobody_is_warned_of_an_unrestorable_answer_that_was_not_to_be_kept(cache: Cache) -> None:
    events: list[Any] = []
    cache.on("not_kept", events.append)

    @cached_ai_call(operation="op", cache=cache, store_if=lambda answer: False)
    def ask(text: str) -> Any:
        return Box(1)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert ask("q") == Box(1)
    assert caught == []
    assert [event.reason for event in events] == ["not_storable"]


@pytest.mark.parametrize("action", ["error", "ignore", "default"])
def test_an_unrestorable_answer_goes_out_however_warnings_are_set(cache: Cache, action: Any) -> None:
    @cached_ai_call(operation="op", cache=cache)
    def ask(text: str) -> Any:
        return Box(1)

    with warnings.catch_warnings(record=action == "default") as caught:
        warnings.simplefilter(action)
        assert [ask("q") for _ in range(3)] == [Box(1)] * 3
    assert action != "default" or len(caught or ()) == 1
    assert cache.stats().misses == 3
