"""The front index: what it answers is always what the long way would have answered, and only while that is true."""

from __future__ import annotations

import contextvars
import dataclasses
import enum
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimemo import Cache, InMemoryCache, bypass, cached_ai_call, configure, record_calls, refresh
from aimemo.memoized import Memoized
from tests.kit.clock import Clock

Colour = enum.Enum("Colour", {"RED": 1, "BLUE": 2})
Shade = enum.Enum("Shade", {"RED": 1})
Level = enum.IntEnum("Level", {"ONE": 1})
Style = enum.StrEnum("Style", {"ONE": "1"})
Tagged = type("Tagged", (str,), {})
OtherInt = type("OtherInt", (int,), {})


class Loose(enum.Enum):
    """Its members are all equal, but do not mean the same."""

    A = 1
    B = 2

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Loose)

    def __hash__(self) -> int:
        return 0


class Listed(list, enum.Enum):  # type: ignore[type-arg]
    """Its members cannot be hashed."""

    A = [1]


@pytest.fixture
def memory(clock: Clock) -> InMemoryCache:
    return InMemoryCache(clock=clock)


@pytest.fixture
def long_ways(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The arguments of all calls that the front did not answer, of functions decorated from now on."""
    taken: list[Any] = []

    def watch(way: Callable[..., Any]) -> Callable[..., Any]:
        def watched(self: Memoized, values: tuple[Any, ...], *more: Any) -> Any:
            taken.append(values)
            return way(self, values, *more)

        return watched

    monkeypatch.setattr(Memoized, "slow", watch(Memoized.slow))
    monkeypatch.setattr(Memoized, "slow_async", watch(Memoized.slow_async))
    return taken


def front_of(function: Any) -> dict[Any, Any]:
    return function.key_for.__self__.bind().front


def meaning(value: Any) -> str:
    """A text for each value that must be told from others: its type and content; -0.0 is 0.0, NaN is NaN."""
    if isinstance(value, tuple | list | frozenset):
        return f"{type(value)}{sorted(map(meaning, value)) if isinstance(value, frozenset) else [*map(meaning, value)]}"
    return f"{type(value)}{value + 0.0 if type(value) is float else value!r}"


EXACT = ["1", b"1", 1, 1.0, True, None, "", 0, 0.0, False, -1, -2, 2**70, Colour.RED, Shade.RED, Level.ONE, Style.ONE]
OTHERS = [Tagged("1"), OtherInt(1), Loose.A, Loose.B, (1,), (1.0,), (True,), ((1,),), frozenset({1}), frozenset({True})]
CACHE = InMemoryCache()


@cached_ai_call(operation="tell", cache=CACHE)
def tell(first: Any, second: Any = 1) -> str:
    return meaning((first, second))


ALIKE = [*zip(*[(v, (v,), (v, v), [v], frozenset({v})) for v in (1, 1.0, True, OtherInt(1), Level.ONE)], strict=True)]
ALIKE += [(Loose.A, Loose.B), ("1", b"1", 1, Tagged("1"), Style.ONE), (0, 0.0, -0.0, False, None, "", float("nan"))]
calls_alike = st.sampled_from([*ALIKE, (*EXACT, *OTHERS)]).flatmap(
    lambda alike: st.lists(st.tuples(st.sampled_from(alike), st.sampled_from(alike)), min_size=2, max_size=4)
)


@given(calls_alike)
def test_no_two_calls_that_differ_are_one_to_the_front(calls: list[tuple[Any, Any]]) -> None:
    for order in (calls, calls[::-1]):
        CACHE.blocking.clear()
        for _ in range(3):
            assert [tell(*call) for call in order] == [meaning(call) for call in order]


@pytest.mark.parametrize("value", [*EXACT, -0.0, float("inf"), "\ud800"], ids=meaning)
async def test_a_hit_does_not_go_the_long_way(memory: InMemoryCache, long_ways: list[Any], value: Any) -> None:
    ask = cached_ai_call(operation="ask", cache=memory)(lambda value: meaning(value))

    @cached_ai_call(operation="ask later", cache=memory)
    async def ask_later(value: Any) -> str:
        return meaning(value)

    assert [ask(value) for _ in range(3)] == [meaning(value)] * 3
    assert [await ask_later(value) for _ in range(3)] == [meaning(value)] * 3
    assert long_ways == [(value,), (value,)]
    assert memory.stats().hits == 4


@pytest.mark.parametrize("value", [*OTHERS, [1], {"a": 1}, {1}, Listed.A], ids=meaning)
def test_what_the_front_cannot_tell_apart_goes_the_long_way_and_hits(cache: Cache, value: Any) -> None:
    calls: list[Any] = []

    @cached_ai_call(operation="ask", cache=cache)
    def ask(value: Any) -> str:
        calls.append(value)
        return meaning(value)

    assert [ask(value) for _ in range(3)] == [meaning(value)] * 3
    assert len(calls) == 1
    assert front_of(ask) == {}


def test_all_names_of_one_entry_take_one_place_in_the_front() -> None:
    ask = cached_ai_call(operation="ask", cache=InMemoryCache())(lambda value: "not a number")
    for nan in [float("nan") for _ in range(20)]:  # each unequal to all others, and all of one meaning
        assert ask(nan) == "not a number"
        assert len(front_of(ask)) == 1
    assert ask.stats().misses == 1


def test_the_front_never_outgrows_the_memory_it_points_into() -> None:
    cache = InMemoryCache(max_size=5)
    ask = cached_ai_call(operation="ask", cache=cache)(lambda value: value)
    for value in [*range(20), *range(20), *(float("nan") for _ in range(10)), *range(20)]:
        ask(value)
        assert len(front_of(ask)) <= 5
    cache.blocking.clear()
    assert front_of(ask) == {}


ENDS: dict[str, Callable[[Any, Any, Clock], Any]] = {
    "invalidate": lambda ask, cache, clock: ask.invalidate("a"),
    "invalidate_all": lambda ask, cache, clock: ask.invalidate_all(),
    "delete": lambda ask, cache, clock: cache.delete(ask.key_for("a")),
    "clear": lambda ask, cache, clock: cache.clear(),
    "pattern": lambda ask, cache, clock: cache.invalidate_pattern("op:a?k|*"),
    "operation": lambda ask, cache, clock: cache.invalidate_operation("ask"),
    "tag": lambda ask, cache, clock: cache.invalidate_tag("t"),
    "ttl": lambda ask, cache, clock: clock.advance(1),
}


@pytest.mark.parametrize("end", ENDS.values(), ids=list(ENDS))
def test_an_entry_that_came_to_its_end_is_not_in_the_front_any_more(cache: Cache, clock: Clock, end: Any) -> None:
    answers = iter(["old", "new"])
    ask = cached_ai_call(operation="ask", cache=cache, ttl=10, tags=("t",))(lambda text: next(answers))
    assert [ask("a"), ask("a")] == ["old", "old"]
    clock.advance(9)
    assert ask("a") == "old"
    end(ask, cache.blocking, clock)
    assert [ask("a"), ask("a")] == ["new", "new"]


REPLACEMENTS: dict[str, Callable[[Any, Any], Any]] = {
    "set": lambda ask, cache: cache.set(ask.key_for("a"), "new"),
    "set_many": lambda ask, cache: cache.set_many({ask.key_for("a"): "new"}),
    "refresh": lambda ask, cache: ask.refresh("a"),
}


@pytest.mark.parametrize("replace", REPLACEMENTS.values(), ids=list(REPLACEMENTS))
def test_a_replaced_entry_is_not_in_the_front_any_more(cache: Cache, replace: Any) -> None:
    answers = iter(["old", "new", "newest"])
    ask = cached_ai_call(operation="ask", cache=cache)(lambda text: next(answers))
    assert [ask("a"), ask("a")] == ["old", "old"]
    replace(ask, cache.blocking)
    assert [ask("a"), ask("a"), ask("a")] == ["new", "new", "new"]


def test_an_evicted_entry_is_not_in_the_front_any_more() -> None:
    calls: list[int] = []
    ask = cached_ai_call(operation="ask", cache=InMemoryCache(max_size=1))(lambda n: calls.append(n))
    for n in (1, 1, 2, 2, 1):
        ask(n)
    assert calls == [1, 2, 1]


def test_configure_empties_the_front(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aimemo.setup.config._default", None)
    answers = iter(["old", "new", "newest"])
    ask = cached_ai_call(operation="configured")(lambda text: next(answers))
    old = configure("memory://")
    assert [ask("a"), ask("a")] == ["old", "old"]
    assert ask.cache is old
    new = configure("memory://")
    assert [ask("a"), ask("a")] == ["new", "new"]
    assert ask.cache is new
    assert (old.stats().hits, new.stats().hits) == (1, 1)


def test_the_scope_of_the_moment_counts_in_the_front(cache: Cache) -> None:
    tenant = contextvars.ContextVar[str | None]("tenant")
    ask = cached_ai_call(operation="ask", cache=cache, scope=tenant.get)(lambda text: f"{text} for {tenant.get()}")
    for who in ["a", "b", None, "a", "", "b", None, ""]:
        tenant.set(who)
        assert ask("x") == f"x for {who}"
    assert ask.stats().misses == 4
    with pytest.raises(LookupError):
        contextvars.Context().run(ask, "x")


def odd(type: Any, front: Any, /, self: Any, now: Any = 1, *, entry: Any, gate: Any = 2, f: Any = 3, v: Any = 4) -> str:
    return meaning((type, front, self, now, entry, gate, f, v))


def odder(slow: Any, tenant: Any = "x", *bind: Any, apply: Any = None, **wrapper: Any) -> str:
    return meaning((slow, tenant, bind, apply, sorted(wrapper.items())))


def only_keywords(*, b: Any = (1,), a: Any) -> str:
    return meaning((a, b))


def only_positional(a: Any = 1, b: Any = True, /) -> str:
    return meaning((a, b))


def only_stars(*args: Any, **kwargs: Any) -> str:
    return meaning((args, sorted(kwargs.items())))


def call(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, kwargs


# fmt: off
SIGNATURES: dict[Callable[..., str], list[tuple[tuple[Any, ...], dict[str, Any]]]] = {
    odd: [call(1, 2, 3, entry=4), call(1, 2, self=3, entry=4.0), call(1, 2, 3, True, entry=4, v=None)],
    odder: [call(1), call(1, "x", 2, 3), call(1, apply=1), call(1, type=1, self=2), call(True), call(1, "x", (2, 3))],
    only_keywords: [call(a=1), call(a=1, b=1), call(b=(1,), a=True), call(a=True, b=(True,))],
    only_positional: [call(), call(True), call(1, 1), call(1.0, True)],
    only_stars: [call(1, 2), call(1, 2.0), call(True, 2), call((1, 2)), call(1, b=2), call(1, "b", 2), call(a=1, b=2),
                 call(a=1, b=2.0), call(a=2, b=1), call({"a": 1, "b": 2}), call()],
}
# fmt: on


@pytest.mark.parametrize("function", SIGNATURES)
def test_python_itself_binds_the_arguments_whatever_their_names_and_kinds(cache: Cache, function: Any) -> None:
    ask = cached_ai_call(operation="ask", cache=cache)(function)
    for _ in range(3):
        for args, kwargs in SIGNATURES[function]:
            assert ask(*args, **kwargs) == function(*args, **dict(reversed(kwargs.items())))


WRONG = {odd: call(1, 2), odder: call(), only_keywords: call(1), only_positional: call(a=1)}


@pytest.mark.parametrize("function", WRONG)
def test_arguments_that_do_not_fit_are_the_type_error_they_always_were(cache: Cache, function: Any) -> None:
    ask = cached_ai_call(operation="ask", cache=cache)(function)
    args, kwargs = WRONG[function]
    for takes_a_call in (ask, ask.key_for, ask.peek, ask.bypass):
        with pytest.raises(TypeError):
            takes_a_call(*args, **kwargs)


def test_keywords_may_come_in_any_order(cache: Cache) -> None:
    ask = cached_ai_call(operation="ask", cache=cache)(only_stars)
    assert ask.key_for(a=1, b=2) == ask.key_for(b=2, a=1)


def test_what_the_front_holds_does_not_keep_a_gate_from_closing(cache: Cache) -> None:
    answers = iter(range(9))
    ask = cached_ai_call(operation="ask", cache=cache)(lambda text: next(answers))
    assert [ask("a"), ask("a")] == [0, 0]
    with bypass():
        assert ask("a") == 1
    with refresh():
        assert ask("a") == 2
    with record_calls() as records:
        assert ask("a") == 2
    assert [record.outcome for record in records] == ["hit"]
    assert ask("a") == 2


def test_a_changeable_answer_comes_fresh_out_of_the_front(memory: InMemoryCache, long_ways: list[Any]) -> None:
    ask = cached_ai_call(operation="ask", cache=memory)(lambda text: {"tags": [text]})
    for _ in range(3):
        answer = ask("a")
        assert answer == {"tags": ["a"]}
        answer["tags"].append("changed by its reader")
    assert len(long_ways) == 1


def test_the_error_of_a_function_does_not_tell_of_the_look_up_before_it(cache: Cache) -> None:
    @cached_ai_call(operation="ask", cache=cache)
    def ask(prompt: str) -> str:
        raise RuntimeError("no answer")

    with pytest.raises(RuntimeError) as caught:
        ask("a secret prompt")
    assert caught.value.__context__ is None
    assert caught.value.__cause__ is None


def test_an_argument_that_was_changed_is_another_argument(cache: Cache) -> None:
    Job = dataclasses.make_dataclass("Job", ["n"])
    ask = cached_ai_call(operation="ask", cache=cache)(lambda items, job: (list(items), job.n))
    items, job = [1], Job(1)
    assert ask(items, job) == ([1], 1)
    items.append(2)
    assert ask(items, job) == ([1, 2], 1)
    job.n = True
    assert ask(items, job) == ([1, 2], True)
