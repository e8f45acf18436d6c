"""What a client of the redis package is connected to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from aimemo.errors import ConfigurationError
from aimemo.link.urls import Address, Target

_TAKEN: Final = ("db", "username", "password", "credential_provider", "client_name")


def target_of(client: Any) -> Target:
    """The servers and the credentials of a client, of either world, for one server, sentinels or a cluster.

    Raises:
        ConfigurationError: it is no such client.
    """
    pool: Any = getattr(client, "connection_pool", None)
    nodes: Any = getattr(client, "nodes_manager", None)
    if nodes is not None:
        arguments = getattr(client, "connection_kwargs", None) or nodes.connection_kwargs
        seeds = tuple((node.host, int(node.port)) for node in nodes.startup_nodes.values())
        return Target("cluster", seeds, "", _is_encrypted(client, arguments), _options(arguments))
    arguments = getattr(pool, "connection_kwargs", None)
    if arguments is None:
        raise ConfigurationError("client must be a client of the redis package, of either world")
    is_encrypted = _is_encrypted(pool, arguments)
    manager = getattr(pool, "sentinel_manager", None)
    if manager is not None:
        watchers = [sentinel.connection_pool.connection_kwargs for sentinel in manager.sentinels]
        options, watcher = _options(arguments), _options(watchers[0])
        return Target("sentinel", _addresses(watchers), pool.service_name, is_encrypted, options, watcher)
    return Target("server", _addresses([arguments]), "", is_encrypted, _options(arguments))


def _addresses(arguments: Iterable[Mapping[str, Any]]) -> tuple[Address, ...]:
    return tuple(each.get("path") or (each.get("host", "localhost"), int(each.get("port", 6379))) for each in arguments)


def _options(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in arguments.items()
        if value is not None and (name in _TAKEN or name.startswith("ssl_"))
    }


def _is_encrypted(holder: Any, arguments: Mapping[str, Any]) -> bool:
    kind = getattr(holder, "connection_class", None)
    names = {each.__name__ for each in getattr(kind, "__mro__", ())}
    return "SSLConnection" in names or bool(arguments.get("ssl"))
