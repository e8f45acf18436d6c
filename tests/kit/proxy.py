"""A TCP proxy between a cache and its server: a network that is slow, breaks replies into pieces, or swallows all."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from typing import Self

from tests.kit.servers import HOST

_CHUNK = 1 << 16


class Proxy:
    """Passes requests on as they come, and replies as it is told to."""

    def __init__(self, port: int) -> None:
        self._to = port
        self.swallowed = 0
        self._ends: set[asyncio.StreamWriter] = set()
        self.behave()
        self._started = threading.Event()
        self._thread = threading.Thread(target=asyncio.run, args=(self._run(),), name="proxy", daemon=True)
        self._thread.start()
        assert self._started.wait(10)

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}/0"

    def behave(
        self, *, pause: tuple[float, float] = (0, 0), piece: tuple[int, int] = (_CHUNK, _CHUNK), swallow: bool = False
    ) -> None:
        """How replies come from now on: in pieces of so many bytes, with a pause before each.

        What is swallowed, in either direction, leaves its connection silent for ever.
        """
        self._pause, self._piece, self._swallows = pause, piece, swallow

    def cut(self) -> None:
        """End all connections at once."""
        self._loop.call_soon_threadsafe(self._cut)

    def _cut(self) -> None:
        for end in self._ends:
            end.transport.abort()

    async def _run(self) -> None:
        self._loop, self._stopped = asyncio.get_running_loop(), asyncio.Event()
        listening = await asyncio.start_server(self._serve, HOST, 0)
        self.port: int = listening.sockets[0].getsockname()[1]
        self._started.set()
        await self._stopped.wait()
        listening.close()
        while self._ends:
            self._cut()
            await asyncio.sleep(0.001)

    async def _serve(self, requests: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        mine = {client}
        self._ends |= mine
        with contextlib.suppress(OSError):
            replies, server = await asyncio.open_connection(HOST, self._to)
            mine.add(server)
            self._ends |= mine
            ways = [
                asyncio.create_task(way) for way in (self._forward(requests, server), self._spread(replies, client))
            ]
            _, other = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in other:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
        for end in mine:
            end.transport.abort()
        self._ends -= mine

    async def _forward(self, requests: asyncio.StreamReader, server: asyncio.StreamWriter) -> None:
        while data := await requests.read(_CHUNK):
            if self._swallows:
                await self._swallow()
            server.write(data)

    async def _spread(self, replies: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        while data := await replies.read(_CHUNK):
            while data:
                if self._swallows:
                    await self._swallow()
                await asyncio.sleep(random.uniform(*self._pause))
                size = random.randint(*self._piece)
                client.write(data[:size])
                data = data[size:]

    async def _swallow(self) -> None:
        self.swallowed += 1
        await asyncio.Event().wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join()
