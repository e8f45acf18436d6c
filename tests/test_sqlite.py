"""A cache in an SQLite file: what it keeps, and what it survives."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aimemo import SQLiteCache, ValidationError, cached_ai_call
from tests.kit.clock import Clock

QA = "op:qa|txt:|" + "0" * 32
QA_LONG = "op:qa_long|txt:|" + "1" * 32


def query(path: Path, sql: str, *args: Any) -> list[Any]:
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        return connection.execute(sql, args).fetchall()
    finally:
        connection.close()


def count_rows(path: Path) -> int:
    return int(query(path, "SELECT count(*) FROM aimemo_entries")[0][0])


# The file


def test_the_file_is_its_owners_only(make: Callable[..., SQLiteCache], path: Path) -> None:
    before = os.umask(0)
    try:
        make().blocking.set("k", 1)
    finally:
        os.umask(before)
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    assert modes == {"cache.db": 0o600, "cache.db-wal": 0o600, "cache.db-shm": 0o600}


def test_folders_are_made_on_first_use(make: Callable[..., SQLiteCache], tmp_path: Path) -> None:
    cache = make(tmp_path / "a" / "b" / "cache.db")
    assert not (tmp_path / "a").exists()
    cache.blocking.set("k", 1)
    assert cache.blocking.get("k") == 1


@pytest.mark.parametrize("name", ["", ".", ":memory:", None, 3])
def test_a_path_that_names_no_file_is_refused(name: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValidationError):
        SQLiteCache(name)


def test_a_path_may_begin_at_the_users_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert SQLiteCache("~/cache.db").path == tmp_path / "cache.db"


def test_entries_outlive_the_cache_that_wrote_them(make: Callable[..., SQLiteCache]) -> None:
    first = make()
    first.blocking.set("k", {"a": [1, 2]})
    first.blocking.close()
    assert make().blocking.get("k") == {"a": [1, 2]}


def test_a_closed_cache_opens_again_when_used_again(make: Callable[..., SQLiteCache]) -> None:
    cache = make().blocking
    for value in range(3):
        cache.set("k", value)
        cache.close()
        cache.close()
        assert cache.get("k") == value


def test_namespaces_in_one_file_neither_see_nor_clear_each_other(make: Callable[..., SQLiteCache]) -> None:
    ours, theirs = make(namespace="ours").blocking, make(namespace="theirs").blocking
    ours.set(QA, "our answer")
    assert theirs.get(QA) is None
    theirs.set(QA, "their answer")
    assert [ours.delete("nothing"), ours.invalidate_operation("qa"), ours.clear()] == [False, 1, 0]
    ours.invalidate_pattern("*")
    assert theirs.get(QA) == "their answer"


def test_an_invalidation_in_one_namespace_voids_no_computation_in_another(make: Callable[..., SQLiteCache]) -> None:
    ours, theirs = make(namespace="ours").blocking, make(namespace="theirs").blocking
    ours.get_or_compute("k", lambda: theirs.clear())
    assert ours.exists("k")


def test_clear_leaves_other_tables_of_the_file_alone(make: Callable[..., SQLiteCache], path: Path) -> None:
    query(path, "CREATE TABLE mine (x)")
    query(path, "INSERT INTO mine VALUES (1)")
    cache = make().blocking
    cache.set("k", 1)
    assert cache.clear() == 1
    assert query(path, "SELECT x FROM mine") == [(1,)]


# Time


def test_lives_go_by_the_wall_clock_whatever_a_processs_own_clock_says(path: Path) -> None:
    wall = Clock(1e9)
    caches = [SQLiteCache(path, clock=Clock(now)) for now in (5.0, 7e6)]
    for cache in caches:
        cache.wall_clock = wall
    caches[0].blocking.set("k", "v", ttl=60)
    caches[0].blocking.set("for ever", "v", ttl=0)
    wall.advance(50)
    assert caches[1].blocking.ttl("k") == pytest.approx(10, abs=1e-3)
    assert caches[1].blocking.ttl("for ever") is None
    wall.advance(11)
    assert caches[1].blocking.get_many(["k", "for ever"]) == {"for ever": "v"}
    for cache in caches:
        cache.blocking.close()


def test_expired_rows_are_purged_in_time(make: Callable[..., SQLiteCache], path: Path, clock: Clock) -> None:
    cache = make().blocking
    cache.set_many({f"k{number}": number for number in range(20)}, ttl=10)
    clock.advance(3600)
    cache.set("new", 1)
    assert count_rows(path) == 1


@pytest.mark.parametrize("ttl", [10, 10_000])
def test_the_log_of_invalidations_does_not_grow_for_ever(
    make: Callable[..., SQLiteCache], path: Path, clock: Clock, ttl: int
) -> None:
    cache = make().blocking
    for _ in range(20):
        cache.set("k", 1, ttl)
        cache.delete("k")
    clock.advance(4000)
    cache.set("k", 1)
    assert query(path, "SELECT kind FROM aimemo_invalidations") == [("made",), ("key",)], "the last one's own"


def test_a_computation_older_than_the_log_is_not_kept(make: Callable[..., SQLiteCache], clock: Clock) -> None:
    cache = make().blocking
    assert cache.get_or_compute("k", lambda: clock.advance(3601)) is None
    assert not cache.exists("k")


# Invalidation


def test_removals_are_exact_and_counted(make: Callable[..., SQLiteCache], clock: Clock) -> None:
    cache = make().blocking
    cache.set(QA, 1)
    cache.set(QA_LONG, 2)
    assert cache.invalidate_operation("q") == 0
    assert cache.invalidate_operation("qa") == 1
    assert cache.get_many([QA, QA_LONG]) == {QA_LONG: 2}
    assert [cache.delete(QA), cache.delete(QA_LONG), cache.delete(QA_LONG)] == [False, True, False]
    cache.set_many({"a": 1, "b": 2, "c": 3})
    assert [cache.delete_many(["a", "b", "x"]), cache.clear(), cache.clear()] == [2, 1, 0]


def test_a_tag_is_matched_whole(make: Callable[..., SQLiteCache]) -> None:
    cache = make()

    @cached_ai_call(operation="qa", cache=cache, tags=lambda text: tuple(text.split()))
    def ask(text: str) -> str:
        return text

    for text in ("a", "ab", "b ab", "a b", "A", "%", "_"):
        ask(text)
    removed = {tag: cache.blocking.invalidate_tag(tag) for tag in ("", "c", "a", "%", "ab") if tag}
    assert removed == {"c": 0, "a": 2, "%": 1, "ab": 2}
    assert {text for text in ("A", "_", "a", "b ab") if ask.peek(text) == text} == {"A", "_"}


@pytest.mark.parametrize(
    ("pattern", "gone"),
    [("a*", {"a", "ab", "a_b", "a%b"}), ("a?b", {"a_b", "a%b"}), ("a_b", {"a_b"}), ("a%b", {"a%b"}),
     ("[ab]", {"a", "b"}), ("[^a]", {"b"}), ("A", set()), ("\\*", set()), ("'", set()), ("", None)],
)  # fmt: skip
def test_globs_mean_what_they_mean_everywhere(
    make: Callable[..., SQLiteCache], pattern: str, gone: set[str] | None
) -> None:
    cache = make().blocking
    keys = {"a", "b", "ab", "a_b", "a%b"}
    cache.set_many(dict.fromkeys(keys, 1))
    if gone is None:
        with pytest.raises(ValidationError):
            cache.invalidate_pattern(pattern)
        return
    assert cache.invalidate_pattern(pattern) == len(gone)
    assert set(cache.get_many(keys)) == keys - gone


def test_a_glob_removes_more_than_one_batch(make: Callable[..., SQLiteCache]) -> None:
    cache = make().blocking
    cache.set_many({f"k{number}": 1 for number in range(1201)})
    assert cache.invalidate_pattern("k*") == 1201
    assert cache.clear() == 0


@pytest.mark.parametrize(
    "remove",
    [lambda c: c.clear(), lambda c: c.invalidate_operation("qa"), lambda c: c.invalidate_pattern("*"),
     lambda c: c.delete(QA)],
)  # fmt: skip
def test_what_had_expired_does_not_count(make: Callable[..., SQLiteCache], clock: Clock, remove: Any) -> None:
    cache = make().blocking
    cache.set(QA, 1, ttl=10)
    clock.advance(11)
    assert remove(cache) == 0
