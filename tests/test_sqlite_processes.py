"""One SQLite file between several real processes."""

from __future__ import annotations

import os
import random
import sqlite3
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from aimemo import SQLiteCache, cached_ai_call
from tests.kit.processes import OtherProcess

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def open_cache(path: Path, **settings: Any) -> Any:
    return SQLiteCache(path, **{"deadline": 5, **settings}).blocking


def integrity(path: Path) -> str:
    connection = sqlite3.connect(path)
    try:
        return str(connection.execute("PRAGMA integrity_check").fetchone()[0])
    finally:
        connection.close()


def in_forked_child(body: Callable[[], bool]) -> Callable[[], bool]:
    """Fork; the child runs `body`. The returned function waits for it and says whether it gave True."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            status = 0 if body() else 1
        finally:
            os._exit(status)
    return lambda: os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_four_processes_at_once_lose_no_set_and_read_no_wrong_value(path: Path) -> None:
    with ExitStack() as stack:
        # Patience is a setting of its own test; here a write waits its turn.
        others = [stack.enter_context(OtherProcess(path, deadline=5.0)) for _ in range(4)]
        for me, other in enumerate(others):
            other.send("exercise", me, 60)
        answers = [other.receive() for other in others]
    assert answers == [{"lost": 0, "wrong": 0, "errors": 0}] * 4
    assert integrity(path) == "ok"


def test_four_processes_that_open_a_new_file_at_once_all_can(path: Path) -> None:
    with ExitStack() as stack:
        others = [stack.enter_context(OtherProcess(path)) for _ in range(4)]
        for me, other in enumerate(others):
            other.send("set", f"k{me}", me)
        for other in others:
            other.receive()
        assert [other.ask("errors") for other in others] == [0] * 4
        assert others[0].ask("get_many", [f"k{me}" for me in range(4)]) == {f"k{me}": me for me in range(4)}


@pytest.mark.parametrize("times", [3, pytest.param(50, marks=pytest.mark.slow)])
def test_a_file_whose_writer_is_killed_opens_whole_and_with_right_values(path: Path, times: int) -> None:
    for _ in range(times):
        with OtherProcess(path) as writer:
            assert writer.ask("write_for_ever") == "writing"
            time.sleep(random.uniform(0.01, 0.1))  # the moment of the kill is the point
            writer.kill()
        cache = SQLiteCache(path, deadline=5)
        found = cache.blocking.get_many([f"key-{number}" for number in range(200)])
        assert found
        assert all(set(value) == {int(key.removeprefix("key-"))} for key, value in found.items())
        assert cache.stats().errors == 0
        cache.blocking.close()
        assert integrity(path) == "ok"
    assert list(path.parent.glob("*.corrupt-*")) == []


@pytest.mark.parametrize("sets_in_a_row", [2, 10])
def test_on_a_full_disk_reads_hit_and_writes_are_skipped_until_there_is_room(path: Path, sets_in_a_row: int) -> None:
    with OtherProcess(path) as other:
        other.ask("set", "small", 1)
        other.ask("limit_file_size", 60_000)
        for _ in range(3):
            assert other.ask("set_random", sets_in_a_row) is None
            assert other.ask("get", "small") == 1
        assert other.ask("errors") > 0
        other.ask("limit_file_size", -1)
        deadline = time.monotonic() + 3  # a breaker that failed writes have opened lets one through each second
        while other.ask("get", "new") is None and time.monotonic() < deadline:
            other.ask("set", "new", 2)
        assert other.ask("get_many", ["small", "new"]) == {"small": 1, "new": 2}
    assert integrity(path) == "ok"


@pytest.mark.parametrize(
    "invalidation",
    [("delete", "op:qa|txt:|" + "0" * 32), ("invalidate_operation", "qa"), ("invalidate_pattern", "op:q*"), ("clear",)],
    ids=lambda invalidation: invalidation[0],
)
def test_an_invalidation_during_a_computation_elsewhere_lets_the_answer_out_but_not_in(
    path: Path, invalidation: tuple[str, ...]
) -> None:
    key = "op:qa|txt:|" + "0" * 32
    cache = open_cache(path)
    with OtherProcess(path) as other:
        assert other.ask("compute", key, "old") == "computing"
        getattr(cache, invalidation[0])(*invalidation[1:])
        assert other.ask("go on") == "old"
        assert other.ask("get", key) is None
        assert cache.get(key) is None


@pytest.mark.parametrize("invalidation", [("delete", "other"), ("invalidate_operation", "qa_long")])
def test_an_invalidation_of_something_else_lets_the_answer_in(path: Path, invalidation: tuple[str, ...]) -> None:
    cache = open_cache(path)
    with OtherProcess(path) as other:
        assert other.ask("compute", "k", "new") == "computing"
        getattr(cache, invalidation[0])(*invalidation[1:])
        assert other.ask("go on") == "new"
    assert cache.get("k") == "new"


def test_a_tag_invalidated_during_a_decorated_call_elsewhere_keeps_the_answer_out(path: Path) -> None:
    with OtherProcess(path) as other:

        @cached_ai_call(operation="qa", cache=SQLiteCache(path, deadline=5), tags=("doc:1",))
        def ask(text: str) -> str:
            other.ask("invalidate_tag", "doc:1")
            return text

        assert ask("q") == "q"
        assert other.ask("get", ask.key_for("q")) is None


def test_what_one_process_invalidates_is_gone_at_once_in_the_other(path: Path) -> None:
    cache = open_cache(path)
    with OtherProcess(path) as other:
        for number in range(20):
            cache.set("k", number)
            assert other.ask("get", "k") == number
            assert other.ask("delete", "k") is True
            assert cache.get("k") is None


def test_a_process_that_closes_the_file_does_not_part_those_who_have_it_open(path: Path) -> None:
    cache = open_cache(path)
    cache.get("k")
    cache.set("k", "old")
    with OtherProcess(path) as passer_by:
        passer_by.ask("get", "k")
        passer_by.ask("close")
    with OtherProcess(path) as other:
        assert other.ask("delete", "k") is True
        assert cache.get("k") is None, "an invalidation acknowledged elsewhere is not seen here"
        cache.set("k2", "new")
        assert other.ask("get", "k2") == "new"


def test_both_sides_of_a_fork_with_a_warm_cache_go_on(path: Path) -> None:
    cache = open_cache(path, deadline=5.0)
    cache.set("k", "warm")
    assert cache.get("k") == "warm"

    def child() -> bool:
        for number in range(30):
            cache.set(f"child-{number}", number)
        return cache.get("k") == "warm" and all(cache.get(f"child-{n}") == n for n in range(30))

    child_was_right = in_forked_child(child)
    for number in range(30):
        cache.set(f"parent-{number}", number)
    assert all(cache.get(f"parent-{number}") == number for number in range(30))
    assert child_was_right()
    assert all(cache.get(f"child-{number}") == number for number in range(30))
    assert integrity(path) == "ok"


def test_a_forked_child_stays_one_with_the_file_when_its_parent_closes_it(path: Path) -> None:
    cache = open_cache(path)
    cache.set("k", "warm")
    assert cache.get("k") == "warm"
    used, may_go_on = os.pipe(), os.pipe()

    def child() -> bool:
        cache.set("mine", 1)
        os.write(used[1], b"1")
        os.read(may_go_on[0], 1)
        with OtherProcess(path) as other:
            other.ask("delete", "k")
            cache.set("mine", 2)
            return cache.get("k") is None and other.ask("get", "mine") == 2

    child_was_right = in_forked_child(child)
    os.read(used[0], 1)
    cache.close()
    os.write(may_go_on[1], b"1")
    assert child_was_right()


def test_a_damaged_file_set_aside_elsewhere_is_followed_to_the_fresh_one(path: Path) -> None:
    cache = SQLiteCache(path, deadline=5)
    cache.blocking.set("k", "old")
    cache.blocking.get("k")
    cache.blocking.close()
    path.write_bytes(b"garbage " * 1000)
    with OtherProcess(path) as other:
        other.ask("set", "k", "new")
        assert other.ask("get", "k") == "new"
        assert cache.blocking.get("k") == "new"
        cache.blocking.set("k2", 2)
        assert other.ask("get", "k2") == 2
    assert len(list(path.parent.glob("cache.db.corrupt-*"))) == 1


def test_of_many_who_find_one_file_damaged_only_the_damage_is_set_aside(path: Path) -> None:
    path.write_bytes(b"garbage " * 1000)
    with ExitStack() as stack:
        others = [stack.enter_context(OtherProcess(path, deadline=5.0)) for _ in range(4)]
        for me, other in enumerate(others):
            other.send("set", f"k{me}", me)
        for other in others:
            other.receive()
        assert [other.ask("get_many", ["k0", "k1", "k2", "k3"]) for other in others] == [
            {"k0": 0, "k1": 1, "k2": 2, "k3": 3}
        ] * 4
    assert len(list(path.parent.glob("cache.db.corrupt-*"))) == 1


def test_an_invalidation_reaches_the_fresh_file_although_another_process_put_it_there(path: Path) -> None:
    cache = open_cache(path)
    cache.set("k", "old")
    cache.get("k")
    for name in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):
        name.rename(f"{name}.away")
    with OtherProcess(path) as other:
        other.ask("set", "k", "new")
        cache.delete("k")
        assert other.ask("get", "k") is None, "the delete was acknowledged, but went to the file that is away"
