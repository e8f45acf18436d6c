"""Which servers a URL, settings or a client mean, and that none of them ever shows what is secret."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import redis
import redis.asyncio
import redis.asyncio.cluster
import redis.asyncio.sentinel
import redis.cluster
import redis.sentinel

from aimemo import (
    AIResponseCache,
    ConfigurationError,
    GenericRedisCache,
    InfrastructureError,
    ValidationError,
    cache_from_url,
    cached_ai_call,
)
from aimemo.link.client import target_of
from aimemo.link.urls import parse
from tests.kit.leaks import is_the_tests_own
from tests.kit.redis_caches import shared
from tests.kit.servers import HOST, ClusterOfThree, Server, free_port, wait_until

PASSWORD = "hunter2: p@ss/w?o#r%d+ä"
QUOTED = quote(PASSWORD, safe="")

# What a URL means

FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "server": ("redis://h", {"addresses": (("h", 6379),)}),
    "slash": ("redis://h/", {"addresses": (("h", 6379),)}),
    "port": ("redis://h:7000", {"addresses": (("h", 7000),)}),
    "database": ("redis://h/3", {"options": {"db": 3}}),
    "database as an option": ("redis://h?db=3", {"options": {"db": 3}}),
    "password": (f"redis://:{QUOTED}@h", {"options": {"db": 0, "password": PASSWORD}}),
    "user": ("redis://al%40ice@h", {"options": {"db": 0, "username": "al@ice"}}),
    "user and password": (
        f"redis://alice:{QUOTED}@h:1/2",
        {"addresses": (("h", 1),), "options": {"db": 2, "username": "alice", "password": PASSWORD}},
    ),
    "options": (
        f"redis://h?username=alice&password={QUOTED}&client_name=me",
        {"options": {"db": 0, "username": "alice", "password": PASSWORD, "client_name": "me"}},
    ),
    "IPv4": ("redis://127.0.0.1:7000/1", {"addresses": (("127.0.0.1", 7000),), "options": {"db": 1}}),
    "IPv6": ("redis://[::1]:7000/1", {"addresses": (("::1", 7000),), "options": {"db": 1}}),
    "IPv6 without a port": ("redis://u:p@[2001:db8::1]", {"addresses": (("2001:db8::1", 6379),)}),
    "TLS": ("rediss://h:1", {"addresses": (("h", 1),), "is_encrypted": True, "options": {"db": 0}}),
    "TLS as an option": ("redis://h?ssl=True", {"is_encrypted": True, "options": {"db": 0}}),
    "no TLS after all": ("rediss://h?ssl=0", {"is_encrypted": False, "options": {"db": 0}}),
    "certificates": (
        "rediss://h?ssl_ca_certs=%2Fca%20s.crt&ssl_certfile=/c.crt&ssl_keyfile=/c.key&ssl_password=x"
        "&ssl_check_hostname=no&ssl_cert_reqs=none",
        {
            "is_encrypted": True,
            "options": {
                "db": 0, "ssl_ca_certs": "/ca s.crt", "ssl_certfile": "/c.crt", "ssl_keyfile": "/c.key",
                "ssl_password": "x", "ssl_check_hostname": False, "ssl_cert_reqs": "none",
            },
        },
    ),
    "socket": ("unix:///run/my%20redis.sock", {"addresses": ("/run/my redis.sock",), "options": {"db": 0}}),
    "socket and all": (
        f"unix://alice:{QUOTED}@/r.sock?db=2",
        {"addresses": ("/r.sock",), "options": {"db": 2, "username": "alice", "password": PASSWORD}},
    ),
    "cluster": (
        f"redis+cluster://alice:{QUOTED}@a,b:7001,[::1]:7002",
        {
            "kind": "cluster", "addresses": (("a", 6379), ("b", 7001), ("::1", 7002)),
            "options": {"db": 0, "username": "alice", "password": PASSWORD},
        },
    ),
    "cluster of IPv6": (
        "redis+cluster://[::1]:7001,[::2]",
        {"kind": "cluster", "addresses": (("::1", 7001), ("::2", 6379))},
    ),
    "cluster with TLS": ("redis+cluster://a,b/0?ssl=true", {"kind": "cluster", "is_encrypted": True}),
    "sentinels": (
        f"redis+sentinel://alice:{QUOTED}@s1,s2:7001/main/3?sentinel_username=watch&sentinel_password=w%26",
        {
            "kind": "sentinel", "addresses": (("s1", 26379), ("s2", 7001)), "service": "main",
            "options": {"db": 3, "username": "alice", "password": PASSWORD},
            "sentinel_options": {"username": "watch", "password": "w&"},
        },
    ),
    "sentinels without a database": ("redis+sentinel://s1/my%20main", {"service": "my main", "options": {"db": 0}}),
}  # fmt: skip


@pytest.mark.parametrize(("url", "meaning"), FORMS.values(), ids=FORMS)
def test_a_url_means_these_servers(url: str, meaning: Mapping[str, Any]) -> None:
    target = parse(url, {})
    assert {name: getattr(target, name) for name in meaning} == meaning


@pytest.mark.parametrize("url", [url for url, _ in FORMS.values()], ids=FORMS)
def test_every_form_makes_a_cache_that_has_not_connected_yet(url: str) -> None:
    assert type(cache_from_url(url, namespace="mine")) is GenericRedisCache
    assert AIResponseCache(url, namespace="mine").namespace == "mine"


SETTINGS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("redis://a:b@h/1", {"username": "c", "password": "d", "db": 0}, {"username": "c", "password": "d", "db": 0}),
    ("redis://h?username=a&password=b&db=1&client_name=c", {"db": 2, "client_name": "d"},
     {"username": "a", "password": "b", "db": 2, "client_name": "d"}),
    ("redis://a:b@h/1", {"username": None, "password": None, "db": None},
     {"username": "a", "password": "b", "db": 1}),
    ("rediss://h?ssl_ca_certs=a", {"ssl_ca_certs": "b"}, {"ssl_ca_certs": "b", "db": 0}),
]  # fmt: skip


@pytest.mark.parametrize(("url", "settings", "options"), SETTINGS)
def test_a_setting_comes_before_what_the_url_says(url: str, settings: dict[str, Any], options: dict[str, Any]) -> None:
    assert parse(url, settings).options == options


@pytest.mark.parametrize(("url", "is_encrypted"), [("redis://h", True), ("rediss://h", False)])
def test_the_setting_ssl_decides_about_encryption(url: str, is_encrypted: bool) -> None:
    assert parse(url, {"ssl": is_encrypted}).is_encrypted is is_encrypted


def test_settings_for_sentinels_are_not_for_the_server() -> None:
    settings = {"sentinel_password": "w", "password": "p", "ssl": True, "ssl_ca_certs": "ca"}
    target = parse("redis+sentinel://s/main", settings)
    assert target.options == {"db": 0, "password": "p", "ssl_ca_certs": "ca"}
    assert target.sentinel_options == {"password": "w", "ssl_ca_certs": "ca"}


# What is refused

PREFIXES = "redis_url must start with 'redis://', 'rediss://', 'unix://', 'redis+cluster://' or 'redis+sentinel://'"
NO_HOST = "redis_url must include host information"
TEXTS: list[tuple[Any, str]] = [
    (7, "redis_url must be a string"), (None, "redis_url must be a string"),
    (b"redis://h", "redis_url must be a string"), (Path("redis://h"), "redis_url must be a string"),
    ("", "redis_url cannot be empty"), (" \t\n", "redis_url cannot be empty"),
    ("http://h", PREFIXES), ("h:6379", PREFIXES), ("redis:h", PREFIXES), ("redis+unix://h", PREFIXES),
    ("REDIS//h", PREFIXES), ("memory://", PREFIXES),
    ("redis://", NO_HOST), ("redis:///0", NO_HOST), ("redis://:6379/0", NO_HOST), ("redis://user:hunter2@", NO_HOST),
    ("redis://hunter2@/0", NO_HOST), ("redis://?db=1", NO_HOST), ("rediss://", NO_HOST),
    ("redis+cluster://,", NO_HOST), ("redis+sentinel:///main", NO_HOST),
]  # fmt: skip


@pytest.mark.parametrize(("url", "text"), TEXTS)
@pytest.mark.parametrize("make", [GenericRedisCache, AIResponseCache])
def test_a_faulty_url_is_refused_in_the_words_of_the_contract(make: Any, url: Any, text: str) -> None:
    with pytest.raises(ValidationError) as raised:
        make(url)
    assert raised.value.message == str(raised.value) == text


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(ValidationError) as raised:
        GenericRedisCache("", -1, l1_cache_size=0, compression_level=10, max_connections=0, connect_timeout=0)
    assert set(raised.value.context) == {
        "redis_url", "default_ttl", "l1_cache_size", "compression_level", "max_connections", "connect_timeout",
    }  # fmt: skip
    for text in raised.value.context.values():
        assert text in raised.value.message


REFUSED: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "port too high": ("redis://h:65536", {}, ("redis_url", "host:port", "65535")),
    "port 0": ("redis://h:0", {}, ("redis_url", "65535")),
    "port in words": ("redis://h:six", {}, ("redis_url", "65535")),
    "one of several ports": ("redis+cluster://a:1,b:0", {}, ("redis_url", "65535")),
    "open bracket": ("redis://[::1", {}, ("redis_url",)),
    "bracket in a password": ("redis://:a[b@h", {}, ("redis_url",)),
    "character that stands for a slash": ("redis://:a\u2100b@h", {}, ("redis_url",)),
    "fragment": ("redis://h/1#2", {}, ("redis_url", "#")),
    "two servers that are no cluster": ("redis://a,b", {}, ("redis_url", "redis+cluster://")),
    "database in words": ("redis://h/first", {}, ("redis_url", "number of a database")),
    "path too long": ("redis://h/1/2", {}, ("redis_url", "number of a database")),
    "database below 0": ("redis://h?db=-1", {}, ("db", "non-negative integer")),
    "database option in words": ("redis://h?db=x", {}, ("db", "redis_url", "non-negative integer")),
    "database of a cluster": ("redis+cluster://h/1", {}, ("redis_url", "cluster")),
    "database option of a cluster": ("redis+cluster://h?db=1", {}, ("cluster",)),
    "no service": ("redis+sentinel://s", {}, ("redis_url", "redis+sentinel://host:port/service/db")),
    "no service but a slash": ("redis+sentinel://s/", {}, ("redis_url", "redis+sentinel://host:port/service/db")),
    "database of sentinels": ("redis+sentinel://s/main/x", {}, ("redis_url", "number of a database")),
    "no socket": ("unix://", {}, ("redis_url", "unix:///path/of/the/socket")),
    "relative socket": ("unix://redis.sock", {}, ("redis_url", "unix:///path/of/the/socket")),
    "unknown option": ("redis://h?timeout=1", {}, ("redis_url", "option", "client_name")),
    "faulty option": ("redis://h?ssl=perhaps", {}, ("ssl", "redis_url", "true or false")),
    "unknown way to verify": ("rediss://h?ssl_cert_reqs=sometimes", {}, ("ssl_cert_reqs", "none")),
    "certificates without TLS": ("redis://h?ssl_ca_certs=ca.crt", {}, ("ssl_ca_certs", "rediss://")),
    "certificates of a socket": ("unix:///r.sock", {"ssl_ca_certs": "ca.crt"}, ("ssl_ca_certs",)),
    "TLS over a socket": ("unix:///r.sock?ssl=true", {}, ("ssl",)),
    "sentinels that are not there": ("redis://h?sentinel_password=x", {}, ("sentinel_password",)),
    "password": ("redis://h", {"password": 7}, ("password", "a string")),
    "user": ("redis://h", {"username": b"a"}, ("username", "a string")),
    "database": ("redis://h", {"db": "1"}, ("db", "a non-negative integer")),
    "database True": ("redis://h", {"db": True}, ("db", "a non-negative integer")),
    "negative database": ("redis://h", {"db": -1}, ("db", "a non-negative integer")),
    "ssl": ("redis://h", {"ssl": 1}, ("ssl", "true or false")),
    "file": ("rediss://h", {"ssl_ca_certs": 7}, ("ssl_ca_certs", "a string")),
}  # fmt: skip


@pytest.mark.parametrize(("url", "settings", "words"), REFUSED.values(), ids=REFUSED)
def test_what_names_no_servers_is_refused_with_its_name_and_the_remedy(
    url: str, settings: dict[str, Any], words: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigurationError) as raised:
        GenericRedisCache(url, **settings)
    assert [word for word in words if word not in str(raised.value)] == []


@pytest.mark.parametrize(
    ("url", "settings", "name"),
    [("redis://h:0", {}, "redis_url"), ("redis://h?db=x", {}, "redis_url"), ("redis://h", {"db": -1}, "db"),
     ("redis://h", {"client": object()}, "client")],
)  # fmt: skip
def test_the_context_of_a_refusal_has_the_parameter(url: str, settings: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        GenericRedisCache(url, **settings)
    assert name in raised.value.context


def test_settings_that_no_cache_has_are_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match="no_such_setting"):
        cache_from_url("redis://h", no_such_setting=1)


@pytest.mark.parametrize("client", [object(), "redis://h", redis.ConnectionPool(), redis, 7])
def test_a_client_that_is_none_is_refused(client: Any) -> None:
    with pytest.raises(ConfigurationError, match="client must be"):
        GenericRedisCache(client=client)


@pytest.mark.parametrize("setting", [{"db": 5}, {"password": "hunter2"}, {"db": -1}], ids=str)
def test_settings_of_the_connection_beside_a_client_are_not_dropped_in_silence(setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(setting))) as raised:
        GenericRedisCache(client=redis.Redis("h", db=3, password="other"), **setting)
    assert "hunter2" not in str(raised.value)


# What is secret

LEAKY = [
    "redis://:hunter2[@h", "redis://[:hunter2@h", "redis://:hunter2\u2100@h", "redis://:x/hunter2@h",
    "redis://:x?hunter2@h", "redis://:x#hunter2@h", "redis://u:123#hunter2@h", "redis://:hunter2@",
    "redis://:hunter2@:6379", "redis://:hunter2@h:port", "redis://:hunter2@h:0", "redis://u:hunter2",
    "redis://h/hunter2", "redis://h?hunter2", "redis://h?hunter2=1", "redis://h?pass=hunter2", "redis://h?db=hunter2",
    "redis://h?ssl=hunter2", "rediss://h?ssl_cert_reqs=hunter2", "redis:/:hunter2@h", "redis//:hunter2@h",
    "http://:hunter2@h", "hunter2", "//:hunter2@h://", "redis+sentinel://:hunter2@h", "redis+sentinel://h/main/hunter2",
    "redis+cluster://:hunter2@h/1", "redis+cluster://:hunter2@a,b:0", "unix://:hunter2@", "unix://:hunter2@h/x",
    "redis://:hunter2@h?timeout=1",
]  # fmt: skip


@pytest.mark.parametrize("url", LEAKY)
@pytest.mark.parametrize("make", [GenericRedisCache, cache_from_url])
def test_no_refusal_shows_a_password(make: Any, url: str) -> None:
    with pytest.raises(ValidationError) as raised:
        make(url)
    assert "hunter2" not in shown(raised.value) + repr(raised.value.context)


def shown(error: BaseException) -> str:
    """All that a traceback tells of an error and of what led to it, but for lines of code."""
    told: Any = traceback.TracebackException.from_exception(error, lookup_lines=False)
    texts = [repr(error)]
    while told is not None:
        texts += told.format_exception_only()
        told = told.__cause__ or (None if told.__suppress_context__ else told.__context__)
    return "".join(texts)


SECRETIVE = [
    f"redis://alice:{QUOTED}@h/1", f"rediss://h?password={QUOTED}&ssl_password={QUOTED}",
    f"unix://:{QUOTED}@/r.sock", f"redis+cluster://:{QUOTED}@a,b",
    f"redis+sentinel://:{QUOTED}@s1,s2/main/1?sentinel_password={QUOTED}",
]  # fmt: skip


@pytest.mark.parametrize("url", SECRETIVE)
def test_no_repr_shows_credentials(url: str) -> None:
    cache = cache_from_url(url, password=PASSWORD)
    target = parse(url, {"password": PASSWORD})
    shown = [repr(cache), str(cache), repr(cache.blocking), str(target), repr(target), repr(cache.stats())]
    assert [text for text in shown if "hunter2" in text or "alice" in text] == []


@pytest.mark.parametrize(
    ("url", "place"),
    [("redis://u:p@h:1/2", "h:1"), ("unix://:p@/r.sock", "/r.sock"), ("redis+cluster://:p@a,b:2", "a:6379,b:2"),
     ("redis+sentinel://:p@s:1/main", "s:1 main"), ("redis://:p@[::1]:7", "[::1]:7")],
)  # fmt: skip
def test_the_repr_says_where_the_servers_are(url: str, place: str) -> None:
    assert place in repr(cache_from_url(url))


async def exercise(cache: GenericRedisCache) -> None:
    """Ask a cache in both worlds; what one keeps the other finds."""
    await asyncio.to_thread(cache.blocking.set, "from a thread", [1])
    await cache.set("from a task", [2])
    assert await cache.get("from a thread") == [1]
    assert await asyncio.to_thread(cache.blocking.get, "from a task") == [2]


async def close(cache: GenericRedisCache) -> None:
    await cache.close()
    await asyncio.to_thread(cache.blocking.close)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server that asks everyone for a password, and knows alice."""
    with Server(bind=f"{HOST} ::1", unixsocket="redis.sock") as started:
        started.ask("ACL", "SETUSER", "alice", "on", f">{PASSWORD}", "~*", "&*", "+@all")
        started.ask("CONFIG", "SET", "requirepass", PASSWORD)
        started.client.close()
        started.client = is_the_tests_own(redis.Redis(HOST, started.port, password=PASSWORD))
        yield started


def others(server: Server) -> list[dict[str, str]]:
    """The connections of others than the test itself."""
    own = str(server.client.client_id())
    return [connection for connection in server.client.client_list() if connection["id"] != own]


def cut_others(server: Server) -> None:
    def is_alone() -> bool:
        server.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        server.ask("CLIENT", "KILL", "TYPE", "pubsub")
        return not others(server)  # a sentinel comes back

    wait_until(is_alone, "nobody else is connected")


def entries(server: Server, db: int) -> int:
    with redis.Redis(HOST, server.port, db=db, password=PASSWORD) as client:
        return len(client.keys("{aimemo:*}e:*"))


URLS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "password": (f"redis://:{QUOTED}@127.0.0.1:PORT/1", "default", {}),
    "user": (f"redis://alice:{QUOTED}@127.0.0.1:PORT/2", "alice", {}),
    "option": (f"redis://127.0.0.1:PORT?db=3&username=alice&password={QUOTED}", "alice", {}),
    "name": (f"redis://localhost:PORT/4?username=alice&password={QUOTED}", "alice", {}),
    "IPv6": (f"redis://alice:{QUOTED}@[::1]:PORT/5", "alice", {}),
    "socket": (f"unix://alice:{QUOTED}@SOCKET?db=6", "alice", {}),
    "settings": ("redis://bob:wrong@127.0.0.1:PORT/1", "alice", {"username": "alice", "password": PASSWORD, "db": 7}),
}


@pytest.mark.parametrize(("url", "user", "settings"), URLS.values(), ids=URLS)
async def test_what_a_url_says_is_used_in_both_worlds(
    server: Server, url: str, user: str, settings: dict[str, Any]
) -> None:
    cut_others(server)
    url = url.replace("PORT", str(server.port)).replace("SOCKET", str(server.folder / "redis.sock"))
    db = settings.get("db") or parse(url, {}).options["db"]
    cache = cache_from_url(url, client_name="me", strict=True, deadline=5, enable_l1_cache=False, **settings)
    await exercise(cache)
    wait_until(lambda: len(others(server)) == 3, "one connection of each world and a listener")
    used = {(connection["user"], connection["db"], connection["name"]) for connection in others(server)}
    assert used == {(user, str(db), "me")}
    assert entries(server, db) == 2
    assert await cache.clear() == 2
    await close(cache)


@pytest.mark.parametrize("make", [GenericRedisCache, AIResponseCache])
async def test_the_cache_for_answers_of_models_is_a_redis_cache(server: Server, make: Any) -> None:
    cache = make(f"redis://:{QUOTED}@{HOST}:{server.port}/9", strict=True, deadline=5)
    calls: list[str] = []

    @cached_ai_call(operation="qa", cache=cache)
    async def ask(text: str) -> list[str]:
        calls.append(text)
        return [text]

    @cached_ai_call(operation="threads", cache=cache)
    def ask_in_a_thread(text: str) -> list[str]:
        return [text]

    assert [await ask("q" * 3000), await ask("q" * 3000)] == [["q" * 3000]] * 2
    assert len(calls) == 1
    assert ask_in_a_thread("r") == ask_in_a_thread("r") == ["r"]
    await exercise(cache)
    assert (cache.l1_cache is not None, await cache.clear()) == (True, 4)
    await close(cache)


# Clients of the redis package

Made = Callable[[Server], Any]
SERVER_CLIENTS: dict[str, Made] = {
    "sync": lambda s: redis.Redis(HOST, s.port, db=3, username="alice", password=PASSWORD),
    "sync, decoding": lambda s: redis.Redis(
        HOST, s.port, db=3, username="alice", password=PASSWORD, decode_responses=True, protocol=3, max_connections=1
    ),
    "sync, from a URL": lambda s: redis.Redis.from_url(f"redis://alice:{QUOTED}@{HOST}:{s.port}/3"),
    "sync, credential provider": lambda s: redis.Redis(
        HOST, s.port, db=3, credential_provider=redis.UsernamePasswordCredentialProvider("alice", PASSWORD)
    ),
    "sync, socket": lambda s: redis.Redis(
        unix_socket_path=str(s.folder / "redis.sock"), db=3, username="alice", password=PASSWORD
    ),
    "async": lambda s: redis.asyncio.Redis(host=HOST, port=s.port, db=3, username="alice", password=PASSWORD),
    "async, from a URL": lambda s: redis.asyncio.Redis.from_url(
        f"redis://alice:{QUOTED}@{HOST}:{s.port}/3", decode_responses=True, single_connection_client=True
    ),
    "async, socket": lambda s: redis.asyncio.Redis(
        unix_socket_path=str(s.folder / "redis.sock"), db=3, username="alice", password=PASSWORD
    ),
}


async def settle(answer: Any) -> Any:
    return await answer if isinstance(answer, Awaitable) else answer


async def close_client(client: Any) -> None:
    await settle(client.aclose() if hasattr(client, "aclose") else client.close())


@pytest.mark.parametrize("make", SERVER_CLIENTS.values(), ids=SERVER_CLIENTS)
async def test_a_clients_server_is_used_and_the_client_stays_open(server: Server, make: Made) -> None:
    cut_others(server)
    client = make(server)
    identity = await settle(client.client_id())
    cache = GenericRedisCache(client=client, strict=True, deadline=5, enable_l1_cache=False)
    await exercise(cache)
    wait_until(lambda: len(others(server)) == 4, "the client, one connection of each world and a listener")
    assert {(connection["user"], connection["db"]) for connection in others(server)} == {("alice", "3")}
    assert entries(server, 3) == await cache.clear() == 2
    await close(cache)
    assert await settle(client.client_id()) == identity, "its connection was not touched"
    assert "hunter2" not in repr(cache)
    await close_client(client)


async def test_closing_a_cache_leaves_only_the_clients_connection(server: Server) -> None:
    cut_others(server)
    client = redis.Redis(HOST, server.port, password=PASSWORD)
    identity = client.client_id()
    cache = AIResponseCache(client=client, strict=True, deadline=5)
    await exercise(cache)
    await close(cache)
    wait_until(lambda: [each["id"] for each in others(server)] == [str(identity)], "only the client is connected")
    await cache.clear()
    await close(cache)
    client.close()


@pytest.fixture(scope="module")
def cluster() -> Iterator[ClusterOfThree]:
    """The cluster that all tests share, which knows alice for a while."""
    found = shared("cluster")
    assert isinstance(found, ClusterOfThree)
    for node in found.nodes:
        node.ask("ACL", "SETUSER", "alice", "on", f">{PASSWORD}", "~*", "&*", "+@all")
    yield found
    for node in found.nodes:
        node.ask("ACL", "DELUSER", "alice")


async def fill_cluster(cache: GenericRedisCache, cluster: ClusterOfThree) -> None:
    """Entries reach every node, as alice."""
    expected = {f"key {number}": [number] for number in range(60)}
    await cache.set_many(expected)
    await exercise(cache)
    assert await asyncio.to_thread(cache.blocking.get_many, list(expected)) == expected
    for node in cluster.nodes:
        assert node.client.keys(f"{{{cache.namespace}:*}}e:*"), "every node has a part"
        assert "alice" in {connection["user"] for connection in node.client.client_list()}
    assert await cache.clear() == 62
    await close(cache)


CLUSTER_URLS = {
    "one node": lambda c: f"redis+cluster://alice:{QUOTED}@{HOST}:{c.nodes[1].port}",
    "the first is not there": lambda c: (
        f"redis+cluster://alice:{QUOTED}@{HOST}:{free_port()},{HOST}:{c.nodes[2].port}/0"
    ),
}


@pytest.mark.parametrize("url", CLUSTER_URLS.values(), ids=CLUSTER_URLS)
async def test_a_cluster_is_found_from_any_of_its_nodes(cluster: ClusterOfThree, url: Any) -> None:
    await fill_cluster(cache_from_url(url(cluster), namespace="urls", strict=True, deadline=5), cluster)


CLUSTER_CLIENTS: dict[str, Callable[[int], Any]] = {
    "sync": lambda port: redis.cluster.RedisCluster(HOST, port, username="alice", password=PASSWORD),
    "sync, decoding": lambda port: redis.cluster.RedisCluster(
        startup_nodes=[redis.cluster.ClusterNode(HOST, port)], username="alice", password=PASSWORD,
        decode_responses=True,
    ),
    "sync, from a URL": lambda port: redis.cluster.RedisCluster.from_url(f"redis://alice:{QUOTED}@{HOST}:{port}"),
    "async": lambda port: redis.asyncio.cluster.RedisCluster(HOST, port, username="alice", password=PASSWORD),
    "async, decoding": lambda port: redis.asyncio.cluster.RedisCluster(
        startup_nodes=[redis.asyncio.cluster.ClusterNode(HOST, port)], username="alice", password=PASSWORD,
        decode_responses=True,
    ),
    "async, from a URL": lambda port: redis.asyncio.cluster.RedisCluster.from_url(
        f"redis://alice:{QUOTED}@{HOST}:{port}"
    ),
}  # fmt: skip


@pytest.mark.parametrize("is_used", [False, True], ids=["a new client", "a client in use"])
@pytest.mark.parametrize("make", CLUSTER_CLIENTS.values(), ids=CLUSTER_CLIENTS)
async def test_a_clients_cluster_is_used_and_the_client_stays_open(
    cluster: ClusterOfThree, make: Any, is_used: bool
) -> None:
    client = make(cluster.nodes[0].port)
    if is_used:
        await settle(client.set("urls", "1"))
    cache = GenericRedisCache(client=client, namespace="urls", strict=True, deadline=5)
    await fill_cluster(cache, cluster)
    assert "hunter2" not in repr(cache)
    await settle(client.set("urls", "2"))
    assert await settle(client.get("urls")) in ("2", b"2")
    await settle(client.delete("urls"))
    await close_client(client)


class Sentinel(Server):
    """A sentinel with a password of its own that knows a server under the name `main`."""

    PASSWORD = "watch hunter2"

    def __init__(self, master: Server) -> None:
        self._master = master
        super().__init__()

    def _command_line(self) -> list[str]:
        file = self.folder / "sentinel.conf"
        file.write_text(
            f'port {self.port}\nbind {HOST}\ndir {self.folder}\nrequirepass "{self.PASSWORD}"\n'
            f"sentinel monitor main {HOST} {self._master.port} 1\n"
            f'sentinel auth-user main alice\nsentinel auth-pass main "{PASSWORD}"\n'
        )
        return [str(file), "--sentinel"]


@pytest.fixture(scope="module")
def sentinel(server: Server) -> Iterator[Sentinel]:
    with Sentinel(server) as started:
        yield started


def as_alice(connections: list[dict[str, str]], db: str) -> int:
    return sum(each["user"] == "alice" and each["db"] == db for each in connections)


SENTINEL_URLS = {
    "one sentinel": "HERE/main/3",
    "the first is not there": "GONE,HERE/main/3",
    "a sentinel that knows it, and one that does not": "HERE/main?db=3",
}


@pytest.mark.parametrize("where", SENTINEL_URLS.values(), ids=SENTINEL_URLS)
async def test_a_server_is_found_from_its_sentinels(server: Server, sentinel: Sentinel, where: str) -> None:
    cut_others(server)
    where = where.replace("HERE", f"{HOST}:{sentinel.port}").replace("GONE", f"{HOST}:{free_port()}")
    url = f"redis+sentinel://alice:{QUOTED}@{where}"
    cache = cache_from_url(
        url, sentinel_password=sentinel.PASSWORD, strict=True, deadline=5, namespace="s", enable_l1_cache=False
    )
    await exercise(cache)
    wait_until(lambda: as_alice(others(server), "3") == 3, "both worlds and the listener are connected")
    assert "hunter2" not in repr(cache)
    assert await cache.clear() == 2
    await close(cache)


@pytest.mark.parametrize("name", ["other", "MAIN"])
async def test_a_service_that_no_sentinel_knows_is_an_error_without_secrets(sentinel: Sentinel, name: str) -> None:
    url = f"redis+sentinel://:{QUOTED}@{HOST}:{sentinel.port}/{name}?sentinel_password={quote(sentinel.PASSWORD)}"
    cache = cache_from_url(url, strict=True, deadline=5)
    for ask in (cache.get("k"), asyncio.to_thread(cache.blocking.get, "k")):
        with pytest.raises(InfrastructureError) as raised:
            await ask
        assert "hunter2" not in shown(raised.value)
    await close(cache)


def sync_sentinel(port: int) -> Any:
    watchers = redis.sentinel.Sentinel([(HOST, port)], sentinel_kwargs={"password": Sentinel.PASSWORD})
    return watchers, watchers.master_for("main", db=3, username="alice", password=PASSWORD)


def async_sentinel(port: int) -> Any:
    watchers = redis.asyncio.sentinel.Sentinel(
        [(HOST, port), (HOST, free_port())], sentinel_kwargs={"password": Sentinel.PASSWORD},
        username="alice", password=PASSWORD,
    )  # fmt: skip
    return watchers, watchers.master_for("main", db=3)


@pytest.mark.parametrize("make", [sync_sentinel, async_sentinel])
async def test_a_sentinel_clients_server_is_used_and_the_client_stays_open(
    server: Server, sentinel: Sentinel, make: Callable[[int], Any]
) -> None:
    cut_others(server)
    watchers, client = make(sentinel.port)
    identity = await settle(client.client_id())
    cache = GenericRedisCache(client=client, strict=True, deadline=5, enable_l1_cache=False)
    await exercise(cache)
    wait_until(lambda: as_alice(others(server), "3") == 4, "the client, both worlds and the listener")
    assert entries(server, 3) == await cache.clear() == 2
    await close(cache)
    assert await settle(client.client_id()) == identity
    assert "hunter2" not in repr(cache)
    for each in (client, *watchers.sentinels):
        await close_client(each)


ENCRYPTED: dict[str, tuple[Callable[[], Any], bool]] = {
    "sync": (lambda: redis.Redis("h", ssl=True), True),
    "sync, from a URL": (lambda: redis.Redis.from_url("rediss://h"), True),
    "async": (lambda: redis.asyncio.Redis(host="h", ssl=True), True),
    "async cluster": (lambda: redis.asyncio.cluster.RedisCluster("h", 1, ssl=True), True),
    "async cluster, from a URL": (lambda: redis.asyncio.cluster.RedisCluster.from_url("rediss://h:1"), True),
    "sync sentinel": (lambda: redis.sentinel.Sentinel([("h", 1)], ssl=True).master_for("main"), True),
    "sync, plain": (lambda: redis.Redis("h"), False),
    "async cluster, plain": (lambda: redis.asyncio.cluster.RedisCluster("h", 1), False),
}


@pytest.mark.parametrize(("make", "is_encrypted"), ENCRYPTED.values(), ids=ENCRYPTED)
async def test_where_a_client_encrypts_so_does_the_cache(make: Callable[[], Any], is_encrypted: bool) -> None:
    assert target_of(make()).is_encrypted is is_encrypted


def test_what_a_client_does_not_verify_the_cache_does_not_either() -> None:
    assert target_of(redis.Redis("h", ssl=True, ssl_cert_reqs="none")).options["ssl_cert_reqs"] == "none"
    assert "ssl_cert_reqs" in target_of(redis.Redis("h", ssl=True, ssl_cert_reqs=None)).options


# Logs


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    "url",
    ["redis://alice:hunter2@127.0.0.1:PORT", "redis://:hunter2@127.0.0.1:PORT", "redis+cluster://:hunter2@127.0.0.1:PORT",
     "redis://:hunter2@127.0.0.1:CLOSED", "redis+sentinel://:hunter2@127.0.0.1:PORT/main?sentinel_password=hunter2",
     "unix://:hunter2@/no/such.sock", "rediss://:hunter2@127.0.0.1:CLOSED"],
)  # fmt: skip
async def test_neither_logs_nor_errors_show_credentials(
    server: Server, caplog: pytest.LogCaptureFixture, url: str, strict: bool
) -> None:
    caplog.set_level(logging.DEBUG)
    url = url.replace("PORT", str(server.port)).replace("CLOSED", str(free_port()))
    cache = cache_from_url(url, strict=strict, deadline=0.5, connect_timeout=0.5)
    errors: list[BaseException] = []
    for _ in range(6):
        for ask in (cache.get("k"), asyncio.to_thread(cache.blocking.get_or_compute, "k", lambda: 1), cache.clear()):
            try:
                await ask
            except InfrastructureError as error:
                errors.append(error)
    assert await cache.connect() is await asyncio.to_thread(cache.blocking.ping) is False
    await close(cache)
    assert (len(errors) > 6) is strict, "only what was to be removed failed, unless strict"
    assert "hunter2" not in caplog.text
    assert "hunter2" not in "".join(map(shown, errors))
    assert {record.name for record in caplog.records if record.levelno > logging.INFO} == {"aimemo"}
