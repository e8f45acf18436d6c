"""Presets: settings by name, for those who do not want to choose them one by one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from aimemo.errors import ConfigurationError

SIZE: Final = "memory_cache_size"
"""The setting that bounds what one process keeps: `max_size` of a cache in memory, `l1_cache_size` of one in Redis."""


def _preset(ttl: int, size: int, compression_threshold: int, **settings: Any) -> Mapping[str, Any]:
    return {"default_ttl": ttl, SIZE: size, "compression_threshold": compression_threshold, **settings}


def _ttls(summarize: int, sentiment: int, key_points: int, questions: int, qa: int) -> Mapping[str, int]:
    return {
        "summarize": summarize, "sentiment": sentiment, "key_points": key_points, "questions": questions, "qa": qa,
    }  # fmt: skip


PRESETS: Final[Mapping[str, Mapping[str, Any]]] = {
    "disabled": _preset(300, 10, 10_000, enabled=False),
    "minimal": _preset(900, 25, 5000),
    "simple": _preset(3600, 100, 1000),
    "development": _preset(600, 50, 2000),
    "production": _preset(7200, 500, 500),
    "ai-development": _preset(1800, 100, 1000, operation_ttls=_ttls(1800, 900, 1200, 1500, 900)),
    "ai-production": _preset(14_400, 1000, 300, operation_ttls=_ttls(14_400, 7200, 10_800, 9600, 7200)),
}

_OF_ENVIRONMENT: Final = {
    "development": "development", "dev": "development", "test": "minimal", "testing": "minimal",
    "staging": "production", "production": "production", "prod": "production",
}  # fmt: skip


def preset(name: str) -> dict[str, Any]:
    """The settings of a preset, to be changed as one likes.

    Raises:
        ConfigurationError: for a name that is none; the text lists those there are.
    """
    if not isinstance(name, str) or name not in PRESETS:
        raise ConfigurationError(f"unknown preset {name!r}; presets are {', '.join(PRESETS)}", {"preset": "unknown"})
    return dict(PRESETS[name])


def preset_of_environment(name: str) -> dict[str, Any]:
    """The settings that suit an environment: `development`, `testing`, `staging` or `production`.

    Raises:
        ConfigurationError: for a name that is none.
    """
    if name not in _OF_ENVIRONMENT:
        raise ConfigurationError(f"CACHE_ENV must be one of {', '.join(_OF_ENVIRONMENT)}", {"CACHE_ENV": "unknown"})
    return preset(_OF_ENVIRONMENT[name])
