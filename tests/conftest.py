"""What every test may use: clocks that are moved by hand, and caches of every kind."""

from __future__ import annotations

import contextlib
import gc
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aimemo import Cache, InMemoryCache, SQLiteCache
from aimemo.core.events import GATE
from tests.kit import stalls
from tests.kit.clients import KINDS, client_of, close
from tests.kit.clock import Clock
from tests.kit.leaks import Before, Tasks
from tests.kit.redis_caches import close_all, redis_cache
from tests.kit.servers import wait_until

_numbers = itertools.count()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-slow", action="store_true", help="run the long tests too")


_SERVER_FILES = ("test_redis_", "test_lock", "test_urls")
_INTEGRATION = ("test_demo.py", "test_sqlite_processes.py", "test_bench_command.py")


def _needs_servers(item: pytest.Item) -> bool:
    """Whether a test starts a Valkey or Redis server: by its file, or by the kind of its cache."""
    kinds = getattr(item, "callspec", None)
    kind = kinds.params.get("cache") if kinds is not None else None
    return item.path.name.startswith(_SERVER_FILES) or kind in ("redis", "redis behind L1", "cluster")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if _needs_servers(item):
            item.add_marker("redis")
            item.add_marker("integration")
        elif item.path.name in _INTEGRATION:
            item.add_marker("integration")
    if not config.getoption("--run-slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="slow: run with --run-slow"))


@pytest.fixture(autouse=True)
def _stalls_are_watched() -> None:
    stalls.watch()


@pytest.fixture(autouse=True)
def _open_gate() -> Iterator[None]:
    """No test leaves the gate closed: a closed gate would hide the fast path from the tests after it."""
    before = len(GATE)
    yield
    if len(GATE) > before:  # caches that are watched close it until they are collected
        wait_until(lambda: gc.collect() >= 0 and len(GATE) <= before, "the gate is open again")


@pytest.fixture(autouse=True)
def _nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """No test leaves a socket, a thread of the library or a pending task behind, unless it is marked `leaves`."""
    before, tasks = Before(), Tasks()
    yield
    tasks.undo()
    close_all()
    if request.node.get_closest_marker("leaves") is None:
        with contextlib.suppress(TimeoutError):
            wait_until(before.is_back, "nothing is left", seconds=5)
        assert before.left() == ""
        assert tasks.left == []


@pytest.fixture
def clock() -> Clock:
    return Clock()


def make_cache(kind: str, path: Path, clock: Clock) -> Cache:
    match kind:
        case "memory":
            return InMemoryCache(clock=clock)
        case "sqlite":
            # Five seconds for the stores: a slow machine must not turn a hit into a miss.
            return SQLiteCache(path, clock=clock, deadline=5)
        case "redis":
            return redis_cache("server", clock, strict=False, enable_l1_cache=False)
        case "redis behind L1":
            return redis_cache("server", clock, strict=False)
    return redis_cache("cluster", clock, strict=False, enable_l1_cache=False)


@pytest.fixture(params=["memory", "sqlite", "redis", "redis behind L1", "cluster"])
def cache(request: pytest.FixtureRequest, path: Path, clock: Clock) -> Iterator[Cache]:
    """A cache of each kind on a clock that is moved by hand."""
    made = make_cache(request.param, path, clock)
    yield made
    made.blocking.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the SQLite file of a test is."""
    return tmp_path / "cache.db"


@pytest.fixture
def make(path: Path, clock: Clock) -> Iterator[Callable[..., SQLiteCache]]:
    """Makes caches on the file; each stands for a process of its own."""
    made: list[SQLiteCache] = []

    def make_one(where: Path = path, **settings: Any) -> SQLiteCache:
        made.append(SQLiteCache(where, **{"clock": clock, **settings}))
        return made[-1]

    yield make_one
    for cache in made:
        cache.blocking.close()


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Of a client of the redis package."""
    return str(request.param)


@pytest.fixture
async def client(kind: str) -> AsyncIterator[Any]:
    """A client of each kind, on the servers that all tests share."""
    made = client_of(kind)
    yield made
    await close(made)


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """Of something on the servers that all tests share: nobody else's."""
    return f"{request.node.name} {next(_numbers)}"
