"""Single flight across the processes that share a store: one computes a key, the others wait for its answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from aimemo.core.call import Call, Found
from aimemo.core.guard import Guard
from aimemo.core.ports import Lease, Lock
from aimemo.core.runtime import Runtime
from aimemo.core.single_flight import Landing
from aimemo.core.tiers import Tiers

SHORTEST_PAUSE: Final = 0.01
LONGEST_PAUSE: Final = 0.1
NESTED_PAUSES: Final = 50


def pauses() -> Iterator[float]:
    """Seconds to wait between one question and the next, for somebody who polls: ever longer, up to a limit."""
    pause = SHORTEST_PAUSE
    while True:
        yield pause
        pause = min(pause * 1.5, LONGEST_PAUSE)


class Fleet:
    """The right to compute a key, in one world of one process.

    Whatever is wrong with the lock, a caller computes for itself: waiting is only ever for an answer that
    another process is known to compute.
    """

    def __init__(self, lock: Lock, tiers: Tiers, guard: Guard, runtime: Runtime) -> None:
        self._lock = lock
        self._tiers = tiers
        self._guard = guard
        self._runtime = runtime

    async def turn(self, call: Call, *, is_nested: bool) -> Found | Lease | None:
        """Wait until another process has answered, or until it is this one's turn to compute.

        A computation that is part of another one, whose own lease others may wait for, waits only for some
        seconds: two processes could wait for each other for ever.
        """
        waits, pauses_left = pauses(), NESTED_PAUSES if is_nested else None
        while True:
            lease = await self._guard.ask("lease", call.key, self._lock.acquire, call.key, call.tags)
            if lease is None or lease.state == "free":
                return None
            try:
                found = await self._tiers.find_fresh(call)
            except BaseException:  # cancelled, or a strict store failed
                self._lock.abandon(lease)
                raise
            if found is not None:
                await self._release(call, lease, unkept=False)
                return found
            if lease.state == "ours" or pauses_left == 0:
                return lease
            self._guard.renew_budget()
            await self._runtime.sleep(next(waits))
            pauses_left = None if pauses_left is None else pauses_left - 1

    async def leave(self, call: Call, lease: Lease | None, landing: Landing | None) -> None:
        """The computation is over: it landed, or it was cancelled, and another process may take it up."""
        if lease is not None:
            await self._release(call, lease, unkept=landing is not None and landing.is_kept is None)

    async def _release(self, call: Call, lease: Lease, *, unkept: bool) -> None:
        if lease.state == "ours":
            self._lock.abandon(lease)  # whatever becomes of the question
            await self._guard.ask("lease", call.key, lambda: self._lock.release(lease, unkept=unkept))
