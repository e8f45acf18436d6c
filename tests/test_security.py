"""What somebody who can write to the store, or reach the API, cannot do. `docs/security.md` says who that is.

What other tests show already is named there and not shown again here.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import http.server
import inspect
import json
import os
import pickle
import re
import sqlite3
import stat
import sys
import threading
import urllib.parse
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import httpx
import msgpack
import pytest
from typer.testing import CliRunner

from aimemo import Cache, IdempotencyService, InMemoryCache, RateLimiter, RedisLock, SQLiteCache, cached_ai_call
from aimemo.caches.redis import GenericRedisCache
from aimemo.coordination.json_text import from_json, to_json
from aimemo.core.keys import escape
from aimemo.errors import AimemoError
from aimemo.link.borrowed import tagged
from aimemo.link.layout import Layout
from aimemo.management import problems
from aimemo.management.api import PREFIX, create_app
from aimemo.management.cli import app as commands
from aimemo.setup import config
from tests.kit.clients import client_of
from tests.kit.redis_caches import shared
from tests.kit.servers import ClusterOfThree
from tests.test_envelope import ext, forged, zstd_bomb
from tests.test_keys import COLLISION
from tests.test_redis_bytes import MIB, NESTED, array_of, peak_growth, zstd

DOCUMENT = Path(__file__).parent.parent / "docs" / "security.md"
NONE = object()
STORED = pytest.mark.parametrize("cache", ["sqlite", "redis", "redis behind L1", "cluster"], indirect=True)
KEYS = ("the key",)
KEY = {"X-API-Key": KEYS[0]}


@pytest.fixture(autouse=True)
def _quick_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(problems, "FAILURE_SECONDS", 0.001)


@contextlib.asynccontextmanager
async def api(cache: Cache, keys: Sequence[str] = KEYS, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(cache, api_keys=keys, **options))
    async with httpx.AsyncClient(transport=transport, base_url=f"http://t{PREFIX}") as made:
        yield made


def test_every_promise_in_the_document_names_a_test_that_is_there() -> None:
    named = re.findall(r"`(test_\w+)::(test_\w+)`", DOCUMENT.read_text())
    assert len(named) > 30
    for file, name in named:
        assert re.search(rf"def {name}\(", (Path(__file__).parent / f"{file}.py").read_text()), (file, name)


# Somebody who can write to the store


def nodes_of(cache: GenericRedisCache) -> list[Any]:
    servers = shared("cluster" if cache._target.kind == "cluster" else "server")
    return servers.nodes if isinstance(servers, ClusterOfThree) else [servers]


def replace(cache: Cache, key: str, change: Callable[[bytes], bytes]) -> None:
    """Write other bytes where a key's entry is, as an enemy would; nothing remembers the old ones."""
    if isinstance(cache, GenericRedisCache):
        name = Layout(cache.namespace).place(key).name
        for node in nodes_of(cache):
            with contextlib.suppress(Exception):  # a node that does not hold it
                node.client.set(name, change(node.client.get(name)))
        if cache.l1_cache is not None:
            cache.l1_cache.blocking.clear()
        return
    assert isinstance(cache, SQLiteCache)
    with contextlib.closing(sqlite3.connect(cache.path)) as connection, connection:
        [[blob]] = connection.execute("SELECT envelope FROM aimemo_entries WHERE key = ?", (key,))
        connection.execute("UPDATE aimemo_entries SET envelope = ? WHERE key = ?", (change(blob), key))


def read_replaced(cache: Cache, payload: bytes, **head: Any) -> Any:
    """What is read after an entry's payload was replaced, its checksum and fingerprint being right."""
    cache.blocking.set("key", "value")
    assert cache.blocking.get("key") == "value"
    replace(cache, "key", lambda blob: forged(blob, payload, **head))
    return cache.blocking.get("key", NONE)


class _Touch:
    """Pickled, a command that makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.path}'",)


@STORED
def test_a_planted_pickle_touches_no_file(cache: Cache, tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    planted = pickle.dumps(_Touch(touched))
    assert read_replaced(cache, planted) is NONE
    replace(cache, "key", lambda _: planted)
    assert cache.blocking.get("key", NONE) is NONE
    assert not touched.exists()
    pickle.loads(planted)
    assert touched.exists(), "it would have, had it been unpickled"


@STORED
@pytest.mark.parametrize("code", [20, 21, 22, 23], ids=["enum", "dataclass", "namedtuple", "pydantic"])
def test_a_stored_class_name_imports_nothing_even_under_a_trusted_prefix(
    cache: Cache, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "together").mkdir()
    (tmp_path / "together" / "__init__.py").write_text("class Planted: ...")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "together", raising=False)
    before = set(sys.modules)
    for name in ("together:Planted", "together.sub:Planted", "antigravity:x", "os:system"):
        assert read_replaced(cache, ext(code, [name, 0, [], None])) is NONE
    assert "together" in cache.trusted_modules
    assert not {name for name in set(sys.modules) - before if name.startswith(("together", "antigravity"))}


_ARRAYS = [array_of(b"\x80"), NESTED]
BOMBS = {
    "zstd": lambda: (zstd_bomb(256 * MIB, 256 * MIB), 256 * MIB),
    "zstd that claims little": lambda: (zstd_bomb(1000, 256 * MIB), 1000),
    "zstd that claims nothing": lambda: (zstd_bomb(None, 256 * MIB), 8 * MIB),
    "msgpack of maps": lambda: (zstd(_ARRAYS[0]), len(_ARRAYS[0])),
    "msgpack of arrays": lambda: (zstd(_ARRAYS[1]), len(_ARRAYS[1])),
    "msgpack that is deep": lambda: (zstd(b"\x91" * MIB), MIB),
    "facts": lambda: (msgpack.packb("x"), 1),
}


@STORED
@pytest.mark.integration
@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_in_the_store_is_a_miss_and_costs_little_memory(cache: Cache, bomb: str) -> None:
    frame, raw_length = BOMBS[bomb]()
    facts = b"\xdd\xff\xff\xff\xff" if bomb == "facts" else b""
    flags = 0 if bomb == "facts" else 1
    found: list[Any] = []
    growth = peak_growth(
        lambda: found.append(read_replaced(cache, frame, flags=flags, raw_length=raw_length, facts=facts))
    )
    assert growth < 32 * MIB
    assert found[0] is NONE


def test_files_set_aside_and_files_made_anew_are_their_owners_only(
    make: Callable[..., SQLiteCache], path: Path
) -> None:
    before = os.umask(0)
    try:
        first = make().blocking
        first.set("k", 1)
        first.close()
        path.write_bytes(b"this is no database, " * 1000)
        cache = make().blocking
        for _ in range(2):
            cache.set("k", 1)
        assert cache.get("k") == 1
    finally:
        os.umask(before)
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    assert any(".corrupt-" in name for name in modes)
    assert set(modes.values()) == {0o600}, modes


# Texts that collide, names that are code


async def test_texts_that_collide_in_xxh3_are_two_entries_for_the_api_too(cache: Cache) -> None:
    ask = cached_ai_call(operation="ask", cache=cache)(lambda text: text)
    a, b = COLLISION["a"], COLLISION["b"]
    assert ask.key_for(a).rpartition("|")[0] == ask.key_for(b).rpartition("|")[0]
    for _ in range(2):
        assert (ask(a), ask(b)) == (a, b)
        if getattr(cache, "l1_cache", None) is not None:
            cache.l1_cache.blocking.clear()
    async with api(cache) as client:
        found = {entry["digest"] for entry in (await client.get("/entries", headers=KEY)).json()["entries"]}
        assert found == {ask.key_for(a)[-32:], ask.key_for(b)[-32:]}
        assert (await client.delete(f"/entries/{ask.key_for(a)[-32:]}", headers=KEY)).json() == {"deleted": True}
    assert ask.peek(b) == b
    assert ask.stats().misses == 2
    assert ask.peek(a) != a


NASTY = [
    "'] ] ]] redis.call('FLUSHALL') --", 'x"}); redis.call("FLUSHALL"); ({"', "a\r\n*1\r\n$8\r\nFLUSHALL\r\n",
    "{other}", "}{", "{", "}", "%s%d%", "${KEYS[1]}", "*", "?[a-z]\\", "'; DROP TABLE aimemo_entries; --", "a\0b",
    "\u2028\ud7ff",
]  # fmt: skip


def test_keys_are_never_code_nor_patterns(cache: Cache) -> None:
    blocking = cache.blocking
    blocking.set("bystander", 0)
    for number, key in enumerate(NASTY, 1):
        blocking.set(key, number)
    assert blocking.get_many(NASTY) == {key: number for number, key in enumerate(NASTY, 1)}
    for number, key in enumerate(NASTY, 1):
        assert blocking.get(key) == number
        assert blocking.get_or_compute(key, lambda: "computed") == number
        assert blocking.delete(key) is True
        assert blocking.get(key, NONE) is NONE
    assert blocking.get("bystander") == 0


def test_tags_operations_and_scopes_are_never_code_nor_patterns(cache: Cache) -> None:
    names = [name for name in NASTY if name.isprintable()]
    assert len(names) > 8
    functions = [
        cached_ai_call(operation=name, cache=cache, tags=(name,), scope=name)(lambda text, name=name: name)
        for name in names
    ]
    for name, function in zip(names, functions, strict=True):
        assert function("q") == name
    for at, name in enumerate(names):
        invalidated = cache.blocking.invalidate_tag(name) if at % 2 else cache.blocking.invalidate_operation(name)
        assert invalidated == 1, name
        assert [each.peek("q") for each in functions[at + 1 :]] == names[at + 1 :]


@pytest.mark.redis
@pytest.mark.integration
@pytest.mark.parametrize("name", NASTY)
def test_names_of_services_are_never_code(name: str) -> None:
    client = client_of("sync")
    client.set("test_security bystander", "here")
    lock, limiter, requests = RedisLock(client, name), RateLimiter(client, 1, 60), IdempotencyService(client, ttl=60)
    assert lock.acquire()
    assert not RedisLock(client, name).acquire()
    assert lock.release()
    assert [limiter.is_allowed(f"{name} test_security") for _ in range(2)] == [True, False]
    assert [requests.run(f"{name} test_security", name, lambda: [name]) for _ in range(2)] == [[name], [name]]
    assert client.get("test_security bystander") == b"here"
    client.delete(*(key for kind in ("limit", "request") for key in client.scan_iter(f"aimemo:{kind}:*test_security*")))
    client.close()


# Somebody who can reach the API


REFUSED = [
    ("?api_key=the+key&pattern=*", {}), ("?X-API-Key=the+key&pattern=*", {}), ("?key=the+key&pattern=*", {}),
    ("?pattern=*", {"X-API-Key": ""}), ("?pattern=*", {"Authorization": "Bearer "}),
    ("?pattern=*", {"X-API-Key": "the ke"}), ("?pattern=*", {"X-API-Key": "the keyy"}),
    ("?pattern=*", {"X-API-Key": "THE KEY"}), ("?pattern=*", {"Cookie": "X-API-Key=the key"}),
    ("?pattern=*", {"Authorization": "Basic the key"}), ("?pattern=*", {"X-API-Key": "the\u2028key".encode()}),
]  # fmt: skip


@pytest.mark.parametrize(("query", "headers"), REFUSED)
async def test_a_key_counts_only_whole_and_in_its_header(query: str, headers: dict[str, Any]) -> None:
    cache = InMemoryCache()
    await cache.set("k", 1)
    async with api(cache) as client:
        answer = await client.post(f"/invalidate{query}", headers=headers)
        assert answer.status_code == 401
        assert "the key" not in answer.text
        assert (await client.post("/invalidate?pattern=none", headers=KEY)).status_code == 200
    assert await cache.get("k") == 1


@pytest.mark.parametrize("keys", [[], [""], ["", ""]])
async def test_without_a_key_that_says_something_nothing_steers(keys: list[str]) -> None:
    async with api(InMemoryCache(), keys) as client:
        for headers in ({}, {"X-API-Key": ""}, {"Authorization": "Bearer "}):
            assert (await client.post("/invalidate?pattern=*", headers=headers)).status_code == 404
            assert (await client.get("/entries", headers=headers)).status_code == 404
        paths = (await client.get("http://t/openapi.json")).json()["paths"]
    assert f"{PREFIX}/status" in paths
    assert not {path for path in paths if "entries" in path or path.endswith("/invalidate")}


def test_keys_are_compared_in_constant_time_and_all_of_them() -> None:
    source = inspect.getsource(problems.Keys)
    assert "hmac.compare_digest(digest, known) for known in self._digests]" in source
    assert source.count("self._digests") == 3, "made, asked whether there are any, compared"


@pytest.mark.parametrize("method", ["OPTIONS", "GET", "POST"])
async def test_no_answer_lets_another_origin_read_it(method: str) -> None:
    asked = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    async with api(InMemoryCache()) as client:
        for path in ("/invalidate?pattern=*", "/stats", "/entries", "/", "/page/page.js", "/metrics/prometheus"):
            answer = await client.request(method, path, headers=KEY | asked)
            assert answer.status_code in (403, 405), path
            assert not [name for name in answer.headers if name.startswith("access-control-")]


OUTSIDE = [
    "../api.py", "..%2fapi.py", "%2e%2e/api.py", "%2e%2e%2fapi.py", "..\\api.py", "/etc/passwd", "%2fetc%2fpasswd",
    "page.js/../../api.py", "page.js%00.py", "./page.js", "....//api.py", "INDEX.html", "",
]  # fmt: skip


async def ask_raw(path: str) -> tuple[int, bytes]:
    """The status and body for a path that no client has tidied up."""
    scope = {
        "type": "http", "http_version": "1.1", "method": "GET", "scheme": "http", "server": ("t", 80), "root_path": "",
        "path": urllib.parse.unquote(path), "raw_path": path.encode(),
        "query_string": b"", "headers": [(b"host", b"t")], "client": ("c", 1),
    }  # fmt: skip
    told: list[Any] = []
    done = asyncio.Event()

    async def receive() -> Any:
        await done.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        told.append(message)

    await create_app(InMemoryCache())(scope, receive, send)
    return told[0]["status"], b"".join(message.get("body", b"") for message in told)


@pytest.mark.parametrize("name", OUTSIDE)
async def test_no_path_leads_out_of_the_page(name: str) -> None:
    status, body = await ask_raw(f"{PREFIX}/page/{name}")
    assert status == 404
    assert b"create_router" not in body
    assert b"root:" not in body
    assert (await ask_raw(f"{PREFIX}/page/page.js"))[0] == 200


GLOBS = {
    "*a" * 255 + "b": 0, "*a?" * 170: 10, "*[a-b]" * 85 + "c": 0, "?" * 512: 0, "[" * 512: 0, "\\" * 511: 0,
    "*" * 512: 20,
}  # fmt: skip
"""Globs, and how many of the keys of the test they match."""


@pytest.mark.parametrize("pattern", GLOBS, ids=lambda pattern: f"{pattern[:6]}…")
async def test_no_glob_that_the_api_takes_holds_the_process_up(pattern: str) -> None:
    cache = InMemoryCache()
    await cache.set_many({"a" * 10_000 + str(number): number for number in range(20)})
    async with api(cache) as client, asyncio.timeout(10):
        answer = await client.post("/invalidate", params={"pattern": pattern}, headers=KEY)
    assert answer.status_code == 200
    assert answer.json()["keys_invalidated"] == GLOBS[pattern]


# Somebody who can write names into the store, and an operator at a terminal


@pytest.fixture
def run(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    monkeypatch.setattr(config, "_default", None)
    monkeypatch.setenv("COLUMNS", "300")
    yield functools.partial(_run, f"sqlite:///{path}")


def _run(url: str, *words: str) -> Any:
    done = CliRunner().invoke(commands, [*words, "--url", url])
    assert done.exit_code == 0, repr(done.exception)
    return done.output


def name_operation(path: Path, operation: str) -> None:
    cache = SQLiteCache(path, deadline=5).blocking
    cache.set(f"op:{escape(operation)}|txt:|{'0' * 32}", 1)
    cache.close()


@pytest.mark.parametrize("operation", ["[/x]", "[bold]x", "[link=http://evil.example]x[/link]", ":cat:"])
def test_the_name_of_an_operation_is_no_markup(path: Path, run: Callable[..., Any], operation: str) -> None:
    name_operation(path, operation)
    assert f" {operation} " in run("entries")


def test_the_name_of_an_operation_steers_no_terminal(path: Path, run: Callable[..., Any]) -> None:
    name_operation(path, "\x1b]0;owned\x9c")
    assert json.loads(run("entries", "--json"))[0]["operation"] == "\x1b]0;owned\x9c"
    shown = run("entries")
    assert r"\x1b]0;owned\x9c" in shown
    assert shown.replace("\n", "").isprintable()


def test_an_export_is_its_owners_only_whatever_was_there(path: Path, run: Callable[..., Any], tmp_path: Path) -> None:
    name_operation(path, "qa")
    left_over = tmp_path / "export.jsonl.partial"
    left_over.touch()
    left_over.chmod(0o666)
    run("export", str(tmp_path / "export.jsonl"))
    assert stat.S_IMODE((tmp_path / "export.jsonl").stat().st_mode) == 0o600


def test_an_export_follows_no_link(path: Path, run: Callable[..., Any], tmp_path: Path) -> None:
    name_operation(path, "qa")
    (tmp_path / "other").write_text("of somebody else")
    for name in ("export.jsonl", "export.jsonl.partial"):
        (tmp_path / name).symlink_to("other")
    run("export", str(tmp_path / "export.jsonl"))
    assert (tmp_path / "other").read_text() == "of somebody else"
    assert not (tmp_path / "export.jsonl").is_symlink()


class _Redirects(http.server.BaseHTTPRequestHandler):
    """Sends everybody on to another host, and notes who came with what key."""

    keys: ClassVar[list[tuple[str, str]]] = []

    def do_GET(self) -> None:
        self.keys.append((self.path, self.headers["X-API-Key"]))
        self.send_response(302)
        self.send_header("Location", f"http://localhost:{self.server.server_address[1]}/elsewhere")
        self.end_headers()

    def log_message(self, *_: Any) -> None: ...


def test_the_key_of_the_api_follows_no_redirection() -> None:
    _Redirects.keys.clear()
    with http.server.HTTPServer(("127.0.0.1", 0), _Redirects) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        done = CliRunner().invoke(commands, ["stats", f"http://127.0.0.1:{server.server_port}", "--key", "the key"])
        server.shutdown()
        thread.join()
    assert _Redirects.keys == [("/stats", "the key")]
    assert done.exit_code == 1
    assert "302" in done.output


# Somebody who reads what an error holds


@pytest.mark.parametrize(
    "fault",
    [
        lambda text: tagged("lock", text), lambda text: to_json({"prompt": text}), lambda text: from_json(f"{{{text}"),
        lambda text: from_json(text.encode("utf-8", "surrogatepass")),
    ],
    ids=["tagged", "to_json", "from_json", "from_json of bytes"],
)  # fmt: skip
def test_an_error_about_a_text_does_not_hold_it(fault: Callable[[str], Any]) -> None:
    with pytest.raises(AimemoError) as raised:
        fault("secret \ud800")
    assert raised.value.__context__ is None
    assert "secret" not in repr((raised.value, vars(raised.value)))
