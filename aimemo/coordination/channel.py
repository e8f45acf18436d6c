"""`Channel`: small messages to whoever listens at that moment."""

from __future__ import annotations

import logging
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Self

from aimemo.coordination.json_text import from_json, to_json
from aimemo.coordination.listener import ChannelListener
from aimemo.core.runtime import Runtime, ThreadRuntime, drive
from aimemo.errors import CodecError, ValidationError
from aimemo.link.borrowed import Borrowed, in_world_of_client
from aimemo.link.build import make_link
from aimemo.link.client import target_of
from aimemo.link.layout import Layout

log = logging.getLogger("aimemo")

MAX_WAITING: Final = 10_000
"""Messages that wait for a slow subscriber; older ones are dropped, and it is told that it missed some."""


class Channel:
    """A channel of Redis. A message reaches those who are subscribed when it is published, at most once each.

    Args:
        client: of the redis package; stays the user's. Subscriptions open a connection of their own to its servers.
        name: of the channel, for all processes and languages.
    """

    def __init__(self, client: Any, name: str) -> None:
        if not isinstance(name, str) or not name:
            raise ValidationError("name must be a text that is not empty", {"name": "empty"})
        self._redis = Borrowed(client)
        self._target = target_of(client)
        self.name = name

    @in_world_of_client
    async def publish(self, message: Any) -> int:
        """Send what JSON can hold. How many connections it was sent to (in a cluster: of one node).

        Raises:
            CodecError: for what JSON cannot hold; InfrastructureError: Redis did not take it.
        """
        return int(await self._redis.ask("PUBLISH", self.name, to_json(message)))

    def subscribe(self, on_missed: Callable[[], Any] | None = None) -> Subscription:
        """The messages from now on; `for`, or with an asyncio client `async for`, gives one after the other.

        A lost connection is made again. `on_missed` is called, in a thread of aimemo's, whenever messages may have been
        missed; so is the subscription's `missed` counted.
        """
        listening = make_link(self._target, Layout("channel"), ThreadRuntime(), connect_timeout=2.0, max_connections=1)
        return Subscription(self._redis, lambda: drive(listening.converse()), self.name, on_missed)


class _Inbox:
    """What a subscription has heard and nobody has read. The listener's thread holds it, not the subscription."""

    def __init__(self, on_missed: Callable[[], Any] | None) -> None:
        self.missed = 0
        self.is_closed = False
        self._on_missed = on_missed
        self._messages: deque[Any] = deque()
        self._waiters: list[Any] = []
        self._lock = threading.Lock()

    def take(self, runtime: Runtime) -> tuple[tuple[Any, ...], Any]:
        """A message in a tuple, or an empty one if there are no more; and what to wait for if there may be one."""
        with self._lock:
            if self._messages:
                return (self._messages.popleft(),), None
            if self.is_closed:
                return (), None
            waiter = runtime.waiter()
            self._waiters.append(waiter)
            return (), waiter

    def heard(self, data: bytes) -> None:
        try:
            message = from_json(data)
        except CodecError:  # somebody else's
            return
        with self._lock:
            is_full = len(self._messages) >= MAX_WAITING
            if is_full:
                self._messages.popleft()
            self._messages.append(message)
        self.connected(may_have_missed=is_full)
        self.wake()

    def connected(self, may_have_missed: bool) -> None:
        if may_have_missed:
            self.missed += 1
            try:
                if self._on_missed is not None:
                    self._on_missed()
            except Exception as error:
                log.warning("on_missed of a subscription failed: %s", type(error).__name__)

    def wake(self) -> None:
        with self._lock:
            waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.wake()


class Subscription:
    """Messages as they come. `with` and `async with` end it; so does `close()`, from any thread."""

    def __init__(
        self, client: Borrowed, open: Callable[[], Any], name: str, on_missed: Callable[[], Any] | None
    ) -> None:
        self._runtime = client.runtime
        self._is_async = client.is_async
        self._inbox = inbox = _Inbox(on_missed)
        self._listener = ChannelListener(open, name, heard=inbox.heard, connected=inbox.connected, ended=inbox.wake)
        weakref.finalize(self, self._listener.abandon)

    @property
    def missed(self) -> int:
        """How often messages may have been missed: a connection was lost, or too many waited."""
        return self._inbox.missed

    def close(self) -> None:
        """End it: whoever waits for a message is told that there are no more."""
        self._inbox.is_closed = True
        self._listener.sleep()

    def __enter__(self) -> Self:
        drive(self._listener.awake(ThreadRuntime()))
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        await self._listener.awake(self._runtime)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __aiter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        if self._is_async:
            raise TypeError("the client is of asyncio: use `async for`")
        for message in drive(self._next()):
            return message
        raise StopIteration

    async def __anext__(self) -> Any:
        if not self._is_async:
            raise TypeError("the client is not of asyncio: use `for`")
        for message in await self._next():
            return message
        raise StopAsyncIteration

    async def _next(self) -> tuple[Any, ...]:
        """One message, or none if there are no more."""
        if not self._inbox.is_closed and not self._listener.is_awake:
            await self._listener.awake(self._runtime)
        while True:
            found, waiter = self._inbox.take(self._runtime)
            if waiter is None:
                return found
            await self._runtime.wait(waiter, self._runtime.home())
