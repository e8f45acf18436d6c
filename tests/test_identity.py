"""What makes two calls of a decorated function one call, and what of the function itself counts."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import threading
import unittest.mock
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pydantic
import pytest

from aimemo import MISSING, AimemoWarning, Cache, InMemoryCache, bypass, cached_ai_call
from aimemo.errors import UnkeyableArgumentError, ValidationError


@pytest.fixture
def memory() -> InMemoryCache:
    return InMemoryCache()


def ask(text: str, model: str = "small", *, n: Any = 0) -> str:
    """Ask a model."""
    return f"{text} {model} {n!r}"


def key(decorate: Callable[[Any], Any], *args: Any, **kwargs: Any) -> str:
    return decorate(ask).key_for(*(args or ("a",)), **kwargs)


OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any], bool]] = {
    "nothing": ({}, {}, True),
    "ttl": ({"ttl": 5}, {}, True),
    "tags": ({"tags": ("t",)}, {}, True),
    "versions": ({"version": "1"}, {"version": "2"}, False),
    "a version": ({"version": ""}, {}, False),
    "auto": ({"version": "auto"}, {}, False),
    "auto twice": ({"version": "auto"}, {"version": "auto"}, True),
    "scopes": ({"scope": "a"}, {"scope": "b"}, False),
    "a scope": ({"scope": ""}, {}, False),
    "scopes by call": ({"scope": lambda: "a"}, {"scope": lambda: "b"}, False),
    "a scope either way": ({"scope": lambda: "a"}, {"scope": "a"}, True),
    "scope is not version": ({"scope": "a"}, {"version": "a"}, False),
    "operations": ({"operation": "x"}, {"operation": "y"}, False),
    "ignored": ({"ignore": ("n",)}, {}, False),
    "keys": ({"key": lambda *a, **k: 1}, {"key": lambda *a, **k: True}, False),
}


@pytest.mark.parametrize(("one", "other", "is_same"), OPTIONS.values(), ids=list(OPTIONS))
def test_what_of_the_options_counts(memory: InMemoryCache, one: Any, other: Any, is_same: bool) -> None:
    keys = {key(cached_ai_call(cache=memory, **{"operation": "ask", **options})) for options in (one, other)}
    assert len(keys) == (1 if is_same else 2)


def test_positional_and_keyword_and_omitted_arguments_are_one_call(memory: InMemoryCache) -> None:
    f = cached_ai_call(cache=memory)(ask)
    keys = [f.key_for("a"), f.key_for(text="a"), f.key_for("a", "small"), f.key_for(n=0, model="small", text="a")]
    assert len(set(keys)) == 1
    assert len({f.key_for("a", n=n) for n in (0, 0.0, False, "0", None, b"0")}) == 6


def test_ignored_arguments_do_not_count_and_need_no_form(memory: InMemoryCache) -> None:
    f = cached_ai_call(cache=memory, ignore=("n", "model"))(ask)
    assert f("a", n=object()) == f("a", "large", n=1)
    assert f("b") != f("a")


def test_key_stands_for_all_arguments_and_sees_the_defaults(memory: InMemoryCache) -> None:
    seen: list[Any] = []

    def of(text: str, model: str, *, n: Any) -> str:
        seen.append((text, model, n))
        return text.lower()

    f = cached_ai_call(cache=memory, key=of)(ask)
    assert f("A") == f("a", "large", n=object()) == "A small 0"
    assert seen[0] == ("A", "small", 0)


def test_a_key_that_cannot_be_keyed_says_so(memory: InMemoryCache) -> None:
    f = cached_ai_call(cache=memory, key=lambda *a, **k: object())(ask)
    with pytest.raises(UnkeyableArgumentError, match="key="):
        f("a")


def test_two_scopes_never_share_an_answer(cache: Cache) -> None:
    first, second = (cached_ai_call("ask", cache=cache, scope=who)(lambda text, who=who: who) for who in ("a", "b"))
    assert (first("x", "same"), second("x", "same")) == ("same", "same")
    assert cache.stats().misses == 2


@pytest.mark.parametrize("scope", [1, b"a", ["a"], object()])
def test_a_scope_that_is_no_string_is_refused(memory: InMemoryCache, scope: Any) -> None:
    f = cached_ai_call(cache=memory, scope=lambda: scope)(ask)
    with pytest.raises(ValidationError, match="scope"):
        f("a")


# What a function brings along


def make(model: Any) -> Callable[..., Any]:
    def answer(text: str) -> Any:
        return f"{model!r}: {text}"

    return answer


def wrapping(model: str) -> Callable[..., Any]:
    @functools.wraps(ask)
    def answer(*args: Any, **kwargs: Any) -> str:
        return f"{model}: {ask(*args, **kwargs)}"

    return answer


class Client:
    def __init__(self, model: str) -> None:
        self.model = model

    def __call__(self, text: str) -> str:
        return f"{self.model}: {text}"

    answer = __call__


class KeyedClient(Client):
    def __cache_key__(self) -> str:
        return self.model


@dataclasses.dataclass
class FieldClient:
    model: str
    answer = Client.answer


class ModelClient(pydantic.BaseModel):
    model: str

    def answer(self, text: str) -> str:
        return f"{self.model}: {text}"


class Completing:
    """As a client of a provider: nothing tells two of them apart."""

    def complete(self, text: str, model: str) -> str:
        return f"{model}: {text}"


CLIENT = Completing()


@dataclasses.dataclass(frozen=True)
class FrozenRecord:
    model: str


def say(text: str) -> str:
    return text


def calling(inner: Callable[[str], Any]) -> Callable[..., Any]:
    return lambda text: inner(text)


def complete_with(settings: Any) -> Callable[..., Any]:
    def answer(text: str) -> Any:
        client, model = settings.values() if isinstance(settings, dict) else settings
        return client.complete(text, model)

    return answer


def named_later(given: str) -> Callable[..., Any]:
    def answer(text: str) -> str:
        return f"{model}: {text}"

    model = given
    return answer


def collecting(record: FrozenRecord) -> Callable[..., Any]:
    def answer(text: str) -> str:
        texts: list[str] = []
        texts.append(text)
        return f"{record.model}: {texts[0]}"

    return answer


FACTORIES: dict[str, Callable[[Any], Any]] = {
    "closure": make,
    "closure that wraps": wrapping,
    "partial": lambda model: functools.partial(ask, model=model),
    "positional partial": lambda model: functools.partial(lambda model, text: f"{model}: {text}", model),
    "method of a dataclass": lambda model: FieldClient(model).answer,
    "method of a model": lambda model: ModelClient(model=model).answer,
    "method of a keyed object": lambda model: KeyedClient(model).answer,
    "keyed object": KeyedClient,
    "default": lambda model: lambda text, model=model: f"{model}: {text}",
    "default of a captured function": lambda model: calling(lambda text, model=model: f"{model}: {text}"),
    "default of a wrapper": lambda model: functools.wraps(say)(lambda text, _model=model: f"{_model}: {text}"),
    "remembering function": lambda model: calling(functools.cache(make(model))),
    "cached function": lambda model: calling(cached_ai_call("inner", cache=InMemoryCache())(make(model))),
    "captured partial": lambda model: calling(functools.partial(CLIENT.complete, model=model)),
    "dict that holds a client": lambda model: complete_with({"client": CLIENT, "model": model}),
    "list that holds a client": lambda model: complete_with([CLIENT, model]),
    "named later": named_later,
    "frozen record beside a list of its own": lambda model: collecting(FrozenRecord(model)),
}


@pytest.mark.parametrize("factory", FACTORIES.values(), ids=list(FACTORIES))
def test_functions_of_one_factory_share_where_their_settings_are_the_same(cache: Cache, factory: Any) -> None:
    a, b, again = (cached_ai_call("made", cache=cache)(factory(model)) for model in ("a", "b", "a"))
    for _ in range(2):
        assert (a("x"), b("x"), again("x")) == (factory("a")("x"), factory("b")("x"), factory("a")("x"))
    assert cache.stats().misses == 2


class Everything:
    """Has an attribute of every name, as some proxies of remote objects have."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Everything:
        return Everything()


def test_captured_objects_of_whatever_kind_end_no_call(cache: Cache) -> None:
    holding_itself: list[Any] = [Everything()]
    holding_itself.append(holding_itself)
    partial = functools.partial(CLIENT.complete, model="a")
    for odd in (Everything(), holding_itself, functools.cache(partial), unittest.mock.MagicMock(), partial):
        assert cached_ai_call("odd", cache=cache)(complete_with(odd)).key_for("q")


SETTINGS = [1, True, 1.0, "1", b"1", None, 2, (1,), (True,)]


def test_captured_settings_are_told_apart_by_type(cache: Cache) -> None:
    made = [cached_ai_call("made", cache=cache)(make(setting)) for setting in SETTINGS]
    for _ in range(2):
        assert [f("x") for f in made] == [make(setting)("x") for setting in SETTINGS]


def test_auto_tells_code_and_constants_and_closure_apart(memory: InMemoryCache) -> None:
    def compiled(body: str) -> Any:
        names: dict[str, Any] = {"__name__": "m"}
        exec(f"def f(x):\n {body}", names)
        return names["f"]

    guarded = ["try: a(); b()\n except E: pass", "a()\n try: b()\n except E: pass"]
    functions = [*map(compiled, ["return x + 1", "return x + 2", "return x - 1", *guarded]), make([1]), make([2])]
    with pytest.warns(AimemoWarning):
        decorated = [cached_ai_call("auto", cache=memory, version="auto")(function) for function in functions]
    assert len({f.key_for("x") for f in decorated}) == len(functions)
    assert decorated[0].key_for(1) == cached_ai_call("auto", cache=memory, version="auto")(functions[0]).key_for(1)


# Methods


def client(base: type, **options: Any) -> Any:
    """A class like `base` with a cached method."""

    class Cached(base):  # type: ignore[misc]
        @cached_ai_call(operation="ask", **options)
        def ask(self, text: str) -> str:
            return f"{self.model}: {text}"

    return Cached


@pytest.mark.parametrize("base", [KeyedClient, FieldClient, ModelClient])
def test_instances_share_where_their_settings_are_the_same(cache: Cache, base: type) -> None:
    cached = client(base, cache=cache)
    a, b, again = (cached(model=model) for model in ("a", "b", "a"))
    assert (a.ask("x"), b.ask("x"), again.ask(text="x")) == ("a: x", "b: x", "a: x")
    a.model = "c"
    assert a.ask("x") == "c: x"
    assert cache.stats().misses == 3


def test_an_instance_without_fields_cannot_be_keyed_and_may_be_ignored(memory: InMemoryCache) -> None:
    with pytest.raises(UnkeyableArgumentError, match=r"'self'.*ignore=\('self',\)"):
        client(Client, cache=memory)("a").ask("x")
    ignoring = client(Client, cache=memory, ignore=("self",))
    assert ignoring("a").ask("x") == ignoring("b").ask("x") == "a: x"


CANNOT_BE_KEYED: dict[str, Callable[[], Any]] = {
    "bound method": lambda: Client("a").answer,
    "partial": lambda: functools.partial(lambda text, client: text, client=Client("a")),
    "partial of a method": lambda: functools.partial(Client.answer, Client("a")),
    "object": lambda: Client("a"),
}


@pytest.mark.parametrize("bring", CANNOT_BE_KEYED.values(), ids=list(CANNOT_BE_KEYED))
def test_the_remedy_that_the_error_names_works(memory: InMemoryCache, bring: Callable[[], Any]) -> None:
    with pytest.raises(UnkeyableArgumentError) as caught:
        cached_ai_call("brought", cache=memory)(bring())("x")
    remedy = str(caught.value).partition("ignore=(")[2].partition(",)")[0].strip("'")
    if remedy:
        assert cached_ai_call("brought", cache=memory, ignore=(remedy,))(bring())("x")


def test_ignore_reaches_what_a_function_takes_under_any_name(memory: InMemoryCache) -> None:
    @cached_ai_call("any name", cache=memory, ignore=("trace",))
    def tell(text: str, **more: Any) -> Any:
        return text, more

    assert tell("x", trace=threading.Lock(), size=1)[1].keys() == {"trace", "size"}
    assert tell.key_for("x", trace=1, size=1) == tell.key_for("x", size=1) != tell.key_for("x", size=2)
    with pytest.raises(UnkeyableArgumentError, match=r"'lock'.*ignore=\('lock',\)"):
        tell("x", lock=threading.Lock())


def test_ignore_reaches_what_a_partial_binds_by_name(memory: InMemoryCache) -> None:
    bound = functools.partial(ask, n=object())
    assert cached_ai_call(cache=memory, ignore=("n",))(bound)("a", model="m").startswith("a m <object")


@pytest.mark.parametrize("is_outside", [True, False])
@pytest.mark.parametrize("kind", [classmethod, staticmethod])
async def test_class_and_static_methods_in_both_orders(cache: Cache, kind: Any, is_outside: bool) -> None:
    def method(function: Any) -> Any:
        decorate = cached_ai_call(function.__name__, cache=cache)
        return kind(decorate(function)) if is_outside else decorate(kind(function))

    def names(*args: Any) -> list[Any]:
        return [getattr(arg, "__name__", arg) for arg in args]

    async def names_later(*args: Any) -> list[Any]:
        return names(*args)

    Base = type("Base", (), {"names": method(names), "later": method(names_later)})
    Heir = type("Heir", (Base,), {})
    for owner, name in [(Base, "Base"), (Heir, "Heir"), (Base(), "Base"), (Heir(), "Heir")]:
        expected = [name, "x"] if kind is classmethod else ["x"]
        assert owner.names("x") == owner.names("x") == expected
        assert await owner.later("x") == await owner.later("x") == expected


# Warnings and refusals


def test_a_second_different_function_under_one_operation_warns(memory: InMemoryCache) -> None:
    decorate = cached_ai_call("shared", cache=memory)
    decorate(ask)
    decorate(ask)  # the same one may come again
    with pytest.warns(AimemoWarning, match="shared"):
        decorate(make("a"))
    cached_ai_call("shared", cache=InMemoryCache())(make("a"))  # on another cache nothing is shared


def test_two_functions_of_one_name_are_different_all_the_same(memory: InMemoryCache) -> None:
    first = cached_ai_call(cache=memory)(lambda text: 1)
    with pytest.warns(AimemoWarning):
        second = cached_ai_call(cache=memory)(lambda text: 2)
    assert first.operation == second.operation


FAULTY: list[dict[str, Any]] = [
    *({"operation": operation} for operation in ("", " ", 1)),
    *({"ttl": ttl} for ttl in (-1, "1", True, float("nan"), float("inf"), 366 * 86400)),
    *({"jitter": jitter} for jitter in (-0.1, 1, "a", True)),
    *({name: 1} for name in ("key", "store_if", "skip_if", "facts", "on_hit", "on_miss", "on_set")),
    *({name: -1} for name in ("stale_while_revalidate", "stale_if_error", "text_hash_threshold")),
    *({"tags": tags} for tags in ("tag", ("",), (1,), ("a\n",), 1, None)),
    *({"ignore": ignore} for ignore in (("unknown",), "unknown", (1,), 1)),
    *({"cache": cache} for cache in (1, "memory", "unknown://")),
    *({"text": text} for text in ("unknown", 1)),
    *({name: 1.5} for name in ("version", "scope", "text_hash_threshold")),
]


@pytest.mark.parametrize("options", FAULTY, ids=str)
def test_faulty_options_are_validation_errors(memory: InMemoryCache, options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        cached_ai_call(**{"cache": memory, "operation": "ask", **options})(ask)


def generates(text: str) -> Iterator[str]:
    yield text


async def generates_later(text: str) -> AsyncIterator[str]:
    yield text


GENERATORS = [generates, generates_later, staticmethod(generates), functools.partial(generates, "x")]
REFUSED = [*GENERATORS, Client, property(ask), 5]


@pytest.mark.parametrize("thing", REFUSED, ids=lambda thing: type(thing).__name__)
def test_generators_and_classes_and_other_things_cannot_be_decorated(memory: InMemoryCache, thing: Any) -> None:
    with pytest.raises(TypeError, match=r"generator|functions"):
        cached_ai_call(cache=memory)(thing)


# What survives


async def later(text: str, /, *, n: int = 0) -> str:
    """Ask later."""
    return text


@pytest.mark.parametrize("function", [ask, later])
@pytest.mark.parametrize("decorate", [cached_ai_call, cached_ai_call(), cached_ai_call(ttl=5)])
def test_what_a_function_says_of_itself_stays_true(function: Any, decorate: Any) -> None:
    f = decorate(function)
    assert inspect.signature(f) == inspect.signature(function)
    for name in ("__doc__", "__name__", "__qualname__", "__module__", "__annotations__"):
        assert getattr(f, name) == getattr(function, name)
    assert f.__wrapped__ is function
    assert inspect.iscoroutinefunction(f) == inspect.iscoroutinefunction(function)
    assert f.operation == f"{__name__}.{function.__qualname__}"


# What cannot be keyed


@pytest.mark.parametrize(
    "value", [object(), Client("a"), [object()], {"a": (object(),)}], ids=["object", "client", "list", "dict"]
)
async def test_what_cannot_be_keyed_raises_before_the_function_runs(cache: Cache, value: Any) -> None:
    calls: list[Any] = []

    @cached_ai_call("now", cache=cache, skip_if=lambda text, n: text == "skip")
    def now(text: str, n: Any) -> None:
        calls.append(n)

    @cached_ai_call("then", cache=cache)
    async def then(text: str, *n: Any) -> None:
        calls.append(n)

    expected = pytest.raises(UnkeyableArgumentError, match=r"^(?!.*secret).*'n'.*ignore=\('n',\)")
    for take in (now, now.key_for, now.peek, now.invalidate, now.refresh, then.key_for):
        with expected:
            take("a secret", value)
    for take_later in (then, then.peek, then.invalidate, then.refresh):
        with expected:
            await take_later("a secret", value)
    assert calls == []
    now.bypass("a", value)
    await then.bypass("a", value)
    now("skip", value)
    with bypass():
        now("a", value)
        await then("a", value)
    assert len(calls) == 5


# F43: arguments that change under the call


class Changing(FieldClient):
    def answer(self, text: str) -> str:
        self.model = "changed"
        return f"{self.model}: {text}"


def pop(job: dict[str, Any]) -> Any:
    return job.pop("id")


CHANGES: dict[str, tuple[dict[str, Any], Callable[[], Any], Callable[[Any], tuple[Any, ...]]]] = {
    "self": ({}, lambda: Changing.answer, lambda f: (Changing("a"), "x")),
    "bound self": (
        {},
        lambda: Changing("a").answer,
        lambda f: (setattr(f.__wrapped__.__self__, "model", "a"), "x")[1:],
    ),
    "argument": ({}, lambda: pop, lambda f: ({"id": 1},)),
    "what key= reads": ({"key": lambda job: job["id"]}, lambda: pop, lambda f: ({"id": 1},)),
}


@pytest.mark.filterwarnings("ignore::aimemo.AimemoWarning")
@pytest.mark.parametrize(("options", "bring", "arguments"), CHANGES.values(), ids=list(CHANGES))
def test_an_answer_to_an_argument_that_changed_meanwhile_goes_out_and_is_not_kept(
    cache: Cache, options: Any, bring: Any, arguments: Any
) -> None:
    f = cached_ai_call("changing", cache=cache, **options)(bring())
    assert f(*arguments(f)) in ("changed: x", 1)
    assert f.peek(*arguments(f)) is MISSING
