"""Prompts, arguments, answers, tenants and passwords are sent along every path, and seen nowhere but in values."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import re
import sqlite3
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from typer.testing import CliRunner

import aimemo
from aimemo import (
    Cache,
    CacheFactory,
    CachePerformanceMonitor,
    CacheService,
    Channel,
    GenericRedisCache,
    IdempotencyService,
    InMemoryCache,
    RateLimiter,
    RedisLock,
    SQLiteCache,
    cached_ai_call,
)
from aimemo.core.events import KINDS, CacheEvent
from aimemo.errors import AimemoError
from aimemo.integrations.otel import instrument
from aimemo.management import problems
from aimemo.management.api import PREFIX, create_app
from aimemo.management.cli import app as commands
from aimemo.setup import config
from tests.kit.clients import client_of
from tests.kit.clock import Clock
from tests.kit.redis_caches import shared
from tests.kit.servers import HOST, Server, free_port, wait_until
from tests.test_security import nodes_of, replace

SENT = [
    *("prompt", "argument", "answer", "scope", "failure", "unstorable", "unkeyable", "hook", "steering", "named"),
    *("apikey", "wrongkey", "password"),
]
"""What each of the strings that are sent is. `named` is in the names that the user gives: by contract they are kept."""

SHAPES = [
    pytest.param("{}", id="plain", marks=pytest.mark.slow),
    pytest.param('a {} of\n"many" kinds of \'|%{{}}\\ \u2028 characters', id="special"),
    pytest.param("{} " + "long " * 1000, id="long", marks=pytest.mark.slow),
]
NAMES_ARE_KEPT = {"store", "sqlite log", "api POST /invalidate"}


class Mine(Exception):
    """An error of the user's own, whose text is the user's own matter."""


class Opaque:
    """Neither an answer nor an argument can be this; its `repr` says too much."""

    def __init__(self, held: str) -> None:
        self.held = held

    def __repr__(self) -> str:
        return self.held


class Watch:
    """Collects everything that can be seen, by where it was seen."""

    def __init__(self, caplog: pytest.LogCaptureFixture, shape: str = "{}") -> None:
        self.seen: dict[str, list[str]] = defaultdict(list)
        self.errors: list[BaseException] = []
        self._caplog = caplog
        self._shape = shape
        self._warned: list[warnings.WarningMessage] = []

    def secret(self, what: str) -> str:
        assert what in SENT
        return self._shape.format(f"canary-{what}-7Qx")

    @contextlib.contextmanager
    def __call__(self) -> Iterator[Watch]:
        with self._caplog.at_level(logging.DEBUG), warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            self._caplog.set_level(logging.DEBUG, "aimemo")
            yield self
        self.add("warnings", *(str(each.message) for each in warned))
        # The client's own log of its requests is not aimemo's.
        told = [record for record in self._caplog.records if not record.name.startswith("httpx")]
        self.add("log", *map(logging.Formatter().format, told), *(repr(record.args) for record in told))
        for error in self.errors:
            self.add("errors", repr(error), repr(getattr(error, "context", "")))
            self.add("errors", *map(str, chain(error)))

    def add(self, where: str, *texts: Any) -> None:
        self.seen[where] += [text if isinstance(text, str) else repr(text) for text in texts]

    @contextlib.contextmanager
    def failing(self, expected: type[BaseException] = AimemoError) -> Iterator[None]:
        with pytest.raises(expected) as raised:
            yield
        self.errors.append(raised.value)

    def leaks(self) -> set[tuple[str, str]]:
        """What was seen where, but for names where they are kept."""
        found = {
            (what, where)
            for where, texts in self.seen.items()
            for what in re.findall(r"canary-(\w+)-7Qx", "\n".join(texts))
        }
        return {(what, where) for what, where in found if what != "named" or where not in NAMES_ARE_KEPT}


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and all that led to it, shown or not, but for the user's own."""
    while error is not None:
        if not isinstance(error, Mine):
            yield error
        error = error.__cause__ or error.__context__


@pytest.fixture(params=SHAPES)
def watch(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> Watch:
    return Watch(caplog, request.param)


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(problems, "FAILURE_SECONDS", 0.001)
    monkeypatch.setattr(config, "_default", None)


# Every path of a cache


def functions(watch: Watch, cache: Cache) -> tuple[Any, Any]:
    """A function in each world that answers, fails, or gives what cannot be stored, as its prompt says."""
    secret = watch.secret

    def answer(text: str) -> Any:
        if "unstorable" in text:
            return Opaque(secret("unstorable"))
        if "failure" in text:
            raise Mine(secret("failure"))
        return {"answer": secret("answer")}

    def fail(*_: Any) -> Any:
        raise Mine(secret("hook"))

    options: Any = {
        "cache": cache, "scope": lambda: secret("scope"), "ttl": 10, "on_hit": fail, "on_miss": fail, "on_set": fail,
        "stale_while_revalidate": 5, "stale_if_error": 100,
    }  # fmt: skip

    @cached_ai_call(operation="plain", **options)
    def plain(text: str, token: Any = "", more: Any = ()) -> Any:
        return answer(text)

    @cached_ai_call(operation="awaited", **options)
    async def awaited(text: str, token: Any = "", more: Any = ()) -> Any:
        await asyncio.sleep(0)
        return answer(text)

    return plain, awaited


async def call_all(watch: Watch, cache: Cache, clock: Clock, ask: Callable[..., Any]) -> None:
    """A function along each way that a call can take; `ask(door, …)` calls it, or one of its methods."""
    secret = watch.secret
    call = (secret("prompt"), secret("argument"), [secret("argument")])
    watch.add("keys", await ask("key_for", *call))
    for door in ("", "", "peek", "refresh", "bypass", ""):
        await ask(door, *call)
    for seconds in (12, 30):  # stale, and then long over
        clock.advance(seconds)
        await ask("", *call)
    replace_if_stored(cache, await ask("key_for", *call))
    await ask("", *call)
    with pytest.raises(Mine):
        await ask("", secret("failure"))
    await ask("", secret("unstorable"))
    with watch.failing():
        await ask("", secret("prompt"), Opaque(secret("unkeyable")))
    with watch.failing(TypeError):
        await ask("key_for", *call, secret("argument"))
    await ask("invalidate", *call)
    await ask("", *call)


def replace_if_stored(cache: Cache, key: str) -> None:
    """Damage an entry: its last byte is another one."""
    if not isinstance(cache, InMemoryCache):
        replace(cache, key, lambda blob: blob[:-1] + bytes([blob[-1] ^ 1]))


async def call_by_hand(watch: Watch, cache: Cache) -> None:
    secret = watch.secret
    name, value = secret("named"), {"a": secret("answer")}
    watch.add("keys", cache.build_key(secret("prompt"), "by hand", {"token": secret("argument")}))
    await cache.set(name, value)
    await cache.get_many([name, f"{name} too"])
    await cache.set_many({f"{name} too": value}, ttl=5)
    await cache.get_or_compute(f"{name} three", lambda: value)
    assert (await cache.get(name), await cache.exists(name), await cache.ttl(name) is not None) == (value, True, True)
    replace_if_stored(cache, name)
    await cache.get(name)
    for refused in (Opaque(secret("unstorable")), [bytearray(secret("unstorable").encode())], {"a": object}):
        with watch.failing():
            await cache.set(name, refused)
    with watch.failing():
        cache.build_key(secret("prompt"), "by hand", {"token": Opaque(secret("unkeyable"))})
    with watch.failing():
        await cache.get(f"{name}\ud800")
    with watch.failing():
        await cache.set("key", value, ttl=secret("argument"))
    with pytest.raises(Mine):
        await cache.get_or_compute("failing", lambda: fail(secret("failure")))
    await cache.delete(name)
    await cache.delete_many([name, f"{name} too"])
    await cache.invalidate_pattern(f"*{name[:20]}*")
    await cache.invalidate_tag(name)
    await cache.set(f"{name} stays", value)


def fail(text: str) -> Any:
    raise Mine(text)


@contextlib.contextmanager
def told_by(cache: Cache) -> Iterator[list[CacheEvent]]:
    """The events of a cache, which has a monitor meanwhile."""
    told: list[CacheEvent] = []
    cache._performance_monitor = CachePerformanceMonitor()
    for kind in KINDS:
        cache.on(kind, told.append)
    yield told
    for kind in KINDS:
        cache.off(kind, told.append)
    cache._performance_monitor = None


async def call_steered(watch: Watch, cache: Cache) -> None:
    """Functions that the user gave to steer the keeping fail, and say more than they should."""
    text = watch.secret("steering")
    for name in ("store_if", "facts"):
        ask = cached_ai_call(operation=name, cache=cache, **{name: lambda _: fail(text)})(lambda text: [text])
        ask(watch.secret("prompt"))
    ask = cached_ai_call(operation="changes", cache=cache)(lambda text, more: more.append(text))
    ask(watch.secret("prompt"), [watch.secret("argument")])
    ask = cached_ai_call(operation="keyed", cache=cache)(lambda held: 1)
    with watch.failing():
        ask(type("Held", (), {"__cache_key__": lambda self: fail(text)})())
    with watch.failing():
        cached_ai_call(operation="scoped", cache=cache, scope=lambda: [watch.secret("scope")])(lambda text: 1)("q")


async def use(watch: Watch, cache: Cache, clock: Clock, told: list[CacheEvent]) -> list[Any]:
    """Send everything along every path; gives the objects that were used."""
    plain, awaited = functions(watch, cache)

    async def ask_plain(door: str, *args: Any) -> Any:
        return (getattr(plain, door) if door else plain)(*args)

    async def ask_awaited(door: str, *args: Any) -> Any:
        asked = (getattr(awaited, door) if door else awaited)(*args)
        return asked if door == "key_for" else await asked

    cache.register_callback("get_miss", lambda key: fail(watch.secret("hook")))
    with aimemo.record_calls() as calls:
        for ask in (ask_plain, ask_awaited):
            await call_all(watch, cache, clock, ask)
        await asyncio.gather(*(awaited(f"{watch.secret('prompt')} {at // 4}") for at in range(8)))
        await call_steered(watch, cache)
        with aimemo.bypass():
            plain(watch.secret("prompt"))
        await call_by_hand(watch, cache)
    watch.add("events", *told)
    watch.add("records", *calls)
    assert {event.kind for event in told} >= {
        "hit",
        "miss",
        "set",
        "delete",
        "stale",
        "invalidated",
        "not_kept",
        "error",
    }
    assert {record.outcome for record in calls} >= {"hit", "miss", "stale", "coalesced", "bypass", "refresh"}
    return [plain, awaited, *told, *calls]


# What can be seen afterwards


def look_into_store(watch: Watch, cache: Cache) -> None:
    """All that is stored but values."""
    if isinstance(cache, GenericRedisCache):
        for node in nodes_of(cache):
            for name in node.client.scan_iter(f"*{cache.namespace}:*", count=1000):
                watch.add("store", name, within(node.client, name))
    elif isinstance(cache, SQLiteCache):
        with contextlib.closing(sqlite3.connect(cache.path)) as connection:
            columns = "namespace, operation, key, tags"
            watch.add("store", *connection.execute(f"SELECT {columns} FROM aimemo_entries"))
            watch.add("sqlite log", *connection.execute("SELECT * FROM aimemo_invalidations"))
    if cache._local is not None:
        watch.add("store", *(entry.key for entry in cache._local.entries()))
    assert watch.seen["store"]


def within(client: Any, name: bytes) -> Any:
    """What a key of Redis holds, if that is not an entry."""
    match client.type(name):
        case b"hash":
            return client.hgetall(name)
        case b"zset":
            return client.zrange(name, 0, -1)
    return ""


def look_at_objects(watch: Watch, cache: Cache, used: list[Any]) -> None:
    objects = [
        cache,
        cache.blocking,
        cache.stats(),
        getattr(cache, "l1_cache", None),
        cache._performance_monitor,
        *used,
    ]
    for each in objects:
        watch.add("repr", repr(each), str(each))
    watch.add("monitor", cache._performance_monitor.get_performance_stats())
    watch.add("stats", cache.stats().as_dict())


GOOD = [
    "/metrics", "/metrics/prometheus", "/status", "/stats", "/stats?operation=plain", "/history", "/invalidation-stats",
    "/health", "/ready", "/entries", "/entries?operation=awaited", "/", "/page/page.js", f"/entries/{'0' * 32}",
]  # fmt: skip


async def look_at_api(watch: Watch, cache: Cache) -> None:
    right, wrong = "canary-apikey-7Qx", "canary-wrongkey-7Qx"
    app = create_app(cache, api_keys=[right])
    watch.add("repr", repr(app), *map(repr, app.routes))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url=f"http://t{PREFIX}") as client:
        for key in ({"X-API-Key": right}, {"X-API-Key": wrong}):
            for path in [*GOOD, "http://t/openapi.json"]:
                await seen_at(watch, client, "GET", path, headers=key)
            for entry in (await client.get("/entries", headers=key)).json().get("entries", ()):
                await seen_at(watch, client, "GET", f"/entries/{entry['digest']}", headers=key)
            bad = watch.secret("argument")[:400]
            for path in ("/entries?cursor=", "/entries?limit="):
                assert await seen_at(watch, client, "GET", path, params={path[9:-1]: bad}, headers=key) != 200
            assert (
                await seen_at(watch, client, "POST", "/invalidate", params={"pattern": bad, "tag": bad}, headers=key)
                > 400
            )
            named = {"pattern": f"*{watch.secret('named')[:300]}*none"}
            await seen_at(watch, client, "POST", "/invalidate", params=named, headers=key)
        await client.delete(f"/entries/{'0' * 32}", headers={"X-API-Key": right})
    assert any('aimemo_requests_total{operation="plain"' in text for text in watch.seen["api GET /metrics/prometheus"])


async def seen_at(watch: Watch, client: httpx.AsyncClient, method: str, path: str, **more: Any) -> int:
    if path.endswith("="):
        path = path.partition("?")[0]
    answer = await client.request(method, path, **more)
    watch.add(f"api {method} {path}", answer.text, *map(repr, answer.headers.items()))
    return answer.status_code


async def look_at_commands(watch: Watch, cache: Cache, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    match cache:
        case SQLiteCache():
            url = f"sqlite:///{cache.path}"
        case GenericRedisCache():
            url = shared("cluster" if cache._target.kind == "cluster" else "server").url
        case _:
            url = "memory://"
    monkeypatch.setenv("AIMEMO_NAMESPACE", cache.namespace)
    monkeypatch.setattr(asyncio, "run", functools.partial(run_to_its_end, asyncio.run))
    file = str(folder / "export.jsonl")
    for words in (["status"], ["entries"], ["doctor"], ["export", file], ["import", file], ["clear", "--yes"]):
        for form in ([], ["--json"]):
            done = await asyncio.to_thread(CliRunner().invoke, commands, [*words, "--url", url, *form])
            assert done.exit_code == 0, (words, done.output)
            watch.add(f"command {words[0]}", done.output, done.stderr)


def run_to_its_end(run: Callable[..., Any], body: Any) -> Any:
    """Run a coroutine as a loop of its own, with the turn after it in which a closed cache gives up its last task."""

    async def to_its_end() -> Any:
        try:
            return await body
        finally:
            await asyncio.sleep(0.001)

    return run(to_its_end())


@pytest.mark.integration
async def test_what_is_sent_is_seen_nowhere(
    watch: Watch, cache: Cache, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    undo = instrument(cache)
    with watch(), told_by(cache) as told:
        with provider.get_tracer("test").start_as_current_span("request"):
            used = await use(watch, cache, clock, told)
        look_into_store(watch, cache)
        look_at_objects(watch, cache, used)
        watch.add("spans", *(span.to_json() for span in exporter.get_finished_spans()))
        await look_at_api(watch, cache)
        await look_at_commands(watch, cache, monkeypatch, tmp_path)
    undo()
    await cache.close()
    assert "aimemo.lookup" in watch.seen["spans"][0]
    assert len(watch.errors) > 8
    assert watch.leaks() == set()


async def test_a_threshold_shows_short_texts_in_keys_and_nowhere_else(caplog: pytest.LogCaptureFixture) -> None:
    watch, cache = Watch(caplog), InMemoryCache(text_hash_threshold=100)
    ask = cached_ai_call(operation="plain", cache=cache)(lambda text, token: text)
    with watch(), told_by(cache) as told:
        ask(watch.secret("prompt"), watch.secret("argument"))
        look_into_store(watch, cache)
        look_at_objects(watch, cache, [ask, *told])
        await look_at_api(watch, cache)
    assert watch.leaks() == {("prompt", "store")}


# Servers in trouble


def freeze(server: Server) -> None:
    server.freeze()


def kill(server: Server) -> None:
    server.kill()


def change_password(server: Server) -> None:
    server.ask("CONFIG", "SET", "requirepass", "another")
    server.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


def fill(server: Server) -> None:
    server.ask("CONFIG", "SET", "maxmemory", "1")


def answers(client: Any) -> bool:
    with contextlib.suppress(redis.TimeoutError):
        return bool(client.ping())
    return False


def services(client: Any, watch: Watch) -> list[Callable[[], Any]]:
    secret = watch.secret
    name, value = secret("named"), {"a": secret("answer")}
    return [
        lambda: CacheService(client).set(name, value), lambda: CacheService(client).get(name),
        lambda: CacheService(client).delete(name), lambda: Channel(client, name).publish(value),
        lambda: IdempotencyService(client).run(name, secret("prompt"), lambda: value),
        lambda: IdempotencyService(client).store_request(name, value),
        lambda: RateLimiter(client, 5, 60, when_away="closed").is_allowed(name),
        lambda: RedisLock(client, name).acquire(),
    ]  # fmt: skip


def of_cache(cache: GenericRedisCache, watch: Watch) -> list[Callable[[], Any]]:
    secret, blocking = watch.secret, cache.blocking
    ask = cached_ai_call(operation="ask", cache=cache, scope=secret("scope"))(lambda text: secret("answer"))
    return [
        lambda: ask(secret("prompt")), lambda: ask.invalidate(secret("prompt")), ask.invalidate_all,
        lambda: blocking.get(secret("named")), lambda: blocking.set(secret("named"), secret("answer")),
        lambda: blocking.delete(secret("named")), lambda: blocking.invalidate_tag(secret("named")), blocking.clear,
    ]  # fmt: skip


@pytest.mark.redis
@pytest.mark.integration
@pytest.mark.parametrize("trouble", [freeze, kill, change_password, fill])
def test_a_server_in_trouble_is_told_of_without_secrets(
    trouble: Callable[[Server], None], caplog: pytest.LogCaptureFixture
) -> None:
    watch = Watch(caplog)
    password = watch.secret("password")
    with Server(requirepass=password) as server, watch():
        server.client.connection_pool.connection_kwargs["password"] = password
        url = server.url.replace("//", f"//:{password}@")
        caches = [GenericRedisCache(url, strict=strict, deadline=0.2, connect_timeout=0.2) for strict in (False, True)]
        client = redis.Redis.from_url(url, socket_timeout=0.2)
        for is_there in (*(cache.blocking.ping for cache in caches), lambda: answers(client)):
            wait_until(is_there, "it is connected")
        trouble(server)
        try:
            for act in [*of_cache(caches[0], watch), *of_cache(caches[1], watch), *services(client, watch)]:
                try:
                    act()
                except AimemoError as error:
                    watch.errors.append(error)
            for each in (*caches, RateLimiter(client, 1, 1), RedisLock(client, "l"), CacheService(client)):
                watch.add("repr", repr(each), str(each))
        finally:
            server.thaw() if trouble is freeze else None
            for cache in caches:
                cache.blocking.close()
            client.close()
    assert len(watch.errors) > 4
    assert [record for record in caplog.records if record.name == "aimemo" and record.levelno >= logging.WARNING]
    assert watch.leaks() == set()


@pytest.mark.redis
@pytest.mark.integration
async def test_what_services_are_given_is_in_no_log(caplog: pytest.LogCaptureFixture) -> None:
    watch = Watch(caplog)
    secret, client = watch.secret, client_of("sync")
    with watch():
        for act in services(client, watch):
            act()
        client.set(secret("named"), secret("answer"))
        assert CacheService(client).get(secret("named")) is None
        requests = IdempotencyService(client)
        with watch.failing():
            requests.run(secret("named"), secret("argument"), lambda: 1)
        with watch.failing():
            requests.run(f"{secret('named')} refused", "p", lambda: Opaque(secret("unstorable")))
        with watch.failing():
            requests.run(f"{secret('named')} payload", Opaque(secret("unkeyable")), lambda: 1)
        with pytest.raises(Mine):
            requests.run(f"{secret('named')} fails", "p", lambda: fail(secret("failure")))
        with watch.failing():
            CacheService(client).set("key", {1: secret("answer")})
        with watch.failing():
            Channel(client, "ch").publish({secret("answer")})
        limiter = RateLimiter(client, 1, 60)
        limited = aimemo.rate_limited(limiter, who=secret("named"))(lambda: 1)
        for _ in range(2):
            with contextlib.suppress(aimemo.RateLimitedError):
                limited()
        with watch.failing(aimemo.RateLimitedError):
            limited()
        for each in (requests, limiter, limiter.check(secret("named")), Channel(client, "ch").subscribe()):
            watch.add("repr", repr(each), str(each))
    client.delete(*client.scan_iter("*canary-*"))
    client.close()
    assert len(watch.errors) == 6
    assert watch.leaks() == set()


async def test_a_url_that_is_refused_or_leads_nowhere_shows_no_password(caplog: pytest.LogCaptureFixture) -> None:
    watch = Watch(caplog)
    url = f"redis://someone:{watch.secret('password')}@{HOST}:{free_port()}/0"
    with watch():
        factory = CacheFactory()
        watch.add("repr", factory, await factory.for_web_app(url))
        with watch.failing():
            await factory.for_ai_app(url, fail_on_connection_error=True)
        with watch.failing():
            await factory.create_cache_from_config({"redis_url": url, "default_ttl": -1})
        cache = aimemo.configure(url, strict=True)
        with watch.failing():
            await cache.delete("k")
        for words in (["status"], ["doctor"], ["entries"], ["invalidate", "--tag", "t"]):
            done = await asyncio.to_thread(CliRunner().invoke, commands, [*words, "--url", url])
            assert done.exit_code == 1
            watch.add("commands", done.output)
        await cache.close()
    assert len(watch.seen["log"]) > 1
    assert watch.leaks() == set()


# Where what was sent does come back


@pytest.mark.redis
@pytest.mark.integration
@pytest.mark.parametrize(
    ("line", "told"), [("maxmemory 1", "OutOfMemoryError"), ('rename-command SET ""', "ResponseError")]
)
def test_what_a_server_refuses_is_told_without_the_values(
    line: str, told: str, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    watch = Watch(caplog)
    (tmp_path / "server.conf").write_text(line)
    with Server(include=tmp_path / "server.conf") as server, watch():
        client = redis.Redis(HOST, server.port)
        service, answer = CacheService(client), watch.secret("answer")
        for refused in (lambda: service.set("key", answer), lambda: service.set_many({"key": answer})):
            with watch.failing():
                refused()
        client.close()
    assert all(told in str(error) for error in watch.errors)
    assert watch.leaks() == set()


@pytest.mark.redis
@pytest.mark.integration
def test_the_code_of_what_a_server_refuses_is_told() -> None:
    client = client_of("sync")
    client.rpush("test_security list", "x")
    service = CacheService(client)
    for refused in (lambda: service.get("test_security list"), lambda: service.get_many(["test_security list"])):
        with pytest.raises(AimemoError, match=r"GET: ResponseError \(WRONGTYPE\)$"):
            refused()
    client.delete("test_security list")
    client.close()
