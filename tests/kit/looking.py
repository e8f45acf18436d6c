"""What tests have to look at from inside, because users do not see it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from aimemo import Cache
from aimemo.core import aio
from aimemo.core.runtime import ThreadRuntime


class OtherThread(ThreadRuntime):
    """As if whoever asks were not in the thread of who leads."""

    def home(self) -> int:
        return 0


def background() -> list[asyncio.Task[Any]]:
    """The library's own tasks of the loop that is running."""
    return [task for task in aio._tasks if task.get_loop() is asyncio.get_running_loop()]


def hold_up_waiting(runtime: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Set when a thread is about to wait for something; and what lets it: all that happens between comes too early."""
    is_held, goes_on, make = threading.Event(), threading.Event(), runtime.waiter

    def make_late() -> Any:
        is_held.set()
        goes_on.wait(5)
        return make()

    monkeypatch.setattr(runtime, "waiter", make_late)
    return is_held, goes_on


def followers(cache: Cache) -> int:
    """How many callers wait for a computation that is under way; in the world of tasks its own caller does too."""
    return sum(len(flight.waiters or ()) for flight in list(cache._flights._flights.values()))


def nearest_tier(cache: Cache) -> str:
    """Where an answer that was just kept is found again."""
    return "l2" if cache._local is None else "l1"


async def until(condition: Callable[[], Any], seconds: float = 15) -> None:
    """Let the other tasks run until something is so. Real servers take more than one turn of the loop."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.001)
