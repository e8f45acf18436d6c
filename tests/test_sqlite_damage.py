"""An SQLite file or a row of it that is damaged, removed or replaced: at worst misses."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aimemo import MISSING, CacheEvent, SQLiteCache, cached_ai_call
from tests.kit.clock import Clock
from tests.test_sqlite import query

KEYS = [f"op:qa|txt:|{number:032x}" for number in range(100)]
VALUES = {key: [key] * 20 for key in KEYS}
ROW = "SELECT id, envelope FROM aimemo_entries WHERE key = ?"
FILL = "UPDATE aimemo_entries SET envelope = ? WHERE key = ?"


@pytest.fixture
def make(path: Path, clock: Clock) -> Iterator[Callable[[], SQLiteCache]]:
    made: list[SQLiteCache] = []

    def make_one() -> SQLiteCache:
        made.append(SQLiteCache(path, clock=clock, deadline=5))  # a slow disk must not turn a hit into a miss
        return made[-1]

    yield make_one
    for cache in made:
        cache.blocking.close()


@pytest.fixture
def filled(make: Callable[[], SQLiteCache]) -> SQLiteCache:
    """A cache with many entries, both of its connections open."""
    cache = make()
    cache.blocking.set_many(VALUES)
    assert cache.blocking.get(KEYS[0]) == VALUES[KEYS[0]]
    return cache


def flip(offset: int, mask: int = 0xFF) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[offset] ^= mask
        path.write_bytes(data)

    return damage


def spoil_schema(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data.replace(b"CREATE TABLE aimemo_entries", b"CREATE TABLE aimemo_\xffntries"))


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "truncated to a half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "truncated in a page": lambda path: os.truncate(path, 5000),
    "truncated in the header": lambda path: os.truncate(path, 50),
    "garbage": lambda path: path.write_bytes(os.urandom(path.stat().st_size)),
    "garbage behind the header": lambda path: path.write_bytes(path.read_bytes()[:100] + os.urandom(50_000)),
    "a text": lambda path: path.write_text("this is not a database\n" * 100),
    "zeroes": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "another file format": flip(18, 0x10),
    "another schema format": flip(47),
    "another schema": spoil_schema,
}
each_damage = pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
each_role = pytest.mark.parametrize(
    "use",
    [lambda c: c.get(KEYS[5]), lambda c: c.set("x", 1), lambda c: c.clear(), lambda c: c.get_many(KEYS)],
    ids=["get", "set", "clear", "get_many"],
)


def assert_recovered(cache: SQLiteCache) -> None:
    """Whatever is still there is right; what is kept and removed from now on is kept and removed."""
    here = cache.blocking
    assert all(VALUES[key] == value for key, value in here.get_many(KEYS).items())
    here.clear()
    here.set_many(VALUES)
    assert here.get_many(KEYS) == VALUES
    assert here.delete(KEYS[0]) is True
    assert here.clear() == len(KEYS) - 1


@each_damage
@each_role
def test_a_file_damaged_before_it_is_opened_is_set_aside(
    filled: SQLiteCache, path: Path, make: Callable[[], SQLiteCache], damage: Callable[[Path], Any], use: Any
) -> None:
    filled.blocking.close()
    damage(path)
    damaged = path.read_bytes()
    cache = make()
    use(cache.blocking)
    assert_recovered(cache)
    (aside,) = path.parent.glob("cache.db.corrupt-*")
    assert aside.name.removeprefix("cache.db.corrupt-").isdigit()
    assert len(aside.read_bytes()) >= min(len(damaged), 50)
    assert cache.stats().errors == 1


@each_damage
@each_role
def test_a_file_damaged_while_it_is_open_costs_at_worst_misses(
    filled: SQLiteCache, path: Path, damage: Callable[[Path], Any], use: Any
) -> None:
    query(path, "PRAGMA wal_checkpoint(TRUNCATE)")
    damage(path)
    use(filled.blocking)
    filled.blocking.close()  # pages that were in memory are read from the file now
    assert_recovered(filled)


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm"])
@each_role
def test_an_emptied_file_is_filled_again(filled: SQLiteCache, path: Path, use: Any, suffix: str) -> None:
    filled.blocking.close()
    Path(f"{path}{suffix}").write_bytes(b"")
    use(filled.blocking)
    assert_recovered(filled)


@pytest.mark.parametrize("suffix", ["-wal", "-shm"])
def test_garbage_beside_the_file_costs_at_worst_misses(
    filled: SQLiteCache, path: Path, make: Callable[[], SQLiteCache], suffix: str
) -> None:
    filled.blocking.close()
    Path(f"{path}{suffix}").write_bytes(os.urandom(40_000))
    assert_recovered(make())


def test_tables_that_were_dropped_are_made_again(filled: SQLiteCache, path: Path) -> None:
    for table in ("aimemo_entries", "aimemo_invalidations"):
        query(path, f"DROP TABLE {table}")
        assert_recovered(filled)


def look_at_once(cache: SQLiteCache) -> None:
    """Let the interval pass after which a cache looks whether its file is still the one at the path."""
    for link in (cache._file._reading, cache._file._writing):
        link.next_check = 0.0


def replace_by_another(path: Path, make: Callable[[], SQLiteCache]) -> None:
    remove(path, make)
    make().blocking.set(KEYS[0], "theirs")


def remove(path: Path, make: Callable[[], SQLiteCache]) -> None:
    for name in ("", "-wal", "-shm"):
        Path(f"{path}{name}").unlink()


each_replacement = pytest.mark.parametrize("replace", [remove, replace_by_another])


@pytest.mark.parametrize("names", [[""], ["", "-wal", "-shm"]], ids=["alone", "with its company"])
@pytest.mark.parametrize("put", ["nothing", "another database"])
@each_role
def test_a_file_removed_or_replaced_while_open_is_noticed(
    filled: SQLiteCache, path: Path, make: Callable[[], SQLiteCache], use: Any, put: str, names: list[str]
) -> None:
    for name in names:
        Path(f"{path}{name}").unlink()
    if put == "another database":
        make().blocking.set("theirs", 1)
    look_at_once(filled)
    use(filled.blocking)
    assert path.exists()
    assert filled.blocking.get(KEYS[0]) is None
    look_at_once(filled)
    assert_recovered(filled)
    assert_recovered(make())


@each_replacement
def test_ones_own_writes_to_a_file_that_was_replaced_are_seen_at_once(
    filled: SQLiteCache, path: Path, make: Callable[[], SQLiteCache], replace: Any
) -> None:
    replace(path, make)
    filled.blocking.set("mine", 1)
    assert filled.blocking.get("mine") == 1
    filled.blocking.delete(KEYS[0])
    assert filled.blocking.get(KEYS[0]) is None


@each_replacement
def test_a_file_that_is_replaced_during_a_write_is_not_taken_for_damaged(
    filled: SQLiteCache, path: Path, make: Callable[[], SQLiteCache], replace: Any
) -> None:
    write, rounds = filled._file.write, []

    def replacing(body: Any, until: float) -> Any:
        def during(connection: Any) -> Any:
            result = body(connection)
            if not rounds:
                replace(path, make)
                look_at_once(filled)
            rounds.append(result)
            return result

        return write(during, until)

    filled._file.write = replacing  # type: ignore[method-assign]
    filled.blocking.delete(KEYS[0])
    assert len(rounds) == 2, "an invalidation must reach the new file too"
    assert list(path.parent.glob("*.corrupt-*")) == []
    assert filled.blocking.get(KEYS[0]) is None


def test_an_invalidation_while_the_file_is_replaced_keeps_an_older_answer_out(filled: SQLiteCache, path: Path) -> None:
    cache = filled.blocking
    for _ in range(3):
        cache.delete("something")

    def compute() -> str:
        cache.close()
        path.unlink()
        cache.delete("k")
        return "old"

    assert cache.get_or_compute("k", compute) == "old"
    assert cache.get("k") is None


# Single rows


def test_every_altered_byte_of_an_entry_is_a_miss(filled: SQLiteCache, path: Path) -> None:
    data = query(path, ROW, KEYS[0])[0][1]
    connection = sqlite3.connect(path, isolation_level=None)
    for at in range(len(data)):
        for altered in (data[:at], data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]):
            connection.execute(FILL, (altered, KEYS[0]))
            assert filled.blocking.get(KEYS[0]) is None
    connection.execute(FILL, (data, KEYS[0]))
    connection.close()
    assert filled.blocking.get(KEYS[0]) == VALUES[KEYS[0]]
    assert filled.stats().errors == 2 * len(data)


@pytest.mark.parametrize("junk", [b"", "", "text " * 50, b"\xff" * 200, 7, 0.5])
def test_a_row_of_whatever_kind_is_a_miss_that_the_next_answer_repairs(
    filled: SQLiteCache, path: Path, junk: Any
) -> None:
    query(path, FILL, junk, KEYS[0])
    for _ in range(10):
        assert filled.blocking.get(KEYS[0]) is None
    assert filled.blocking.get(KEYS[1]) == VALUES[KEYS[1]], "one bad row must not cost the others"
    assert filled.blocking.get_or_compute(KEYS[0], lambda: "new") == "new"
    assert filled.blocking.get(KEYS[0]) == "new"


def test_a_blob_become_text_that_is_not_utf_8_is_read_as_the_bytes_that_it_is(filled: SQLiteCache, path: Path) -> None:
    query(path, "UPDATE aimemo_entries SET envelope = CAST(envelope AS TEXT) WHERE key = ?", KEYS[0])
    assert filled.blocking.get_many(KEYS[:2]) == {key: VALUES[key] for key in KEYS[:2]}
    assert filled.stats().errors == 0


def test_an_entry_under_anothers_row_id_is_a_miss_and_a_foreign_value(filled: SQLiteCache, path: Path) -> None:
    seen: list[CacheEvent] = []
    filled.on("error", seen.append)
    query(path, FILL, query(path, ROW, KEYS[1])[0][1], KEYS[0])
    assert filled.blocking.get(KEYS[0]) is None
    assert filled.blocking.get_many(KEYS[:2]) == {KEYS[1]: VALUES[KEYS[1]]}
    assert [event.reason for event in seen] == ["foreign_value"] * 2
    assert filled.stats().errors == 2


@pytest.mark.parametrize("facts", [{"tags": 3}, {"tags": "abc"}, {"tokens": 2**70}, {"model": "\ud800"}], ids=repr)
def test_odd_facts_neither_trouble_the_store_nor_become_tags(filled: SQLiteCache, facts: dict[str, Any]) -> None:
    @cached_ai_call(operation="odd", cache=filled, facts=lambda answer: facts)
    def ask(text: str) -> str:
        return text

    assert [ask("q") for _ in range(10)] == ["q"] * 10
    assert filled.blocking.get_many(KEYS) == VALUES, "one function's odd facts must not cost the others"
    assert filled.blocking.invalidate_tag("a") == 0
    assert ask.peek("q") in ("q", MISSING)
    if "tags" in facts:
        assert ask.stats().hits == 9
