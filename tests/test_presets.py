"""Presets, and what the variables of the environment make of the default cache."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import aimemo
from aimemo import (
    Cache,
    CachePerformanceMonitor,
    ConfigurationError,
    GenericRedisCache,
    InMemoryCache,
    SQLiteCache,
    cached_ai_call,
)
from aimemo.core.events import GATE
from aimemo.setup import config
from aimemo.setup.presets import preset
from tests.kit.servers import wait_until

DEVELOPMENT = {"summarize": 1800, "sentiment": 900, "key_points": 1200, "questions": 1500, "qa": 900}
PRODUCTION = {"summarize": 14400, "sentiment": 7200, "key_points": 10800, "questions": 9600, "qa": 7200}
TABLE = [
    ("disabled", 300, 10, 10000, {}),
    ("minimal", 900, 25, 5000, {}),
    ("simple", 3600, 100, 1000, {}),
    ("development", 600, 50, 2000, {}),
    ("production", 7200, 500, 500, {}),
    ("ai-development", 1800, 100, 1000, DEVELOPMENT),
    ("ai-production", 14400, 1000, 300, PRODUCTION),
]
OTHERS = ("AIMEMO_URL", "CACHE_REDIS_URL", "REDIS_URL", "AIMEMO_PRESET", "CACHE_PRESET", "CACHE_ENV")
CLOSED = "redis://127.0.0.1:1/0"


@pytest.fixture(autouse=True)
def _own_default(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test has an environment and a default cache of its own, and leaves no watched cache behind."""
    before = len(GATE)
    for variable in (*OTHERS, *config._VARIABLES):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(config, "_default", None)
    yield
    config._default = None
    if len(GATE) > before:
        wait_until(lambda: gc.collect() >= 0 and len(GATE) <= before, "the caches with a monitor are gone")


def _cache_of(monkeypatch: pytest.MonkeyPatch, **variables: str) -> Any:
    for name, text in variables.items():
        monkeypatch.setenv(name, text)
    return aimemo.configure()


@pytest.mark.parametrize("variable", ["CACHE_PRESET", "AIMEMO_PRESET"])
@pytest.mark.parametrize(("name", "ttl", "size", "threshold", "ttls"), TABLE)
def test_a_preset_gives_the_default_cache_its_settings(
    monkeypatch: pytest.MonkeyPatch, variable: str, name: str, ttl: int, size: int, threshold: int, ttls: Any
) -> None:
    monkeypatch.setenv(variable, name)
    cache = aimemo.get_cache()
    assert isinstance(cache, InMemoryCache)
    assert (cache.default_ttl, cache.max_size, cache.compression_threshold) == (ttl, size, threshold)
    assert cache.operation_ttls == ttls
    assert cache.enabled is (name != "disabled")


def test_a_preset_is_the_caller_s_to_change() -> None:
    preset("simple")["default_ttl"] = 1
    assert preset("simple")["default_ttl"] == 3600


@pytest.mark.parametrize("variable", ["CACHE_PRESET", "AIMEMO_PRESET"])
def test_an_unknown_preset_is_refused_with_the_names_there_are(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    with pytest.raises(ConfigurationError, match="unknown preset 'fast'; presets are disabled, minimal, simple"):
        _cache_of(monkeypatch, **{variable: "fast"})


@pytest.mark.parametrize("name", ["disabled", "AIMEMO_DISABLED"])
def test_disabled_calls_through_and_keeps_nothing(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(*(("CACHE_PRESET", name) if name == "disabled" else (name, "yes")))
    called: list[str] = []

    @cached_ai_call(operation=f"presets {name}")
    def ask(text: str) -> str:
        called.append(text)
        return text.upper()

    assert [ask("a"), ask("a")] == ["A", "A"]
    assert called == ["a", "a"]
    assert aimemo.get_cache().stats().sets == 0


@pytest.mark.parametrize("name", ["disabled", "AIMEMO_DISABLED"])
async def test_disabled_keeps_nothing_by_hand_either(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(*(("CACHE_PRESET", name) if name == "disabled" else (name, "yes")))
    cache = aimemo.get_cache()
    await cache.set("k", 1)
    cache.blocking.set_many({"m": 2})
    assert await cache.get("k") is None
    assert cache.blocking.get("m") is None
    assert await cache.get_or_compute("k", lambda: 5) == 5
    assert await cache.exists("k") is False


@pytest.mark.parametrize(
    ("variable", "text", "setting", "value"),
    [("CACHE_TTL", "60", "default_ttl", 60), ("CACHE_SIZE", "7", "max_size", 7),
     ("AIMEMO_DEFAULT_TTL", "0", "default_ttl", 0),
     ("AIMEMO_OPERATION_TTLS", '{"qa": 5}', "operation_ttls", {"qa": 5}),
     ("AIMEMO_NAMESPACE", "mine.own-1", "namespace", "mine.own-1"),
     ("AIMEMO_TEXT_HASH_THRESHOLD", "9", "text_hash_threshold", 9),
     ("AIMEMO_COMPRESSION_THRESHOLD", "0", "compression_threshold", 0),
     ("AIMEMO_DISABLED", "TRUE", "enabled", False), ("AIMEMO_DISABLED", "no", "enabled", True),
     ("ENABLE_CACHE_COMPRESSION", "true", "compression_threshold", 1000)],
)  # fmt: skip
def test_a_variable_sets_what_it_is_named_after(
    monkeypatch: pytest.MonkeyPatch, variable: str, text: str, setting: str, value: Any
) -> None:
    assert getattr(_cache_of(monkeypatch, **{variable: text}), setting) == value


def test_an_empty_variable_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = _cache_of(monkeypatch, **dict.fromkeys([*OTHERS, *config._VARIABLES], ""))
    assert (type(cache), cache.default_ttl, cache.max_size, cache.enabled) == (InMemoryCache, 3600, 1000, True)


def test_compression_can_be_switched_off(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = "the same again and again " * 1000
    sizes = []
    for switch in ("true", "false"):
        url = f"sqlite:///{tmp_path}/{switch}.db"
        cache = _cache_of(monkeypatch, AIMEMO_URL=url, ENABLE_CACHE_COMPRESSION=switch)
        cache.blocking.set("k", text)
        assert cache.blocking.get("k") == text
        sizes.append(cache.stats().bytes_stored)
        cache.blocking.close()
    assert sizes[0] < 2000 < len(text) <= sizes[1]


@pytest.mark.parametrize(("text", "is_watched"), [("true", True), ("1", True), ("no", False)])
def test_monitoring_can_be_switched_on(monkeypatch: pytest.MonkeyPatch, text: str, is_watched: bool) -> None:
    cache = _cache_of(monkeypatch, CACHE_MONITORING_ENABLED=text)
    cache.blocking.get("k")
    monitor = cache._performance_monitor
    assert isinstance(monitor, CachePerformanceMonitor) is is_watched
    assert not is_watched or monitor.cache_misses == 1
    cache._performance_monitor = None  # whatever still holds the cache: the fast path opens again


@pytest.mark.parametrize("variable", ["REDIS_URL", "CACHE_REDIS_URL", "AIMEMO_URL"])
def test_a_variable_names_the_server(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    cache = _cache_of(
        monkeypatch, **{variable: CLOSED}, CACHE_SIZE="7", REDIS_CONNECTION_TIMEOUT="0.5", CACHE_PRESET="production"
    )
    assert isinstance(cache, GenericRedisCache)
    assert (cache.l1_cache.max_size, cache._limits["connect_timeout"], cache.default_ttl) == (7, 0.5, 7200)


def test_of_several_places_the_library_s_own_name_counts_most(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ports = {"REDIS_URL": 1, "CACHE_REDIS_URL": 2}
    for variable, port in ports.items():
        cache = _cache_of(monkeypatch, **{variable: f"redis://127.0.0.1:{port}"})
        assert f":{port} " in repr(cache)
    url = f"sqlite:///{tmp_path}/c.db"
    assert isinstance(_cache_of(monkeypatch, AIMEMO_URL=url), SQLiteCache)
    assert isinstance(aimemo.configure("memory://"), InMemoryCache)


def test_a_cache_in_a_file_leaves_aside_what_it_does_not_know(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cache = _cache_of(
        monkeypatch, AIMEMO_URL=f"sqlite:///{tmp_path}/c.db", CACHE_SIZE="7", REDIS_CONNECTION_TIMEOUT="1",
        CACHE_PRESET="ai-production",
    )  # fmt: skip
    assert (cache.default_ttl, cache.operation_ttls) == (14400, PRODUCTION)


@pytest.mark.parametrize(
    ("name", "ttl", "size"),
    [("development", 600, 50), ("dev", 600, 50), ("test", 900, 25), ("testing", 900, 25), ("staging", 7200, 500),
     ("production", 7200, 500), ("prod", 7200, 500)],
)  # fmt: skip
def test_the_name_of_an_environment_chooses_a_preset(
    monkeypatch: pytest.MonkeyPatch, name: str, ttl: int, size: int
) -> None:
    cache = _cache_of(monkeypatch, CACHE_ENV=name)
    assert (cache.default_ttl, cache.max_size) == (ttl, size)


STEPS = [
    ("CACHE_ENV", "development", 600),
    ("CACHE_PRESET", "minimal", 900),
    ("AIMEMO_PRESET", "simple", 3600),
    ("CACHE_TTL", "11", 11),
    ("AIMEMO_DEFAULT_TTL", "12", 12),
]


def test_the_more_particular_variable_counts_and_arguments_most(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, text, ttl in STEPS:
        assert _cache_of(monkeypatch, **{variable: text}).default_ttl == ttl
    assert aimemo.configure("memory://", default_ttl=13).default_ttl == 13


def test_single_variables_change_a_preset_and_leave_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"AIMEMO_OPERATION_TTLS": json.dumps({"qa": 1}), "AIMEMO_COMPRESSION_THRESHOLD": "4", "CACHE_SIZE": "3"}
    cache = _cache_of(monkeypatch, CACHE_PRESET="ai-production", ENABLE_CACHE_COMPRESSION="false", **changes)
    assert (cache.default_ttl, cache.operation_ttls, cache.compression_threshold) == (14400, {"qa": 1}, 4)
    assert cache.max_size == 3


@pytest.mark.parametrize(("url", "setting"), [("memory://", "max_size"), (CLOSED, "l1_cache_size")])
def test_a_size_given_comes_before_that_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, url: str, setting: str
) -> None:
    monkeypatch.setenv("CACHE_SIZE", "3")
    cache: Any = aimemo.configure(url, **{setting: 4})
    assert getattr(cache, "l1_cache", cache).max_size == 4


@pytest.mark.parametrize(
    ("variable", "text", "form"),
    [("AIMEMO_DEFAULT_TTL", "soon", "must be a whole number of seconds"),
     ("AIMEMO_DEFAULT_TTL", "inf", "must be a whole number of seconds"),
     ("AIMEMO_DEFAULT_TTL", "True", "must be a whole number of seconds"),
     ("CACHE_TTL", "1.5", "must be a whole number of seconds"), ("CACHE_SIZE", "big", "must be a whole number"),
     ("CACHE_SIZE", "0", "must be a positive integer"), ("AIMEMO_DEFAULT_TTL", "-1", "must be non-negative"),
     ("AIMEMO_OPERATION_TTLS", "qa=5", "must be a JSON object"), ("AIMEMO_OPERATION_TTLS", "5", "must be a dictionary"),
     ("AIMEMO_NAMESPACE", "a b", "must be letters"), ("AIMEMO_DISABLED", "perhaps", "must be 1, true, yes, 0"),
     ("AIMEMO_TEXT_HASH_THRESHOLD", "x", "must be a whole number"),
     ("AIMEMO_COMPRESSION_THRESHOLD", "1 KB", "must be a whole number of bytes"),
     ("ENABLE_CACHE_COMPRESSION", "2", "must be 1, true, yes, 0"),
     ("CACHE_MONITORING_ENABLED", "on", "must be 1, true, yes, 0"),
     ("REDIS_CONNECTION_TIMEOUT", "short", "must be a number of seconds"),
     ("REDIS_CONNECTION_TIMEOUT", "nan", "must be a positive number"), ("CACHE_ENV", "moon", "must be one of dev")],
)  # fmt: skip
def test_a_bad_value_is_refused_with_the_name_of_its_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, text: str, form: str
) -> None:
    monkeypatch.setenv(variable, text)
    with pytest.raises(ConfigurationError, match=f"^{variable}.* {form}") as raised:
        aimemo.get_cache()
    assert variable in raised.value.context
    assert config.current_cache() is None


def test_all_bad_variables_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError) as raised:
        _cache_of(monkeypatch, CACHE_TTL="soon", AIMEMO_NAMESPACE="a b", CACHE_SIZE="-1", AIMEMO_DISABLED="0")
    assert raised.value.context.keys() == {"CACHE_TTL", "AIMEMO_NAMESPACE", "CACHE_SIZE"}
    assert str(raised.value) == "; ".join(raised.value.context.values())


def test_a_cache_that_is_there_already_becomes_the_default_whatever_the_environment_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CACHE_TTL", "soon")
    own: Cache = InMemoryCache()
    assert aimemo.configure(own) is own
    assert aimemo.get_cache() is own
    with pytest.raises(ConfigurationError, match="takes no settings"):
        aimemo.configure(own, default_ttl=1)
