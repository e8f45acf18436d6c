"""The Redis cache with the settings that suit answers of language models."""

from __future__ import annotations

from typing import Any

from aimemo.caches.redis import GenericRedisCache


class AIResponseCache(GenericRedisCache):
    """A `GenericRedisCache` for the answers of language models: fewer of them, and larger, stay in the process.

    Args:
        redis_url: as of `GenericRedisCache`, like all the others.
    """

    def __init__(
        self, redis_url: str = "redis://localhost:6379/0", default_ttl: int = 3600, *,
        l1_cache_size: int = 100, **settings: Any,
    ) -> None:  # fmt: skip
        super().__init__(redis_url, default_ttl, l1_cache_size=l1_cache_size, **settings)
