"""Single flight: of the callers that ask for one key at one time, one leads and the others follow.

Flights join within one world: tasks with tasks, also across event loops, and threads with threads.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Literal

from aimemo.core.entry import Entry
from aimemo.core.events import Tier
from aimemo.core.ports import Selector
from aimemo.core.runtime import Answer, Failure, Runtime, forget_after_fork, fork_safe_lock
from aimemo.errors import CodecError


@dataclass(frozen=True, slots=True)
class Landing:
    """How a flight ended.

    Attributes:
        result: the leader's own answer, or the error for everybody.
        outcome: what it was for the leader: `miss`, or `hit` or `stale` where a stored answer came out.
        entry: the answer packed, to give each follower a copy of; None if it cannot be packed.
        tier: where a stored answer came from.
        is_private: the leader's arguments changed under the computation, so its answer is for it alone.
        is_kept: the answer was stored; False if an invalidation came before that, None if it was not to be, or could
            not be.
        spare: a copy of an answer that cannot be packed, which nobody has got, to copy again for followers.
        error: why a stale answer had to do.
    """

    result: Answer | Failure
    outcome: Literal["hit", "miss", "stale"] = "miss"
    entry: Entry | None = None
    tier: Tier | None = None
    is_private: bool = False
    is_kept: bool | None = None
    spare: Answer | None = None
    error: BaseException | None = None

    @property
    def reason(self) -> str:
        """Why a stale answer had to do, in a word."""
        return type(self.error).__name__ if self.error is not None else ""

    def copy(self) -> Answer | Failure | None:
        """The result for one follower; None if it cannot be copied."""
        if isinstance(self.result, Failure):
            return self.result
        try:
            if self.entry is not None:
                return Answer(self.entry.value)
        except CodecError:
            return None
        return spare_of(self.spare) if self.spare is not None else None


def spare_of(answer: Answer) -> Answer | None:
    """A copy of an answer that cannot be packed, if it can be copied in any way."""
    try:
        return Answer(copy.deepcopy(answer.value))
    except Exception:  # a socket, a lock, a stream
        return None


class Flight:
    """One computation under way."""

    __slots__ = (
        "followers",
        "home",
        "is_outdated",
        "key",
        "landing",
        "operation",
        "tags",
        "waiters",
        "waits_for",
        "world",
    )

    def __init__(self, world: str, key: str, operation: str, tags: tuple[str, ...], home: Any) -> None:
        self.world = world
        self.key = key
        self.operation = operation
        self.tags = tags
        self.home = home
        self.is_outdated = False
        self.followers = 0
        self.waits_for: set[Flight] = set()
        """The flights that the computation of this one follows."""
        self.landing: Landing | None = None
        self.waiters: list[Any] | None = []


_lock: Final = fork_safe_lock()
"""Of all caches together: a function may need answers of several, and rings are looked for among all of them."""


class Flights:
    """The flights of one cache."""

    def __init__(self) -> None:
        self.landings = 0
        """How many flights have landed or been detached: who looked before the last one should look again."""
        self._flights: dict[tuple[str, str], Flight] = {}
        forget_after_fork(self)

    def forget(self) -> None:
        """The leaders stayed behind in the parent process."""
        self._flights.clear()

    def join(self, runtime: Runtime, key: str, operation: str, tags: tuple[str, ...]) -> tuple[Flight, bool]:
        """The flight of a key, and whether the caller leads it."""
        address = (runtime.world, key)
        with _lock:
            flight = self._flights.get(address)
            if flight is not None and runtime.is_running(flight.home):
                return flight, False
            flight = self._flights[address] = Flight(runtime.world, key, operation, tags, runtime.home())
            return flight, True

    def follow(self, flight: Flight, led: Iterable[Flight]) -> bool:
        """Whether one who computes the flights `led` may wait for `flight`: not if that waits for one of them."""
        mine = {leading for leading in led if leading.waiters is not None}
        with _lock:
            ahead, reached = [flight], set()
            while ahead:
                at = ahead.pop()
                if at in mine:
                    return False
                if at not in reached:
                    reached.add(at)
                    ahead.extend(at.waits_for)
            flight.followers += 1
            for leading in mine:
                leading.waits_for.add(flight)
            return True

    def is_busy(self, runtime: Runtime, key: str) -> bool:
        flight = self._flights.get((runtime.world, key))
        return flight is not None and runtime.is_running(flight.home)

    def land(self, flight: Flight, landing: Landing | None) -> None:
        """End a flight, once. Without a landing its leader was cancelled, and a follower has to take over."""
        with _lock:
            if flight.waiters is None:
                return
            self._remove(flight)
            self.landings += 1
            flight.landing = landing
            waiters, flight.waiters = flight.waiters, None
            flight.waits_for.clear()
        for waiter in waiters or ():
            waiter.wake()

    async def landing(self, flight: Flight, runtime: Runtime) -> Landing | None:
        """Wait for a flight's end. None: it has no leader any more."""
        with _lock:
            if flight.waiters is None:
                return flight.landing
            waiter = runtime.waiter()
            flight.waiters.append(waiter)
        if not await runtime.wait(waiter, flight.home):
            self.land(flight, None)
        return flight.landing

    def detach(self, selector: Selector, *, is_outdated: bool = True) -> None:
        """Let nobody else join the flights that an invalidation means; those who wait get their answer.

        An outdated flight's answer is older than what made it so, and must not be kept.
        """
        with _lock:
            for flight in list(self._flights.values()):
                if selector.matches(flight.key, flight.operation, flight.tags):
                    flight.is_outdated = flight.is_outdated or is_outdated
                    self._remove(flight)
                    self.landings += 1

    def _remove(self, flight: Flight) -> None:
        address = (flight.world, flight.key)
        if self._flights.get(address) is flight:
            del self._flights[address]
