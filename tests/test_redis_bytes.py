"""What stands in Redis is not to be trusted: other bytes than those that were kept are at worst misses."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import itertools
import json
import os
import pickle
import struct
import threading
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pydantic
import pytest
import xxhash
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aimemo import MISSING, AimemoWarning, CacheEvent, GenericRedisCache, InfrastructureError, cached_ai_call
from aimemo.core.codec import pack
from aimemo.core.envelope import Envelope, seal
from aimemo.core.keys import fingerprint
from aimemo.core.types import TypeResolver
from aimemo.link.layout import BUCKETS, Layout
from tests.kit.redis_caches import redis_cache, shared
from tests.test_codec import OBJECTS, PLAIN, shape
from tests.test_envelope import PAYLOADS, Boom, ext, forged, zstd_bomb

MIB = 1 << 20
TEXT = " ".join(f"sentence {number} says {number * 7919}" for number in range(40))
COLLISION = json.loads((Path(__file__).parent / "vectors" / "xxh3_128_ascii_collision.json").read_text())


class Asked:
    """A decorated function of the world of tasks, for code that does not await."""

    def __init__(self, function: Any, run: Callable[[Any], Any]) -> None:
        self._function = function
        self._run = run
        self.key_for = function.key_for

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._run(self._function(*args, **kwargs))

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: self._run(getattr(self._function, name)(*args, **kwargs))


class Here:
    """A cache in one of its worlds, for code that does not await."""

    def __init__(self, cache: GenericRedisCache, world: str) -> None:
        self.cache = cache
        self.world = world
        self.layout = Layout(cache.namespace)
        self.build_key = cache.build_key
        self.errors: list[CacheEvent] = []
        cache.on("error", self.errors.append)
        self._runner = asyncio.Runner()

    def __getattr__(self, name: str) -> Any:
        if self.world == "threads":
            return getattr(self.cache.blocking, name)
        return lambda *args, **kwargs: self.run(getattr(self.cache, name)(*args, **kwargs))

    def run(self, body: Any) -> Any:
        return self._runner.run(body)

    def cached(self, function: Callable[..., Any], **options: Any) -> Any:
        decorate = cached_ai_call(cache=self.cache, **{"operation": "qa", **options})
        if self.world == "threads":
            return decorate(function)

        @functools.wraps(function)
        async def in_tasks(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        return Asked(decorate(in_tasks), self.run)

    def close(self) -> None:
        self._runner.close()
        self.cache.blocking.close()

    # What is stored

    def plant(self, key: str, data: Any) -> None:
        shared("server").ask("SET", self.layout.place(key).name, data)

    def sealed(self, key: str, value: Any, *, threshold: int = 1000) -> bytes:
        """What another process would have stored for a value."""
        forever = float("inf")
        envelope = Envelope(0.0, forever, forever, 0.5, {}, (), pack(value, TypeResolver()))
        return seal(envelope, fingerprint(self.cache.namespace, key), threshold, 3)


Make = Callable[..., Here]


@pytest.fixture(params=["tasks", "threads"])
def world(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[False, True], ids=["without L1", "with L1"])
def l1(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def make(world: str, l1: bool) -> Iterator[Make]:
    """Makes caches; those of one namespace stand for processes."""
    made: list[Here] = []

    def make_one(beside: Here | None = None, **settings: Any) -> Here:
        given = {"strict": False, "enable_l1_cache": l1, "deadline": 5, **settings}
        if beside is None:
            cache = redis_cache("server", None, **given)
        else:
            cache = GenericRedisCache(shared("server").url, namespace=beside.cache.namespace, **given)
        made.append(Here(cache, world))
        return made[-1]

    yield make_one
    for here in made:
        here.close()


@pytest.fixture
def here(make: Make) -> Here:
    return make()


@pytest.fixture
def bare(world: str) -> Iterator[Here]:
    """Without L1, for what is tried a hundred times over."""
    here = Here(redis_cache("server", None, strict=False, enable_l1_cache=False), world)
    yield here
    here.close()


def assert_miss(here: Here, key: str) -> None:
    assert here.get(key, MISSING) is MISSING
    assert here.get_many([key]) == {}


def assert_well(here: Here) -> None:
    """What was wrong with single names has not cost the others: they are found, and kept."""
    here.plant("well", here.sealed("well", "old"))
    assert here.get("well") == "old"
    for number in range(BUCKETS):
        here.set(f"well-{number}", number)
        assert here.get(f"well-{number}") == number
        assert shared("server").ask("EXISTS", here.layout.place(f"well-{number}").name) == 1


def recorder() -> tuple[Callable[[str], list[str]], list[str]]:
    """A function that answers with its text, and the texts it was asked."""
    calls: list[str] = []

    def ask(text: str) -> list[str]:
        calls.append(text)
        return [text]

    return ask, calls


# A value that belongs to another key


def test_the_bytes_of_another_key_are_a_miss_and_a_foreign_value(here: Here) -> None:
    here.plant("b", here.sealed("a", "of a"))
    assert_miss(here, "b")
    assert [event.reason for event in here.errors] == ["foreign_value"] * 2
    here.plant("b", here.sealed("b", "of b"))
    assert here.get("b") == "of b"


def test_the_bytes_of_the_same_key_in_another_namespace_are_foreign(make: Make) -> None:
    here, there = make(), make()
    there.set("k", "theirs")
    here.plant("k", shared("server").ask("GET", there.layout.place("k").name))
    assert_miss(here, "k")
    assert [event.reason for event in here.errors] == ["foreign_value"] * 2


def test_two_answers_that_changed_places_are_computed_anew(here: Here) -> None:
    ask, calls = recorder()
    asked = here.cached(ask)
    a, b = asked.key_for("a"), asked.key_for("b")
    here.plant(a, here.sealed(b, ["b"]))
    here.plant(b, here.sealed(a, ["a"]))
    assert [asked("a"), asked("b")] == [["a"], ["b"]]
    assert {event.reason for event in here.errors} == {"foreign_value"}
    assert [asked("a"), asked("b")] == [["a"], ["b"]]
    assert calls == ["a", "b"], "what was computed has replaced what was there"


def test_one_foreign_value_among_many_costs_only_itself(here: Here) -> None:
    keys = [f"k{number}" for number in range(20)]
    for key in keys:
        here.plant(key, here.sealed(key, key))
    here.plant("k7", here.sealed("k8", "k8"))
    assert here.get_many(keys) == {key: key for key in keys if key != "k7"}
    assert [event.reason for event in here.errors] == ["foreign_value"]


# Damaged bytes

ENTRIES = [
    pytest.param({"answer": ["yes", 1, 2.5, None]}, 1000, id="uncompressed"),
    pytest.param([TEXT], 100, id="compressed"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("value", "threshold"), ENTRIES)
def test_every_changed_byte_of_an_entry_is_a_miss(here: Here, value: Any, threshold: int) -> None:
    data = here.sealed("k", value, threshold=threshold)
    assert bool(data[3]) == (threshold == 100)
    for at, mask in itertools.product(range(len(data)), (0x01, 0xFF)):
        here.plant("k", data[:at] + bytes([data[at] ^ mask]) + data[at + 1 :])
        assert here.get("k", MISSING) is MISSING
    assert len(here.errors) == 2 * len(data)
    here.plant("k", data)
    assert here.get("k") == value


@pytest.mark.parametrize(("value", "threshold"), ENTRIES)
def test_every_length_of_an_entry_but_its_own_is_a_miss(here: Here, value: Any, threshold: int) -> None:
    data = here.sealed("k", value, threshold=threshold)
    for damaged in (*(data[:length] for length in range(len(data))), data[1:], data + b"\0", data + data):
        here.plant("k", damaged)
        assert here.get_many(["k"]) == {}
    here.plant("k", data)
    assert here.get_many(["k"]) == {"k": value}


def test_damaged_answers_are_computed_anew_and_replaced(here: Here) -> None:
    ask, calls = recorder()
    asked = here.cached(ask)
    damages = [lambda data: b"", lambda data: data[:-1], lambda data: os.urandom(len(data)), lambda data: data * 2]
    texts = [f"q{number}" for number in range(12)]
    for text, damage in zip(texts, itertools.cycle(damages), strict=False):
        key = asked.key_for(text)
        here.plant(key, damage(here.sealed(key, ["other"])))
    assert [asked(text) for text in texts * 2] == [[text] for text in texts * 2]
    assert calls == texts
    assert len(here.errors) >= len(texts)
    assert_well(here)


def test_what_was_read_well_once_is_not_taken_for_what_stands_there_now(bare: Here) -> None:
    data = bare.sealed("k", "value")
    for damaged in (b"", data[:-1], data[:70] + b"!" + data[71:], bare.sealed("other", "other")):
        bare.plant("k", data)
        assert [bare.get("k") for _ in range(3)] == ["value"] * 3
        bare.plant("k", damaged)
        assert_miss(bare, "k")
    bare.plant("k", bare.sealed("k", "newer"))
    assert bare.get("k") == "newer"


FUZZED = settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])


@FUZZED
@given(data=st.data())
def test_an_entry_cut_up_and_put_together_otherwise_is_a_miss(bare: Here, data: st.DataObject) -> None:
    value = {"answer": TEXT}
    whole = bare.sealed("k", value, threshold=data.draw(st.sampled_from([100, 10_000])))
    at, to = (data.draw(st.integers(0, len(whole))) for _ in range(2))
    middle = data.draw(st.binary(max_size=30) | st.just(whole[min(at, to) : max(at, to)]))
    changed = whole[:at] + middle + whole[to:]
    bare.plant("k", changed)
    assert bare.get("k", MISSING) == (value if changed == whole else MISSING)


@FUZZED
@given(data=st.binary(max_size=200), start=st.sampled_from([0, 4, 20, 61, 65]))
def test_random_bytes_are_a_miss(bare: Here, data: bytes, start: int) -> None:
    bare.plant("k", bare.sealed("k", "value")[:start] + data)
    assert_miss(bare, "k")


# Bombs


def peak_growth(act: Callable[[], Any]) -> int:
    """Bytes by which the memory of this process was, at its highest, over what it had been."""
    Path("/proc/self/clear_refs").write_text("5")  # forgets how high it was before
    before = _high_water()
    act()
    return _high_water() - before


def _high_water() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=3).compress(data)


@functools.cache
def frames() -> dict[str, bytes]:
    return {
        "honest": zstd_bomb(1 << 30),
        "lying": zstd_bomb(1000),
        "lying well": zstd_bomb(8 * MIB),
        "silent": zstd_bomb(None),
        "of many frames": zstd_bomb(None, MIB) * 300,
        "padded": zstd_bomb(8 * MIB, 8 * MIB) + os.urandom(60_000),
        "skippable": b"\x50\x2a\x4d\x18\xff\xff\xff\x7f" + zstd_bomb(1000),
        "of an array": zstd(b"\xdd\xff\xff\xff\xff" + bytes(MIB - 5)),
    }


@pytest.mark.slow
@pytest.mark.parametrize("raw_length", [1 << 30, 8 * MIB, 1000])
def test_zstd_bombs_are_misses_and_cost_no_memory(here: Here, raw_length: int) -> None:
    head = here.sealed("b", "x")
    for kind, frame in frames().items():
        here.plant("b", forged(head, frame, flags=1, raw_length=raw_length))
        assert len(frame) < 100_000
        growth = peak_growth(lambda: assert_miss(here, "b"))
        assert (kind, growth < 32 * MIB) == (kind, True)
    assert len(here.errors) == 2 * len(frames())
    assert_well(here)


def test_payloads_that_were_never_packed_are_misses(here: Here) -> None:
    head = here.sealed("b", "x")
    for name, payload in PAYLOADS.items():
        for data, flags in ((payload, 0), (zstd(payload), 1)):
            here.plant("b", forged(head, data, flags=flags, raw_length=len(payload)))
            assert (name, here.get("b", MISSING), here.get_many(["b"])) == (name, MISSING, {})
    assert len(here.errors) == 4 * len(PAYLOADS)
    assert Boom.ran == []
    assert_well(here)


def array_of(element: bytes) -> bytes:
    count = (MIB - 5) // len(element)
    return b"\xdd" + struct.pack(">I", count) + element * count


NESTED = (b"\xdd" + struct.pack(">I", MIB - 5000)) * 1000 + bytes(MIB - 5000)
"""Arrays in arrays, each of which says that it holds a million."""


@pytest.mark.parametrize("payload", [array_of(b"\x80"), NESTED], ids=["maps", "nested"])
def test_a_few_stored_bytes_do_not_become_much_memory(bare: Here, payload: bytes) -> None:
    frame = zstd(payload)
    assert len(frame) < 200
    bare.plant("b", forged(bare.sealed("b", "x"), frame, flags=1, raw_length=len(payload)))
    assert peak_growth(lambda: bare.get("b")) < 32 * MIB


FACTS = [
    b"\xc1",
    b"\xdd\xff\xff\xff\xff",
    b"\x91" * 5000,
    b"\x92\x80\x91\xa1\xff",
    b"\x05",
    b"\x92\x80\xdd\xff\xff\xff\xff",
]


def test_facts_that_are_none_are_a_miss(here: Here) -> None:
    for facts in FACTS:
        here.plant("b", forged(here.sealed("b", "x"), msgpack.packb("x"), facts=facts))
        assert_miss(here, "b")
    assert_well(here)


@FUZZED
@given(payload=st.binary(max_size=60), code=st.none() | st.integers(0, 127))
def test_whatever_a_payload_holds_it_is_a_value_or_a_miss(bare: Here, payload: bytes, code: int | None) -> None:
    packed = payload if code is None else msgpack.packb([1, msgpack.ExtType(code, payload)])
    bare.plant("k", forged(bare.sealed("k", "x"), packed))
    bare.get("k")
    bare.get_many(["k"])


scalars = st.none() | st.integers(-(2**63), 2**63) | st.text(max_size=5) | st.binary(max_size=9) | st.floats()
states = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4), max_leaves=6)


@FUZZED
@given(code=st.integers(0, 30), state=states)
def test_whatever_an_extension_type_holds_it_is_a_value_or_a_miss(bare: Here, code: int, state: Any) -> None:
    bare.plant("k", forged(bare.sealed("k", "x"), ext(code, state)))
    bare.get("k")
    bare.get_many(["k"])


# Nothing runs because of stored bytes


def test_a_planted_pickle_does_not_run(here: Here) -> None:
    planted = pickle.dumps(Boom())
    for data in (planted, forged(here.sealed("b", "x"), planted), here.sealed("a", planted)):
        here.plant("b", data)
        assert_miss(here, "b")
    here.plant("b", here.sealed("b", planted))
    assert here.get("b") == planted, "as a value it is bytes like any other"
    assert Boom.ran == []


def test_a_planted_class_name_is_neither_imported_nor_called(here: Here) -> None:
    names = ["os:system", "subprocess:Popen", "builtins:eval", "antigravity:x", "tests.test_redis_bytes:Answer"]
    for name, code in itertools.product(names, (20, 21, 22, 23)):
        here.plant("b", forged(here.sealed("b", "x"), ext(code, [name, 0, ["echo"], None])))
        assert_miss(here, "b")
    assert_well(here)


LOOKALIKES: list[Any] = [
    {"__aimemo__": "tuple", "value": [1, 2]}, {"__aimemo__": {"type": "os:system", "a": ["x"]}}, {"__aimemo__": None},
    {"__type__": "set", "__value__": [1]}, {"py/object": "os.system"}, {"__reduce__": ["os.system", ["x"]]},
    [{"__aimemo__": [{"__aimemo__": 1}]}], {"ext": 1, "data": b"\x01"}, {"1": {1: {b"1": {(1,): {None: 1}}}}},
]  # fmt: skip


def test_a_dict_that_looks_like_a_type_tag_comes_back_as_the_dict_that_it_is(make: Make) -> None:
    here = make()
    there = make(here)
    for number, value in enumerate(LOOKALIKES):
        here.set(f"k{number}", value)
        for each in (here, there):
            assert shape(each.get(f"k{number}")) == shape(value)
            assert shape(each.cached(lambda at: LOOKALIKES[at])(number)) == shape(value)


# Every question has its own answer


@pytest.mark.parametrize("threshold", [0, 100])
def test_two_texts_of_one_xxh3_digest_get_their_own_answers_in_both_tiers(make: Make, threshold: int) -> None:
    a, b = COLLISION["a"], COLLISION["b"]
    assert xxhash.xxh3_128_hexdigest(a.encode()) == xxhash.xxh3_128_hexdigest(b.encode())
    here = make(text_hash_threshold=threshold)
    ask, calls = recorder()
    asked = here.cached(ask)
    assert asked.key_for(a).rpartition("|")[0] == asked.key_for(b).rpartition("|")[0]
    there = make(here).cached(ask)
    for each in (asked, asked, there, there):
        assert [each(text) for text in (a, b)] == [[a], [b]]
    assert calls == [a, b]
    by_hand = {here.build_key(text, "qa"): text for text in (a, b)}
    here.set_many(by_hand)
    assert here.get_many(by_hand) == make(here).get_many(by_hand) == by_hand


class Text(str):
    """Not the text that it equals."""


NFC, NFD = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
PLAINLY: list[Any] = [
    1, True, 1.0, "1", b"1", 0, False, 0.0, "0", "", b"", None, "None", float("nan"), "nan", float("inf"), NFC, NFD,
]  # fmt: skip
DISTINCT: list[Any] = [
    *PLAINLY, Text("1"), 2**53, 2**53 + 1, 2**64, float(2**64), lambda: 1, lambda: 2, int, "int", ["ab"], ["a", "b"],
    (1,), (True,), (1.0,), ("1",), [1], [True], {1}, frozenset({1}), {1: "a"}, {"1": "a"}, {True: "a"}, {1.0: "a"},
    (), [], {}, set(), ((),), ([],), [()], [[]], [["a"], "b"], ["a", ["b"]], {"a": 1, "b": 2}, {"a": 2, "b": 1},
    np.int64(1), np.float64(1), np.array([1]), np.array([1.0]), np.array([[1]]),
]  # fmt: skip
EQUAL: list[tuple[Any, Any]] = [
    (0.0, -0.0), (float("nan"), float("nan")), ({"a": 1, "b": [2]}, {"b": [2], "a": 1}), ({1, 2, 3}, {3, 2, 1}),
    ((0.0,), (-0.0,)), ([float("nan")], [-float("nan")]), ("a" * 1000, "".join(["a"] * 1000)), (10**30, 10**29 * 10),
]  # fmt: skip


def numberer(*, is_starred: bool = True) -> Callable[..., int]:
    """A function that answers with the number of its call. Where it is starred there is no front."""
    numbers = itertools.count(1)

    def starred(value: Any, *rest: Any, option: Any = None, **more: Any) -> int:
        return next(numbers)

    def plain(value: Any, option: Any = None) -> int:
        return next(numbers)

    return starred if is_starred else plain


@pytest.mark.parametrize("is_starred", [False, True])
def test_questions_that_only_look_alike_get_their_own_answers(make: Make, is_starred: bool) -> None:
    here, ask = make(), numberer(is_starred=is_starred)
    first = here.cached(ask)
    answers = [first(value) for value in DISTINCT]
    assert answers == list(range(1, len(DISTINCT) + 1))
    second = make(here).cached(ask)
    for asked in (first, second, second):
        assert [asked(value) for value in reversed(DISTINCT)] == answers[::-1]


def test_pairs_of_arguments_that_only_look_alike_get_their_own_answers(make: Make) -> None:
    here, ask = make(l1_cache_size=2000), numberer(is_starred=False)
    pairs = list(itertools.product(PLAINLY, (None, 0, False, 0.0, "")))
    first = here.cached(ask)
    answers = [first(value, option) for value, option in pairs]
    assert answers == list(range(1, len(pairs) + 1))
    for asked in (first, make(here).cached(ask)):
        assert [asked(value, option=option) for value, option in reversed(pairs)] == answers[::-1]


def test_questions_that_are_the_same_get_one_answer(make: Make) -> None:
    here, ask = make(), numberer()
    first, second = here.cached(ask), make(here).cached(ask)
    for number, (one, other) in enumerate(EQUAL, 1):
        assert [first(one), first(other), second(other), second(one)] == [number] * 4


def test_the_order_and_manner_of_giving_arguments_do_not_matter_their_names_do(here: Here) -> None:
    ask = here.cached(numberer())
    same = [ask(1, a=1, b=2), ask(1, b=2, a=1), ask(value=1, option=None, b=2, a=1), ask(1, option=None, a=1, b=2)]
    assert same == [1] * 4
    others = [ask(1, a=2, b=1), ask(1, 1, 2), ask(1, (1, 2)), ask(1, a=1, b=2, option=0), ask(1, a=1), ask(1)]
    assert others == [2, 3, 4, 5, 6, 7]


def test_functions_of_one_factory_do_not_share_what_their_settings_tell_apart(here: Here) -> None:
    def made(model: Any) -> Any:
        def ask(text: str) -> list[str]:
            return [type(model).__name__, str(model), text]

        return here.cached(ask, operation="made")

    models = ["small", "large", 1, "1", 1.0, True, None, "None", ("small",)]
    for _ in range(2):
        assert [made(model)("q") for model in models] == [[type(model).__name__, str(model), "q"] for model in models]


def test_options_of_a_key_by_hand_are_as_exact_as_arguments(here: Here) -> None:
    keys = [here.build_key("t", "qa", {"option": value}) for value in DISTINCT]
    here.set_many({key: number for number, key in enumerate(keys)})
    assert list(here.get_many(keys).values()) == list(range(len(DISTINCT)))
    assert here.build_key("t", "qa", {"a": 1, "b": 2}) == here.build_key("t", "qa", {"b": 2, "a": 1})


# Tenants

SCOPES = ["a", "b", "", "A", "a\0", "a|b"]


def test_two_scopes_share_neither_key_nor_entry(here: Here) -> None:
    scope = [""]
    asked = here.cached(lambda text: [scope[0], text], scope=lambda: scope[0])
    keys = set()
    for scope[0] in SCOPES:
        keys.add(asked.key_for("q"))
        assert asked("q") == [scope[0], "q"]
    assert len(keys) == len(SCOPES)
    names = shared("server").client.keys(f"{{{here.cache.namespace}:*}}e:*")
    assert {name.decode().partition("}e:")[2] for name in names} == keys
    for scope[0] in SCOPES:
        assert asked("q") == [scope[0], "q"]
        assert asked.invalidate("q") is True
        assert asked.peek("q") is MISSING


async def test_two_scopes_at_once_share_no_flight_among_tasks(l1: bool) -> None:
    cache = redis_cache("server", None, enable_l1_cache=l1)
    both, running = asyncio.Event(), set()

    def asked(scope: str) -> Any:
        @cached_ai_call(operation="qa", cache=cache, scope=scope)
        async def ask(text: str) -> str:
            running.add(scope)
            if len(running) == 2:
                both.set()
            await both.wait()
            return scope

        return ask

    first, second = asked("a"), asked("b")
    async with asyncio.timeout(10):
        assert await asyncio.gather(first("q"), second("q"), first("q"), second("q")) == ["a", "b", "a", "b"]
    await cache.close()


def test_two_scopes_at_once_share_no_flight_among_threads(l1: bool) -> None:
    cache = redis_cache("server", None, enable_l1_cache=l1)
    barrier = threading.Barrier(2)

    def asked(scope: str) -> Any:
        @cached_ai_call(operation="qa", cache=cache, scope=scope)
        def ask(text: str) -> str:
            barrier.wait(10)
            return scope

        return ask

    functions = [asked("a"), asked("b")]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda function: function("q"), functions * 2)) == ["a", "b", "a", "b"]
    cache.blocking.close()


# What a caller changes is its own


def test_what_a_caller_does_to_its_answer_changes_no_other(here: Here) -> None:
    asked = here.cached(lambda text: {"list": [text], "tuple": ([1],)})
    for _ in range(4):
        answer = asked("q")
        assert answer == {"list": ["q"], "tuple": ([1],)}
        answer["list"].append("changed")
        answer["tuple"][0].clear()
        answer["more"] = 1


def test_what_is_done_to_a_value_by_hand_changes_nothing_that_is_stored(here: Here) -> None:
    value = {"list": [1]}
    here.set("k", value)
    here.set_many({"m": value})
    value["list"].append(2)
    for _ in range(3):
        for found in (here.get("k"), here.get_many(["m"])["m"], here.get_or_compute("k", dict)):
            assert found == {"list": [1]}
            found["list"].clear()


async def test_followers_of_one_flight_get_copies_of_their_own(l1: bool) -> None:
    cache = redis_cache("server", None, enable_l1_cache=l1)

    @cached_ai_call(operation="qa", cache=cache)
    async def ask(text: str) -> list[str]:
        await asyncio.sleep(0.01)
        return [text]

    for answer in [*await asyncio.gather(*(ask("q") for _ in range(20))), await ask("q"), await ask("q")]:
        assert answer == ["q"]
        answer.append("changed")
    assert cache.stats().misses == 1
    await cache.close()


def test_arguments_changed_during_the_call_spoil_neither_key(here: Here) -> None:
    calls: list[list[str]] = []

    def ask(messages: list[str]) -> str:
        calls.append(list(messages))
        answer = "+".join(messages)
        if len(calls) == 1:
            messages.append("changed")
        return answer

    asked = here.cached(ask)
    with pytest.warns(AimemoWarning, match="changed while the call ran"):
        assert asked(["a"]) == "a"
    assert [asked(["a", "changed"]), asked(["a"])] * 2 == ["a+changed", "a"] * 2
    assert calls == [["a"], ["a", "changed"], ["a"]]


# Values


class Model(pydantic.BaseModel):
    name: str
    scores: dict[str, float] = {}
    parent: Model | None = None


@dataclasses.dataclass
class Answer:
    text: str
    parts: tuple[int, ...] = ()
    model: Model | None = None


def results() -> list[Any]:
    return [
        Model(name="m", scores={"a": 1.5}, parent=Model(name="p")), Answer("a", (1, 2), Model(name="m")), [Answer("a")],
        {"answer": Answer(TEXT)}, None, (), (1, (2, [3])), {1, 2}, frozenset({"a"}), b"\x00\xff" * 1000, TEXT * 20,
        [TEXT] * 3, {"text": TEXT}, 10**400, -(2**63) - 1, 2**64, 1.5, float("inf"), True, "",
    ]  # fmt: skip


def test_an_answer_of_any_kind_comes_back_from_redis_as_it_was(make: Make) -> None:
    calls: list[int] = []

    def ask(at: int) -> Answer | Model | dict[str, Answer] | list[Any] | Any:
        calls.append(at)
        return results()[at]

    here = make()
    places = range(len(results()))
    for asked in (here.cached(ask), make(here).cached(ask)):
        for at, _ in itertools.product(places, range(2)):
            answer = asked(at)
            assert answer == results()[at]
            assert type(answer) is type(results()[at])
    assert calls == list(places)


ARRAYS: list[Any] = [
    np.arange(6).reshape(2, 3), np.array([1.5, np.nan]), np.array(3), np.zeros((0, 4)), np.array(["a", "bc"]),
    np.array([True, False]), np.array([1 + 2j]), np.array(["2024-01-01"], "datetime64[D]"), np.arange(1000) * 0.5,
    np.asfortranarray(np.arange(6).reshape(2, 3)), np.array([1, 2], ">i4"), np.float32(1.5), np.int64(7), np.bool_(1),
]  # fmt: skip


def test_numpy_comes_back_from_redis_as_it_was_and_can_be_changed(make: Make) -> None:
    here = make()
    there = make(here)
    for number, array in enumerate(ARRAYS):
        here.set(f"k{number}", {"array": array})
        for each in (here, there, here, there):
            found = each.get(f"k{number}")["array"]
            assert (type(found), found.dtype, found.shape) == (type(array), array.dtype, array.shape)
            assert found.tobytes() == array.tobytes()
            if array.shape:
                found.fill(np.zeros((), found.dtype)[()])


@pytest.mark.parametrize("threshold", [0, 1000])
def test_every_value_that_can_be_kept_comes_back_from_redis_as_it_was(make: Make, threshold: int) -> None:
    shapes = {f"k{number}": shape(value) for number, value in enumerate(PLAIN + OBJECTS)}
    here = make(compression_threshold=threshold, trusted_modules=("tests",), l1_cache_size=5)
    here.set_many(dict(zip(shapes, PLAIN + OBJECTS, strict=True)))
    assert {key: shape(here.get(key, MISSING)) for key in shapes} == shapes
    assert {key: shape(value) for key, value in here.get_many(shapes).items()} == shapes


@pytest.mark.parametrize("value", [TEXT * 100, [TEXT] * 50, "é" * 50_000], ids=len)
def test_a_large_value_is_compressed_and_comes_back(make: Make, value: Any) -> None:
    here = make()
    here.set("k", value)
    assert shared("server").client.strlen(here.layout.place("k").name) < len(pack(value, TypeResolver())) / 2
    assert here.get("k") == make(here).get("k") == value


def test_a_large_value_that_cannot_be_compressed_comes_back(make: Make) -> None:
    here, value = make(), os.urandom(MIB)
    here.set("k", value)
    assert here.get("k") == make(here).get("k") == value


# What others have put under aimemo's names

FOREIGN: dict[str, tuple[Any, ...]] = {
    "list": ("RPUSH", "x"), "hash": ("HSET", "f", "x"), "set": ("SADD", "x"), "sorted set": ("ZADD", 1, "x"),
    "stream": ("XADD", "*", "f", "x"), "string": ("SET", "x"), "number": ("SET", "5"), "bits": ("SETBIT", 700, 1),
}  # fmt: skip
PARTS = ["generations", "index by tag", "index by expiry", "fences", "leases"]
INVALIDATIONS: list[Callable[[Here], Any]] = [
    lambda here: here.clear(), lambda here: here.invalidate_operation("qa"), lambda here: here.invalidate_tag("t"),
    lambda here: here.invalidate_pattern("op:*"),
]  # fmt: skip


def put(name: str, kind: str) -> None:
    command, *rest = FOREIGN[kind]
    shared("server").ask("UNLINK", name)
    shared("server").ask(command, name, *rest)


def spoil(here: Here, part: str, kind: str, bucket: int, keys: list[str]) -> None:
    """Put something else under one name of the bookkeeping of a bucket, or under the leases of its keys."""
    layout = here.layout
    names = {
        "generations": [layout.generations(bucket)],
        "index by tag": [layout.index(bucket)[0]],
        "index by expiry": [layout.index(bucket)[1]],
        "fences": [f"{{{layout.hash_tag(bucket)}}}f"],
        "leases": [layout.lock(key)[1] for key in keys],
    }
    for name in names[part]:
        put(name, kind)


def test_another_type_under_an_entrys_name_is_a_miss_that_costs_no_other_key(here: Here) -> None:
    for kind in FOREIGN:
        put(here.layout.place(kind).name, kind)
        assert_miss(here, kind)
        assert here.exists(kind) is False
        assert here.ttl(kind) is None
    assert_well(here)


def test_an_answer_replaces_whatever_stands_under_its_name(make: Make) -> None:
    here = make()
    ask, _ = recorder()
    asked, there = (each.cached(ask, tags=("t",)) for each in (here, make(here)))
    for kind in FOREIGN:
        put(here.layout.place(asked.key_for(kind)).name, kind)
    assert [asked(kind) for kind in FOREIGN] == [[kind] for kind in FOREIGN]
    assert [there.peek(kind) for kind in FOREIGN] == [[kind] for kind in FOREIGN]
    assert here.invalidate_tag("t") == len(FOREIGN)


def test_removals_remove_another_type_under_an_entrys_name(here: Here) -> None:
    key = "op:qa|txt:|" + "0" * 32
    name = here.layout.place(key).name
    by_key: list[Callable[[Here], Any]] = [lambda here: here.delete(key), lambda here: here.delete_many([key])]
    for kind, remove in itertools.product(("list", "string"), (*by_key, *INVALIDATIONS[:2], INVALIDATIONS[3])):
        put(name, kind)
        remove(here)
        assert shared("server").ask("EXISTS", name) == 0


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_another_type_under_a_name_of_the_bookkeeping_reaches_no_caller(make: Make, part: str) -> None:
    texts = [f"q{number}" for number in range(10)]
    for kind in ("list", "hash", "string", "bits"):
        here = make()
        ask, _ = recorder()
        asked = here.cached(ask, tags=("t",))
        here.plant("k", here.sealed("k", "value"))
        for bucket in range(BUCKETS):
            spoil(here, part, kind, bucket, [asked.key_for(text) for text in texts])
        assert [asked(text) for text in texts * 2] == [[text] for text in texts * 2]
        assert here.get("k") == "value", "what can be read is read"
        here.set("k", "new")
        assert here.get("k") in ("value", "new", None), "what could not be replaced may be gone"


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS[:4])
def test_an_invalidation_amid_spoilt_bookkeeping_is_done_or_raises(make: Make, part: str) -> None:
    texts = [f"q{number}" for number in range(10)]
    for kind in ("list", "string"):
        here = make()
        ask, _ = recorder()
        asked = here.cached(ask, tags=("t",))
        for bucket in range(BUCKETS):
            spoil(here, part, kind, bucket, [])
        for invalidate in INVALIDATIONS:
            assert [asked(text) for text in texts] == [[text] for text in texts]
            try:
                invalidate(here)
            except InfrastructureError:
                continue
            assert [asked.peek(text) for text in texts] == [MISSING] * len(texts)


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_spoilt_bookkeeping_of_one_bucket_costs_no_other_bucket(here: Here, part: str) -> None:
    ask, _ = recorder()
    asked = here.cached(ask, tags=("t",))
    buckets = {text: here.layout.place(asked.key_for(text)).bucket for text in map(str, range(128))}
    spoilt, count = Counter(buckets.values()).most_common(1)[0]
    bad = [text for text, bucket in buckets.items() if bucket == spoilt]
    good = [text for text, bucket in buckets.items() if bucket != spoilt]
    assert count >= 8, "more than it takes to open the breaker"
    spoil(here, part, "list", spoilt, [asked.key_for(text) for text in bad])
    assert [asked(text) for text in bad + good] == [[text] for text in bad + good]
    names = [here.layout.place(asked.key_for(text)).name for text in good]
    assert shared("server").ask("EXISTS", *names) == len(names)
