"""Replies of a server (RESP2) read from a stream of asyncio: whatever has arrived is taken at once and cut up here.

The parser of the redis package asks its stream for every line and every value; with many values in one reply
that costs more than all the rest of a hit.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from aimemo.link.wire import BrokenReply, ErrorReply, error_reply

CHUNK: Final = 1 << 16


class Replies:
    """Reads the replies that come on one connection, in their order."""

    def __init__(self, stream: asyncio.StreamReader) -> None:
        self._stream = stream
        self._data = b""
        self._at = 0

    @property
    def has_more(self) -> bool:
        """Whether something has come that nobody asked for."""
        return self._at < len(self._data)

    async def next(self) -> Any:
        """The next reply: bytes, a number, a list, None, or an `ErrorReply`, which is not raised.

        Raises:
            ConnectionError: the server hung up, or says that it is about to.
            redis.InvalidResponse: what comes is not the protocol.
        """
        end = self._data.find(b"\r\n", self._at)
        while end < 0:
            await self._receive()
            end = self._data.find(b"\r\n", self._at)
        kind, line = self._data[self._at : self._at + 1], self._data[self._at + 1 : end]
        self._at = end + 2
        match kind:
            case b"$":
                size = _number(line)
                return None if size < 0 else await self._take(size)
            case b"*":
                count = _number(line)
                return None if count < 0 else [await self.next() for _ in range(count)]
            case b":":
                return _number(line)
            case b"+":
                return line
            case b"-":
                error = error_reply(line)
                if isinstance(error, ErrorReply):
                    return error
                raise error
        raise BrokenReply("a reply begins with a character that means nothing")

    async def _take(self, size: int) -> bytes:
        end = self._at + size
        missing = end + 2 - len(self._data)
        if missing > 0:
            self._data = self._data[self._at :] + await self._exactly(missing)
            self._at, end = 0, size
        value = self._data[self._at : end]
        self._at = end + 2
        return value

    async def _exactly(self, size: int) -> bytes:
        try:
            return await self._stream.readexactly(size)
        except asyncio.IncompleteReadError:
            raise ConnectionError("the server hung up in the middle of a reply") from None

    async def _receive(self) -> None:
        chunk = await self._stream.read(CHUNK)
        if not chunk:
            raise ConnectionError("the server hung up")
        self._data = self._data[self._at :] + chunk
        self._at = 0


def _number(line: bytes) -> int:
    try:
        return int(line)
    except ValueError:
        raise BrokenReply("a reply has no number where one must be") from None
