"""`RedisLock`: one worker at a time, under the name that the user gives."""

from __future__ import annotations

import logging
import secrets
import time
from typing import Any, Self

from aimemo.core.fleet import LONGEST_PAUSE, pauses
from aimemo.core.policy import milliseconds_of, seconds_of
from aimemo.errors import InfrastructureError, ValidationError
from aimemo.link.borrowed import Borrowed, in_world_of_client, tagged

log = logging.getLogger("aimemo")


class RedisLock:
    """The lock of `lock.py` for users: it ends after `timeout` seconds unless it is extended or renewed.

    With an asyncio client all methods are awaitable, and the context is `async with`. Mutual exclusion does not
    survive a failover of Redis, nor a holder that is stopped for longer than `timeout`: give `fencing_token`, which
    grows with every acquisition, to whatever must refuse a holder that is late.

    Args:
        client: of the redis package; stays the user's.
        name: of the lock, for all processes.
        timeout: seconds.
        renew_for: seconds for which a held lock is renewed in the background, from its acquisition; 0 does not.
        token: says who holds it; acquiring again with the same token gets the same lock. One of its own if not given.
    """

    def __init__(
        self, client: Any, name: str, timeout: float = 10, *, renew_for: float = 0, token: str | None = None
    ) -> None:
        if not isinstance(name, str) or not name:
            raise ValidationError("name must be a text that is not empty", {"name": "empty"})
        self._redis = Borrowed(client)
        self._keys = [f"{tagged('lock', name)}{part}" for part in ("", ":fence", ":none")]
        self._milliseconds = milliseconds_of("timeout", timeout)
        self._renew_for = seconds_of("renew_for", renew_for)
        self.name = name
        self.token = token or secrets.token_hex(16)
        self.fencing_token: int | None = None
        """Of the last acquisition."""
        self.is_held = False
        """As far as this process knows: a lock that ran out is noticed by the next `extend` or `release`."""
        self._undone: Any = None
        self._pause: Any = None

    @in_world_of_client
    async def acquire(self, blocking: bool = False, deadline: float | None = None) -> bool:
        """Whether the lock is ours now.

        Args:
            blocking: wait for it, asking every 10 to 100 ms.
            deadline: seconds to wait at most; None waits for as long as it takes.

        Raises:
            InfrastructureError: Redis did not answer. If it took the lock for ours, it is so until it ends by itself;
                acquiring again gets it.
        """
        ends = time.monotonic() + (float("inf") if deadline is None else seconds_of("deadline", deadline))
        waits = pauses()
        while not await self._try():
            left = ends - time.monotonic()
            if not blocking or left <= 0:
                return False
            await self._redis.runtime.sleep(min(next(waits), left))
        return True

    @in_world_of_client
    async def release(self) -> bool:
        """Give the lock back. False if it was not ours any more.

        Raises:
            InfrastructureError: Redis did not answer.
        """
        return await self._release()

    @in_world_of_client
    async def extend(self, seconds: float | None = None) -> bool:
        """Hold the lock for `seconds` (`timeout` if not given) from now on. False if it was not ours any more."""
        milliseconds = self._milliseconds if seconds is None else milliseconds_of("seconds", seconds)
        self.is_held = await self._extend(milliseconds)
        return self.is_held

    async def _try(self) -> bool:
        if self._undone is not None:
            await self._redis.runtime.wait_at_most(LONGEST_PAUSE, self._undone)
            self._undone = None
        try:
            fence, _ = await self._redis.run("acquire", self._keys, self.token, self._milliseconds)
        except Exception:
            raise
        except BaseException:  # cancelled: Redis may take the lock for ours
            self._undone = self._redis.runtime.waiter()
            self._redis.runtime.spawn(self._undo(self._undone))
            raise
        if fence:
            self.fencing_token, self.is_held = int(fence), True
            if self._renew_for:
                self._redis.runtime.spawn(self._renew(int(fence)))
        return bool(fence)

    async def _release(self) -> bool:
        self.is_held = False
        if self._pause is not None:
            self._pause.wake()
        return bool(await self._redis.run("release", self._keys[:1], self.token, "", 0))

    async def _extend(self, milliseconds: int) -> bool:
        return bool(await self._redis.run("extend", self._keys[:1], self.token, milliseconds))

    async def _undo(self, undone: Any) -> None:
        try:
            await self._release()
        except InfrastructureError as error:
            log.info("the lock %r may be held until it ends by itself: %s", self.name, error)
        finally:
            undone.wake()

    async def _renew(self, fence: int) -> None:
        ends = time.monotonic() + self._renew_for
        pause = self._milliseconds / 3000
        while True:
            self._pause = self._redis.runtime.waiter()  # before the look: who releases the lock wakes what it finds
            if not self._holds(fence) or time.monotonic() + pause >= ends:
                return
            await self._redis.runtime.wait_at_most(pause, self._pause)
            try:
                if not self._holds(fence):
                    return
                if not await self._extend(self._milliseconds) and self._holds(fence):
                    self.is_held = False
                    log.warning("the lock %r was lost", self.name)
            except InfrastructureError as error:
                log.info("the lock %r could not be renewed: %s", self.name, error)

    def _holds(self, fence: int) -> bool:
        return self.is_held and self.fencing_token == fence

    def __enter__(self) -> Self:
        """Wait for the lock for as long as it takes."""
        if self._redis.is_async:
            raise TypeError("the client is of asyncio: use `async with`")
        self.acquire(blocking=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._leave()

    async def __aenter__(self) -> Self:
        """Wait for the lock for as long as it takes."""
        if not self._redis.is_async:
            raise TypeError("the client is not of asyncio: use `with`")
        await self.acquire(blocking=True)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._leave()

    @in_world_of_client
    async def _leave(self) -> None:
        """The body's result comes first: a loss is reported, not raised over it."""
        try:
            if not await self._release():
                log.warning("the lock %r was lost before it was given back", self.name)
        except InfrastructureError as error:
            log.warning("the lock %r could not be given back, and ends by itself: %s", self.name, error)
