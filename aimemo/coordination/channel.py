"""Listening to a channel of Redis, from one daemon thread for both worlds."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from aimemo.core.guard import time_limit
from aimemo.core.runtime import Runtime, forget_after_fork
from aimemo.link.blocking import Conversation
from aimemo.link.link import COMMAND_SECONDS

log = logging.getLogger("aimemo")

PING_INTERVAL: Final = 1.0
"""Seconds of silence after which the server is asked whether it is still there; it has as long to answer."""

FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 1.0


class ChannelListener:
    """Hears the messages of a channel.

    A connection that is silent is pinged. When it is lost, another one is made, until `sleep()`.

    Args:
        open: makes a connection.
        heard: called with each message, in the listener's thread.
        connected: called when the channel is subscribed to, before anything is heard: from a lost connection
            to this moment messages may have been missed.
    """

    def __init__(
        self, open: Callable[[], Conversation], channel: str, *,
        heard: Callable[[bytes], None], connected: Callable[[], None],
    ) -> None:  # fmt: skip
        self._open = open
        self._channel = channel
        self._heard = heard
        self._connected = connected
        self.forget()
        forget_after_fork(self)

    def forget(self) -> None:
        """Threads do not come along into a forked child."""
        self.is_awake = False
        self.is_connected = False
        self._conversation: Conversation | None = None
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._waiters: list[Any] = []

    async def awake(self, runtime: Runtime) -> None:
        waiter = runtime.waiter()
        with self._lock:
            if self.is_awake:
                return
            if not self._waiters:
                self._stopped = threading.Event()
                arguments = (self._stopped,)
                threading.Thread(target=self._run, args=arguments, name="aimemo-listener", daemon=True).start()
            self._waiters.append(waiter)
        await runtime.wait_at_most(time_limit(COMMAND_SECONDS) - time.monotonic(), waiter)

    def _has_tried(self, stopped: threading.Event) -> None:
        with self._lock:
            self.is_awake = self.is_awake or not stopped.is_set()
            waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.wake()

    def sleep(self) -> None:
        with self._lock:
            self.is_awake = False
            self._waiters = []
            self._stopped.set()
        if self._conversation is not None:
            self._conversation.interrupt()

    def _run(self, stopped: threading.Event) -> None:
        pause = FIRST_PAUSE
        while not stopped.is_set():
            try:
                with self._open() as conversation:
                    self._conversation = conversation
                    self._subscribe(conversation)
                    self._has_tried(stopped)
                    pause = FIRST_PAUSE
                    self._listen(conversation, stopped)
            except Exception as error:
                if not stopped.is_set():
                    log.info("the listener lost its connection: %s", type(error).__name__)
            self.is_connected = False
            self._has_tried(stopped)
            stopped.wait(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _subscribe(self, conversation: Conversation) -> None:
        conversation.say("SUBSCRIBE", self._channel)
        conversation.hear(COMMAND_SECONDS)
        self._connected()
        self.is_connected = True

    def _listen(self, conversation: Conversation, stopped: threading.Event) -> None:
        is_pinged = False
        while not stopped.is_set():
            try:
                message = conversation.hear(PING_INTERVAL)
            except TimeoutError:
                if is_pinged:
                    raise
                conversation.say("PING")
                is_pinged = True
                continue
            is_pinged = False
            if message[0] == b"message":
                self._heard(message[2])
