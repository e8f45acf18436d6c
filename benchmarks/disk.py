"""A SQLite file: hits, writes, and how large it grows."""

from __future__ import annotations

import itertools
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from aimemo import SQLiteCache, cached_ai_call
from benchmarks.measure import Section, Table
from benchmarks.peers import Call, optional
from benchmarks.texts import answers, texts

RAW = "raw SELECT by key"
DISKCACHE = "diskcache.memoize"


def hits() -> Iterator[Section]:
    for length, goals in ((1000, {RAW: 1.6, DISKCACHE: 0.35}), (10_000, {DISKCACHE: 0.9})):
        with tempfile.TemporaryDirectory() as folder:
            text, answer = texts(2, length)

            def ask(text: str, *, model: str = "small", answer: str = answer) -> str:
                return answer

            cache = SQLiteCache(Path(folder) / "aimemo.db")
            cached = cached_ai_call(operation="bench", cache=cache, ignore=("answer",))(ask)
            sync: dict[str, Call] = {RAW: _raw_select(Path(folder) / "raw.db", answer), "aimemo": _asking(cached, text)}
            if diskcache := optional("diskcache"):
                sync[DISKCACHE] = _asking(diskcache.Cache(f"{folder}/disk").memoize()(ask), text)
            yield Section(f"SQLite hit, {length // 1000} KB", sync=sync, goals=goals)
            cache.blocking.close()


def writes() -> Iterator[Section]:
    with tempfile.TemporaryDirectory() as folder:
        [answer] = texts(1, 1000)
        cache = SQLiteCache(Path(folder) / "aimemo.db", deadline=5)
        numbers = itertools.count()
        raw = sqlite3.connect(Path(folder) / "raw.db", isolation_level=None)
        raw.execute("PRAGMA journal_mode=WAL")
        raw.execute("PRAGMA synchronous=NORMAL")
        raw.execute("CREATE TABLE answers (key TEXT PRIMARY KEY, value BLOB)")
        sync: dict[str, Call] = {
            "raw INSERT": lambda: raw.execute("INSERT INTO answers VALUES (?, ?)", (f"key {next(numbers)}", answer)),
            "aimemo": lambda: cache.blocking.set(f"key {next(numbers)}", answer),
        }
        if diskcache := optional("diskcache"):
            disk = diskcache.Cache(f"{folder}/disk")
            sync["diskcache"] = lambda: disk.set(f"key {next(numbers)}", answer)
        yield Section("SQLite write, 1 KB", sync=sync)
        cache.blocking.close()
        raw.close()


def sizes() -> Table:
    """Bytes on disk of 1,000 answers."""
    with tempfile.TemporaryDirectory() as folder:
        stored = dict(zip(texts(1000, 2000), answers(1000), strict=True))
        cache = SQLiteCache(Path(folder) / "aimemo.db", deadline=60)

        def summarize(text: str) -> Any:
            return stored[text]

        cached = cached_ai_call(operation="summarize", cache=cache, version="1")(summarize)
        for text in stored:
            cached(text)
        cache.blocking.close()
        values = {"the answers as JSON": float(sum(map(len, _json(stored.values()))))}
        values["aimemo"] = float(_bytes(Path(folder)))
        if diskcache := optional("diskcache"):
            with tempfile.TemporaryDirectory() as other:
                disk = diskcache.Cache(other)
                memoized = disk.memoize()(summarize)
                for text in stored:
                    memoized(text)
                disk.close()
                values["diskcache"] = float(_bytes(Path(other)))
    return Table("on disk: 1,000 answers of 300 B to 8 KB to questions of 2 KB", "B", values, {"diskcache": 0.16})


def _json(stored: Iterable[Any]) -> Iterator[bytes]:
    import json

    return (json.dumps(answer).encode() for answer in stored)


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file())


def _asking(call: Call, text: str) -> Call:
    return lambda: call(text, model="small")


def _raw_select(path: Path, answer: str) -> Call:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("CREATE TABLE answers (key TEXT PRIMARY KEY, value BLOB)")
    keys = [f"op:bench|txt:hash:{at:032x}|{at:032x}" for at in range(1000)]
    connection.executemany("INSERT INTO answers VALUES (?, ?)", [(key, answer.encode()) for key in keys])
    return lambda: connection.execute("SELECT value FROM answers WHERE key = ?", (keys[500],)).fetchone()
