"""Redis as it is run: one server, with L1 and without, behind a sentinel, as a cluster. Each test has its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from aimemo import GenericRedisCache
from tests.kit.proxy import Proxy
from tests.kit.servers import ClusterOfThree, Server, Watched


class Stand:
    """Some servers, and how a cache reaches them.

    Args:
        nodes: those that hold entries.
        servers: what they are, where a test does something that only a cluster or a sentinel can do.
        proxy: what is between the cache and its server; a cluster and a sentinel name addresses that lead past it.
    """

    def __init__(self, url: str, nodes: list[Server], has_l1: bool, servers: Any, proxy: Proxy | None = None) -> None:
        self.nodes = nodes
        self.servers = servers
        self.proxy = proxy
        self._url = url
        self._has_l1 = has_l1

    def cache(self, **settings: Any) -> GenericRedisCache:
        url = settings.pop("url", self._url)
        return GenericRedisCache(url, **{"enable_l1_cache": self._has_l1, **settings})

    def ask_all(self, *command: Any) -> None:
        for node in self.nodes:
            node.ask(*command)


@contextlib.contextmanager
def open_stand(kind: str) -> Iterator[Stand]:
    has_l1 = kind.endswith("L1")
    if kind == "cluster":
        with ClusterOfThree() as cluster:
            yield Stand(cluster.url, cluster.nodes, has_l1, cluster)
    elif kind == "sentinel":
        with Watched() as watched:
            yield Stand(watched.url, [watched.first], has_l1, watched)
    else:
        with Server(kind.split()[0]) as server, Proxy(server.port) as proxy:
            yield Stand(proxy.url, [server], has_l1, server, proxy)
