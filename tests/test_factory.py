"""Caches that the factory makes and checks, and the limits that hold at every door."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import redis

import aimemo
from aimemo import (
    AIResponseCache,
    Cache,
    CacheFactory,
    CachePerformanceMonitor,
    ConfigurationError,
    GenericRedisCache,
    InfrastructureError,
    InMemoryCache,
    SQLiteCache,
    ValidationError,
    cache_from_url,
)
from aimemo.setup import config
from aimemo.setup.presets import PRESETS
from tests.kit import stalls
from tests.kit.redis_caches import shared

CLOSED = "redis://127.0.0.1:1"
METHODS = ("for_web_app", "for_ai_app", "for_testing")
VARIABLES = ("AIMEMO_URL", "CACHE_REDIS_URL", "REDIS_URL", "AIMEMO_PRESET", "CACHE_PRESET", "CACHE_ENV")


@pytest.fixture(autouse=True)
def _own_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "_default", None)
    for variable in (*VARIABLES, *config._VARIABLES):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def factory() -> CacheFactory:
    return CacheFactory()


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest, factory: CacheFactory) -> Callable[..., Any]:
    return getattr(factory, request.param)


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a machine that does not answer: its queue of connections is full."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listening:
        address = listening.getsockname()
        waiting = [socket.socket() for _ in range(4)]
        for client in waiting:
            client.setblocking(False)
            client.connect_ex(address)
        yield f"redis://{address[0]}:{address[1]}"
        for client in waiting:
            client.close()


@pytest.fixture
def mute() -> Iterator[str]:
    """The address of a machine that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=50) as listening:
        yield "redis://{}:{}".format(*listening.getsockname())


async def _works(cache: Cache) -> None:
    await cache.set("k", {"answer": [1, "zwei", None]})
    assert await cache.get("k") == {"answer": [1, "zwei", None]}
    assert await cache.delete("k") is True
    cache._performance_monitor = None
    await cache.close()


@pytest.mark.redis
@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [("for_web_app", GenericRedisCache, (1800, 2000, 6, 0, 200)),
     ("for_ai_app", AIResponseCache, (3600, 1000, 6, 500, 100)),
     ("for_testing", GenericRedisCache, (60, 1000, 1, 0, None))],
)  # fmt: skip
async def test_each_method_makes_a_cache_on_the_server_with_its_defaults(
    factory: CacheFactory, name: str, kind: type[Cache], expected: tuple[Any, ...]
) -> None:
    cache = await getattr(factory, name)(redis_url=shared("server").url, namespace=f"factory-{name}", deadline=5)
    assert type(cache) is kind
    size = cache.l1_cache and cache.l1_cache.max_size
    settings = (cache.default_ttl, cache.compression_threshold, cache.compression_level, cache.text_hash_threshold)
    assert (*settings, size) == expected
    assert cache._performance_monitor is factory._performance_monitor
    await _works(cache)


@pytest.mark.redis
async def test_settings_reach_the_cache_on_the_server(method: Callable[..., Any]) -> None:
    given = {"default_ttl": 7, "compression_threshold": 8, "compression_level": 9, "deadline": 5, "strict": True}
    cache = await method(
        redis_url=shared("server").url, enable_l1_cache=True, l1_cache_size=3, namespace="factory-given", **given
    )
    assert {name: getattr(cache, name) for name in given} == given
    assert cache.l1_cache.max_size == 3
    await cache.set("k", 1)
    assert 0 < await cache.ttl("k") <= 7
    await _works(cache)


@pytest.mark.redis
async def test_settings_for_language_models_reach_the_cache(factory: CacheFactory) -> None:
    cache = await factory.for_ai_app(
        redis_url=shared("server").url, memory_cache_size=9, l1_cache_size=4, text_hash_threshold=0,
        operation_ttls={"qa": 5}, namespace="factory-ai",
    )  # fmt: skip
    assert (cache.l1_cache.max_size, cache.text_hash_threshold, cache.operation_ttls) == (9, 0, {"qa": 5})
    await cache.close()


@pytest.mark.parametrize("name", ["for_ai_app", "for_testing"])
async def test_memory_may_be_asked_for(factory: CacheFactory, name: str) -> None:
    cache = await getattr(factory, name)(use_memory_cache=True, default_ttl=5, l1_cache_size=6)
    assert type(cache) is InMemoryCache
    assert (cache.default_ttl, cache.max_size) == (5, 6)
    await _works(cache)


UNREACHABLE = {
    "closed port": (CLOSED, "redis://127.0.0.1:1"),
    "closed port, TLS": ("rediss://127.0.0.1:1", "rediss://127.0.0.1:1"),
    "port out of range": ("redis://localhost:99999", "redis://localhost:99999"),
    "unknown host": ("redis://nobody.invalid", "redis://nobody.invalid"),
    "unknown host, TLS": ("rediss://nobody.invalid:6379/1", "rediss://nobody.invalid:6379/1"),
    "no socket": ("unix:///nowhere/redis.sock", "unix:///nowhere/redis.sock"),
    "cluster": ("redis+cluster://127.0.0.1:1,127.0.0.1:2", "redis+cluster://127.0.0.1:1,127.0.0.1:2"),
    "sentinels": ("redis+sentinel://127.0.0.1:1/main/0", "redis+sentinel://127.0.0.1:1/main/0"),
    "login": ("redis://user:geheim@127.0.0.1:1/3", "redis://127.0.0.1:1/3"),
    "login with @": ("redis://user:ge@heim@127.0.0.1:1", "redis://127.0.0.1:1"),
    "password as an option": ("redis://127.0.0.1:1?password=geheim", "redis://127.0.0.1:1"),
    "port out of range with a login": ("redis://user:geheim@localhost:99999", "redis://localhost:99999"),
}


@pytest.mark.parametrize(("url", "shown"), UNREACHABLE.values(), ids=UNREACHABLE)
async def test_redis_that_cannot_be_reached_is_an_error_if_so_wished(
    factory: CacheFactory, url: str, shown: str
) -> None:
    with pytest.raises(InfrastructureError) as raised:
        await factory.for_web_app(redis_url=url, fail_on_connection_error=True)
    assert str(raised.value) == f"Redis connection failed for {shown}"


@pytest.mark.parametrize(("url", "shown"), UNREACHABLE.values(), ids=UNREACHABLE)
async def test_redis_that_cannot_be_reached_is_replaced_by_memory(
    factory: CacheFactory, url: str, shown: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "aimemo"):
        cache = await factory.for_web_app(redis_url=url, default_ttl=11, l1_cache_size=12)
    assert type(cache) is InMemoryCache
    assert (cache.default_ttl, cache.max_size) == (11, 12)
    assert shown in caplog.text
    assert "heim" not in caplog.text
    await _works(cache)


async def test_memory_takes_over_all_settings_that_it_knows(factory: CacheFactory) -> None:
    given = {"default_ttl": 7, "operation_ttls": {"qa": 3}, "text_hash_threshold": 4, "namespace": "mine"}
    cache = await factory.for_ai_app(
        redis_url=CLOSED, memory_cache_size=5, l1_cache_size=6, leases=False, max_connections=2, connect_timeout=1.0,
        password="geheim", db=3, **given,
    )  # fmt: skip
    assert {name: getattr(cache, name) for name in given} == given
    assert cache.max_size == 5
    assert cache._performance_monitor is factory._performance_monitor


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["silent", "mute"])
async def test_an_address_that_does_not_answer_takes_two_seconds_at_most(
    request: pytest.FixtureRequest, factory: CacheFactory, kind: str
) -> None:
    url = request.getfixturevalue(kind)
    started = time.monotonic()
    with pytest.raises(InfrastructureError, match="Redis connection failed for"):
        await factory.for_web_app(redis_url=url, fail_on_connection_error=True, performance_monitor=None)
    assert time.monotonic() - started < 2.5 + stalls.longest()


async def test_a_failed_connection_has_the_clients_error_as_its_cause(factory: CacheFactory) -> None:
    with pytest.raises(InfrastructureError) as raised:
        await factory.for_web_app(redis_url="redis://127.0.0.1:1", fail_on_connection_error=True)
    assert isinstance(raised.value.__cause__, (OSError, redis.RedisError))


async def test_an_address_that_does_not_answer_is_given_up_after_the_time_given(
    factory: CacheFactory, silent: str
) -> None:
    started = time.monotonic()
    cache = await factory.for_web_app(redis_url=silent, connect_timeout=0.05, performance_monitor=None)
    assert type(cache) is InMemoryCache
    assert time.monotonic() - started < 1 + stalls.longest()


@pytest.mark.redis
async def test_without_a_url_the_environment_names_the_server(
    method: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", CLOSED)
    assert type(await method(redis_url=None)) is InMemoryCache
    monkeypatch.setenv("CACHE_REDIS_URL", shared("server").url)
    cache = await method(redis_url=None, namespace="factory-environment", deadline=5)
    assert isinstance(cache, GenericRedisCache)
    await _works(cache)


@pytest.mark.redis
@pytest.mark.parametrize(
    ("settings", "kind"),
    [({}, GenericRedisCache), ({"text_hash_threshold": 3}, AIResponseCache), ({"operation_ttls": {}}, AIResponseCache),
     ({"memory_cache_size": 3}, AIResponseCache), ({"preset": "ai-production"}, AIResponseCache)],
)  # fmt: skip
async def test_a_configuration_decides_the_kind(
    factory: CacheFactory, settings: dict[str, Any], kind: type[Cache]
) -> None:
    given = {"redis_url": shared("server").url, "namespace": "factory-config", "deadline": 5, **settings}
    before = dict(given)
    cache = await factory.create_cache_from_config(given)
    assert type(cache) is kind
    assert given == before
    await _works(cache)


async def test_a_configuration_that_cannot_connect_falls_back_or_fails(factory: CacheFactory) -> None:
    cache = await factory.create_cache_from_config({"redis_url": CLOSED, "default_ttl": 5})
    assert (type(cache), cache.default_ttl) == (InMemoryCache, 5)
    for given, must in (({}, True), ({"fail_on_connection_error": True}, False)):
        with pytest.raises(InfrastructureError, match=r"Redis connection failed for redis://127\.0\.0\.1:1"):
            await factory.create_cache_from_config({"redis_url": CLOSED, **given}, fail_on_connection_error=must)


@pytest.mark.parametrize("name", PRESETS)
async def test_a_configuration_may_be_the_name_of_a_preset(
    factory: CacheFactory, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", CLOSED)
    cache = await factory.create_cache_from_config(name)
    preset = PRESETS[name]
    assert (cache.default_ttl, cache.max_size) == (preset["default_ttl"], preset["memory_cache_size"])
    assert cache.enabled is (name != "disabled")


async def test_settings_beside_a_preset_change_it(factory: CacheFactory) -> None:
    cache = await factory.create_cache_from_config(
        {"preset": "ai-development", "use_memory_cache": True, "default_ttl": 9, "memory_cache_size": 8}
    )
    assert (cache.default_ttl, cache.max_size, cache.compression_threshold) == (9, 8, 1000)
    assert cache.operation_ttls == PRESETS["ai-development"]["operation_ttls"]


@pytest.mark.parametrize("name", ["ai", "", None, [], 3])
async def test_an_unknown_preset_is_refused_with_the_names_there_are(factory: CacheFactory, name: Any) -> None:
    with pytest.raises(ConfigurationError, match="presets are disabled, minimal, simple, development, production"):
        await factory.create_cache_from_config({"preset": name, "redis_url": CLOSED})


@pytest.mark.parametrize("given", [5, None, ["redis_url"], b"simple"])
async def test_a_configuration_of_another_type_is_refused(factory: CacheFactory, given: Any) -> None:
    with pytest.raises(ValidationError, match="config must be a dictionary or the name of a preset"):
        await factory.create_cache_from_config(given)


@pytest.mark.parametrize("unknown", ["color", "settings", "arguments"])
async def test_unknown_settings_are_refused(method: Callable[..., Any], factory: CacheFactory, unknown: str) -> None:
    for make in (method, lambda **given: factory.create_cache_from_config(given)):
        with pytest.raises(ConfigurationError, match=unknown):
            await make(**{"redis_url": CLOSED, unknown: "blue"})


async def test_a_configuration_without_a_url_is_refused_with_all_its_other_faults(factory: CacheFactory) -> None:
    with pytest.raises(ValidationError, match=r"^config dictionary cannot be empty: redis_url is required$"):
        await factory.create_cache_from_config({})
    for given in ({"default_ttl": 5}, {"redis_url": None}, {"preset": "simple"}):
        with pytest.raises(ValidationError, match=r"^redis_url is required$"):
            await factory.create_cache_from_config(given)
    with pytest.raises(ValidationError) as raised:
        await factory.create_cache_from_config({"default_ttl": -1, "l1_cache_size": 0})
    assert set(raised.value.context) == {"redis_url", "default_ttl", "l1_cache_size"}
    assert all(text in str(raised.value) for text in raised.value.context.values())


TTL_TYPE = "default_ttl must be an integer"
TTL_SIGN = "default_ttl must be non-negative (0 means no expiration)"
TTL_SIZE = "default_ttl must not exceed 365 days (31,536,000 seconds)"
SCHEMES = "'redis://', 'rediss://', 'unix://', 'redis+cluster://' or 'redis+sentinel://'"
TEXT = "a non-negative integer"

OF_EVERY_CACHE = [
    *[("default_ttl", value, TTL_TYPE) for value in (True, float("inf"), "3600", 1.5, None, float("nan"))],
    ("default_ttl", -1, TTL_SIGN),
    ("default_ttl", 86400 * 366, TTL_SIZE),
    *[("operation_ttls", value, "operation_ttls must be a dictionary") for value in (5, "qa", [("qa", 1)], True)],
    *[
        ("operation_ttls", value, "operation_ttls keys must be non-empty strings")
        for value in ({"": 1}, {" ": 1}, {5: 1}, {None: 1})
    ],
    *[
        ("operation_ttls", {"x": value}, "operation_ttls['x'] must be a non-negative integer")
        for value in (-1, "1", 1.5, True, None, float("inf"))
    ],
    ("operation_ttls", {"x": 86400 * 366}, "operation_ttls['x'] must not exceed 365 days (31,536,000 seconds)"),
    *[("text_hash_threshold", value, f"text_hash_threshold must be {TEXT}") for value in (-1, "5", True, 1.5)],
    *[("compression_threshold", value, f"compression_threshold must be {TEXT}") for value in (-1, "5", True, None)],
    *[
        ("compression_level", value, "compression_level must be an integer between 1 and 9")
        for value in (0, 10, "6", True, 6.0, None)
    ],
]
OF_REDIS = [
    ("redis_url", 123, "redis_url must be a string"),
    *[("redis_url", value, "redis_url cannot be empty") for value in ("", "  ")],
    *[("redis_url", value, f"redis_url must start with {SCHEMES}") for value in ("http://localhost:6379", "localhost")],
    *[
        ("redis_url", value, "redis_url must include host information")
        for value in ("redis://", "rediss://:6379", "redis:///0", "redis://user:geheim@", "redis+cluster://,")
    ],
    *[("l1_cache_size", value, "l1_cache_size must be a positive integer") for value in (0, -1, "5", True, None)],
    *[("enable_l1_cache", value, "enable_l1_cache must be a boolean") for value in (1, "yes", None)],
]
OF_FACTORY = [
    *[("fail_on_connection_error", value, "fail_on_connection_error must be a boolean") for value in (1, "no", None)],
    *[("memory_cache_size", value, "memory_cache_size must be a positive integer") for value in (0, -1, "5", True)],
]
FAULT = ("setting", "value", "text")


def _memory_by_url(**settings: Any) -> Cache:
    return cache_from_url("memory://", **settings)


def _redis_by_url(redis_url: str = CLOSED, **settings: Any) -> Cache:
    return cache_from_url(redis_url, **settings)


def _configured(**settings: Any) -> Cache:
    return aimemo.configure("memory://", **settings)


def _decorated(**settings: Any) -> Any:
    return aimemo.cached_ai_call(operation="fault", cache=InMemoryCache(**settings))


def _refused(make: Callable[..., Any], setting: str, value: Any, text: str) -> None:
    with pytest.raises(ValidationError) as raised:
        make(**{setting: value})
    assert raised.value.context == {setting: text}
    assert str(raised.value) == text


@pytest.mark.parametrize(FAULT, [*OF_EVERY_CACHE, *OF_REDIS, *OF_FACTORY])
async def test_the_factory_refuses_what_is_out_of_its_limits(
    factory: CacheFactory, method: Callable[..., Any], setting: str, value: Any, text: str
) -> None:
    with pytest.raises(ValidationError) as raised:
        await method(**{"redis_url": CLOSED, setting: value})
    assert (str(raised.value), raised.value.context) == (text, {setting: text})
    with pytest.raises(ValidationError) as raised:
        await factory.create_cache_from_config({"redis_url": CLOSED, setting: value})
    assert (str(raised.value), raised.value.context) == (text, {setting: text})


@pytest.mark.parametrize(FAULT, OF_EVERY_CACHE)
@pytest.mark.parametrize(
    "make", [InMemoryCache, GenericRedisCache, AIResponseCache, _memory_by_url, _redis_by_url, _configured, _decorated]
)
def test_every_class_and_url_refuses_the_same(make: Any, setting: str, value: Any, text: str) -> None:
    _refused(make, setting, value, text)


@pytest.mark.parametrize(FAULT, OF_EVERY_CACHE)
def test_a_cache_in_a_file_refuses_the_same(tmp_path: Any, setting: str, value: Any, text: str) -> None:
    path = tmp_path / "c.db"
    _refused(lambda **settings: SQLiteCache(path, **settings), setting, value, text)
    _refused(lambda **settings: cache_from_url(f"sqlite:///{path}", **settings), setting, value, text)
    assert not path.exists()


@pytest.mark.parametrize(FAULT, OF_REDIS)
@pytest.mark.parametrize("make", [GenericRedisCache, AIResponseCache])
def test_the_classes_for_redis_refuse_the_same(make: Any, setting: str, value: Any, text: str) -> None:
    _refused(make, setting, value, text)


@pytest.mark.parametrize("value", [0, -1, "5", True, None, 1.5])
@pytest.mark.parametrize("make", [InMemoryCache, _memory_by_url, _configured])
def test_a_cache_in_memory_holds_a_positive_number_of_entries(make: Any, value: Any) -> None:
    _refused(make, "max_size", value, "max_size must be a positive integer")


@pytest.mark.parametrize("value", [True, "3600", float("inf"), -1, 86400 * 366])
@pytest.mark.parametrize("url", ["memory://", CLOSED])
def test_a_faulty_configuration_leaves_the_default_cache_as_it_was(url: str, value: Any) -> None:
    before = aimemo.configure("memory://")
    with pytest.raises(ValidationError, match="default_ttl"):
        aimemo.configure(url, default_ttl=value)
    assert aimemo.get_cache() is before


@pytest.mark.parametrize(
    ("variable", "text", "message"),
    [("AIMEMO_DEFAULT_TTL", "-1", TTL_SIGN), ("CACHE_TTL", str(86400 * 366), TTL_SIZE),
     ("AIMEMO_OPERATION_TTLS", '{"": 1}', "operation_ttls keys must be non-empty strings"),
     ("AIMEMO_OPERATION_TTLS", '{"x": -1}', "operation_ttls['x'] must be a non-negative integer"),
     ("AIMEMO_OPERATION_TTLS", '{"x": true}', "operation_ttls['x'] must be a non-negative integer"),
     ("AIMEMO_OPERATION_TTLS", '{"x": Infinity}', "operation_ttls['x'] must be a non-negative integer"),
     ("AIMEMO_OPERATION_TTLS", '{"x": "3600"}', "operation_ttls['x'] must be a non-negative integer"),
     ("AIMEMO_OPERATION_TTLS", "[]", "operation_ttls must be a dictionary"),
     ("AIMEMO_TEXT_HASH_THRESHOLD", "-1", "text_hash_threshold must be a non-negative integer"),
     ("AIMEMO_COMPRESSION_THRESHOLD", "-1", "compression_threshold must be a non-negative integer"),
     ("CACHE_SIZE", "0", "memory_cache_size must be a positive integer")],
)  # fmt: skip
def test_the_environment_is_held_to_the_same_limits(
    monkeypatch: pytest.MonkeyPatch, variable: str, text: str, message: str
) -> None:
    monkeypatch.setenv(variable, text)
    with pytest.raises(ConfigurationError) as raised:
        aimemo.get_cache()
    assert str(raised.value) == f"{variable}: {message}"


ALL_FAULTS: Mapping[str, Any] = {
    "default_ttl": True, "operation_ttls": {"x": -1}, "text_hash_threshold": -1, "compression_threshold": "1",
    "compression_level": 0,
}  # fmt: skip


@pytest.mark.parametrize("make", [InMemoryCache, GenericRedisCache, AIResponseCache, _memory_by_url, _redis_by_url])
def test_all_faults_come_at_once(make: Any) -> None:
    with pytest.raises(ValidationError) as raised:
        make(**ALL_FAULTS)
    assert raised.value.context.keys() == ALL_FAULTS.keys()
    assert all(text in str(raised.value) for text in raised.value.context.values())


async def test_all_faults_of_a_method_come_at_once(method: Callable[..., Any]) -> None:
    more = {"redis_url": "http://x", "l1_cache_size": 0, "enable_l1_cache": 1, "fail_on_connection_error": "no"}
    with pytest.raises(ValidationError) as raised:
        await method(**ALL_FAULTS, **more)
    assert raised.value.context.keys() == {**ALL_FAULTS, **more}.keys()


async def test_no_fault_tells_a_password(factory: CacheFactory) -> None:
    for url in ("http://user:geheim@x", "redis://user:geheim@", "redis://user:geheim@a,b", "redis://user:geheim@a:b"):
        with pytest.raises(ValidationError) as raised:
            await factory.for_web_app(redis_url=url)
        assert "geheim" not in repr((raised.value, raised.value.context))


async def test_limits_themselves_are_allowed(factory: CacheFactory) -> None:
    for ttl in (0, 86400 * 365):
        cache = await factory.for_ai_app(
            use_memory_cache=True, default_ttl=ttl, operation_ttls={"x": ttl}, text_hash_threshold=0,
            compression_threshold=0, memory_cache_size=1,
        )  # fmt: skip
        assert (cache.default_ttl, cache.operation_ttls, cache.max_size) == (ttl, {"x": ttl}, 1)


async def test_all_caches_of_a_factory_tell_its_monitor(factory: CacheFactory) -> None:
    caches = [await factory.for_testing(use_memory_cache=True), await factory.for_web_app(redis_url=CLOSED)]
    for cache in caches:
        await cache.set("k", 1)
        await cache.get("k")
        await cache.get("other")
    monitor = factory._performance_monitor
    assert (monitor.total_operations, monitor.cache_hits, monitor.cache_misses) == (6, 2, 2)


async def test_another_monitor_may_be_given(factory: CacheFactory) -> None:
    own = CachePerformanceMonitor()
    cache = await factory.for_testing(use_memory_cache=True, performance_monitor=own)
    await cache.set("k", 1)
    assert (own.total_operations, factory._performance_monitor.total_operations) == (1, 0)
