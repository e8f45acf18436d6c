"""One server in the world of tasks, and the reads of one tick of an event loop as one command."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any, Final

import redis.asyncio.connection as connections

from aimemo.core.aio import TaskRuntime, TimeLimit
from aimemo.core.runtime import forget_after_fork, fork_safe_lock
from aimemo.link.replies import Replies
from aimemo.link.urls import Address
from aimemo.link.wire import Command, connection_arguments, ends_connection, pack

EARLIER: Final = 0.02
LATER: Final = 0.1
"""Seconds by which the limit of a read may differ from that of the first one of a tick for them to travel together. It
comes later in a long tick; somebody whose limit is earlier has waited for something else before."""


KNOWS_SSL_PASSWORD: Final = "ssl_password" in inspect.signature(connections.SSLConnection.__init__).parameters


async def connect(address: Address, options: dict[str, Any], *, is_encrypted: bool, seconds: float) -> Any:
    """A new connection that has greeted the server.

    Raises:
        redis.RedisError, OSError: if that cannot be done within `seconds`.
    """
    is_path = isinstance(address, str)
    kind: Any = (
        connections.UnixDomainSocketConnection
        if is_path
        else connections.SSLConnection
        if is_encrypted
        else connections.Connection
    )
    connection = kind(socket_connect_timeout=seconds, **connection_arguments(address, options))
    try:
        async with asyncio.timeout(seconds):
            if is_encrypted:  # reading certificates takes long
                await TaskRuntime().offload(connection.ssl_context.get)
            await connection.connect()
            # A server that has too many clients accepts a connection only to say so.
            await connection.send_packed_command([pack([("PING",)])], check_health=False)
            connection.replies = Replies(connection._reader)
            reply = await connection.replies.next()
            if isinstance(reply, Exception):
                raise reply
    except BaseException:
        await connection.disconnect(nowait=True)
        raise
    return connection


class _Pool:
    """The connections of one event loop to one server."""

    def __init__(self, connect: Callable[[], Coroutine[Any, Any, Any]], max_connections: int) -> None:
        self._connect = connect
        self._max_connections = max_connections
        self._open = 0
        self._idle: list[Any] = []
        self._waiters: deque[asyncio.Future[Any]] = deque()
        self._connecting: set[asyncio.Task[Any]] = set()
        self.keeper: Any = None
        self.is_closed = False

    async def take(self) -> Any:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_connected and not connection._reader.at_eof() and not connection.replies.has_more:
                return connection
            await self.drop(connection)
        if self._open < self._max_connections:
            self._start_connecting()
        waiter: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.give(waiter.result())
            raise

    def give(self, connection: Any) -> None:
        waiter = self._next_waiter()
        if waiter is not None:
            waiter.set_result(connection)
        else:
            self._idle.append(connection)

    async def drop(self, connection: Any) -> None:
        self._open -= 1
        await connection.disconnect(nowait=True)
        if self._waiters and self._open < self._max_connections:
            self._start_connecting()

    async def close(self) -> None:
        """Close what is not in use; what is has to be dropped after use."""
        self.is_closed = True
        for task in self._connecting:
            task.cancel()
        await asyncio.gather(*self._connecting, return_exceptions=True)
        while self._idle:
            self._open -= 1
            await self._idle.pop().disconnect(nowait=True)

    def _next_waiter(self) -> asyncio.Future[Any] | None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                return waiter
        return None

    def _start_connecting(self) -> None:
        """Connect in a task: it may take longer than a command may, and serves the next one then.

        While no connection stands, one attempt speaks for all: many would only fill the resolver's threads.
        """
        if self._connecting and self._open == len(self._connecting):
            return
        self._open += 1
        task = asyncio.get_running_loop().create_task(self._connect())
        self._connecting.add(task)
        task.add_done_callback(self._connected)

    def _connected(self, task: asyncio.Task[Any]) -> None:
        self._connecting.discard(task)
        error = ConnectionError("connecting was cancelled") if task.cancelled() else task.exception()
        if error is None:
            self.give(task.result())
            for _ in range(min(len(self._waiters) - len(self._connecting), self._max_connections - self._open)):
                self._start_connecting()
            return
        self._open -= 1
        while waiter := self._next_waiter():
            waiter.set_exception(error)
            if self._open:
                break


class TaskServer:
    """Commands to one server, over at most so many connections for each event loop."""

    def __init__(self, connect: Callable[[], Coroutine[Any, Any, Any]], max_connections: int) -> None:
        self._connect = connect
        self._max_connections = max_connections
        self._pools: dict[asyncio.AbstractEventLoop, _Pool] = {}
        self._lock = fork_safe_lock()
        forget_after_fork(self)

    def forget(self) -> None:
        """Begin anew. A forked child keeps what it inherited: closing it would reach into the parent's loop."""
        _inherited.append(self._pools)
        self._pools = {}

    async def ask(self, commands: Sequence[Command], until: float) -> list[Any]:
        """A reply for each command, in one round trip; an error reply stands among the others as an exception.

        Raises:
            redis.RedisError, OSError: no connection, or no answer in time.
        """
        pool = self._pools.get(asyncio.get_running_loop()) or await self._make_pool()
        async with TimeLimit(until):
            connection = await pool.take()
            try:
                await connection.send_packed_command([pack(commands)], check_health=False)
                replies = [await connection.replies.next() for _ in commands]
            except BaseException:
                await pool.drop(connection)
                raise
        if pool.is_closed or any(map(ends_connection, replies)):
            await pool.drop(connection)
        else:
            pool.give(connection)
        return replies

    async def close(self) -> None:
        self._forget_closed_loops()
        pool = self._pools.pop(asyncio.get_running_loop(), None)
        if pool is not None:
            await pool.close()

    def _forget_closed_loops(self) -> None:
        """A loop that was closed without its asynchronous generators leaves its connections to the collector."""
        for loop in [loop for loop in self._pools if loop.is_closed()]:
            del self._pools[loop]

    async def _make_pool(self) -> _Pool:
        loop = asyncio.get_running_loop()
        with self._lock:
            self._forget_closed_loops()
            pool = self._pools[loop] = _Pool(self._connect, self._max_connections)
        pool.keeper = self._close_with_loop()
        await anext(pool.keeper)
        return pool

    async def _close_with_loop(self) -> AsyncIterator[None]:
        """A loop that ends closes its asynchronous generators first, and this one the connections."""
        try:
            yield
        finally:
            await self.close()


_inherited: list[Any] = []


class _Batch:
    def __init__(self, until: float) -> None:
        self.until = until
        self.places: list[Any] = []
        self.waiters: list[asyncio.Future[Any]] = []


class TickReader:
    """Reads that are asked for within one tick of an event loop travel as one.

    Args:
        read_many: gives the values at some places, in their order.
    """

    def __init__(self, read_many: Callable[[list[Any]], Coroutine[Any, Any, list[Any]]]) -> None:
        self._read_many = read_many
        self._batches: dict[asyncio.AbstractEventLoop, _Batch] = {}
        self._tasks: set[asyncio.Task[list[Any]]] = set()

    def __call__(self, place: Any, until: float) -> asyncio.Future[Any]:
        """The value at one place.

        Raises:
            as `read_many`.
        """
        loop = asyncio.get_running_loop()
        batch = self._batches.get(loop)
        if batch is None or not -EARLIER <= until - batch.until <= LATER:
            batch = self._batches[loop] = _Batch(until)
            # Not `create_task`: an eager factory would send before anything is asked for.
            task: asyncio.Task[list[Any]] = asyncio.Task(self._send(loop, batch), loop=loop)
            self._tasks.add(task)
            task.add_done_callback(functools.partial(self._sent, loop, batch))
        waiter = loop.create_future()
        batch.places.append(place)
        batch.waiters.append(waiter)
        return waiter

    async def _send(self, loop: asyncio.AbstractEventLoop, batch: _Batch) -> list[Any]:
        self._depart(loop, batch)
        return await self._read_many(batch.places)

    def _depart(self, loop: asyncio.AbstractEventLoop, batch: _Batch) -> None:
        if self._batches.get(loop) is batch:
            del self._batches[loop]

    def _sent(self, loop: asyncio.AbstractEventLoop, batch: _Batch, task: asyncio.Task[list[Any]]) -> None:
        """A batch is over: it was read, or failed, or its task was cancelled, perhaps before it began."""
        self._depart(loop, batch)
        self._tasks.discard(task)
        error = ConnectionError("the read was cancelled") if task.cancelled() else task.exception()
        values = [None] * len(batch.waiters) if error is not None else task.result()
        for waiter, value in zip(batch.waiters, values, strict=True):
            if waiter.done():
                continue
            if error is not None:
                waiter.set_exception(error)
            else:
                waiter.set_result(value)
