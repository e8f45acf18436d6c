"""One server in the world of threads: connections that block, each for no longer than its deadline."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import redis
import redis.connection

from aimemo.core.runtime import drive, forget_after_fork, fork_safe_lock
from aimemo.link.urls import Address
from aimemo.link.wire import Command, ErrorReply, connection_arguments, ends_connection, pack

_GRACE: Final = 0.001


class TimedSocket:
    """A socket whose waiting ends at a deadline, however the other side spreads its bytes."""

    def __init__(self, sock: Any, until: float) -> None:
        self._sock = sock
        self.end_at(until)

    def end_at(self, until: float) -> None:
        self._until = until
        self._is_over = False

    def _arm(self) -> None:
        seconds = self._until - time.monotonic()
        if seconds <= 0:
            if self._is_over:
                raise TimeoutError("no answer in time")
            self._is_over = True
            seconds = _GRACE  # once: what is there already was in time
        self._sock.settimeout(seconds)

    def recv(self, *args: Any) -> Any:
        self._arm()
        return self._sock.recv(*args)

    def recv_into(self, *args: Any) -> Any:
        self._arm()
        return self._sock.recv_into(*args)

    def sendall(self, *args: Any) -> None:
        self._arm()
        self._sock.sendall(*args)

    def settimeout(self, seconds: float | None) -> None:
        """The deadline decides, not what the redis package sets."""

    def is_quiet(self) -> bool:
        """Whether nothing has come since the last reply: what comes to a connection at rest is its end."""
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        return not poll.poll(0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


class _Timed:
    """A connection of the redis package over a `TimedSocket`."""

    end_of_connecting = float("inf")

    def _connect(self) -> TimedSocket:
        return TimedSocket(super()._connect(), self.end_of_connecting)  # type: ignore[misc]


class _Connection(_Timed, redis.connection.Connection):
    pass


class _SSLConnection(_Timed, redis.connection.SSLConnection):
    pass


class _UnixConnection(_Timed, redis.connection.UnixDomainSocketConnection):
    pass


def connect(address: Address, options: dict[str, Any], *, is_encrypted: bool, seconds: float) -> Any:
    """A new connection that has greeted the server.

    Raises:
        redis.RedisError, OSError: if that cannot be done within `seconds`.
    """
    kind: Any = _UnixConnection if isinstance(address, str) else _SSLConnection if is_encrypted else _Connection
    # The TLS handshake comes before the TimedSocket.
    arguments = {**connection_arguments(address, options), "socket_timeout": seconds}
    connection = kind(socket_connect_timeout=seconds, **arguments)
    connection.end_of_connecting = time.monotonic() + seconds
    try:
        connection.connect()
        # A server that has too many clients accepts a connection only to say so.
        [reply] = talk(connection, [("PING",)], connection.end_of_connecting)
        if isinstance(reply, Exception):
            raise reply
    except BaseException:
        connection.disconnect()
        raise
    return connection


def talk(connection: Any, commands: Sequence[Command], until: float) -> list[Any]:
    """Send commands, and read a reply for each; an error reply stands among the others as an exception."""
    connection._sock.end_at(until)
    connection.send_packed_command([pack(commands)], check_health=False)
    return [_reply(connection) for _ in commands]


def _reply(connection: Any) -> Any:
    try:
        return connection.read_response(disable_decoding=True)
    except ErrorReply as error:
        return error


class Conversation:
    """A connection for one who listens, and is asked nothing else."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def say(self, *command: Any) -> None:
        self._connection._sock.end_at(time.monotonic() + 1.0)
        self._connection.send_packed_command([pack([command])], check_health=False)

    def hear(self, seconds: float) -> Any:
        """What comes next.

        Raises:
            TimeoutError: nothing came; one may go on listening.
        """
        self._connection._sock.end_at(time.monotonic() + seconds)
        try:
            return self._connection.read_response(disable_decoding=True, disconnect_on_error=False)
        except redis.TimeoutError:
            raise TimeoutError("nothing was heard") from None

    def interrupt(self) -> None:
        """End it from another thread: whoever listens hears that it is over."""
        with contextlib.suppress(OSError, AttributeError):
            self._connection._sock.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.disconnect()


class BlockingServer:
    """Commands to one server, over at most so many connections.

    Connecting happens in a thread of its own: it may take longer than a command may, and whoever it comes too
    late for, it serves the next.
    """

    def __init__(self, connect: Callable[[], Any], max_connections: int) -> None:
        self._connect = connect
        self._max_connections = max_connections
        self.forget()
        forget_after_fork(self)

    def forget(self) -> None:
        """Begin anew. In a forked child the connections are the parent's: they are dropped, not shut down."""
        self._changed = threading.Condition(fork_safe_lock())
        self._idle: list[Any] = []
        self._open = 0
        self._failures = 0
        self._closes = 0
        self._last_failure: BaseException | None = None

    async def ask(self, commands: Sequence[Command], until: float) -> list[Any]:
        """A reply for each command, in one round trip; an error reply stands among the others as an exception.

        Raises:
            redis.RedisError, OSError: no connection, or no answer in time.
        """
        connection = self._take(until)
        try:
            replies = talk(connection, commands, until)
        except BaseException:
            self._drop(connection)
            raise
        if any(map(ends_connection, replies)):
            self._drop(connection)
            return replies
        with self._changed:
            self._idle.append(connection)
            self._changed.notify()
        return replies

    def converse(self) -> Conversation:
        """A connection beside the others. Raises as `ask`."""
        return Conversation(self._connect())

    async def close(self) -> None:
        with self._changed:
            self._closes += 1
            idle, self._idle = self._idle, []
        for connection in idle:
            self._drop(connection)

    def _take(self, until: float) -> Any:
        with self._changed:
            failures = self._failures
            is_connecting = False
            while True:
                while self._idle:
                    connection = self._idle.pop()
                    if connection._sock.is_quiet():
                        return connection
                    self._open -= 1
                    connection.disconnect()
                if self._failures != failures:
                    assert self._last_failure is not None
                    raise self._last_failure.with_traceback(None)
                if not is_connecting and self._open < self._max_connections:
                    threading.Thread(target=self._connect_beside, name="aimemo-connect", daemon=True).start()
                    is_connecting = True
                    self._open += 1
                if not self._changed.wait(until - time.monotonic()):
                    self._changed.notify()  # whatever came for this one at the last moment is for the next
                    raise TimeoutError("no connection in time")

    def _connect_beside(self) -> None:
        changed, closes = self._changed, self._closes
        try:
            connection = self._connect()
        except BaseException as error:
            with changed:
                self._open -= 1
                self._failures += 1
                self._last_failure = error
                changed.notify_all()
        else:
            with changed:
                self._idle.append(connection)
                changed.notify()
                is_late = self._closes != closes
            if is_late:
                drive(self.close())

    def _drop(self, connection: Any) -> None:
        with self._changed:
            self._open -= 1
            self._changed.notify()
        connection.disconnect()
