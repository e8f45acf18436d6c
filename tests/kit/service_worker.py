"""Other processes that use the services over Redis, one command at a time, answered as JSON lines."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

import redis

from aimemo import IdempotencyService, RateLimiter, RedisLock
from tests.kit import processes
from tests.kit.redis_processes import _move_clocks, _say
from tests.kit.servers import HOST


class ServiceWorker(processes.OtherProcess):
    """A process with a client of its own; its clocks are `ahead` of ours by so many seconds."""

    def __init__(self, port: int, ahead: float = 0) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.kit.service_worker", str(port), str(ahead)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, cwd=processes.ROOT,
        )  # fmt: skip

    def is_running(self) -> bool:
        return self._process.poll() is None

    def freeze(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)


class _Commands:
    def __init__(self, port: int) -> None:
        self.client = redis.Redis(HOST, port)

    def ping(self) -> bool:
        return bool(self.client.ping())

    def run(self, name: str, claim: float, seconds: float | None) -> Any:
        """A request that takes so long, noted on the server when it begins. The pid of who carried it out.

        Without `seconds`, it ends when there is a key `end NAME` on the server.
        """

        def work() -> int:
            self.client.rpush(f"runs {name}", os.getpid())
            time.sleep(seconds or 0)
            while seconds is None and not self.client.exists(f"end {name}"):
                time.sleep(0.005)
            return os.getpid()

        return IdempotencyService(self.client, claim=claim).run(name, "payload", work)

    def spend(self, name: str, limit: int, window: float, weight: int, seconds: float) -> int:
        """How many requests were admitted of those that were made without a pause for so long."""
        limiter = RateLimiter(self.client, max_requests=limit, window_seconds=window)
        ends, admitted = time.monotonic() + seconds, 0
        while time.monotonic() < ends:
            admitted += limiter.is_allowed(name, weight)
        return admitted

    def hold(self, name: str, times: int) -> list[int]:
        """Hold a lock so often, and find nobody else inside. The fencing tokens."""
        lock, fences = RedisLock(self.client, name, timeout=5), []
        for _ in range(times):
            with lock:
                assert self.client.set(f"inside {name}", os.getpid(), nx=True)
                fences.append(lock.fencing_token)
                self.client.delete(f"inside {name}")
        return fences

    def keep(self, name: str, timeout: float) -> bool:
        """Take a lock and hold it."""
        self.kept = RedisLock(self.client, name, timeout=timeout)
        return self.kept.acquire()

    def give_back(self) -> bool:
        return self.kept.release()


def main() -> None:
    _move_clocks(float(sys.argv[2]))
    commands = _Commands(int(sys.argv[1]))
    for line in iter(sys.stdin.readline, ""):
        name, *args = json.loads(line)
        try:
            answer = getattr(commands, name)(*args)
        except Exception as error:
            answer = {"error": type(error).__name__, "result": getattr(error, "result", None)}
        _say(answer)
    os._exit(0)


if __name__ == "__main__":
    main()
