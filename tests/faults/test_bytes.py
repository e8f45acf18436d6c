"""What is stored is not what was kept, or what is asked looks like something else: at worst a miss."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import json
import pickle
import random
import sqlite3
import struct
import threading
import time
import unicodedata
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zstandard

from aimemo import MISSING, Cache, CacheEvent, SQLiteCache, cached_ai_call
from aimemo.link.layout import Layout
from tests.faults.conftest import Case
from tests.kit.clients import client_of
from tests.kit.crowd import CALLERS, Crowd
from tests.kit.looking import until
from tests.kit.redis_caches import shared
from tests.test_envelope import PAYLOADS, Boom, forged, zstd_bomb
from tests.test_redis_bytes import peak_growth

MIB = 1 << 20
COLLISION = json.loads((Path(__file__).parents[1] / "vectors" / "xxh3_128_ascii_collision.json").read_text())

row = pytest.mark.row
with_bytes = pytest.mark.parametrize(
    "cache",
    ["sqlite", "redis", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("redis behind L1", "cluster"))],
    indirect=True,
)


class Shelf:
    """The bytes that stand under the keys of a cache, read and written past it."""

    def __init__(self, cache: Cache, kind: str) -> None:
        self._cache = cache
        self._layout = Layout(cache.namespace)
        if isinstance(cache, SQLiteCache):
            self._client: Any = sqlite3.connect(cache.path, isolation_level=None)
            self._client.execute("PRAGMA synchronous=OFF")
        else:
            self._client = client_of("cluster") if kind == "cluster" else shared("server").client

    def __getitem__(self, key: str) -> bytes:
        if isinstance(self._cache, SQLiteCache):
            rows = self._client.execute("SELECT envelope FROM aimemo_entries WHERE key = ?", (key,))
            return bytes(rows.fetchone()[0])
        return bytes(self._client.get(self._layout.place(key).name))

    def __setitem__(self, key: str, data: bytes) -> None:
        if isinstance(self._cache, SQLiteCache):
            self._client.execute("UPDATE aimemo_entries SET envelope = ? WHERE key = ?", (data, key))
        else:
            self._client.set(self._layout.place(key).name, data)

    def close(self) -> None:
        if self._client is not shared("server").client:
            self._client.close()


@pytest.fixture
def shelf(cache: Cache, request: pytest.FixtureRequest) -> Iterator[Shelf]:
    with contextlib.closing(Shelf(cache, request.node.callspec.params["cache"])) as opened:
        yield opened


@pytest.fixture
def errors(cache: Cache) -> list[CacheEvent]:
    seen: list[CacheEvent] = []
    cache.on("error", seen.append)
    return seen


def clear_l1(cache: Cache) -> None:
    l1 = getattr(cache, "l1_cache", None)
    if l1 is not None:
        l1.blocking.clear()


# What may stand there instead


def flipped(data: bytes) -> Iterator[bytes]:
    for at, mask in itertools.product(range(len(data)), (0x01, 0xFF)):
        yield data[:at] + bytes([data[at] ^ mask]) + data[at + 1 :]


def cut(data: bytes) -> Iterator[bytes]:
    yield from (data[:length] for length in range(len(data)))
    yield from (data + b"\0", data * 2, data[1:])


@functools.cache
def bomb() -> bytes:
    return zstd_bomb(1 << 30)


def bombs(data: bytes) -> Iterator[bytes]:
    """One GiB in 32 kB, with every combination of what the frame and the envelope say of its size."""
    for claimed, raw_length in itertools.product((1 << 30, 8 * MIB, 1000), repeat=2):
        frame = bomb().replace(struct.pack("<I", 1 << 30), struct.pack("<I", claimed), 1)
        yield forged(data, frame, flags=1, raw_length=raw_length)


def never_packed(data: bytes) -> Iterator[bytes]:
    for payload in PAYLOADS.values():
        yield forged(data, payload)
        yield forged(data, zstandard.compress(payload), flags=1, raw_length=len(payload))
    yield from (forged(data, b"\x01", facts=facts) for facts in (b"\xc1", b"\xdd\xff\xff\xff\xff", b"\x91" * 5000))


def fuzzed(data: bytes) -> Iterator[bytes]:
    chance = random.Random(1)
    for _ in range(200):
        start, end = sorted(chance.choices(range(len(data)), k=2))
        yield data[:start] + chance.randbytes(chance.randrange(1, 60)) + data[end:]


def pickled(data: bytes) -> Iterator[bytes]:
    planted = pickle.dumps(Boom())
    yield from (planted, forged(data, planted), forged(data, msgpack.packb(msgpack.ExtType(21, planted))))


INSTEAD: dict[str, tuple[str, Callable[[bytes], Iterator[bytes]]]] = {
    "flipped": ("F29", flipped), "cut": ("F29", cut), "bombs": ("F30", bombs), "never packed": ("F31", never_packed),
    "fuzzed": ("F31", fuzzed), "pickled": ("F32", pickled),
}  # fmt: skip
each_instead = pytest.mark.parametrize(
    "instead",
    [pytest.param(make, marks=row(number), id=f"{number} {name}") for name, (number, make) in INSTEAD.items()],
)


@with_bytes
@each_instead
@pytest.mark.parametrize("value", [["answer", 1], ["the same words " * 100]], ids=["as it is", "compressed"])
def test_any_other_bytes_are_a_miss(
    cache: Cache, shelf: Shelf, errors: list[CacheEvent], case: Case, instead: Any, value: Any
) -> None:
    here, key = cache.blocking, cache.build_key("q", "op")
    here.set(key, value)
    whole, answers, seconds = shelf[key], [], []
    assert bool(whole[3]) == (len(value[0]) > 1000)
    planted = list(instead(whole))

    def read_all() -> None:
        for shelf[key] in planted:
            clear_l1(cache)
            started = time.monotonic()
            answers.append(here.get(key, MISSING))
            seconds.append(time.monotonic() - started)
            answers.append(here.get_many([key]).get(key, MISSING))

    assert peak_growth(read_all) < (32 if instead is bombs else 64) * MIB
    case.right(len(answers) == 2 * len(planted) and set(map(id, answers)) == {id(MISSING)}, "a hit")
    case.right(Boom.ran == [] and len(errors) == cache.stats().errors == len(answers), "each is counted")
    case.bounded(max(seconds))
    shelf[key] = whole
    case.recovers(here.get(key) == value)


@contextlib.asynccontextmanager
async def crowd_on(cache: Cache, kind: type[Crowd] = Crowd) -> AsyncIterator[Crowd]:
    try:
        async with kind(cache) as crowd:
            yield crowd
    finally:
        await asyncio.sleep(0)
        await until(lambda: len(asyncio.all_tasks()) == 1)


Spoil = Callable[[dict[str, bytes]], dict[str, bytes]]


async def spoilt(cache: Cache, shelf: Shelf, case: Case, spoil: Spoil) -> None:
    """Fifty callers whose stored answers were exchanged for something else."""
    async with crowd_on(cache) as crowd:
        usual = await crowd.warm_up()
        for world in (crowd.in_tasks, crowd.in_threads):
            keys = [key for key in map(world.key_for, range(CALLERS)) if await cache.exists(key)]
            assert len(keys) >= CALLERS // 2
            for key, data in spoil({key: shelf[key] for key in keys}).items():
                shelf[key] = data
        await crowd.clear_l1()
        before = crowd.computed.copy()
        await crowd.ask(range(CALLERS))
        case.crowd(crowd, usual, cache.deadline)
        case.right(crowd.computed - before == Counter(range(CALLERS)), "each is a miss")
        before = crowd.computed.copy()
        for _ in range(2):
            await crowd.ask(range(CALLERS))
            await crowd.clear_l1()
        case.recovers(crowd.computed == before, crowd.computed - before)
        case.recovers(await crowd.recovers(5), cache.stats())
        case.right(not crowd.wrong and Boom.ran == [], crowd.wrong[:3])


@with_bytes
@each_instead
async def test_fifty_callers_whose_answers_were_exchanged(cache: Cache, shelf: Shelf, case: Case, instead: Any) -> None:
    def spoil(kept: dict[str, bytes]) -> dict[str, bytes]:
        chance = random.Random(2)
        return {key: chance.choice(list(instead(data))) for key, data in kept.items()}

    await spoilt(cache, shelf, case, spoil)


@with_bytes
@row("F11")
async def test_answers_that_changed_places(cache: Cache, shelf: Shelf, errors: list[CacheEvent], case: Case) -> None:
    def change_places(kept: dict[str, bytes]) -> dict[str, bytes]:
        return dict(zip(kept, [*list(kept.values())[1:], next(iter(kept.values()))], strict=True))

    await spoilt(cache, shelf, case, change_places)
    reasons = Counter(event.reason for event in errors)
    case.right(set(reasons) == {"foreign_value"} and reasons["foreign_value"] >= CALLERS, reasons)
    case.right(cache.stats().errors == reasons["foreign_value"], cache.stats())


# What looks alike


async def fifty(case: Case, in_task: Callable[[int], Any], in_thread: Callable[[int], Any]) -> list[Any]:
    """What fifty callers get at one time: half are tasks, half are threads, each with a number of its own."""
    loop, callers = asyncio.get_running_loop(), range(CALLERS // 2)
    with ThreadPoolExecutor(CALLERS // 2) as threads:
        in_threads = [loop.run_in_executor(threads, in_thread, caller) for caller in callers]
        got = await asyncio.gather(*map(in_task, callers), *in_threads, return_exceptions=True)
    lost = [each for each in got if isinstance(each, BaseException)]
    case.nothing_lost(not lost, lost[:3])
    return got


Call = Callable[[Any], Any]


async def are_told_apart(cache: Cache, case: Case, groups: list[list[Call]], **options: Any) -> None:
    """Calls of one group are one call, and have one answer; calls of two groups have two.

    An answer is the number of its computation. Each caller makes all calls, in an order of its own: once to have
    them computed, once from the nearest place, once from the place behind it.
    """
    numbers = {world: itertools.count() for world in ("tasks", "threads")}

    @cached_ai_call(operation="tasks", cache=cache, **options)
    async def in_tasks(value: Any, n: int = 1, *, model: str = "m") -> int:
        return next(numbers["tasks"])

    @cached_ai_call(operation="threads", cache=cache, **options)
    def in_threads(value: Any, n: int = 1, *, model: str = "m") -> int:
        return next(numbers["threads"])

    calls = list(itertools.chain(*groups))
    seen: dict[str, set[tuple[int, int]]] = {"tasks": set(), "threads": set()}

    def order(caller: int) -> list[int]:
        return random.Random(caller).sample(range(len(calls)), len(calls))

    async def in_task(caller: int) -> None:
        seen["tasks"].update([(at, await calls[at](in_tasks)) for at in order(caller)])

    def in_thread(caller: int) -> None:
        seen["threads"].update([(at, calls[at](in_threads)) for at in order(caller)])

    for goes_behind in (False, True, False):
        await fifty(case, in_task, in_thread)
        if goes_behind:
            clear_l1(cache)
    expected = [number for number, group in enumerate(groups) for _ in group]
    for answers in seen.values():
        case.right(len(answers) == len(calls), "a call with two answers")
        pairs = {(expected[at], number) for at, number in answers}
        case.right(len(pairs) == len(groups) == len(set(dict(pairs).values())), sorted(pairs))
    case.recovers(all(next(count) == len(groups) for count in numbers.values()), "computed again")


class Text(str):
    pass


class OtherText(str):
    pass


ALIKE: list[list[Any]] = [
    [1], [True], [1.0], ["1"], [b"1"], [None], ["None"], [0], [False], [0.0, -0.0], [""], [b""],
    [float("nan"), float("nan")], [unicodedata.normalize("NFC", "é")], [unicodedata.normalize("NFD", "é")],
    [(1,)], [(True,)], [(1.0,)], [[1]], [[True]], [()], [[]], [{}], [set()], [frozenset()],
    [{1: "a"}], [{"1": "a"}], [{True: "a"}], [{"a": 1, "b": 2}, {"b": 2, "a": 1}], [Text("1"), Text("1")],
    [OtherText("1")], [{1, 2}, {2, 1}], [frozenset({1})], [frozenset({True})], [[(1,)]], [[[1]]],
]  # fmt: skip
SPELLED: list[list[Call]] = [
    [lambda f: f("x"), lambda f: f(value="x"), lambda f: f("x", 1), lambda f: f("x", model="m"),
     lambda f: f(model="m", n=1, value="x"), lambda f: f(n=1, value="x", model="m")],
    [lambda f: f("x", True)], [lambda f: f("x", 1.0)], [lambda f: f("x", "1")], [lambda f: f("x", None)],
    [lambda f: f("x", model="n")], [lambda f: f("x", model=b"m")], [lambda f: f("m", model="x")],
]  # fmt: skip


def with_value(value: Any) -> Call:
    return lambda function: function(value)


@row("F34")
@pytest.mark.parametrize(
    "groups", [[[with_value(value) for value in group] for group in ALIKE], SPELLED], ids=["values", "spelling"]
)
async def test_arguments_that_look_alike(cache: Cache, case: Case, groups: list[list[Call]]) -> None:
    await are_told_apart(cache, case, groups)


@row("F33")
@pytest.mark.parametrize("threshold", [0, 100_000], ids=["hashed", "readable"])
async def test_two_texts_with_one_hash(cache: Cache, case: Case, threshold: int) -> None:
    groups = [[with_value(COLLISION[name])] for name in "ab"]
    await are_told_apart(cache, case, groups, text_hash_threshold=threshold)


@row("F34")
async def test_functions_of_one_factory(cache: Cache, case: Case) -> None:
    settings = [1, True, 1.0, "1", b"1", None, 2, (1,), (True,)]

    def make(setting: Any) -> Any:
        def answer(text: str) -> list[str]:
            return [repr(setting), text]

        return cached_ai_call(operation="threads", cache=cache)(answer)

    def make_later(setting: Any) -> Any:
        async def answer(text: str) -> list[str]:
            return [repr(setting), text]

        return cached_ai_call(operation="tasks", cache=cache)(answer)

    in_threads, in_tasks = [make(setting) for setting in settings], [make_later(setting) for setting in settings]

    async def in_task(caller: int) -> list[Any]:
        return [await answer("x") for answer in in_tasks]

    def in_thread(caller: int) -> list[Any]:
        return [answer("x") for answer in in_threads]

    for _ in range(2):
        got = await fifty(case, in_task, in_thread)
        case.right(all(answers == [[repr(setting), "x"] for setting in settings] for answers in got), got[0])


tenant: ContextVar[str] = ContextVar("tenant")


@row("F35")
async def test_two_tenants_who_ask_the_same(cache: Cache, case: Case) -> None:
    """A computation waits until the other tenant's runs too: in one flight they would wait in vain."""
    computed: list[str] = []
    tasks_meet, threads_meet = asyncio.Barrier(2), threading.Barrier(2, timeout=10)

    @cached_ai_call(operation="tasks", cache=cache, scope=tenant.get)
    async def in_tasks(text: str) -> list[str]:
        computed.append(f"{tenant.get()} tasks")
        async with asyncio.timeout(10):
            await tasks_meet.wait()
        return [tenant.get(), text]

    @cached_ai_call(operation="threads", cache=cache, scope=tenant.get)
    def in_threads(text: str) -> list[str]:
        computed.append(f"{tenant.get()} threads")
        threads_meet.wait()
        return [tenant.get(), text]

    keys: set[str] = set()

    async def in_task(caller: int) -> bool:
        tenant.set("ab"[caller % 2])
        keys.add(in_tasks.key_for("same"))
        return await in_tasks("same") == [tenant.get(), "same"]

    def in_thread(caller: int) -> bool:
        tenant.set("ab"[caller % 2])
        keys.add(in_threads.key_for("same"))
        return in_threads("same") == [tenant.get(), "same"]

    for _ in range(3):
        case.right(all(await fifty(case, in_task, in_thread)), "another tenant's answer")
    case.right(sorted(computed) == ["a tasks", "a threads", "b tasks", "b threads"], computed)
    case.right(len(keys) == 4, keys)
    tenant.set("c")
    case.right(await in_tasks.peek("same") is in_threads.peek("same") is MISSING, "found by a third tenant")


LIKE_TAGS: list[Any] = [
    {"__aimemo__": "tuple", "items": [1]}, {"__aimemo__": {"__aimemo__": None}}, {"__type__": "set", "value": [1]},
    {"__class__": "os.system", "__reduce__": ["id"]}, {"py/object": "os.system"}, [21, ["os:system", 1, []]],
    {"ExtType": [1, b"\x90"]}, {b"\xc7": b"\x01"}, pickle.dumps(Boom()),
]  # fmt: skip


@row("F32")
async def test_values_that_look_like_the_marks_of_a_type(cache: Cache, case: Case) -> None:
    @cached_ai_call(operation="tasks", cache=cache)
    async def in_tasks(number: int) -> Any:
        return LIKE_TAGS[number]

    @cached_ai_call(operation="threads", cache=cache)
    def in_threads(number: int) -> Any:
        return LIKE_TAGS[number]

    async def in_task(caller: int) -> bool:
        return [await in_tasks(number) for number in range(len(LIKE_TAGS))] == LIKE_TAGS

    def in_thread(caller: int) -> bool:
        return [in_threads(number) for number in range(len(LIKE_TAGS))] == LIKE_TAGS

    for _ in range(3):
        case.right(all(await fifty(case, in_task, in_thread)) and Boom.ran == [], "not as it was")
        clear_l1(cache)
    case.right(cache.stats().sets == 2 * len(LIKE_TAGS), "all of them are kept")


# What is changed afterwards


class Changing(Crowd):
    """Callers who change what they got."""

    def _judge(self, question: int, answer: Any, started: float) -> None:
        super()._judge(question, answer, started)
        answer["question"] = -1
        answer.pop("padding")


@row("F43")
async def test_callers_who_change_what_they_got(cache: Cache, case: Case) -> None:
    async with crowd_on(cache, Changing) as crowd:
        await crowd.ask([*range(10)] * 10)
        usual = await crowd.warm_up()
        for _ in range(3):
            await crowd.ask(range(CALLERS))
            await crowd.clear_l1()
        case.crowd(crowd, usual, cache.deadline)
        case.right(max(crowd.computed.values()) <= 2, "once in each world")


@row("F43")
@pytest.mark.filterwarnings("ignore::aimemo.AimemoWarning")
async def test_arguments_that_change_during_the_call(cache: Cache, case: Case) -> None:
    @cached_ai_call(operation="tasks", cache=cache)
    async def in_tasks(items: list[int]) -> list[int]:
        items.append(0)
        await asyncio.sleep(0.01)
        return [items[0], len(items)]

    @cached_ai_call(operation="threads", cache=cache)
    def in_threads(items: list[int]) -> list[int]:
        items.append(0)
        return [items[0], len(items)]

    async def in_task(caller: int) -> bool:
        items = [caller % 5]
        return await in_tasks(items) == [caller % 5, 2] and await in_tasks([caller % 5, 0]) == [caller % 5, 3]

    def in_thread(caller: int) -> bool:
        items = [caller % 5]
        return in_threads(items) == [caller % 5, 2] and in_threads([caller % 5, 0]) == [caller % 5, 3]

    for _ in range(3):
        case.right(all(await fifty(case, in_task, in_thread)), "the answer to what the argument became")
    case.right(await in_tasks.peek([1]) is in_threads.peek([1]) is MISSING, "kept under what was asked")
    case.right(await in_tasks.peek([1, 0]) is in_threads.peek([1, 0]) is MISSING, "kept under what it became")
