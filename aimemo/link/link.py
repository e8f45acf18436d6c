"""What the stores and the coordination ask of Redis: commands by bucket, scripts, and the servers' time."""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from importlib import resources
from typing import Any, Final, TypeVar

from aimemo.core.envelope import DamagedEntry
from aimemo.core.guard import time_limit
from aimemo.core.runtime import Runtime
from aimemo.link.servers import Server, Servers
from aimemo.link.wire import Command, ConnectionLost, is_missing_script, is_of_another_type, passes_soon, redirection

COMMAND_SECONDS: Final = 5.0
"""How long one command may take where no budget is shorter."""

MAX_DETOURS: Final = 8
SCAN_COUNT: Final = 1000
MAX_SCANS: Final = 20
SCRIPTS: Final = ("keep", "delete", "move", "unindex", "acquire", "extend", "release")

_PAUSE: Final = 0.01


P = TypeVar("P")
ReadMany = Callable[[list[P]], Coroutine[Any, Any, list[Any]]]
Read = Callable[[P, float], Awaitable[Any]]
MakeReader = Callable[[ReadMany[Any]], Read[Any]]


class Script:
    """A Lua script of this folder. It runs on the server as a whole, on the keys of one bucket."""

    def __init__(self, name: str) -> None:
        self.source = resources.files("aimemo.link").joinpath("scripts", f"{name}.lua").read_bytes()
        self._digest = hashlib.sha1(self.source, usedforsecurity=False).hexdigest()

    def __call__(self, keys: Sequence[Any], *arguments: Any) -> Command:
        return ("EVALSHA", self._digest, len(keys), *keys, *arguments)


@functools.cache
def script(name: str) -> Script:
    return Script(name)


class Link:
    """One database, in one world.

    Every method raises what the redis package raises, an `OSError`, an `InfrastructureError`, or a
    `DamagedEntry` for what is of another type; and ends within the budget of the call that it is part of.
    """

    def __init__(self, servers: Servers, runtime: Runtime, reader: MakeReader | None = None) -> None:
        self.runtime = runtime
        self.is_cluster = servers.is_cluster
        self._servers = servers
        self._make_reader = reader

    def reader(self, read_many: ReadMany[P]) -> Read[P]:
        """Reads of single places, which `read_many` reads together where many come at once."""

        async def read(place: P, until: float) -> Any:
            [value] = await read_many([place])
            return value

        return read if self._make_reader is None else self._make_reader(read_many)

    async def ask(self, bucket: int, *commands: Command) -> list[Any]:
        """The replies to commands about one bucket, in one round trip."""
        until = time_limit(COMMAND_SECONDS)
        server = await self._serving(bucket, until)
        detours = 0
        while True:
            replies = await self._ask(server, commands, until)
            error = _first_error(replies)
            if error is None:
                return replies
            detours += 1
            if detours > MAX_DETOURS:
                raise error
            server = await self._detour(bucket, server, error, until)

    async def ask_each(self, commands: Mapping[int, Sequence[Command]]) -> dict[int, list[Any]]:
        """The replies to commands about several buckets, in one round trip to each server."""
        until = time_limit(COMMAND_SECONDS)
        pipes: dict[Server, list[int]] = {}
        for bucket in commands:
            pipes.setdefault(await self._serving(bucket, until), []).append(bucket)
        found: dict[int, list[Any]] = {}
        for replies in await self.runtime.together(
            *(self._pipe(server, {bucket: commands[bucket] for bucket in pipes[server]}, until) for server in pipes)
        ):
            found.update(replies)
        return found

    async def scan(self, pattern: str) -> AsyncIterator[list[bytes]]:
        """The names that match a pattern, in batches, from all servers; a name may come twice."""
        for server in await self._servers.all(time_limit(COMMAND_SECONDS)):
            cursor: Any = b"0"
            while True:
                command = ("SCAN", cursor, "MATCH", pattern, "COUNT", SCAN_COUNT)
                [reply] = await self._ask(server, [command], time_limit(COMMAND_SECONDS))
                if isinstance(reply, Exception):
                    raise reply
                cursor, names = reply
                yield names
                if cursor == b"0":
                    break

    async def scan_page(self, pattern: str, cursor: str, count: int) -> tuple[list[bytes], str]:
        """Some names that match a pattern, and where to go on: `""` at the beginning and at the end.

        Raises:
            ValueError: the cursor is none that this method gave.
        """
        number, _, place = (cursor or "0:0").partition(":")
        servers = await self._servers.all(time_limit(COMMAND_SECONDS))
        at, next_place = int(number), int(place)
        found: list[bytes] = []
        for _ in range(MAX_SCANS):
            if not 0 <= at < len(servers):
                break
            command = ("SCAN", next_place, "MATCH", pattern, "COUNT", count)
            [reply] = await self._ask(servers[at], [command], time_limit(COMMAND_SECONDS))
            if isinstance(reply, Exception):
                raise reply
            next_place = int(reply[0])
            found += reply[1]
            at += next_place == 0
            if len(found) >= count:
                break
        return found, f"{at}:{next_place}" if at < len(servers) else ""

    async def converse(self) -> Any:
        """A `Conversation` with one of the servers; in the world of threads only."""
        server: Any = await self._serving(0, time_limit(COMMAND_SECONDS))
        try:
            return server.converse()
        except ConnectionLost as error:
            self._servers.lost(error)
            raise

    async def close(self) -> None:
        await self._servers.close()

    async def _pipe(
        self, server: Server, commands: Mapping[int, Sequence[Command]], until: float
    ) -> dict[int, list[Any]]:
        replies = iter(await self._ask(server, [each for batch in commands.values() for each in batch], until))
        found = {bucket: [next(replies) for _ in batch] for bucket, batch in commands.items()}
        for bucket, answers in found.items():
            if _first_error(answers) is not None:
                found[bucket] = await self.ask(bucket, *commands[bucket])
        return found

    async def _serving(self, bucket: int, until: float) -> Server:
        return await self._servers.of(bucket, until)

    async def _ask(self, server: Server, commands: Sequence[Command], until: float) -> list[Any]:
        try:
            return await server.ask(commands, until)
        except ConnectionLost as error:
            self._servers.lost(error)
            raise

    async def _detour(self, bucket: int, server: Server, error: Exception, until: float) -> Server:
        """Where to ask again after an error reply, once what can be done about it is done; else raises it."""
        if is_missing_script(error):
            loads = [("SCRIPT", "LOAD", script(name).source) for name in SCRIPTS]
            await self._ask(server, loads, until)
            return server
        if is_of_another_type(error):
            raise DamagedEntry("another_type") from error
        where = redirection(error)
        if where is not None:
            other = self._servers.redirect(bucket, where, server)
            return other if where.kind == "moved" else _Asking(other)
        self._servers.lost(error)
        if passes_soon(error) and time.monotonic() < until:
            await self.runtime.sleep(_PAUSE)
            return await self._serving(bucket, until)
        raise error


class _Asking:
    """A node that takes a slot over at this moment, and serves what it has of it only to those who say so."""

    def __init__(self, server: Server) -> None:
        self._server = server

    async def ask(self, commands: Sequence[Command], until: float) -> list[Any]:
        interleaved: Iterable[Command] = [each for command in commands for each in (("ASKING",), command)]
        return (await self._server.ask(list(interleaved), until))[1::2]

    async def close(self) -> None:
        await self._server.close()


def _first_error(replies: Sequence[Any]) -> Exception | None:
    return next((reply for reply in replies if isinstance(reply, Exception)), None)
