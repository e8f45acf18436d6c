"""Both sides of a fork find every structure whole; what the parent was doing, the child is not. Step by step."""

from __future__ import annotations

import os
import runpy
import threading
import weakref
from collections.abc import Callable

import pytest

from aimemo.core import runtime
from aimemo.core.aio import _Workers
from aimemo.core.single_flight import Flights
from tests.kit.looking import OtherThread

Fork = Callable[[], None]


@pytest.fixture(params=["parent", "child"])
def side(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def fork(side: str, monkeypatch: pytest.MonkeyPatch) -> Fork:
    """Does what a fork does on one side of it, with what the test makes and nothing else."""
    for registered in ("_fork_locks", "_before_forks", "_after_fork"):
        monkeypatch.setattr(runtime, registered, weakref.WeakSet())

    def pass_through() -> None:
        runtime._before_fork()
        runtime._release_after_fork() if side == "parent" else runtime._in_child()

    return pass_through


class Witness:
    """Notes what it is told, and whether a lock was held then."""

    def __init__(self, lock: threading.Lock) -> None:
        self.lock = lock
        self.told: list[tuple[str, bool]] = []

    def before_fork(self) -> None:
        self.told.append(("before", self.lock.locked()))

    def forget(self) -> None:
        self.told.append(("forget", self.lock.locked()))


def test_locks_are_held_over_a_fork_and_only_the_child_forgets(fork: Fork, side: str) -> None:
    lock = runtime.fork_safe_lock()
    witness = Witness(lock)
    runtime.release_before_fork(witness)
    runtime.forget_after_fork(witness)
    fork()
    assert witness.told == [("before", True), ("forget", False)][: 1 if side == "parent" else 2]
    assert not lock.locked()


def test_a_child_does_not_wait_for_what_its_parent_computes(fork: Fork, side: str) -> None:
    flights, threads = Flights(), OtherThread()
    assert flights.join(threads, "key", "ask", ())[1]
    fork()
    assert flights.join(threads, "key", "ask", ())[1] is (side == "child")


def test_a_child_starts_worker_threads_of_its_own(fork: Fork, side: str) -> None:
    workers = _Workers()
    pool = workers.pool()
    fork()
    assert (workers.pool() is pool) is (side == "parent")


def test_where_nothing_can_fork_the_library_works_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "register_at_fork")
    module = runpy.run_path(str(runtime.__file__))
    assert module["drive"](module["ThreadRuntime"]().offload(str.upper, "a")) == "A"
