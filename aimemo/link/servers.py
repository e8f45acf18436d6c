"""Which server holds a bucket: the one there is, the one the sentinels name, or one of a cluster's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from aimemo.errors import InfrastructureError
from aimemo.link.layout import BUCKETS
from aimemo.link.urls import Address, Target
from aimemo.link.wire import Command, ConnectionLost, Redirection, is_wrong_server, passes_soon, slot_of


class Server(Protocol):
    """One server, in one world."""

    async def ask(self, commands: Sequence[Command], until: float) -> list[Any]:
        """A reply for each command, in one round trip; an error reply stands among the others as an exception.

        Raises:
            redis.RedisError, OSError: no connection, or no answer by `until`, on the monotonic clock.
        """

    async def close(self) -> None: ...


MakeServer = Callable[[Address, dict[str, Any]], Server]
"""Gives the server at an address, with the options of its connections."""


class Servers(Protocol):
    """Who serves the buckets of one database."""

    is_cluster: bool

    async def of(self, bucket: int, until: float) -> Server:
        """The server of a bucket."""

    async def all(self, until: float) -> list[Server]:
        """Every server that holds a part of the database."""

    def lost(self, error: Any) -> None:
        """A server could not be reached, or is no longer what it was: find out anew."""

    def redirect(self, bucket: int, redirection: Redirection, asked: Server) -> Server:
        """Where a bucket is now, in the words of the server that was asked."""

    async def close(self) -> None: ...


class _Known:
    """The servers that are in use, by address."""

    def __init__(self, make: MakeServer, options: dict[str, Any]) -> None:
        self._make = make
        self._options = options
        self._servers: dict[Address, Server] = {}

    def at(self, address: Address) -> Server:
        found = self._servers.get(address)
        if found is None:
            found = self._servers.setdefault(address, self._make(address, self._options))
        return found

    def host_of(self, server: Server) -> str:
        return next((address[0] for address, known in self._servers.items() if known is server), "")

    async def ask_any(self, addresses: Sequence[Address], command: Command, until: float) -> tuple[Address, Any]:
        """The first useful answer, and who gave it."""
        last: BaseException | None = None
        for address in addresses:
            try:
                [reply] = await self.at(address).ask([command], until)
            except ConnectionLost as error:
                last = error
                continue
            if reply is not None and not isinstance(reply, Exception):
                return address, reply
        raise InfrastructureError(f"none of {len(addresses)} servers answered {command[0]} {command[1]}") from last

    async def close(self) -> None:
        for server in list(self._servers.values()):  # what is under way may come to know others meanwhile
            await server.close()


class OneServer:
    """All buckets are on one server."""

    is_cluster = False

    def __init__(self, target: Target, make: MakeServer) -> None:
        self._server = make(target.addresses[0], dict(target.options))

    async def of(self, bucket: int, until: float) -> Server:
        return self._server

    async def all(self, until: float) -> list[Server]:
        return [self._server]

    def lost(self, error: Any) -> None:
        """There is no other."""

    def redirect(self, bucket: int, redirection: Redirection, asked: Server) -> Server:
        raise InfrastructureError("the server is part of a cluster: its URL must begin with redis+cluster://")

    async def close(self) -> None:
        await self._server.close()


class WatchedServer:
    """All buckets are on the server that the sentinels call the master of a service."""

    is_cluster = False

    def __init__(self, target: Target, make: MakeServer) -> None:
        self._service = target.service
        self._sentinels = list(target.addresses)
        self._watchers = _Known(make, dict(target.sentinel_options))
        self._masters = _Known(make, dict(target.options))
        self._master: Address | None = None

    async def of(self, bucket: int, until: float) -> Server:
        if self._master is None:
            question = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._service)
            sentinel, (host, port) = await self._watchers.ask_any(self._sentinels, question, until)
            self._sentinels.sort(key=lambda address: address != sentinel)  # who answered is asked first
            self._master = (host.decode(), int(port))
        return self._masters.at(self._master)

    async def all(self, until: float) -> list[Server]:
        return [await self.of(0, until)]

    def lost(self, error: Any) -> None:
        if isinstance(error, ConnectionLost) or is_wrong_server(error):
            self._master = None

    def redirect(self, bucket: int, redirection: Redirection, asked: Server) -> Server:
        raise InfrastructureError("the server is part of a cluster: its URL must begin with redis+cluster://")

    async def close(self) -> None:
        await self._watchers.close()
        await self._masters.close()


class Cluster:
    """Each bucket is on the node that serves its slot."""

    is_cluster = True

    def __init__(self, target: Target, make: MakeServer, hash_tag: Callable[[int], str]) -> None:
        self._seeds = list(target.addresses)
        self._nodes = _Known(make, dict(target.options))
        self._slots = [slot_of(hash_tag(bucket)) for bucket in range(BUCKETS)]
        self._ranges: list[tuple[int, int, Address]] = []
        self._moved: dict[int, Address] = {}

    async def of(self, bucket: int, until: float) -> Server:
        address = self._moved.get(bucket)
        if address is None:
            slot = self._slots[bucket]
            ranges = self._ranges or await self._learn(until)
            address = next((address for first, last, address in ranges if first <= slot <= last), None)
        if address is None:
            self._ranges = []
            raise InfrastructureError(f"no node of the cluster serves slot {self._slots[bucket]}")
        return self._nodes.at(address)

    async def all(self, until: float) -> list[Server]:
        ranges = await self._learn(until)
        return [self._nodes.at(address) for address in dict.fromkeys(address for _, _, address in ranges)]

    def lost(self, error: Any) -> None:
        if isinstance(error, ConnectionLost) or is_wrong_server(error) or passes_soon(error):
            self._ranges, self._moved = [], {}

    def redirect(self, bucket: int, redirection: Redirection, asked: Server) -> Server:
        host, port = redirection.address
        address = (host or self._nodes.host_of(asked), port)
        if redirection.kind == "moved":
            self._moved[bucket] = address
        return self._nodes.at(address)

    async def _learn(self, until: float) -> list[tuple[int, int, Address]]:
        known = list(dict.fromkeys([*(address for _, _, address in self._ranges), *self._seeds]))
        asked, reply = await self._nodes.ask_any(known, ("CLUSTER", "SLOTS"), until)
        ranges: list[tuple[int, int, Address]] = []
        for first, last, (host, port, *_), *_ in reply:
            ranges.append((first, last, ((host or b"").decode() or asked[0], port)))
        self._seeds = list(dict.fromkeys([*(address for _, _, address in ranges), *self._seeds]))
        self._ranges, self._moved = ranges, {}
        return ranges

    async def close(self) -> None:
        await self._nodes.close()
