"""Which servers a URL means, and how to connect to them."""

from __future__ import annotations

import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from aimemo.errors import ConfigurationError

Address = tuple[str, int] | str
"""Host and port, or the path of a Unix socket."""

_KINDS: Final[Mapping[str, tuple[Literal["server", "cluster", "sentinel"], int]]] = {
    "redis": ("server", 6379),
    "rediss": ("server", 6379),
    "unix": ("server", 0),
    "redis+cluster": ("cluster", 6379),
    "redis+sentinel": ("sentinel", 26379),
}
_TRUE: Final = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
_OPTIONS: Final[Mapping[str, tuple[type, Callable[[str], Any]]]] = {
    "username": (str, str),
    "password": (str, str),
    "db": (int, int),
    "client_name": (str, str),
    "ssl": (bool, lambda text: _TRUE[text.lower()]),
    "ssl_ca_certs": (str, str),
    "ssl_certfile": (str, str),
    "ssl_keyfile": (str, str),
    "ssl_password": (str, str),
    "ssl_check_hostname": (bool, lambda text: _TRUE[text.lower()]),
    "ssl_cert_reqs": (str, str),
    "sentinel_username": (str, str),
    "sentinel_password": (str, str),
}
"""What may be given, as a setting or after the `?` of a URL: its type, and how to read it from a URL."""


CONNECTION_SETTINGS: Final = frozenset(_OPTIONS)


@dataclass(frozen=True, slots=True)
class Target:
    """The servers that hold one database.

    Attributes:
        addresses: of the server; or of some nodes of the cluster; or of the sentinels.
        service: the name by which the sentinels know the server.
        options: of every connection, as `redis` names them.
        sentinel_options: of every connection to a sentinel.
    """

    kind: Literal["server", "cluster", "sentinel"]
    addresses: tuple[Address, ...]
    service: str = ""
    is_encrypted: bool = False
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    sentinel_options: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        """Without credentials."""
        places = ",".join(map(_shown, self.addresses))
        return f"{self.kind} {places}" + (f" {self.service}" if self.service else "")


def _shown(address: Address) -> str:
    if isinstance(address, str):
        return address
    return f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"


def parse(url: str, settings: Mapping[str, Any]) -> Target:
    """The servers that a URL means.

    `redis://`, `rediss://` (TLS), `unix://`, `redis+cluster://host,host`,
    `redis+sentinel://host,host/service/db`; each may hold `user:password@` and, after a `?`, options.

    Args:
        settings: options that were given beside the URL, and come before those in it.

    Raises:
        ConfigurationError: naming what cannot be understood, without what may be secret.
    """
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError:
        raise _refused("redis_url cannot be read: percent-encode special characters") from None
    if parts.fragment:
        raise _refused("redis_url must not hold a '#': percent-encode it as %23")
    kind, port = _KINDS[parts.scheme]
    login, _, hosts = parts.netloc.rpartition("@")
    options = {**_login(login), **_query(parts.query), **_checked(settings)}
    path = urllib.parse.unquote(parts.path)
    if parts.scheme == "unix":
        if hosts or path in ("", "/"):
            raise _refused("redis_url must be unix:///path/of/the/socket")
        return Target("server", (path,), options={"db": 0, **_plain(options, kind)})
    addresses = tuple(_address(host, port) for host in hosts.split(",") if host)
    if not addresses:
        raise _refused("redis_url must include host information")
    if kind == "server" and len(addresses) > 1:
        raise _refused("redis_url must name one server; several are redis+cluster:// or redis+sentinel://")
    service, database = _path(kind, path)
    is_encrypted = options.pop("ssl", parts.scheme == "rediss")
    if not is_encrypted:
        options = _plain(options, kind)
    sentinel = {name: options.pop(f"sentinel_{name}", None) for name in ("username", "password")}
    if kind != "sentinel" and any(sentinel.values()):
        raise _refused("sentinel_password and sentinel_username need redis+sentinel://", "sentinel_password")
    connection = {"db": 0, **database, **options}
    if kind == "cluster" and connection["db"]:
        raise _refused("redis_url must not name a database: a cluster has only one")
    encryption = {name: value for name, value in connection.items() if name.startswith("ssl_")}
    given = {name: value for name, value in sentinel.items() if value}
    return Target(kind, addresses, service, is_encrypted, connection, {**encryption, **given})


def _refused(text: str, parameter: str = "redis_url", why: str = "refused") -> ConfigurationError:
    return ConfigurationError(text, {parameter: why})


def has_impossible_port(error: ConfigurationError) -> bool:
    """Whether a URL was refused only because there can be no such port: nobody answers there."""
    return error.context == {"redis_url": "port"}


def _plain(options: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The options of a connection without TLS."""
    for name in options:
        if name.startswith("ssl") and options[name]:
            raise _refused(f"{name} needs TLS: rediss://, or ssl=True with a cluster or sentinels", name)
    return {name: value for name, value in options.items() if not name.startswith("ssl")}


def _login(login: str) -> dict[str, str]:
    user, _, password = (urllib.parse.unquote(part) for part in login.partition(":"))
    return {name: text for name, text in (("username", user), ("password", password)) if text}


def _query(query: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, text in urllib.parse.parse_qsl(query, keep_blank_values=True):
        if name not in _OPTIONS:
            raise _refused(f"redis_url has an option that is not known; known are {_list(_OPTIONS)}")
        try:
            found[name] = _OPTIONS[name][1](text)
        except (ValueError, KeyError):
            raise _refused(f"the {name} in redis_url must be {_kind_of(name)}") from None
    return _checked(found)


def _checked(settings: Mapping[str, Any]) -> dict[str, Any]:
    for name, value in settings.items():
        kind = _OPTIONS[name][0]
        is_negative = isinstance(value, int) and value < 0
        if value is not None and (type(value) is not kind or is_negative):
            raise _refused(f"{name} must be {_kind_of(name)}", name)
        if name == "ssl_cert_reqs" and value not in (None, "required", "optional", "none"):
            raise _refused("ssl_cert_reqs must be 'required', 'optional' or 'none'", name)
    return {name: value for name, value in settings.items() if value is not None}


def _kind_of(name: str) -> str:
    return {str: "a string", int: "a non-negative integer", bool: "true or false"}[_OPTIONS[name][0]]


def _address(text: str, default: int) -> tuple[str, int]:
    try:
        parts = urllib.parse.urlsplit(f"//{text}")
        port = default if parts.port is None else parts.port
    except ValueError:
        port = -1
    if port < 1 or not parts.hostname:
        why = "port" if text.rpartition(":")[2].isdecimal() else "refused"
        raise _refused("redis_url must name each server as host or host:port, the port from 1 to 65535", why=why)
    return parts.hostname, port


def _path(kind: str, path: str) -> tuple[str, dict[str, int]]:
    """The service and the database in the path of a URL."""
    service, rest = "", path.strip("/")
    if kind == "sentinel":
        service, _, rest = rest.partition("/")
        if not service:
            raise _refused("redis_url must name the service: redis+sentinel://host:port/service/db")
    if not rest:
        return service, {}
    if not rest.isdecimal():
        raise _refused("redis_url must end with the number of a database, or with nothing")
    return service, {"db": int(rest)}


def _list(names: Any) -> str:
    *first, last = names
    return f"{', '.join(first)} or {last}"
