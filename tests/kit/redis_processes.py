"""Other processes that use the same Redis, one command at a time, answered as JSON lines."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from aimemo import GenericRedisCache, cached_ai_call
from tests.kit import processes


class OtherProcess(processes.OtherProcess):
    """A Redis cache in a process of its own. `ask("set", "k", 1)` calls `cache.blocking.set("k", 1)` there.

    Args:
        ahead: seconds by which all clocks of that process are ahead of ours.
    """

    def __init__(self, url: str, *, ahead: float = 0, **settings: Any) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.kit.redis_processes", url, str(ahead), json.dumps(settings)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, cwd=processes.ROOT,
        )  # fmt: skip


def _say(what: Any) -> None:
    print(json.dumps(what), flush=True)  # noqa: T201


class _Commands:
    """What an `OtherProcess` can be asked beyond the methods of a blocking cache."""

    def __init__(self, cache: GenericRedisCache, real_time: Callable[[], float]) -> None:
        self.cache = cache
        self.real_time = real_time
        self.answer: Callable[[], Any] = lambda: None
        held = self  # what a function captures counts into its keys, by name

        def compute(what: Any) -> Any:
            return held.answer()

        self.function = cached_ai_call(operation="ask", cache=cache, tags=("news",))(compute)

    def key_for(self, what: Any) -> str:
        return self.function.key_for(what)

    def call(self, what: Any, answer: Any) -> Any:
        """A decorated call, whose function gives `answer`."""
        self.answer = lambda: answer
        return self.function(what)

    def refresh(self, what: Any, answer: Any) -> Any:
        self.answer = lambda: answer
        return self.function.refresh(what)

    def hold(self, what: Any, answer: Any) -> Any:
        """As `call`; the function says "computing" and ends when the next line arrives."""

        def wait() -> Any:
            _say("computing")
            sys.stdin.readline()
            return answer

        self.answer = wait
        return self.function(what)

    def holds(self, key: str) -> bool:
        """Whether L1 has a key once it was read twice."""
        local = self.cache.l1_cache
        found = [self.cache.blocking.get(key) for _ in range(2)]
        return found[0] == found[1] and local is not None and local.blocking.exists(key)

    def watch(self, key: str) -> list[Any]:
        """Say "watching", read a key until its value changes; when that was, and what the value is then."""
        get = self.cache.blocking.get
        before = get(key)
        _say("watching")
        limit = time.monotonic() + 5
        while (now := get(key)) == before and time.monotonic() < limit:
            time.sleep(0.0005)
        return [self.real_time(), now]

    def set_large(self, key: str, size: int) -> None:
        self.cache.blocking.set(key, os.urandom(size))

    def length(self, key: str) -> int | None:
        """Of a value; None if there is none."""
        value = self.cache.blocking.get(key)
        return None if value is None else len(value)


def _move_clocks(seconds: float) -> None:
    for name in ("time", "monotonic"):
        real = getattr(time, name)
        setattr(time, name, functools.partial(lambda real: real() + seconds, real))


def main() -> None:
    real_time = time.monotonic
    _move_clocks(float(sys.argv[2]))
    cache = GenericRedisCache(sys.argv[1], **json.loads(sys.argv[3]))
    commands = _Commands(cache, real_time)
    for line in iter(sys.stdin.readline, ""):
        name, *args = json.loads(line)
        try:
            answer = (getattr(commands, name, None) or getattr(cache.blocking, name))(*args)
        except Exception as error:
            answer = {"error": type(error).__name__}
        _say(answer)
    os._exit(0)  # as a crash would: nothing is closed unless `close` was asked


if __name__ == "__main__":
    main()
