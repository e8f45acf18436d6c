"""What a client of the redis package is connected to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from aimemo.errors import ConfigurationError
from aimemo.link.urls import Address, Target

_TAKEN: Final = ("db", "username", "password", "credential_provider", "client_name")
_TAKEN_IF_ENCRYPTED: Final = tuple(
    f"ssl_{name}"
    for name in ("ca_certs", "ca_path", "ca_data", "certfile", "keyfile", "password", "check_hostname", "cert_reqs")
)


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
        is_encrypted = _is_encrypted(nodes, arguments) or _is_encrypted(client, arguments)
        return Target("cluster", seeds, "", is_encrypted, _options(arguments, is_encrypted))
    arguments = getattr(pool, "connection_kwargs", None)
    if arguments is None:
        text = "client must be a client of the redis package, of either world"
        raise ConfigurationError(text, {"client": type(client).__name__})
    is_encrypted = _is_encrypted(pool, arguments)
    manager = getattr(pool, "sentinel_manager", None)
    if manager is not None:
        watchers = [sentinel.connection_pool.connection_kwargs for sentinel in manager.sentinels]
        watches_encrypted = _is_encrypted(manager.sentinels[0].connection_pool, watchers[0])
        options = _options(arguments, is_encrypted)
        watcher = {"ssl": watches_encrypted, **_options(watchers[0], watches_encrypted)}
        return Target("sentinel", _addresses(watchers), pool.service_name, is_encrypted, options, watcher)
    return Target("server", _addresses([arguments]), "", is_encrypted, _options(arguments, is_encrypted))


def _addresses(arguments: Iterable[Mapping[str, Any]]) -> tuple[Address, ...]:
    return tuple(each.get("path") or (each.get("host", "localhost"), int(each.get("port", 6379))) for each in arguments)


def _options(arguments: Mapping[str, Any], is_encrypted: bool) -> dict[str, Any]:
    taken = _TAKEN + (_TAKEN_IF_ENCRYPTED if is_encrypted else ())
    options = {name: arguments[name] for name in taken if arguments.get(name) is not None}
    if is_encrypted and arguments.get("ssl_cert_reqs", "required") is None:
        options["ssl_cert_reqs"] = "none"  # as the redis package understands it
    return options


def _is_encrypted(holder: Any, arguments: Mapping[str, Any]) -> bool:
    kind = arguments.get("connection_class") or getattr(holder, "connection_class", None)
    names = {each.__name__ for each in getattr(kind, "__mro__", ())}
    return "SSLConnection" in names or bool(arguments.get("ssl"))
