"""What a test leaves behind: sockets, threads of the library, tasks of an event loop."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, Final

import redis

LASTING: Final = "aimemo-store"
"""Threads of the one pool that every cache of the process shares; it lives as long as the process."""

_clients: weakref.WeakSet[redis.Redis] = weakref.WeakSet()


def is_the_tests_own(client: redis.Redis) -> redis.Redis:
    """A client whose connections may outlive a test."""
    _clients.add(client)
    return client


def sockets() -> int:
    """How many sockets this process has open, without those of the tests' own clients."""
    found = 0
    for number in os.listdir("/proc/self/fd"):
        try:
            found += os.readlink(f"/proc/self/fd/{number}").startswith("socket:")
        except OSError:
            continue  # the one of the list itself
    return found - sum(_connected(client) for client in list(_clients))


def _connected(client: redis.Redis) -> int:
    pool: Any = client.connection_pool
    return sum(each._sock is not None for each in (*pool._available_connections, *pool._in_use_connections))


def threads() -> set[threading.Thread]:
    """The threads that the library has started, but for the shared pool."""
    return {each for each in threading.enumerate() if each.name.startswith("aimemo") and LASTING not in each.name}


class Tasks:
    """Notes the tasks that are still pending when an event loop ends."""

    def __init__(self) -> None:
        self.left: list[str] = []
        self._cancel_all: Callable[[Any], None] = asyncio.runners._cancel_all_tasks  # type: ignore[attr-defined]
        asyncio.runners._cancel_all_tasks = self._note  # type: ignore[attr-defined]

    def _note(self, loop: asyncio.AbstractEventLoop) -> None:
        """The tasks that the loop itself makes for generators that were collected are its own."""
        found = [repr(task) for task in asyncio.all_tasks(loop) if not task.done()]
        self.left += [task for task in found if "async_generator_athrow" not in task]
        self._cancel_all(loop)

    def undo(self) -> None:
        asyncio.runners._cancel_all_tasks = self._cancel_all  # type: ignore[attr-defined]


class Before:
    """What there was before a test."""

    def __init__(self) -> None:
        self._sockets, self._threads = sockets(), threads()

    def is_back(self) -> bool:
        return self.left() == "" or (gc.collect() >= 0 and self.left() == "")

    def left(self) -> str:
        """What there is now and was not there before."""
        more, new = sockets() - self._sockets, threads() - self._threads
        return f"{more} sockets, threads {[each.name for each in new]}" if more > 0 or new else ""
