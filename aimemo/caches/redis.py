"""A cache in Redis or Valkey, with an in-process tier in front."""

from __future__ import annotations

import os
import secrets
import weakref
from collections.abc import Callable
from typing import Any

from aimemo.caches.interface import Cache
from aimemo.caches.memory import InMemoryCache
from aimemo.coordination.listener import ChannelListener
from aimemo.coordination.lock import LeaseLock, Renewer
from aimemo.core.fleet import Fleet
from aimemo.core.memoizer import Memoizer
from aimemo.core.ports import LocalStore, Selector, Store
from aimemo.core.runtime import Runtime, ThreadRuntime, drive
from aimemo.core.single_flight import Flights
from aimemo.core.tiers import Tiers
from aimemo.errors import ConfigurationError
from aimemo.link.build import make_link
from aimemo.link.client import target_of
from aimemo.link.layout import Layout, read_message
from aimemo.link.link import Link
from aimemo.link.server_time import ServerTime
from aimemo.link.urls import CONNECTION_SETTINGS, parse
from aimemo.stores.memory import MemoryStore
from aimemo.stores.redis import RedisStore
from aimemo.stores.tiered import TieredStore


class GenericRedisCache(Cache):
    """A cache that any number of processes share, in Redis or Valkey: one server, behind sentinels, or a cluster.

    Nothing is connected before the first use. In front of it, every process keeps what it used lately (L1);
    what another process removes or replaces leaves L1 as soon as a message says so, and in any case after
    `l1_max_ttl` seconds. Of the processes that need the same answer at one time, one computes it.

    Args:
        redis_url: `redis://`, `rediss://`, `unix://`, `redis+cluster://host,host` or
            `redis+sentinel://host,host/service/db`, each with `user:password@` if need be.
        default_ttl: as of every `Cache`, like the settings that follow it.
        enable_l1_cache: whether to keep entries in this process too.
        l1_cache_size: how many.
        client: a client of the redis package, whose servers and credentials are used instead of the URL's. Its
            connections stay its own: aimemo opens others, because one client cannot serve threads, event loops
            and forked children alike, and closes only those.
        leases: whether only one of the processes computes what several need at one time.
        max_connections: to each server, of each event loop and of all threads together. Who finds none free
            within the deadline goes without the cache.
        connect_timeout: seconds that connecting may take, beside the calls that wait for it.
        connection: `username`, `password`, `db`, `client_name`, `ssl_ca_certs`, `ssl_certfile`, `ssl_keyfile`…,
            as `link/urls.py` lists them. Certificates are verified unless `ssl_cert_reqs="none"`.

    Raises:
        ValidationError: for faulty settings; ConfigurationError: for a URL that names no servers.
        ImportError: the redis package is not there.
    """

    backend = "redis"

    def __init__(
        self, redis_url: str = "redis://localhost:6379/0", default_ttl: int = 3600,
        enable_l1_cache: bool = True, l1_cache_size: int = 1000, compression_threshold: int = 1000, *,
        client: Any = None, leases: bool = True, max_connections: int = 50, connect_timeout: float = 2.0,
        **settings: Any,
    ) -> None:  # fmt: skip
        connection = {name: settings.pop(name) for name in CONNECTION_SETTINGS & settings.keys()}
        own = {
            "redis_url": redis_url, "enable_l1_cache": enable_l1_cache, "l1_cache_size": l1_cache_size,
            "leases": leases, "max_connections": max_connections, "connect_timeout": connect_timeout,
        }  # fmt: skip
        super().__init__(
            default_ttl=default_ttl, compression_threshold=compression_threshold, own_settings=own, **settings
        )
        if client is not None and connection:
            raise ConfigurationError(f"{next(iter(connection))} is not taken beside client=", dict.fromkeys(connection))
        self._target = parse(redis_url, connection) if client is None else target_of(client)
        self._layout = Layout(self.namespace)
        self._limits: dict[str, Any] = {"connect_timeout": connect_timeout, "max_connections": max_connections}
        self._leases = leases
        self._time = ServerTime(self.clock, is_given=settings.get("clock") is not None)
        self._origin = secrets.token_hex(8)
        l1 = None
        if enable_l1_cache:
            l1 = MemoryStore(l1_cache_size, None, clock=self.clock, left=self.journal.left, max_life=self.l1_max_ttl)
        self._l1 = l1
        self.l1_cache = None if l1 is None else InMemoryCache.over(l1, default_ttl=default_ttl, clock=self.clock)
        self._blocking_link = link = self._make_link(ThreadRuntime())
        self._renewer = Renewer(link, self._layout)
        drop = _dropping(l1)
        self._listener = ChannelListener(
            lambda: drive(link.converse()), self._layout.channel,
            heard=_hearing(self._sender(self._origin), l1, self._flights),
            connected=_connecting(drop, self._flights, link, self._time), ended=drop,
        )  # fmt: skip
        weakref.finalize(self, self._listener.abandon)

    def __repr__(self) -> str:
        name = type(self).__name__
        return f"<{name} {self._target} namespace={self.namespace!r} default_ttl={self.default_ttl}>"

    async def close(self) -> None:
        await super().close()
        await self._blocking_link.close()

    @property
    def _local(self) -> MemoryStore | None:
        return self._l1

    @staticmethod
    def _sender(origin: str) -> Callable[[], str]:
        """Names this process: a forked child is another one."""
        return lambda: f"{origin}.{os.getpid()}"

    def _make_link(self, runtime: Runtime) -> Link:
        return make_link(self._target, self._layout, runtime, **self._limits)

    def _assemble(self, runtime: Runtime) -> Memoizer:
        link = self._blocking_link if runtime.world == "threads" else self._make_link(runtime)
        sender = self._sender(self._origin)
        redis = RedisStore(
            link, self._layout, sender=sender, listener=self._listener, clock=self.clock, time=self._time,
            compression_threshold=self.compression_threshold, compression_level=self.compression_level,
        )  # fmt: skip
        guard = self._guarded(redis, runtime)
        store: Store = guard if self._l1 is None else TieredStore(self._l1, guard)
        tiers = Tiers(store=store, local=self._l1, guard=guard, journal=self.journal, clock=self.clock)
        lock = LeaseLock(link, self._layout, self._renewer, owner=sender)
        fleet = Fleet(lock, tiers, guard, runtime) if self._leases else None
        return Memoizer(tiers, runtime, self._flights, fleet=fleet, enabled=self.enabled)


# The listener's thread holds on to these, so they must not hold on to the cache.


def _hearing(sender: Callable[[], str], l1: LocalStore | None, flights: Flights) -> Callable[[bytes], None]:
    def heard(data: bytes) -> None:
        message = read_message(data)
        if message is None or message[0] == sender():
            return
        if l1 is not None:
            l1.invalidate(message[1])
        flights.detach(message[1])

    return heard


def _dropping(l1: LocalStore | None) -> Callable[[], None]:
    """While nobody listens, what L1 holds may be invalidated."""
    return lambda: None if l1 is None else l1.invalidate(Selector("all"))


def _connecting(
    drop: Callable[[], None], flights: Flights, link: Link, server_time: ServerTime
) -> Callable[[bool], None]:
    def connected(may_have_missed: bool) -> None:
        if may_have_missed:
            drop()
            flights.detach(Selector("all"), is_outdated=False)  # the tickets know better which may be kept
        if server_time.is_due():
            drive(server_time.learn(link))

    return connected
