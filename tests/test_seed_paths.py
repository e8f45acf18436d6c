"""The module paths of the documents that aimemo grew from lead to the modules that took their place."""

from __future__ import annotations

import importlib
import subprocess
import sys
from typing import Any

import pytest

import aimemo
from aimemo.seed_paths import PATHS

NAMES = [
    ("aimemo.factory", "CacheFactory", "aimemo.setup.factory"),
    ("aimemo.memory", "InMemoryCache", "aimemo.caches.memory"),
    ("aimemo.redis_generic", "GenericRedisCache", "aimemo.caches.redis"),
    ("aimemo.redis_ai", "AIResponseCache", "aimemo.caches.ai"),
    ("aimemo.base", "CacheInterface", "aimemo.caches.interface"),
    ("aimemo.monitoring", "CachePerformanceMonitor", "aimemo.measure.monitor"),
    ("aimemo.exceptions", "ValidationError", "aimemo.errors"),
    ("aimemo.exceptions", "ConfigurationError", "aimemo.errors"),
    ("aimemo.exceptions", "InfrastructureError", "aimemo.errors"),
    ("aimemo.benchmarks.config", "BenchmarkConfig", "aimemo.measure.benchmark"),
    ("aimemo.benchmarks.config", "ConfigPresets", "aimemo.measure.benchmark"),
    ("aimemo.benchmarks.core", "CacheBenchmarkRunner", "aimemo.measure.benchmark"),
]
PUBLIC = (
    "CacheFactory", "InMemoryCache", "GenericRedisCache", "AIResponseCache", "CacheInterface",
    "CachePerformanceMonitor", "ValidationError", "ConfigurationError", "InfrastructureError",
)  # fmt: skip


@pytest.mark.parametrize(("path", "name", "home"), NAMES)
def test_a_name_is_the_same_under_the_path_of_the_seeds(path: str, name: str, home: str) -> None:
    found = getattr(importlib.import_module(path), name)
    assert found is getattr(importlib.import_module(home), name)


def test_the_statements_of_the_seeds_work() -> None:
    from aimemo.base import CacheInterface
    from aimemo.benchmarks.config import BenchmarkConfig
    from aimemo.benchmarks.core import CacheBenchmarkRunner
    from aimemo.factory import CacheFactory
    from aimemo.memory import InMemoryCache

    assert issubclass(InMemoryCache, CacheInterface)
    assert CacheBenchmarkRunner(BenchmarkConfig(default_iterations=3)).config.default_iterations == 3
    assert CacheFactory is aimemo.CacheFactory


@pytest.mark.parametrize("name", PUBLIC)
def test_the_package_itself_has_the_names(name: str) -> None:
    assert name in aimemo.__all__
    assert name in dir(aimemo)
    assert getattr(aimemo, name).__name__ in (name, "Cache")


@pytest.mark.parametrize("path", PATHS)
def test_every_path_can_be_imported_and_is_imported_once(path: str) -> None:
    assert importlib.import_module(path) is importlib.import_module(path) is sys.modules[path]


@pytest.mark.parametrize("path", [path for path in PATHS if path != "aimemo.benchmarks"])
def test_a_name_that_is_not_there_is_an_import_error(path: str) -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        importlib.import_module(path).nonsense  # noqa: B018
    with pytest.raises(ImportError, match="nonsense"):
        exec(f"from {path} import nonsense", {})


@pytest.mark.parametrize("path", ["aimemo.nonsense", "aimemo.benchmarks.nonsense", "aimemo.factory.nonsense"])
def test_no_other_path_is_made_up(path: str) -> None:
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(path)


def test_a_path_leads_to_what_is_there_now(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in: Any = object()
    monkeypatch.setattr("aimemo.setup.factory.CacheFactory", stand_in)
    assert importlib.import_module("aimemo.factory").CacheFactory is stand_in


def test_paths_cost_nothing_before_they_are_used() -> None:
    code = "import sys, aimemo, aimemo.factory; print('aimemo.setup.factory' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "False\n"
