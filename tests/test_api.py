"""The management API over ASGI, on every backend."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

import aimemo
from aimemo import Cache, GenericRedisCache, InMemoryCache, ValidationError, cached_ai_call
from aimemo.management import problems
from aimemo.management.api import PREFIX, create_app
from aimemo.management.service import Operations
from aimemo.setup import config
from aimemo.setup.presets import PRESETS
from tests.kit.redis_caches import shared
from tests.kit.servers import Server

KEYS = ["first-key", "zweiter-schlüssel"]
KEY = {"X-API-Key": KEYS[0]}
STEERING = [
    ("POST", "/invalidate?pattern=*"), ("GET", "/entries"),
    ("GET", f"/entries/{'0' * 32}"), ("DELETE", f"/entries/{'0' * 32}"),
]  # fmt: skip
READING = ["/metrics", "/metrics/prometheus", "/status", "/stats", "/history", "/invalidation-stats"]


@pytest.fixture(autouse=True)
def _quick_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(problems, "FAILURE_SECONDS", 0.001)


@contextlib.asynccontextmanager
async def client_of(cache: Cache, keys: list[str] = KEYS, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(cache, api_keys=keys, **options)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url=f"http://t{PREFIX}") as made,
    ):
        yield made


@pytest.fixture
async def client(cache: Cache) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(cache) as made:
        yield made


async def test_metrics_are_exact(client: httpx.AsyncClient, cache: Cache) -> None:
    for number in range(10):
        await cache.set(f"key {number}", number)
    for number in (0, 1, 2, 3, 4, 20, 21, 22):
        await cache.get(f"key {number}")
    metrics = (await client.get("/metrics")).json()
    assert (metrics["cache_hits"], metrics["cache_misses"], metrics["total_cache_operations"]) == (5, 3, 18)
    assert metrics["cache_hit_rate"] == 0.625
    assert metrics["timestamp"]


async def test_an_invalidation_is_gone_for_readers_and_counted(client: httpx.AsyncClient, cache: Cache) -> None:
    await cache.set_many({f"test:invalidate:{number}": {"data": number} for number in range(3)} | {"other": 1})
    answer = await client.post("/invalidate", params={"pattern": "test:invalidate:*"}, headers=KEY)
    assert answer.status_code == 200
    assert answer.json()["keys_invalidated"] == 3
    assert "test:invalidate:*" in answer.json()["message"]
    assert await cache.get("test:invalidate:1") is None
    assert await cache.get("other") == 1
    stats = (await client.get("/invalidation-stats")).json()
    assert stats == {"total_invalidations": 1, "keys_invalidated": 3, "by_kind": {"glob": 1}}


async def test_an_invalidation_is_gone_for_the_readers_of_another_process() -> None:
    here, there = (GenericRedisCache(shared("server").url, namespace="api", deadline=5) for _ in range(2))
    async with client_of(here) as client, there:
        await here.set("key", 1)
        assert await there.get("key") == 1
        await client.post("/invalidate", params={"pattern": "key"}, headers=KEY)
        async with asyncio.timeout(5):
            while there.l1_cache.memoizer.tiers.store.entries():
                await asyncio.sleep(0.001)
        assert await there.get("key") is None


@pytest.mark.parametrize("by", ["operation", "tag"])
async def test_operations_and_tags_are_invalidated(client: httpx.AsyncClient, cache: Cache, by: str) -> None:
    @cached_ai_call(operation="qa", cache=cache, tags=("t",))
    async def ask(text: str) -> str:
        return text

    await ask("q")
    answer = await client.post("/invalidate", params={by: {"operation": "qa", "tag": "t"}[by]}, headers=KEY)
    assert answer.json()["keys_invalidated"] == 1


async def test_entries_are_listed_shown_and_deleted_without_prompts_or_values(
    client: httpx.AsyncClient, cache: Cache
) -> None:
    @cached_ai_call(operation="qa", cache=cache, text_hash_threshold=100)
    async def ask(text: str) -> str:
        return f"answer {text}"

    texts = [f"canary{number}" for number in range(25)]
    for text in texts:
        await ask(text)
    shown: list[dict[str, Any]] = []
    cursor: str | None = ""
    while cursor is not None:
        page = await client.get("/entries", params={"cursor": cursor, "limit": 10}, headers=KEY)
        assert "canary" not in page.text
        shown += page.json()["entries"]
        cursor = page.json()["cursor"]
    assert len({entry["digest"] for entry in shown}) == 25
    entry = shown[0]
    assert (entry["operation"], entry["ttl"] > 3000, entry["age"] >= 0) == ("qa", True, True)
    assert entry["size_stored"] >= entry["size_raw"] > 0
    one = await client.get(f"/entries/{entry['digest']}", headers=KEY)
    assert one.json()["digest"] == entry["digest"]
    assert "canary" not in one.text
    assert (await client.delete(f"/entries/{entry['digest']}", headers=KEY)).json() == {"deleted": True}
    assert (await client.get(f"/entries/{entry['digest']}", headers=KEY)).status_code == 404
    assert (await client.get("/entries", params={"cursor": "nonsense"}, headers=KEY)).status_code == 422


async def test_a_value_is_shown_only_if_that_was_asked_for(cache: Cache) -> None:
    await cache.set("key", {"a": 1})
    async with client_of(cache, expose_values=True) as client:
        [entry] = (await client.get("/entries", headers=KEY)).json()["entries"]
        assert entry["key"] is entry["value"] is None
        shown = (await client.get(f"/entries/{entry['digest']}", headers=KEY)).json()
        assert (shown["key"], shown["value"]) == ("key", "{'a': 1}")


async def test_a_search_that_ends_early_leaves_nothing_to_the_collector() -> None:
    cache, left, hooks = InMemoryCache(), [], sys.get_asyncgen_hooks()
    await cache.set_many({"a": 1, "b": 2})
    [first, _] = (await Operations(cache).entries())["entries"]
    sys.set_asyncgen_hooks(finalizer=left.append)
    try:
        assert await Operations(cache).entry(first["digest"]) is not None
        gc.collect()
    finally:
        sys.set_asyncgen_hooks(*hooks)
    assert left == []


async def test_the_status_has_one_shape(client: httpx.AsyncClient) -> None:
    status = (await client.get("/status")).json()
    assert status.keys() == {"backend", "redis", "memory", "performance", "is_available"}
    assert status["redis"].keys() == {"status", "latency_ms", "breaker"}
    assert status["is_available"]
    assert (await client.get("/health")).json() == {"status": "ok"}
    assert (await client.get("/ready")).json() == {"status": "ready"}


GIVEN = [{"X-API-Key": KEYS[0]}, {"Authorization": f"Bearer {KEYS[0]}"}, {"X-API-Key": KEYS[1].encode()}]
WRONG: list[dict[str, Any]] = [
    {}, {"X-API-Key": "wrong"}, {"X-API-Key": "ключ".encode()}, {"X-API-Key": b"\xff\xfe"}, {"X-API-Key": "x" * 10_000},
    {"Authorization": "Bearer"}, {"Authorization": "Basic Og=="},
]  # fmt: skip


@pytest.mark.parametrize(("method", "path"), STEERING)
async def test_keys_open_what_changes_or_lists_entries(method: str, path: str) -> None:
    async with client_of(InMemoryCache()) as client:
        for headers in WRONG:
            answer = await client.request(method, path, headers=headers)
            assert answer.status_code == 401, headers
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.json()["status"] == 401
        for headers in GIVEN:
            assert (await client.request(method, path, headers=headers)).status_code in (200, 404)
    async with client_of(InMemoryCache(), keys=[]) as client:
        assert (await client.request(method, path)).status_code in (404, 405)


@pytest.mark.parametrize("path", READING)
async def test_reading_needs_a_key_only_if_all_is_protected(path: str) -> None:
    async with client_of(InMemoryCache()) as client:
        assert (await client.get(path)).status_code == 200
    async with client_of(InMemoryCache(), protect_all=True) as client:
        assert (await client.get(path)).status_code == 401
        assert (await client.get(path, headers=KEY)).status_code == 200
        assert (await client.get("/health")).status_code == 200


@pytest.mark.parametrize(
    "headers", [{"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "null"}]
)
async def test_other_origins_are_refused(headers: dict[str, str]) -> None:
    async with client_of(InMemoryCache()) as client:
        assert (await client.post("/invalidate?pattern=*", headers=KEY | headers)).status_code == 403
        assert (await client.get("/stats", headers=headers)).status_code == 403
        assert (await client.get("/stats", headers={"Origin": "http://t"})).status_code == 200


@pytest.mark.parametrize("query", ["", "?pattern=", "?pattern=a&tag=b", f"?pattern={'*' * 10_000}"])
async def test_a_faulty_invalidation_is_a_problem(query: str) -> None:
    async with client_of(InMemoryCache()) as client:
        answer = await client.post(f"/invalidate{query}", headers=KEY)
        assert answer.status_code == 422
        assert answer.json().keys() == {"type", "title", "status", "detail"}


async def test_a_store_that_is_away_is_a_problem_and_not_a_crash() -> None:
    with Server() as server:
        async with client_of(GenericRedisCache(server.url, deadline=0.5)) as client:
            assert (await client.get("/ready")).status_code == 200
            server.kill()
            answers = [await client.request(method, path, headers=KEY) for method, path in STEERING]
            assert [answer.status_code for answer in answers] == [503] * len(STEERING)
            assert (await client.get("/ready")).status_code == 503
            assert not (await client.get("/status")).json()["is_available"]
            assert (await client.get("/health")).status_code == 200


async def test_the_page_is_served_whole_and_alone() -> None:
    async with client_of(InMemoryCache()) as client:
        page = await client.get("/")
        assert page.status_code == 200
        assert "default-src 'self'" in page.headers["content-security-policy"]
        for name in ("page.js", "page.css", "uplot.js", "uplot.css", "uplot.LICENSE"):
            assert (await client.get(f"/page/{name}")).status_code == 200
        assert "http" not in page.text.replace("http-equiv", "")
        assert (await client.get("/page/other")).status_code == 404


async def test_prometheus_gets_its_metrics(client: httpx.AsyncClient, cache: Cache) -> None:
    @cached_ai_call(operation="qa", cache=cache)
    async def ask(text: str) -> str:
        return text

    await ask("a")
    await ask("a")
    lines = (await client.get("/metrics/prometheus")).text.splitlines()
    assert 'aimemo_requests_total{operation="qa",result="misses"} 1.0' in lines
    assert (
        sum(float(line.split()[-1]) for line in lines if line.startswith('aimemo_requests_total{operation="qa"')) == 2
    )
    assert any(line.startswith('aimemo_call_seconds_count{operation="qa"} 1.0') for line in lines)
    for name in ("aimemo_lookup_seconds", "aimemo_entries", "aimemo_size_bytes", "aimemo_seconds_saved_total"):
        assert any(line.startswith(name) for line in lines), name


async def test_metrics_of_many_operations_are_counted_together() -> None:
    cache = InMemoryCache()
    for number in range(80):
        await cache.get(cache.build_key("q", f"operation{number}"))
    async with client_of(cache) as client:
        lines = [line for line in (await client.get("/metrics/prometheus")).text.splitlines() if "misses" in line]
    assert len(lines) == 51
    assert sum(float(line.split()[-1]) for line in lines) == 80


async def test_the_description_is_complete() -> None:
    async with client_of(InMemoryCache()) as client:
        paths = (await client.get("http://t/openapi.json")).json()["paths"]
    assert json.dumps(sorted(path.removeprefix(PREFIX) for path in paths)) == json.dumps(
        ["/entries", "/entries/{digest}", "/health", "/history", "/invalidate", "/invalidation-stats", "/metrics",
         "/metrics/prometheus", "/ready", "/stats", "/status"]
    )  # fmt: skip
    assert "401" in paths[f"{PREFIX}/invalidate"]["post"]["responses"]


@pytest.mark.parametrize("name", PRESETS)
async def test_every_preset_starts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "_default", None)
    monkeypatch.setenv("AIMEMO_PRESET", name)
    cache = aimemo.get_cache()
    async with client_of(cache) as client:
        await cache.set("key", 1)
        assert (await client.get("/status")).json()["is_available"]
        assert (await client.get("/metrics")).json()["cache_misses"] == 0
        assert await cache.get("key") == (None if name == "disabled" else 1)


@pytest.mark.parametrize("keys", [[5], ["  "], [" key"], [None]])
def test_what_cannot_be_a_key_is_refused(keys: list[Any]) -> None:
    with pytest.raises(ValidationError, match="api_keys"):
        create_app(InMemoryCache(), api_keys=keys)


async def test_a_thousand_wrong_keys_open_nothing_and_hold_nobody_up() -> None:
    async with client_of(InMemoryCache()) as client:
        await client.get("/health")
        answers = await asyncio.gather(
            *(client.post("/invalidate?pattern=*", headers={"X-API-Key": f"wrong {number}"}) for number in range(1000))
        )
        assert {answer.status_code for answer in answers} == {401}


async def test_a_refused_key_waits_for_its_answer_and_others_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(problems, "FAILURE_SECONDS", 3.0)
    async with client_of(InMemoryCache()) as client:
        started = time.monotonic()
        refused = asyncio.create_task(client.get("/entries", headers={"X-API-Key": "wrong"}))
        assert (await client.get("/entries", headers=KEY)).status_code == 200
        assert not refused.done()
        assert (await refused).status_code == 401
        assert time.monotonic() - started >= 3.0
