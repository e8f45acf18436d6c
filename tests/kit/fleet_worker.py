"""Processes of a fleet: each calls one remembered function many times at once, and says what came of it.

Every execution is noted on the server when it begins, so that those of a killed process are counted too.
"""

from __future__ import annotations

import asyncio
import collections
import itertools
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import redis

from aimemo import GenericRedisCache, cached_ai_call
from aimemo.coordination import lock
from tests.kit.servers import wait_until

ROOT = Path(__file__).parents[2]


@dataclass
class Plan:
    """What one process does.

    Attributes:
        calls: how many, by `at_once` callers together.
        seconds: how long an execution takes; `holds_loop` does not let the event loop run meanwhile.
        end: of an execution.
        lease_seconds: in place of the lock's own.
        settings: of the cache.
    """

    url: str
    namespace: str
    world: Literal["tasks", "threads"] = "tasks"
    calls: int = 1
    at_once: int = 1
    seconds: float = 0.1
    holds_loop: bool = False
    end: Literal["answer", "fail", "cancel", "unkept"] = "answer"
    lease_seconds: float = lock.LEASE_SECONDS
    # Five seconds for the stores: a slow machine must not turn a lease into none.
    settings: dict[str, Any] = field(default_factory=lambda: {"deadline": 5})


def runs(client: redis.Redis, namespace: str) -> list[int]:
    """The processes that executed the function, in the order in which they began."""
    return [int(pid) for pid in client.lrange(f"runs:{namespace}", 0, -1)]


def renews_nothing() -> bool:
    """Whether this process has no leases to renew, and nobody who would."""
    return all(thread.name != "aimemo-leases" for thread in threading.enumerate())


class FleetWorker:
    """A process that carries out one plan after another: `prepare`, `go`, `result`."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.kit.fleet_worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, cwd=ROOT,
        )  # fmt: skip
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        self.pid = self._process.pid
        self.is_busy = False

    def prepare(self, url: str, namespace: str, **plan: Any) -> None:
        """Let it connect, and wait until it has; nothing is called yet."""
        self.is_busy = True
        self._stdin.write(json.dumps({"url": url, "namespace": namespace, **plan}) + "\n")
        assert self._hear(30) == "ready"

    def go(self) -> None:
        self._stdin.write("go\n")

    def result(self, seconds: float = 30) -> dict[str, Any]:
        """`answers` and how often each came (of errors, their type), `executions` here, and the `seconds` it took."""
        found: dict[str, Any] = self._hear(seconds)
        self.is_busy = False
        return found

    def _hear(self, seconds: float) -> Any:
        if not select.select([self._stdout], [], [], seconds)[0]:
            raise TimeoutError(f"nothing was heard from process {self.pid} for {seconds} s")
        return json.loads(self._stdout.readline())

    def freeze(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self.is_busy = True
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        self.kill()
        self._stdin.close()
        self._stdout.close()


class Crew:
    """Processes that are kept between tests, as long as they are well."""

    def __init__(self) -> None:
        self._workers: list[FleetWorker] = []

    def take(self, number: int) -> list[FleetWorker]:
        while len(self._workers) < number:
            self._workers.append(FleetWorker())
        return self._workers[:number]

    def tidy(self) -> None:
        """End those that were killed, or never came to an end."""
        for worker in [worker for worker in self._workers if worker.is_busy]:
            worker.close()
            self._workers.remove(worker)

    def close(self) -> None:
        for worker in self._workers:
            worker.close()


class _Member:
    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.cache = GenericRedisCache(plan.url, namespace=plan.namespace, **plan.settings)
        self.executions = 0
        self.client = redis.Redis.from_url(plan.url)
        self._options: dict[str, Any] = {"operation": "ask", "cache": self.cache}
        if plan.end == "unkept":
            self._options["store_if"] = lambda answer: False

    def run(self) -> list[str]:
        """What every call answered, or the name of its error."""
        return self._in_threads() if self.plan.world == "threads" else asyncio.run(self._in_tasks())

    def _in_threads(self) -> list[str]:
        @cached_ai_call(**self._options)
        def ask(text: str) -> str:
            self._begin()
            time.sleep(self.plan.seconds)
            return self._end(text)

        def call(_: int) -> list[str]:
            answers = []
            for _ in range(self.plan.calls // self.plan.at_once):
                try:
                    answers.append(ask("question"))
                except BaseException as error:
                    answers.append(type(error).__name__)
            return answers

        with ThreadPoolExecutor(self.plan.at_once) as pool:
            self._wait_for_go(self.cache.blocking.connect())
            return list(itertools.chain.from_iterable(pool.map(call, range(self.plan.at_once))))

    async def _in_tasks(self) -> list[str]:
        @cached_ai_call(**self._options)
        async def ask(text: str) -> str:
            self._begin()
            if self.plan.holds_loop:
                time.sleep(self.plan.seconds)
            else:
                await asyncio.sleep(self.plan.seconds)
            return self._end(text)

        async def call() -> list[str]:
            answers = []
            for _ in range(self.plan.calls // self.plan.at_once):
                try:
                    answers.append(await ask("question"))
                except BaseException as error:
                    answers.append(type(error).__name__)
            return answers

        self._wait_for_go(await self.cache.connect())
        return list(itertools.chain.from_iterable(await asyncio.gather(*(call() for _ in range(self.plan.at_once)))))

    def _wait_for_go(self, is_connected: bool) -> None:
        assert is_connected
        _say("ready")
        assert sys.stdin.readline() == "go\n"
        self.started = time.monotonic()

    def _begin(self) -> None:
        self.executions += 1
        self.client.rpush(f"runs:{self.plan.namespace}", os.getpid())

    def _end(self, text: str) -> str:
        if self.plan.end == "fail":
            raise ValueError("no")
        if self.plan.end == "cancel":
            raise asyncio.CancelledError
        return f"{text} answered by {os.getpid()}"


def _say(what: Any) -> None:
    print(json.dumps(what), flush=True)  # noqa: T201


def main() -> None:
    for line in iter(sys.stdin.readline, ""):
        plan = Plan(**json.loads(line))
        if plan.lease_seconds != lock.LEASE_SECONDS:
            wait_until(renews_nothing, "nobody sleeps for a third of the other lease")
            lock.LEASE_SECONDS = plan.lease_seconds
        member = _Member(plan)
        answers = collections.Counter(member.run())
        seconds = time.monotonic() - member.started
        member.cache.blocking.close()
        member.client.close()
        _say({"answers": answers, "executions": member.executions, "seconds": seconds})


if __name__ == "__main__":
    main()
