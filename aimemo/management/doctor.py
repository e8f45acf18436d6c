"""`aimemo doctor`: what is wrong with a cache's surroundings, and what to do about it."""

from __future__ import annotations

import statistics
import time
from collections.abc import AsyncIterator
from typing import Any, Final, NamedTuple

from aimemo.caches.interface import Cache
from aimemo.core.ports import Selector
from aimemo.errors import AimemoError
from aimemo.setup.config import cache_from_url

ROUNDS: Final = 20
SLOW_SECONDS: Final = 0.005
CLOCK_SECONDS: Final = 1.0
OLDEST_SERVER: Final = (6, 2)

_KEY: Final = "aimemo-doctor"


class Finding(NamedTuple):
    """One thing that was looked at. `state` is `good`, `poor` or `bad`; `advice` says what to do."""

    check: str
    state: str
    found: str
    advice: str = ""


async def examine(url: str, settings: dict[str, Any]) -> AsyncIterator[Finding]:
    """Look at a cache from outside to inside; ends where nothing further can work."""
    try:
        cache = cache_from_url(url, **{**settings, "strict": True, "deadline": 2})
    except (AimemoError, ImportError) as error:
        yield Finding("settings", "bad", str(error), "correct the URL or the setting that is named")
        return
    yield Finding("settings", "good", repr(cache))
    try:
        async for finding in _examine(cache):
            yield finding
    finally:
        await cache.close()


async def _examine(cache: Cache) -> AsyncIterator[Finding]:
    if not await cache.connect():
        advice = "is the server running, and is its address, password and TLS as in the URL?"
        yield Finding("connection", "bad", "it does not answer", advice)
        return
    yield Finding("connection", "good", "it answers")
    yield await _permissions(cache)
    yield await _latency(cache)
    link = getattr(cache, "_blocking_link", None)
    if link is not None:
        yield _server(link)
        yield _clock(cache)


async def _permissions(cache: Cache) -> Finding:
    try:
        await cache.set(_KEY, "x", ttl=10)
        assert await cache.get(_KEY) == "x", "what was written was not read"
        await cache.delete(_KEY)
        await cache.memoizer.sweep(Selector("operation", _KEY))
    except (AimemoError, AssertionError) as error:
        cause = f": {error.__cause__}" if error.__cause__ is not None else ""
        return Finding(
            "rights", "bad", f"{error}{cause}", "give the user the rights that docs/redis.md lists; is the disk full?"
        )
    return Finding("rights", "good", "reading, writing, deleting and sweeping work")


async def _latency(cache: Cache) -> Finding:
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        await cache.exists(_KEY)
        times.append(time.perf_counter() - started)
    seconds = statistics.median(times)
    text = f"a lookup takes {1000 * seconds:.2f} ms"
    if seconds > SLOW_SECONDS:
        return Finding(
            "latency", "poor", text, "bring the server nearer, or raise deadline= above its usual round trip"
        )
    return Finding("latency", "good", text)


def _server(link: Any) -> Finding:
    from aimemo.core.runtime import drive

    [info] = drive(link.ask(0, ("INFO", "server")))
    lines = dict(line.split(":", 1) for line in info.decode().splitlines() if ":" in line)
    version = lines.get("valkey_version") or lines.get("redis_version", "0")
    text = f"{'Valkey' if 'valkey_version' in lines else 'Redis'} {version}"
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_SERVER:
        return Finding("server", "bad", text, f"use a server of version {'.'.join(map(str, OLDEST_SERVER))} or newer")
    return Finding("server", "good", text)


def _clock(cache: Any) -> Finding:
    seconds = cache._time.offset - (time.time() - cache.clock())
    text = f"the server's clock is {abs(seconds):.3f} s {'ahead' if seconds > 0 else 'behind'}"
    if abs(seconds) > CLOCK_SECONDS:
        return Finding("clock", "poor", text, "set both machines' clocks by NTP; aimemo goes by the server's")
    return Finding("clock", "good", text)
