"""A cache asked by hand: every method, on every kind of cache, in both worlds."""

from __future__ import annotations

import asyncio
import datetime as dt
import inspect
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aimemo import Cache, CacheStats, CodecError, InMemoryCache, SQLiteCache, ValidationError
from tests.kit.clock import Clock

Ask = Callable[..., Any]


@pytest.fixture(params=["tasks", "threads"])
def ask(request: pytest.FixtureRequest, cache: Cache) -> Ask:
    """Calls a method of the cache in one of the worlds: `ask("get", "k")`."""

    def call(method: str, *args: Any, **kwargs: Any) -> Any:
        if request.param == "threads":
            return getattr(cache.blocking, method)(*args, **kwargs)

        async def body() -> Any:
            return await getattr(cache, method)(*args, **kwargs)

        return asyncio.run(body())

    return call


def test_both_worlds_have_the_same_methods() -> None:
    for name, method in inspect.getmembers(InMemoryCache().blocking, inspect.ismethod):
        if not name.startswith("_"):
            assert (
                inspect.signature(method).parameters.keys() <= inspect.signature(getattr(Cache, name)).parameters.keys()
            )


def test_set_get_delete(ask: Ask) -> None:
    assert ask("get", "k") is None
    assert ask("get", "k", "default") == "default"
    ask("set", "k", {"a": [1, (2,)]})
    assert ask("get", "k") == {"a": [1, (2,)]}
    assert ask("delete", "k") is True
    assert ask("delete", "k") is False
    assert ask("get", "k") is None


def test_none_is_a_value(ask: Ask) -> None:
    ask("set", "k", None)
    assert ask("get", "k", "default") is None
    assert ask("exists", "k") is True


def test_an_entry_lives_for_its_ttl(ask: Ask, clock: Clock) -> None:
    ask("set", "k", 1, 10)
    clock.advance(9.5)
    assert ask("ttl", "k") == pytest.approx(0.5)
    assert ask("exists", "k")
    clock.advance(0.5)
    assert ask("get", "k") is None
    assert ask("ttl", "k") is None
    assert not ask("exists", "k")


@pytest.mark.parametrize("ttl", [0, 0.0, dt.timedelta(0)])
def test_a_ttl_of_zero_never_ends(ask: Ask, clock: Clock, ttl: Any) -> None:
    ask("set", "k", 1, ttl)
    clock.advance(1e9)
    assert ask("get", "k") == 1
    assert ask("ttl", "k") is None


@pytest.mark.parametrize("ttl", [-1, True, "60", float("nan"), float("inf"), 366 * 86400, dt.timedelta(days=-1)])
def test_a_faulty_ttl_is_refused_by_name(ask: Ask, ttl: Any) -> None:
    with pytest.raises(ValidationError, match="ttl"):
        ask("set", "k", 1, ttl)
    assert ask("get", "k") is None


@pytest.mark.parametrize("key", ["", None, 1, b"k", "\ud800"])
def test_a_faulty_key_is_refused(ask: Ask, key: Any) -> None:
    for method in ("get", "delete", "exists", "ttl"):
        with pytest.raises(ValidationError, match="key"):
            ask(method, key)


def test_many_at_once(ask: Ask, cache: Cache) -> None:
    ask("set_many", {"a": 1, "b": [2], "c": None})
    assert ask("get_many", ["a", "c", "missing", "a"]) == {"a": 1, "c": None}
    assert ask("delete_many", ["a", "missing", "b"]) == 2
    assert ask("get_many", ["a", "b", "c"]) == {"c": None}
    assert (cache.stats().hits, cache.stats().misses) == (3, 3)


def test_what_cannot_be_packed_is_refused_and_nothing_is_kept(ask: Ask) -> None:
    holding_itself: list[Any] = []
    holding_itself.append(holding_itself)
    with socket.socket() as open_socket:
        for value in (object(), holding_itself, open_socket, {"a": [open_socket]}):
            with pytest.raises(CodecError):
                ask("set", "k", value)
            with pytest.raises(TypeError):
                ask("set_many", {"fine": 1, "k": value})
    assert ask("get_many", ["k", "fine"]) == {}


def test_get_or_compute(ask: Ask) -> None:
    calls: list[int] = []

    def compute() -> list[int]:
        calls.append(1)
        return [1]

    assert ask("get_or_compute", "k", compute) == [1]
    assert ask("get_or_compute", "k", compute) == [1]
    assert calls == [1]

    def fail() -> None:
        raise StopIteration("the user's own")

    with pytest.raises((StopIteration, RuntimeError)):
        ask("get_or_compute", "other", fail)
    with pytest.raises(ValidationError):
        ask("get_or_compute", "other", 1)


async def test_get_or_compute_awaits_an_async_function(cache: Cache) -> None:
    async def compute() -> str:
        return "answer"

    assert await cache.get_or_compute("k", compute) == "answer"
    assert cache.blocking.get("k") == "answer"
    with pytest.raises(ValidationError, match="plain"):
        cache.blocking.get_or_compute("other", compute)


def test_invalidation_is_exact(ask: Ask) -> None:
    keys = {operation: ask_key(operation) for operation in ("qa", "qa_long", "q")}
    ask("set_many", dict.fromkeys([*keys.values(), "by hand"], 1))
    assert ask("invalidate_operation", "qa") == 1
    assert ask("get", keys["qa_long"]) == 1
    assert ask("invalidate_pattern", "op:q|*") == 1
    assert ask("invalidate_pattern", "by*") == 1
    assert ask("clear") == 1
    assert ask("clear") == 0


def ask_key(operation: str) -> str:
    return InMemoryCache().build_key("text", operation)


def test_namespaces_of_one_file_do_not_meet(tmp_path: Path) -> None:
    one = SQLiteCache(tmp_path / "c.db", namespace="one", deadline=5).blocking
    two = SQLiteCache(tmp_path / "c.db", namespace="two", deadline=5).blocking
    one.set("k", 1)
    assert two.get("k") is None
    two.set("k", 2)
    assert (one.clear(), two.get("k")) == (1, 2)
    one.close()
    two.close()


def test_an_overwritten_value_is_gone(ask: Ask) -> None:
    ask("set", "k", "small")
    ask("set", "k", "large " * 10_000)
    assert ask("get", "k") == "large " * 10_000
    ask("set", "k", "small")
    assert ask("get", "k") == "small"


def test_connect_ping_and_close_may_be_called_at_any_time(ask: Ask) -> None:
    assert ask("connect") is True
    assert ask("ping") is True
    ask("close")
    ask("close")
    ask("set", "k", 1)
    assert ask("get", "k") == 1


async def test_a_cache_is_a_context_manager(cache: Cache) -> None:
    async with cache as entered:
        assert entered is cache
        await cache.set("k", 1)
    with cache.blocking as blocking:
        assert blocking.get("k") in (1, None)


def test_a_disabled_cache_keeps_nothing(clock: Clock) -> None:
    cache = InMemoryCache(enabled=False).blocking
    cache.set("k", 1)
    cache.set_many({"a": 1})
    assert cache.get("k") is None
    assert cache.get_many(["a"]) == {}
    assert [cache.get_or_compute("k", lambda value=value: value) for value in (1, 2)] == [1, 2]


FAULTS = {
    "default_ttl": ["3600", float("inf"), True, -1, 86400 * 366, None],
    "operation_ttls": ["x", {"": 1}, {"x": -1}, {"x": True}, {"x": 1.5}, {"x": 86400 * 366}, {1: 1}],
    "text_hash_threshold": [-1, "5", True],
    "compression_threshold": [-1, None],
    "compression_level": [0, 10, "3"],
    "namespace": ["", "a b", "a:b", "{a}", 1],
    "deadline": [0, -1, "1", float("inf"), float("nan")],
    "strict": [1, "yes"],
    "enabled": [None],
    "trusted_modules": ["openai"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in FAULTS.items() for value in values])
def test_a_faulty_setting_is_refused_by_name(name: str, value: Any, tmp_path: Path) -> None:
    for make in (InMemoryCache, lambda **settings: SQLiteCache(tmp_path / "c.db", **settings)):
        with pytest.raises(ValidationError, match=name) as caught:
            make(**{name: value})
        assert name in caught.value.context


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(ValidationError) as caught:
        InMemoryCache(max_size=0, max_bytes=-1, default_ttl=-1, namespace="")
    assert set(caught.value.context) == {"max_size", "max_bytes", "default_ttl", "namespace"}


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(TypeError, match="colour"):
        InMemoryCache(colour="red")


@pytest.mark.parametrize("path", ["", 1, "."])
def test_a_path_that_names_no_file_is_refused(path: Any) -> None:
    with pytest.raises(ValidationError, match="path"):
        SQLiteCache(path)


def test_stats_read_well_and_turn_into_plain_data(ask: Ask, cache: Cache) -> None:
    key = ask_key("qa")
    ask("set", key, "value")
    ask("get", key)
    ask("get", "missing")
    stats = cache.stats()
    assert (stats.hits, stats.misses, stats.sets, stats.hit_rate) == (1, 1, 1, 0.5)
    assert stats.by_operation["qa"].hits == 1
    assert stats.by_operation[""].misses == 1
    assert stats.as_dict()["by_operation"]["qa"]["hit_rate"] == 1.0
    assert "50.0% of 2 lookups" in str(stats)
    assert "(by hand)" in str(stats)
    assert CacheStats().hit_rate == 0.0
    assert cache.namespace in repr(cache)
