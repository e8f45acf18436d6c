"""A clock that only moves when it is told to."""

from __future__ import annotations

from collections.abc import Callable


class Clock:
    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now
        self.followers: list[Callable[[float], None]] = []
        """Called with the seconds that it advances: what else has to grow older with it."""

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds
        for follow in self.followers:
            follow(seconds)
