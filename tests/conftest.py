"""What every test may use: clocks that are moved by hand, and caches of every kind."""

from __future__ import annotations

import contextlib
import gc
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from aimemo import Cache, InMemoryCache, SQLiteCache
from aimemo.core import aio, events, runtime
from aimemo.core.events import GATE
from tests.kit import stalls
from tests.kit.clients import KINDS, client_of, close
from tests.kit.clock import Clock
from tests.kit.leaks import Before, Tasks
from tests.kit.redis_caches import close_all, redis_cache
from tests.kit.servers import wait_until

_numbers = itertools.count()

# A machine that stands still for a moment makes no example wrong. All else is as whoever runs the tests has set it.
settings.register_profile("patient", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-slow", action="store_true", help="run the long tests too")


_SERVER_FILES = ("test_redis_", "test_lock", "test_urls")
_INTEGRATION = ("test_demo.py", "test_sqlite_processes.py", "test_bench_command.py")
_NOT_ABOUT_STORES = (
    "test_contexts",
    "test_flights_",
    "test_front",
    "test_hooks",
    "test_identity",
    "test_stale",
    "test_types",
)
"""What these test is the same on a cluster as on one server; with --run-slow it is shown."""


def _kind_of_cache(item: pytest.Item) -> Any:
    kinds = getattr(item, "callspec", None)
    return kinds.params.get("cache") if kinds is not None else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        kind = _kind_of_cache(item)
        if kind == "cluster" and item.path.name.startswith(_NOT_ABOUT_STORES):
            item.add_marker("slow")
        if item.path.name.startswith(_SERVER_FILES) or kind in ("redis", "redis behind L1", "cluster"):
            item.add_marker("redis")
            item.add_marker("integration")
        elif item.path.name in _INTEGRATION:
            item.add_marker("integration")
    if not config.getoption("--run-slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="slow: run with --run-slow"))


def pytest_collection_finish() -> None:
    """Many tests look for what is left behind; what was there before them need not be looked through each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _stalls_are_watched() -> None:
    stalls.watch()


@pytest.fixture(autouse=True)
def _hooks_have_time(request: pytest.FixtureRequest) -> Iterator[None]:
    """A slow machine must not take a hook for a slow one."""
    with pytest.MonkeyPatch.context() as patch:
        if request.node.get_closest_marker("slow_hooks") is None:
            for module in (aio, events, runtime):
                patch.setattr(module, "HOOK_DEADLINE", 60.0)
        yield


@pytest.fixture(autouse=True)
def _open_gate() -> Iterator[None]:
    """No test leaves the gate closed: a closed gate would hide the fast path from the tests after it."""
    before = len(GATE)
    yield
    if len(GATE) > before:  # caches that are watched close it until they are collected
        wait_until(lambda: gc.collect() >= 0 and len(GATE) <= before, "the gate is open again")
        gc.freeze()


@pytest.fixture(autouse=True)
def _nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """No test leaves a socket, a thread of the library or a pending task behind, unless it is marked `leaves`."""
    before, tasks = Before(), Tasks()
    yield
    tasks.undo()
    close_all()
    if request.node.get_closest_marker("leaves") is None:
        with contextlib.suppress(TimeoutError):
            wait_until(before.is_back, "nothing is left")
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
        # Five seconds for the stores: a slow disk must not turn a hit into a miss.
        made.append(SQLiteCache(where, **{"clock": clock, "deadline": 5, **settings}))
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
