"""Redis caches for tests that are about what every cache does: on servers that all of them share, each in a
namespace of its own, on clocks that are moved by hand."""

from __future__ import annotations

import atexit
import functools
import itertools
from typing import Any, Literal

from aimemo import GenericRedisCache
from aimemo.link.layout import Layout
from tests.kit.clock import Clock
from tests.kit.servers import ClusterOfThree, Server

Kind = Literal["server", "cluster"]

SLACK = 5000
"""Milliseconds that an entry outlives its end on the server, once a clock was moved: what has a moment left on that
clock must not end while the machine stands still."""

_numbers = itertools.count()
_shared: list[Server | ClusterOfThree] = []
_made: list[GenericRedisCache] = []


@functools.cache
def shared(kind: Kind) -> Server | ClusterOfThree:
    """The server, or the cluster, that lives until the tests are over."""
    started: Server | ClusterOfThree = Server() if kind == "server" else ClusterOfThree()
    atexit.register(started.__exit__)
    _shared.append(started)
    return started


def redis_cache(kind: Kind, clock: Clock | None = None, **settings: Any) -> GenericRedisCache:
    """A cache alone in its namespace. If its clock is moved, its entries grow older on the server too."""
    servers = shared(kind)
    namespace = f"test{next(_numbers)}"
    if clock is not None:
        nodes = servers.nodes if isinstance(servers, ClusterOfThree) else [servers]
        lent: dict[bytes, int] = {}
        clock.followers.append(lambda seconds: [_age(node, namespace, seconds, lent) for node in nodes] and None)
    # Five seconds for the stores: a slow machine must not turn a hit into a miss.
    given = {"clock": clock, "deadline": 5, "connect_timeout": 5, "strict": True, **settings}
    made = GenericRedisCache(servers.url, namespace=namespace, **given)
    _made.append(made)
    return made


def close_all() -> None:
    """Close what tests have made and left open in the world of threads, and empty the servers."""
    if _made:
        for servers in _shared:
            servers.empty()
    while _made:
        _made.pop().blocking.close()


def _age(node: Server, namespace: str, seconds: float, lent: dict[bytes, int]) -> None:
    """Let the keys of a namespace expire so much sooner.

    Args:
        lent: when the entries that have been given `SLACK` expire; one that was overwritten since expires at another
            time.
    """
    layout = Layout(namespace)
    for key in node.client.scan_iter(f"{{{namespace}:*", count=1000):
        left = node.client.pttl(key)
        if left <= 0:
            continue
        slack = SLACK if layout.entry(key) is not None else 0
        owed = slack if lent.get(key) == node.client.pexpiretime(key) else 0
        left -= owed + int(seconds * 1000)
        node.client.pexpire(key, left + slack if left > 0 else 0)
        lent[key] = node.client.pexpiretime(key)
