"""What is taken from the redis package: its connections, which speak the protocol, and its errors.

Only the files of this folder import redis, and only when a Redis cache is made.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

from aimemo.link.urls import Address

try:
    from redis import exceptions
    from redis.connection import AbstractConnection, DefaultParser
    from redis.crc import key_slot
except ImportError as error:  # pragma: no cover - the hint is what matters
    raise ImportError("a Redis cache needs the redis package: pip install 'redis>=5.0.8'") from error

ConnectionLost: Final = (exceptions.ConnectionError, exceptions.TimeoutError, OSError)
"""The server could not be reached, or did not answer in time (`TimeoutError` is an `OSError`)."""

# Not to say which library it is saves two commands per connection, and the right to use them.
_KNOWS_DRIVERS = "driver_info" in inspect.signature(AbstractConnection.__init__).parameters
_NO_INTRODUCTION: Final[dict[str, None]] = (
    {"driver_info": None} if _KNOWS_DRIVERS else {"lib_name": None, "lib_version": None}
)

AnyError: Final = (exceptions.RedisError, exceptions.RedisClusterException, OSError)
ErrorReply = exceptions.ResponseError
BrokenReply = exceptions.InvalidResponse

Command = tuple[Any, ...]


def pack(commands: Sequence[Command]) -> bytes:
    """Commands as bytes. The redis package packs in time that grows with the square of their number."""
    parts = []
    for command in commands:
        parts.append(b"*%d\r\n" % len(command))
        for word in command:
            data = word if isinstance(word, bytes) else str(word).encode()
            parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(parts)


def error_reply(line: bytes) -> Exception:
    """The exception that the redis package has for an error reply, without the arguments that some replies quote."""
    text = line.partition(b", with args beginning with")[0].decode("utf-8", "replace")
    error: Exception = DefaultParser.parse_error(text)  # type: ignore[no-untyped-call]
    return error


def slot_of(hash_tag: str) -> int:
    """The cluster slot of the names with this hash tag."""
    return int(key_slot(hash_tag.encode()))


def is_missing_script(reply: Any) -> bool:
    return isinstance(reply, exceptions.NoScriptError)


def connection_arguments(address: Address, options: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a connection of the redis package.

    Its own timeouts stay off: the deadline of a command, not of each piece of a reply, is what is promised.
    """
    place = {"path": address} if isinstance(address, str) else {"host": address[0], "port": address[1]}
    return {**place, "socket_timeout": None, "protocol": 2, **_NO_INTRODUCTION, **options}


class Redirection(NamedTuple):
    """A cluster's answer that a slot is served by another node, for good or for this one command."""

    kind: Literal["moved", "ask"]
    address: tuple[str, int]


def redirection(reply: Any) -> Redirection | None:
    """What an error reply says about where to ask instead."""
    if not isinstance(reply, ErrorReply):
        return None
    words = str(reply).split()
    if isinstance(reply, exceptions.AskError):
        kind: Literal["moved", "ask"] = "moved" if isinstance(reply, exceptions.MovedError) else "ask"
    elif words[:1] == ["MOVED"] or words[:1] == ["ASK"]:
        kind = "moved" if words[0] == "MOVED" else "ask"
    else:
        return None
    host, _, port = words[-1].rpartition(":")
    return Redirection(kind, (host, int(port)))


def passes_soon(reply: Any) -> bool:
    """Whether an error reply of a cluster is a matter of moments."""
    text = str(reply)
    names = ("TryAgainError", "ClusterDownError")
    return isinstance(reply, ErrorReply) and (
        type(reply).__name__ in names or text.startswith(("TRYAGAIN", "CLUSTERDOWN"))
    )


def is_of_another_type(reply: Any) -> bool:
    """Whether somebody else keeps something else under a name of ours."""
    return isinstance(reply, ErrorReply) and "WRONGTYPE" in str(reply)


def ends_connection(reply: Any) -> bool:
    """Whether the server hangs up after an error reply: it could not make sense of what came."""
    return isinstance(reply, ErrorReply) and "Protocol error" in str(reply)


def is_wrong_server(reply: Any) -> bool:
    """Whether an error reply says that this is no longer the primary."""
    return isinstance(reply, exceptions.ReadOnlyError)
