"""Callbacks that come and go while a cache is used, also from several threads."""

from __future__ import annotations

import gc
import threading
import tracemalloc
import weakref
from typing import Any

import pytest

from aimemo import InMemoryCache
from aimemo.core.events import GATE, SEED_EVENTS
from tests.kit.servers import wait_until


class Callback:
    def __call__(self, *args: Any) -> None:
        pass


def use(cache: InMemoryCache) -> None:
    """Let every event happen once."""
    blocking = cache.blocking
    blocking.get("other")
    blocking.set("k", 1)
    blocking.get("k")
    blocking.delete("k")


def test_ten_thousand_callbacks_that_were_called_leave_nothing_behind() -> None:
    cache, before = InMemoryCache(), len(GATE)

    def come_and_go(times: int) -> weakref.ref[Callback]:
        for number in range(times):
            callback = Callback()
            for event in SEED_EVENTS:
                cache.register_callback(event, callback)
            if number % 50 == 0:
                use(cache)
            for event in SEED_EVENTS:
                assert cache.unregister_callback(event, callback)
        return weakref.ref(callback)

    come_and_go(100)
    gc.collect()
    tracemalloc.start()
    start = tracemalloc.get_traced_memory()[0]
    last = come_and_go(10_000 // len(SEED_EVENTS))
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - start
    tracemalloc.stop()
    assert last() is None
    assert grown < 10 * 10_000
    assert len(GATE) == before


def test_threads_may_register_and_deregister_while_others_use_the_cache() -> None:
    cache, before = InMemoryCache(), len(GATE)
    told: list[Any] = []
    note_all = lambda key, value: told.append(key)
    cache.register_callback("set_success", note_all)

    def work(name: str) -> None:
        own: list[Any] = []
        note = lambda key, value: own.append(key)
        for number in range(100):
            cache.register_callback("set_success", note)
            cache.blocking.set(f"{name} {number}", number)
            wait_until(lambda: f"{name} {number}" in own, "it is told, perhaps by another thread")  # noqa: B023
            assert cache.unregister_callback("set_success", note)

    failures: list[Any] = []
    threads = [threading.Thread(target=lambda name=name: failures.append(_error_of(work, name))) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == [None] * 4
    assert sorted(told) == sorted(f"{name} {number}" for name in "abcd" for number in range(100))
    assert cache.stats().callback_errors == 0
    cache.unregister_callback("set_success", note_all)
    assert len(GATE) == before


def _error_of(function: Any, *args: Any) -> BaseException | None:
    try:
        function(*args)
    except BaseException as error:
        return error
    return None


def test_a_callback_may_take_itself_away_while_it_is_called() -> None:
    cache, told = InMemoryCache(), []

    def once(key: str) -> None:
        told.append(key)
        assert cache.unregister_callback("get_miss", once)

    cache.register_callback("get_miss", once)
    cache.register_callback("get_miss", also := lambda key: told.append("also"))
    for key in "ab":
        cache.blocking.get(key)
    cache.unregister_callback("get_miss", also)
    assert told == ["a", "also", "also"]
    assert cache.stats().callback_errors == 0


@pytest.mark.parametrize("event", SEED_EVENTS)
def test_a_callback_is_told_of_its_own_event_only(event: str) -> None:
    cache, told = InMemoryCache(), []
    note = lambda *args: told.append(args)
    cache.register_callback(event, note)
    use(cache)
    cache.unregister_callback(event, note)
    use(cache)
    assert len(told) == 1


def test_failures_are_counted_one_by_one() -> None:
    cache = InMemoryCache()

    def fail(*args: Any) -> None:
        raise ValueError("no")

    for event in SEED_EVENTS:
        cache.register_callback(event, fail)
    use(cache)
    use(cache)
    for event in SEED_EVENTS:
        cache.unregister_callback(event, fail)
    use(cache)
    assert cache.stats().callback_errors == 2 * len(SEED_EVENTS)
