"""The SQLite file is damaged, full, or left behind by a writer that was killed: at worst misses."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import random
import resource
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from aimemo import SQLiteCache
from tests.faults.conftest import LOADED_MACHINE, Case
from tests.kit.crowd import CALLERS, Crowd
from tests.kit.processes import OtherProcess

row = pytest.mark.row
RECOVERY = 5.0

DAMAGES: dict[str, Callable[[Path], Any]] = {
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "truncated in the header": lambda path: os.truncate(path, 50),
    "overwritten": lambda path: path.write_bytes(random.Random(1).randbytes(path.stat().st_size)),
    "overwritten behind the header": lambda path: path.write_bytes(path.read_bytes()[:100] + os.urandom(50_000)),
    "zeroes": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "not a database": lambda path: path.write_text("this is not a database\n" * 100),
}
each_damage = pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)


def query(path: Path, sql: str) -> Any:
    connection = sqlite3.connect(path)
    try:
        return connection.execute(sql).fetchone()[0]
    finally:
        connection.close()


def is_whole(path: Path) -> bool:
    return bool(query(path, "PRAGMA integrity_check") == "ok")


async def asks_and_recovers(crowd: Crowd, case: Case, usual: float) -> None:
    await crowd.ask([*range(CALLERS), *crowd.new(CALLERS)])
    case.crowd(crowd, usual)
    case.recovers(await crowd.recovers(RECOVERY), crowd.cache.stats())
    await crowd.ask([*range(CALLERS), *crowd.new(CALLERS)])
    case.right(not crowd.wrong, crowd.wrong[:3])


async def warmed_up(crowd: Crowd) -> float:
    """Have answers stored, and learn what this machine adds to old and new questions without a fault: the most."""
    started = time.monotonic()
    await crowd.cache.connect()
    making = time.monotonic() - started  # a file: after some of the faults there has to be another one
    await crowd.warm_up()
    await crowd.ask([*range(CALLERS), *crowd.new(CALLERS)])
    usual = max(*crowd.added, making)
    crowd.added.clear()
    return usual


async def filled(path: Path) -> float:
    async with Crowd(SQLiteCache(path)) as crowd:
        return await warmed_up(crowd)


@row("F36", on="sqlite")
@each_damage
async def test_a_file_damaged_before_it_is_opened(path: Path, case: Case, damage: Callable[[Path], Any]) -> None:
    usual = await filled(path)
    damage(path)
    async with Crowd(SQLiteCache(path)) as crowd:
        await asks_and_recovers(crowd, case, usual)
        [aside] = path.parent.glob("cache.db.corrupt-*")
        case.right(aside.stat().st_size >= 50, "what was found is kept aside")
        case.recovers(is_whole(path) and crowd.cache.stats().errors >= 1, "a fresh file, and a count")


@row("F36", on="sqlite")
@each_damage
async def test_a_file_damaged_while_it_is_open(path: Path, case: Case, damage: Callable[[Path], Any]) -> None:
    async with Crowd(SQLiteCache(path)) as crowd:
        usual = await warmed_up(crowd)
        query(path, "PRAGMA wal_checkpoint(TRUNCATE)")
        damage(path)
        await asks_and_recovers(crowd, case, usual)
        await crowd.cache.close()  # pages that were in memory are read from the file now
        await asks_and_recovers(crowd, case, usual)
        case.recovers(is_whole(path))


Seen = dict[str, Any]


async def on_a_full_disk(path: Path) -> Seen:
    """What a crowd sees while its file cannot grow, and afterwards."""
    async with Crowd(SQLiteCache(path)) as crowd:
        usual = await warmed_up(crowd)
        full = max(file.stat().st_size for file in path.parent.iterdir())
        resource.setrlimit(resource.RLIMIT_FSIZE, (full, resource.RLIM_INFINITY))
        await crowd.load(0.4)
        errors, added = crowd.cache.stats().errors, max(crowd.added)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        recovers = await crowd.recovers(RECOVERY)
        before = crowd.computed.copy()
        await crowd.ask(range(CALLERS))
        kept = sum(crowd.computed[question] == before[question] for question in range(CALLERS))
    return {
        "wrong": crowd.wrong, "lost": list(map(repr, crowd.lost)), "errors": errors, "usual": usual, "added": added,
        "recovers": recovers, "kept": kept,
    }  # fmt: skip


def in_this_process(path: Path) -> Seen:
    return asyncio.run(on_a_full_disk(path))


@row("F37", on="sqlite")
def test_a_full_disk(path: Path, case: Case) -> None:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as other:
        seen = other.submit(in_this_process, path).result(60)
    assert seen["errors"] > 0
    case.right(seen["wrong"] == [] and is_whole(path), seen["wrong"][:3])
    case.nothing_lost(seen["lost"] == [], seen)
    case.bounded(seen["added"], 0.1 + LOADED_MACHINE + 2 * seen["usual"])
    case.recovers(seen["recovers"] and seen["kept"] == CALLERS, seen)


@row("F39", on="sqlite")
@pytest.mark.parametrize("times", [5, pytest.param(50, marks=pytest.mark.slow)])
async def test_a_writer_killed_beside_fifty_callers(path: Path, case: Case, times: int) -> None:
    async with Crowd(SQLiteCache(path)) as crowd:
        usual = await warmed_up(crowd)
        for _ in range(times):
            with OtherProcess(path) as writer:
                assert await asyncio.to_thread(writer.ask, "write_for_ever") == "writing"
                load = asyncio.create_task(crowd.load(0.15))
                await asyncio.sleep(random.uniform(0.01, 0.1))  # the moment of the kill is the point
                writer.kill()
                await load
            case.right(is_whole(path), "the integrity check")
            found = SQLiteCache(path, deadline=5).blocking.get_many([f"key-{number}" for number in range(200)])
            wrong = [key for key, value in found.items() if set(value) != {int(key.removeprefix("key-"))}]
            case.right(found and not wrong, wrong)
        case.crowd(crowd, usual)
        case.recovers(await crowd.recovers(RECOVERY), crowd.cache.stats())
        case.right(list(path.parent.glob("*.corrupt-*")) == [], "set aside though whole")
