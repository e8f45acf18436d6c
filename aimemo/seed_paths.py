"""The module paths of the seeds' documents: other names of the modules that took their place."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any, Final

PATHS: Final = {
    "aimemo.factory": "aimemo.setup.factory",
    "aimemo.memory": "aimemo.caches.memory",
    "aimemo.redis_generic": "aimemo.caches.redis",
    "aimemo.redis_ai": "aimemo.caches.ai",
    "aimemo.base": "aimemo.caches.interface",
    "aimemo.monitoring": "aimemo.measure.monitor",
    "aimemo.exceptions": "aimemo.errors",
    "aimemo.benchmarks": "aimemo.measure",
    "aimemo.benchmarks.config": "aimemo.measure.benchmark",
    "aimemo.benchmarks.core": "aimemo.measure.benchmark",
}


class _SeedPaths:
    """Finds and loads them; what is asked of such a module is asked of the one behind it."""

    @classmethod
    def find_spec(cls, name: str, path: Any = None, target: Any = None) -> Any:
        if name not in PATHS:
            return None
        return type(__spec__)(name, cls, is_package=name == "aimemo.benchmarks")  # type: ignore[arg-type]

    @staticmethod
    def create_module(spec: Any) -> None:
        return None

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        behind = PATHS[module.__name__]
        module.__getattr__ = lambda name: getattr(importlib.import_module(behind), name)  # type: ignore[method-assign]


sys.meta_path.append(_SeedPaths)
