"""`CacheService`: plain values under keys of the user's own, readable by other languages."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from aimemo.coordination.json_text import from_json, to_json
from aimemo.core.policy import seconds_of
from aimemo.errors import CodecError
from aimemo.link.borrowed import Borrowed, in_world_of_client

log = logging.getLogger("aimemo")


class CacheService:
    """JSON values in Redis, each exactly under the key that it is given.

    With an asyncio client all methods are awaitable, with a sync one they are plain. They raise
    `InfrastructureError` if Redis does not answer. For answers of functions, use `cached_ai_call`.

    Args:
        client: of the redis package; stays the user's.
        default_ttl: seconds that a value stays, if `set` does not say; None and 0 are for ever.
    """

    def __init__(self, client: Any, default_ttl: Any = None) -> None:
        self._redis = Borrowed(client)
        self._default_ttl = 0.0 if default_ttl is None else seconds_of("default_ttl", default_ttl)

    @in_world_of_client
    async def get(self, key: str) -> Any:
        """The value of a key; None if there is none, or none that is JSON."""
        return _value(await self._redis.ask("GET", key))

    @in_world_of_client
    async def set(self, key: str, value: Any, ttl: Any = None) -> None:
        """Keep a value for `ttl` seconds (or a `timedelta`).

        Raises:
            CodecError: for a value that JSON cannot hold.
        """
        await self._redis.ask(*self._set(key, value, ttl))

    @in_world_of_client
    async def delete(self, key: str) -> bool:
        """Remove a key. Whether it was there."""
        return bool(await self._redis.ask("DEL", key))

    @in_world_of_client
    async def get_many(self, keys: Iterable[str]) -> dict[str, Any]:
        """The values of those keys that have one, in one round trip to each server."""
        names = list(dict.fromkeys(keys))
        replies = await self._redis.ask_all([("GET", name) for name in names]) if names else []
        values = {name: _value(reply) for name, reply in zip(names, replies, strict=True) if reply is not None}
        return {name: value for name, value in values.items() if value is not None}

    @in_world_of_client
    async def set_many(self, values: Mapping[str, Any], ttl: Any = None) -> None:
        """Keep values in one pipeline, or raise as `set` and keep none."""
        commands = [self._set(key, value, ttl) for key, value in values.items()]
        if commands:
            await self._redis.ask_all(commands)

    def _set(self, key: str, value: Any, ttl: Any) -> tuple[Any, ...]:
        seconds = self._default_ttl if ttl is None else seconds_of("ttl", ttl)
        return ("SET", key, to_json(value), *(("PX", max(1, int(seconds * 1000))) if seconds else ()))


def _value(reply: Any) -> Any:
    if reply is None:
        return None
    try:
        return from_json(reply)
    except CodecError:
        log.info("CacheService found a value that is not JSON, and takes it for none")
        return None
