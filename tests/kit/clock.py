"""A clock that only moves when it is told to."""

from __future__ import annotations

from collections.abc import Callable

from aimemo.testing import FakeClock


class Clock(FakeClock):
    def __init__(self, now: float = 1_000_000.0) -> None:
        super().__init__(now)
        self.followers: list[Callable[[float], None]] = []
        """Called with the seconds that it advances: what else has to grow older with it."""

    def advance(self, seconds: float) -> None:
        super().advance(seconds)
        for follow in self.followers:
            follow(seconds)
