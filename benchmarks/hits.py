"""Hits: in process, and in a SQLite file."""

from __future__ import annotations

import contextlib
import functools
import importlib
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from aimemo import InMemoryCache, SQLiteCache, cached_ai_call
from benchmarks.measure import Section
from benchmarks.texts import texts

Call = Callable[..., Any]


def _optional(name: str) -> Any:
    """A peer's module, or None where it is not installed."""
    with contextlib.suppress(ImportError):
        return importlib.import_module(name)
    return None


def _sync_peers(answer: str) -> dict[str, Call]:
    def ask(text: str, *, model: str = "small", temperature: float = 0.0, max_tokens: int = 256) -> str:
        return answer

    peers: dict[str, Call] = {"functools.lru_cache": functools.lru_cache(maxsize=1000)(ask)}
    peers["aimemo"] = cached_ai_call(operation="bench", cache=InMemoryCache())(ask)
    if cachebox := _optional("cachebox"):
        peers["cachebox (Rust)"] = cachebox.cached(cachebox.TTLCache(1000, 3600))(ask)
    if cachetools := _optional("cachetools"):
        peers["cachetools TTLCache"] = cachetools.cached(cachetools.TTLCache(1000, 3600))(ask)
    return peers


def _async_peers(answer: str) -> dict[str, Call]:
    async def ask(text: str, *, model: str = "small", temperature: float = 0.0, max_tokens: int = 256) -> str:
        return answer

    peers: dict[str, Call] = {"a bare await": ask}
    peers["aimemo"] = cached_ai_call(operation="bench", cache=InMemoryCache())(ask)
    if cachebox := _optional("cachebox"):
        peers["cachebox (Rust)"] = cachebox.cached(cachebox.TTLCache(1000, 3600))(ask)
    if async_lru := _optional("async_lru"):
        peers["async-lru"] = async_lru.alru_cache(maxsize=1000, ttl=3600)(ask)
    if cashews := _optional("cashews"):
        cache = cashews.Cache()
        cache.setup("mem://")
        peers["cashews memory"] = cache(ttl=3600)(ask)
    return peers


def _asking(call: Call, text: str) -> Call:
    return lambda: call(text, model="small", temperature=0.0)


def _fresh(call: Call, text: str) -> Call:
    """Each call with an equal text that is another object, so that its hash is not known yet."""
    raw = text.encode()
    return lambda: call(raw.decode(), model="small", temperature=0.0)


def in_process() -> Iterator[Section]:
    for length in (200, 4000):
        text, answer = texts(2, length)
        sync = {name: _asking(call, text) for name, call in _sync_peers(answer).items()}
        yield Section(f"sync hit, {length} B text", sync=sync, goals={"functools.lru_cache": 2.5, "cachebox (Rust)": 1})
        tasks = {name: _asking(call, text) for name, call in _async_peers(answer).items()}
        yield Section(f"async hit, {length} B text", tasks=tasks, goals={"a bare await": 3.8, "cachebox (Rust)": 1})
    text, answer = texts(2, 100_000)
    fresh = {name: _fresh(call, text) for name, call in _sync_peers(answer).items()}
    yield Section("sync hit, 100 KB text, a fresh equal object each time", sync=fresh)


def messages() -> Iterator[Section]:
    """The commonest call of all: a list of dicts, which goes through the canonical form."""
    import json

    turns = [{"role": "user" if at % 2 else "assistant", "content": text} for at, text in enumerate(texts(20, 1000))]

    @cached_ai_call(operation="chat", cache=InMemoryCache())
    def chat(messages: list[dict[str, str]], *, model: str = "small") -> str:
        return "answer"

    sync: dict[str, Call] = {
        "json.dumps(sort_keys=True)": lambda: json.dumps(turns, sort_keys=True),
        "aimemo": lambda: chat(turns, model="small"),
    }
    yield Section("sync hit, 20 messages of 1 KB", sync=sync)


def sqlite() -> Iterator[Section]:
    with tempfile.TemporaryDirectory() as folder:
        text, answer = texts(2, 1000)
        sync: dict[str, Call] = {"raw SELECT by key": _raw_select(Path(folder) / "raw.db", answer)}

        def ask(text: str, *, model: str = "small") -> str:
            return answer

        cache = SQLiteCache(Path(folder) / "aimemo.db")
        sync["aimemo"] = _asking_model(cached_ai_call(operation="bench", cache=cache)(ask), text)
        if diskcache := _optional("diskcache"):
            sync["diskcache.memoize"] = _asking_model(diskcache.Cache(f"{folder}/disk").memoize()(ask), text)
        yield Section("SQLite hit, 1 KB", sync=sync, goals={"raw SELECT by key": 2.0})
        cache.blocking.close()


def _asking_model(call: Call, text: str) -> Call:
    return lambda: call(text, model="small")


def _raw_select(path: Path, answer: str) -> Call:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("CREATE TABLE answers (key TEXT PRIMARY KEY, value BLOB)")
    keys = [f"op:bench|txt:hash:{at:032x}|{at:032x}" for at in range(1000)]
    connection.executemany("INSERT INTO answers VALUES (?, ?)", [(key, answer.encode()) for key in keys])
    return lambda: connection.execute("SELECT value FROM answers WHERE key = ?", (keys[500],)).fetchone()
