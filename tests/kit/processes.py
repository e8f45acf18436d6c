"""Other processes that use the same SQLite file, one command at a time, answered as JSON lines."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from aimemo import SQLiteCache

ROOT = Path(__file__).parents[2]


class OtherProcess:
    """A cache on `path` in a process of its own. `ask("set", "k", 1)` calls `cache.blocking.set("k", 1)` there.

    The stores have five seconds if not told otherwise: a slow disk must not turn a hit into a miss.
    """

    def __init__(self, path: Path, **settings: Any) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.kit.processes", str(path), json.dumps({"deadline": 5, **settings})],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, cwd=ROOT,
        )  # fmt: skip

    def __enter__(self) -> OtherProcess:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        if self._process.poll() is None:
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process.stdout.close()

    def send(self, name: str, *args: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([name, *args]) + "\n")

    def receive(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the other process ended without an answer"
        return json.loads(line)

    def ask(self, name: str, *args: Any) -> Any:
        self.send(name, *args)
        return self.receive()

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()


class _Commands:
    """What an `OtherProcess` can be asked beyond the methods of a blocking cache."""

    def __init__(self, cache: SQLiteCache) -> None:
        self.cache = cache

    def compute(self, key: str, value: Any) -> Any:
        """`get_or_compute`, whose computation says "computing" and ends when the next line arrives."""

        def wait() -> Any:
            print(json.dumps("computing"), flush=True)  # noqa: T201
            sys.stdin.readline()
            return value

        return self.cache.blocking.get_or_compute(key, wait)

    def errors(self) -> int:
        return self.cache.stats().errors

    def write_for_ever(self) -> None:
        """Set numbered keys to values that say their key, until killed; say "writing" once one of them is kept."""
        while not self.cache.blocking.exists(self._write_one()):
            pass
        print(json.dumps("writing"), flush=True)  # noqa: T201
        while True:
            self._write_one()

    def _write_one(self) -> str:
        number = random.randrange(200)
        self.cache.blocking.set(f"key-{number}", [number] * random.randrange(1, 2000))
        return f"key-{number}"

    def exercise(self, me: int, rounds: int) -> dict[str, int]:
        """Write own keys and shared ones, read all back; how many sets were lost and values wrong."""
        cache = self.cache.blocking
        wrong = 0
        for number in range(rounds):
            cache.set(f"own-{me}-{number}", [me, number])
            cache.set(f"shared-{number}", f"shared-{number}")
            seen = cache.get(f"shared-{random.randrange(rounds)}")
            wrong += seen is not None and not seen.startswith("shared-")
        kept = cache.get_many([f"own-{me}-{number}" for number in range(rounds)])
        wrong += sum(value != [me, int(key.rsplit("-", 1)[1])] for key, value in kept.items())
        return {"lost": rounds - len(kept), "wrong": wrong, "errors": self.errors()}

    def limit_file_size(self, size: int) -> None:
        """Let the disk be full for files of this size; -1 makes room again."""
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    def set_random(self, number: int) -> None:
        """Set keys to what does not compress, one after another."""
        for at in range(number):
            self.cache.blocking.set(f"large-{at}", os.urandom(30_000))


def main() -> None:
    cache = SQLiteCache(sys.argv[1], **json.loads(sys.argv[2]))
    commands = _Commands(cache)
    for line in iter(sys.stdin.readline, ""):
        name, *args = json.loads(line)
        try:
            answer = (getattr(commands, name, None) or getattr(cache.blocking, name))(*args)
        except Exception as error:
            answer = {"error": type(error).__name__}
        print(json.dumps(answer), flush=True)  # noqa: T201
    os._exit(0)  # as a crash would: nothing is closed unless `close` was asked


if __name__ == "__main__":
    main()
