"""A cache in an SQLite file that cannot be used, is held by others or has no room: calls are computed."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aimemo import InfrastructureError, SQLiteCache, cached_ai_call
from aimemo.stores import sqlite_file
from tests.kit import stalls


@pytest.fixture
def impossible(tmp_path: Path) -> Path:
    (tmp_path / "file").touch()
    return tmp_path / "file" / "cache.db"


async def test_where_no_file_can_be_calls_are_computed(make: Callable[..., SQLiteCache], impossible: Path) -> None:
    cache = make(impossible)
    calls: list[str] = []

    @cached_ai_call(operation="qa", cache=cache)
    async def ask(text: str) -> str:
        calls.append(text)
        return text

    assert [await ask("q") for _ in range(3)] == ["q"] * 3
    assert len(calls) == 3
    assert await cache.connect() is cache.blocking.connect() is await cache.ping() is False
    assert cache.stats().errors > 0
    await cache.set("k", 1)
    await cache.set_many({"k": 1})
    assert (await cache.get("k"), await cache.get_many(["k"]), await cache.exists("k")) == (None, {}, False)


async def test_the_first_fault_ends_the_files_part_in_a_call(
    make: Callable[..., SQLiteCache], impossible: Path
) -> None:
    cache = make(impossible)

    @cached_ai_call(operation="sync", cache=cache)
    def ask(text: str) -> str:
        return text

    @cached_ai_call(operation="async", cache=cache)
    async def ask_async(text: str) -> str:
        return text

    assert (ask("q"), await ask_async("q"), cache.blocking.get_or_compute("k", lambda: "q")) == ("q", "q", "q")
    assert {name: counts.errors for name, counts in cache.stats().by_operation.items()} == {
        "sync": 1,
        "async": 1,
        "": 1,
    }


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    "remove",
    [lambda c: c.delete("k"), lambda c: c.clear(), lambda c: c.invalidate_tag("t"), lambda c: c.delete_many(["k"]),
     lambda c: c.invalidate_operation("qa"), lambda c: c.invalidate_pattern("*")],
)  # fmt: skip
def test_a_removal_that_failed_always_raises(
    make: Callable[..., SQLiteCache], impossible: Path, remove: Any, strict: bool
) -> None:
    cache = make(impossible, strict=strict)
    for _ in range(7):  # also with the breaker open
        with pytest.raises(InfrastructureError) as raised:
            remove(cache.blocking)
    assert isinstance(raised.value.__cause__, OSError | sqlite3.Error)


@pytest.fixture
def locked(make: Callable[..., SQLiteCache], path: Path) -> Iterator[None]:
    """Somebody else writes, and takes long."""
    make().blocking.set("old", 1)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    yield
    other.execute("ROLLBACK")
    other.close()


WRITES = {
    "set": lambda c: c.set("k", 1),
    "set_many": lambda c: c.set_many({"k": 1}),
    "call": lambda c: c.get_or_compute("k", lambda: 1),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
async def test_a_strict_cache_raises_sqlites_own_error(
    make: Callable[..., SQLiteCache], locked: None, write: Any
) -> None:
    cache = make(strict=True, deadline=0.5)
    assert cache.blocking.get("old") == 1  # it is open: that takes its time
    with pytest.raises(InfrastructureError) as raised:
        write(cache.blocking)
    assert isinstance(raised.value.__cause__, sqlite3.OperationalError)
    with pytest.raises(InfrastructureError):
        await write(cache)


def test_while_another_writes_reads_hit_and_writes_are_skipped(make: Callable[..., SQLiteCache], locked: None) -> None:
    cache = make(deadline=0.5)
    assert cache.blocking.get("old") == 1
    cache.blocking.set("new", 1)
    assert cache.blocking.get_or_compute("newer", lambda: 2) == 2
    assert cache.blocking.get("old") == 1
    assert cache.stats().errors == 2


def test_threads_that_all_wait_for_another_writer_wait_one_budget_each(
    make: Callable[..., SQLiteCache], locked: None
) -> None:
    cache = make(deadline=0.1).blocking
    took: list[float] = []

    def call(number: int) -> None:
        started = time.monotonic()
        assert cache.get_or_compute(f"k{number}", lambda: number) == number
        took.append(time.monotonic() - started)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(took) == 10
    assert max(took) < 0.4 + stalls.longest()


async def test_a_write_whose_caller_has_gone_on_is_not_made_later(make: Callable[..., SQLiteCache]) -> None:
    cache = make(deadline=0.1)
    cache.blocking.set("k", "v1")  # among threads for as long as opening the file takes
    write, free, over = cache._file.write, threading.Event(), threading.Event()

    def held(body: Any, until: float) -> Any:
        cache._file.write = write  # type: ignore[method-assign]
        try:
            free.wait(5)
            return write(body, until)
        finally:
            over.set()

    cache._file.write = held  # type: ignore[method-assign]
    await cache.set("k", "v2")
    assert cache.stats().errors == 1
    await cache.delete("k")
    free.set()
    assert await asyncio.to_thread(over.wait, 5)
    assert await cache.get("k") is None


def test_opening_a_file_that_another_holds_takes_no_longer_than_the_budget(
    make: Callable[..., SQLiteCache], path: Path
) -> None:
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("CREATE TABLE mine (x)")
    other.execute("BEGIN EXCLUSIVE")
    started = time.monotonic()
    assert make(deadline=0.1).blocking.get_or_compute("k", lambda: 1) == 1
    took = time.monotonic() - started
    other.close()
    assert took < 0.4 + stalls.longest()


def test_on_a_full_disk_reads_hit_and_writes_are_skipped(
    make: Callable[..., SQLiteCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect_small(self: Any) -> Any:
        connection = connected(self)
        connection.execute("PRAGMA max_page_count = 20")
        return connection

    connected = sqlite_file._Link._connect
    monkeypatch.setattr(sqlite_file._Link, "_connect", connect_small)
    cache = make()
    cache.blocking.set("small", 1)
    for number in range(10):
        cache.blocking.set(f"large-{number}", os.urandom(30_000))
        assert cache.blocking.get("small") == 1
    assert cache.stats().errors > 0
    assert cache.blocking.get_or_compute("larger", lambda: "x" * 60_000) == "x" * 60_000


# Loops, threads and hooks


def test_one_cache_serves_one_event_loop_after_another_and_several_at_once(make: Callable[..., SQLiteCache]) -> None:
    cache = make(deadline=5.0)

    @cached_ai_call(operation="qa", cache=cache)
    async def ask(number: int) -> list[int]:
        await asyncio.sleep(0)
        return [number]

    async def ask_all() -> bool:
        answers = await asyncio.gather(*(ask(number % 10) for number in range(50)))
        return answers == [[number % 10] for number in range(50)]

    assert asyncio.run(ask_all())
    assert asyncio.run(ask_all())
    cache.blocking.clear()
    right: list[bool] = []
    threads = [threading.Thread(target=lambda: right.append(asyncio.run(ask_all()))) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 5
    assert cache.stats().errors == 0


def test_a_hook_for_errors_that_fails_itself_is_counted_and_nothing_else(
    make: Callable[..., SQLiteCache], impossible: Path
) -> None:
    def hook(event: object) -> None:
        raise RuntimeError("hook")

    cache = make(impossible)
    cache.on("error", hook)
    assert cache.blocking.get_or_compute("k", lambda: 1) == 1
    assert cache.stats().callback_errors == cache.stats().errors > 0
