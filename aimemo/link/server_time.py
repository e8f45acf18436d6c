"""The server's clock, as seen from this process."""

from __future__ import annotations

from typing import Final

from aimemo.core.ports import Clock
from aimemo.link.link import Link

LEARNED_FOR: Final = 60.0
"""Seconds after which the difference of the clocks is measured again."""

GOOD_ROUND_TRIP: Final = 0.05
RETRY: Final = 1.0


class ServerTime:
    """How far the server's clock is ahead of the process's own.

    The difference is taken from the moment at which the server was asked, so that what ends on the server never
    seems to last longer here. The nodes of a cluster are taken to have one time.

    Args:
        clock: of the process.
        is_given: the user gave this clock; then it is the server's time too.
    """

    def __init__(self, clock: Clock, *, is_given: bool) -> None:
        self._clock = clock
        self.offset = 0.0
        self._is_known = is_given
        self._due = float("inf") if is_given else float("-inf")

    def is_due(self) -> bool:
        """Whether the one who asks should `learn`; of many who ask, one, if it was known before."""
        now = self._clock()
        if now < self._due:
            return False
        if self._is_known:
            self._due = now + RETRY
        return True

    async def learn(self, link: Link) -> None:
        sent = self._clock()
        [(seconds, microseconds)] = await link.ask(0, ("TIME",))
        self.offset = int(seconds) + int(microseconds) / 1e6 - sent
        self._is_known = True
        now = self._clock()
        self._due = now + (LEARNED_FOR if now - sent < GOOD_ROUND_TRIP else RETRY)
