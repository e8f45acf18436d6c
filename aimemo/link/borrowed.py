"""A client of the redis package that the user made, used for single commands and scripts in the world it is of."""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from aimemo.core.runtime import Failure, Runtime, ThreadRuntime, drive
from aimemo.errors import ConfigurationError, InfrastructureError, ValidationError
from aimemo.link.link import script
from aimemo.link.wire import ConnectionLost, is_missing_script

P = ParamSpec("P")
S = TypeVar("S", bound="HasClient")


class Borrowed:
    """A client for one server, sentinels or a cluster, sync or asyncio, whether or not it decodes replies.

    It is never closed here. It may send a command again whose reply was lost, so every script can be told twice.

    Raises:
        ConfigurationError: it is no such client.
    """

    def __init__(self, client: Any) -> None:
        execute = getattr(client, "execute_command", None)
        if not callable(execute):
            text = "client must be a client of the redis package, sync or asyncio"
            raise ConfigurationError(text, {"client": type(client).__name__})
        self.client = client
        self.is_async = inspect.iscoroutinefunction(execute)
        self.runtime: Runtime = ThreadRuntime()
        if self.is_async:
            from aimemo.core.aio import TaskRuntime, unless_cancelled  # asyncio is imported only where it is used

            self.runtime = TaskRuntime()
            self._wait = unless_cancelled
        self._is_task_cluster = self.is_async and hasattr(client, "nodes_manager")

    async def ask(self, *command: Any) -> Any:
        """The reply to a command.

        Raises:
            InfrastructureError: there was none, or an error.
        """
        try:
            return await self._execute(command)
        except Exception as error:  # whatever a client raises that is closed meanwhile
            raise _refusal(command[0], error) from error

    async def run(self, name: str, keys: Sequence[str], *arguments: Any) -> Any:
        """What a script gives; its keys share a hash tag. Raises as `ask`."""
        command = script(name)(keys, *arguments)
        try:
            return await self._execute(command)
        except Exception as error:
            if not is_missing_script(error):
                raise _refusal(name, error) from error
        return await self.ask("EVAL", script(name).source, *command[2:])

    async def ask_all(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """The replies to many commands, which travel together. Raises as `ask`."""
        pipe = self.client.pipeline(transaction=False)
        try:
            for command in commands:
                pipe.execute_command(*command)
            replies = pipe.execute()
            return list(await self._wait(replies) if self.is_async else replies)
        except Exception as error:
            raise _refusal(commands[0][0], error) from error

    async def _execute(self, command: tuple[Any, ...]) -> Any:
        if self._is_task_cluster:  # commands that come while it finds its nodes would lose their connections
            await self.client.initialize()
        reply = self.client.execute_command(*command)
        return await self._wait(reply) if self.is_async else reply


def _refusal(what: str, error: Exception) -> InfrastructureError:
    """What to raise for a client's error. Its text may quote what was sent: only the server's code is left of it."""
    quotation, _, text = str(error).rpartition("caused error: ")  # by a pipeline
    if isinstance(error, ConnectionLost) and not quotation:
        return InfrastructureError(f"Redis did not do {what}: {type(error).__name__}")
    found = re.match(r"\W*([A-Z]+)\b", text)
    code = getattr(error, "status_code", None) or (found[1] if found else "no code")
    error.args = (code,)
    return InfrastructureError(f"Redis did not do {what}: {type(error).__name__} ({code})")


class HasClient(Protocol):
    _redis: Borrowed


def in_world_of_client(body: Callable[Concatenate[S, P], Coroutine[Any, Any, Any]]) -> Callable[Concatenate[S, P], Any]:
    """A method whose result is awaitable if the client is of asyncio, and plain otherwise."""

    @functools.wraps(body)
    def method(self: S, /, *args: P.args, **kwargs: P.kwargs) -> Any:
        started = body(self, *args, **kwargs)
        if self._redis.is_async:
            return _unwrapped(started)
        result = drive(started)
        return result.throw() if type(result) is Failure else result

    return method


async def _unwrapped(body: Coroutine[Any, Any, Any]) -> Any:
    result = await body
    return result.throw() if type(result) is Failure else result


def text_of(reply: Any) -> str | None:
    """A reply as text, whether or not the client decodes."""
    return reply.decode("utf-8", "replace") if isinstance(reply, bytes) else reply


def tagged(kind: str, name: str) -> str:
    """The name of a key whose hash tag is `name`: all keys that begin with it are in one slot of a cluster.

    Raises:
        ValidationError: for half a surrogate pair, which no server takes.
    """
    safe = name.replace("%", "%25").replace("{", "%7B").replace("}", "%7D")
    with contextlib.suppress(UnicodeEncodeError):  # not the cause, for it would hold the name
        safe.encode()
        return f"aimemo:{kind}:{{{safe}}}"
    raise ValidationError(f"{kind}: a name must be text that UTF-8 can hold", {kind: "surrogate"})
