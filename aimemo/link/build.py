"""From a target to the links of its two worlds."""

from __future__ import annotations

from typing import Any

from aimemo.core.runtime import Runtime
from aimemo.errors import ConfigurationError
from aimemo.link.layout import Layout
from aimemo.link.link import Link
from aimemo.link.servers import Cluster, MakeServer, OneServer, Servers, WatchedServer
from aimemo.link.urls import Address, Target


def make_link(
    target: Target, layout: Layout, runtime: Runtime, *, connect_timeout: float, max_connections: int
) -> Link:
    """The link of the runtime's world.

    Args:
        connect_timeout: seconds that connecting may take, beside the calls that wait for it.
        max_connections: to each server; in the world of tasks, of each event loop.
    """

    def split(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        rest = dict(options)
        is_encrypted = rest.pop("ssl", target.is_encrypted)
        if is_encrypted:  # older releases of the redis package do not do so by themselves
            rest.setdefault("ssl_check_hostname", rest.get("ssl_cert_reqs") != "none")
        return rest, {"is_encrypted": is_encrypted, "seconds": connect_timeout}

    if runtime.world == "threads":
        from aimemo.link import blocking

        def make(address: Address, options: dict[str, Any]) -> Any:
            rest, how = split(options)
            return blocking.BlockingServer(lambda: blocking.connect(address, rest, **how), max_connections)

        return Link(_servers(target, layout, make), runtime)
    from aimemo.link import aio

    if "ssl_password" in target.options and not aio.KNOWS_SSL_PASSWORD:
        raise ConfigurationError(
            "ssl_password for asyncio needs a newer redis package: pip install 'redis>=8'", {"ssl_password": None}
        )

    def make_task(address: Address, options: dict[str, Any]) -> Any:
        rest, how = split(options)
        return aio.TaskServer(lambda: aio.connect(address, rest, **how), max_connections)

    return Link(_servers(target, layout, make_task), runtime, aio.TickReader)


def _servers(target: Target, layout: Layout, make: MakeServer) -> Servers:
    match target.kind:
        case "cluster":
            return Cluster(target, make, layout.hash_tag)
        case "sentinel":
            return WatchedServer(target, make)
    return OneServer(target, make)
