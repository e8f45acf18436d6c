"""A proxy that loses replies: the server has done what it was asked, and nobody hears of it."""

from __future__ import annotations

import asyncio

from tests.kit.proxy import _CHUNK, Proxy


class LossyProxy(Proxy):
    """Passes everything on; in place of each of the next `losses` replies, it ends the connection."""

    losses = 0

    async def _spread(self, replies: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        while data := await replies.read(_CHUNK):
            if self.losses:
                self.losses -= 1
                client.transport.abort()
                return
            client.write(data)
