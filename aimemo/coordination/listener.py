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


class _Session:
    """From one awakening to the next sleep."""

    def __init__(self) -> None:
        self.stopped = threading.Event()
        self.has_tried = False
        self.waiters: list[Any] = []
        self.conversation: Conversation | None = None

    def stop(self) -> None:
        self.stopped.set()
        if self.conversation is not None:
            self.conversation.interrupt()


class ChannelListener:
    """Hears the messages of a channel.

    A connection that is silent is pinged. When it is lost, another one is made, until `sleep()`.

    Args:
        open: makes a connection.
        heard: called with each message, in the listener's thread.
        connected: called when the channel is subscribed to, before anything is heard. True: messages may have
            been missed, by somebody who went on without a listener since it was awoken.
        ended: called when nobody listens any more, and nobody will try.
    """

    def __init__(
        self, open: Callable[[], Conversation], channel: str, *,
        heard: Callable[[bytes], None], connected: Callable[[bool], None], ended: Callable[[], None],
    ) -> None:  # fmt: skip
        self._open = open
        self._channel = channel
        self._heard = heard
        self._connected = connected
        self._ended = ended
        self._begin()
        forget_after_fork(self)

    def _begin(self) -> None:
        self.is_awake = False
        self._lock = threading.Lock()
        self._session: _Session | None = None

    def forget(self) -> None:
        """Threads do not come along into a forked child."""
        self._begin()
        self._ended()

    async def awake(self, runtime: Runtime) -> None:
        waiter = runtime.waiter()
        with self._lock:
            if self._session is None:
                session = _Session()
                threading.Thread(target=self._run, args=(session,), name="aimemo-listener", daemon=True).start()
                self._session = session
            if self._session.has_tried:
                return
            session = self._session
            session.waiters.append(waiter)
        await runtime.wait_at_most(time_limit(COMMAND_SECONDS) - time.monotonic(), waiter)
        session.has_tried = True

    def abandon(self) -> None:
        """Let the thread end, from wherever the collector finds that nobody needs it: takes no lock."""
        if self._session is not None:
            self._session.stop()

    def sleep(self) -> None:
        with self._lock:
            session, self._session = self._session, None
            self.is_awake = False
        if session is not None:
            session.stop()
        self._ended()

    def _run(self, session: _Session) -> None:
        pause = FIRST_PAUSE
        while not session.stopped.is_set():
            try:
                with self._open() as session.conversation:
                    self._subscribe(session.conversation, session)
                    self._has_tried(session)
                    pause = FIRST_PAUSE
                    self._listen(session.conversation, session.stopped)
            except Exception as error:
                if not session.stopped.is_set():
                    log.info("the listener lost its connection: %s", type(error).__name__)
            self._has_tried(session)
            session.stopped.wait(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _has_tried(self, session: _Session) -> None:
        with self._lock:
            session.has_tried = True
            self.is_awake = self._session is not None and self._session.has_tried
            waiters, session.waiters = session.waiters, []
        for waiter in waiters:
            waiter.wake()

    def _subscribe(self, conversation: Conversation, session: _Session) -> None:
        conversation.say("SUBSCRIBE", self._channel)
        conversation.hear(COMMAND_SECONDS)
        if not session.stopped.is_set():  # else its owner was closed meanwhile
            self._connected(session.has_tried)

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
