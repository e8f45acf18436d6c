"""The bodies of the commands: a cache is opened, asked through `Operations`, and closed."""

from __future__ import annotations

import asyncio
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final, TextIO, TypeVar

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from aimemo.errors import AimemoError, InfrastructureError
from aimemo.management.doctor import Finding
from aimemo.management.doctor import examine as _examine
from aimemo.management.service import Operations
from aimemo.setup.config import configure, environment_settings

T = TypeVar("T")

WATCH_SECONDS: Final = 2.0

_EXAMINED: Final = ("namespace", "default_ttl", "operation_ttls")


def run(url: str | None, body: Callable[[Operations], Awaitable[T]]) -> T:
    """What `body` gives for a cache that is open for it. Exits with 1 or 2 after one line that says why."""

    async def work() -> T:
        async with configure(url, strict=True) as cache:
            return await body(Operations(cache))

    try:
        return asyncio.run(work())
    except InfrastructureError as error:
        raise _exit(1, error) from error
    except (AimemoError, ImportError, json.JSONDecodeError) as error:
        raise _exit(2, error) from error
    except OSError as error:
        raise _exit(1, error) from error


def _exit(code: int, error: BaseException) -> typer.Exit:
    Console(stderr=True).print(f"aimemo: {error}", markup=False, highlight=False)
    return typer.Exit(code)


def show(found: Any, as_json: bool, title: str) -> None:
    """Data as JSON, or as a table for people."""
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    rows = found if isinstance(found, list) else [{"": name, "value": value} for name, value in found.items()]
    table = Table(title=title, show_header=isinstance(found, list))
    columns = list(dict.fromkeys(column for row in rows for column in row))
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column == "digest")
    for row in rows:
        table.add_row(*(_text(row.get(column, "")) for column in columns))
    Console().print(table)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(each)}" for name, each in value.items())
    return f"{value:.3f}" if isinstance(value, float) else "" if value is None else str(value)


async def first_entries(work: Operations, limit: int, operation: str | None) -> list[dict[str, Any]]:
    """About so many entries."""
    found: list[dict[str, Any]] = []
    cursor: str | None = ""
    while cursor is not None and len(found) < limit:
        page = await work.entries(cursor, min(limit, 1000), operation)
        found += page["entries"]
        cursor = page["cursor"]
    return found[:limit]


async def write_export(work: Operations, file: Path) -> int:
    """Write an export beside the file, and put it in its place when it is whole. How many entries."""
    count = -1
    partial = file.with_name(file.name + ".partial")
    with _private(partial) as out, _progress() as progress:
        bar = progress.add_task("entries", total=None)
        async for line in work.export():
            out.write(json.dumps(line, ensure_ascii=True) + "\n")
            count += 1
            progress.update(bar, advance=1)
    partial.replace(file)
    return count


def _private(file: Path) -> TextIO:
    """A file for its owner only: answers are in it."""
    return open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="ascii")


async def read_export(work: Operations, file: Path) -> int:
    """Keep what a file holds. How many entries."""
    with _progress() as progress:
        return await work.load(_lines(file, progress))


def _lines(file: Path, progress: Progress) -> Iterator[Any]:
    bar = progress.add_task("bytes", total=file.stat().st_size)
    with file.open("rb") as source:
        for line in source:
            progress.update(bar, advance=len(line))
            yield json.loads(line)


def _progress() -> Progress:
    console = Console(stderr=True)
    return Progress(console=console, disable=not console.is_terminal, transient=True)


def examine(url: str | None) -> list[Finding]:
    """What `doctor` finds, printed by the caller."""

    async def work() -> list[Finding]:
        return [finding async for finding in _examine(url or os.environ.get("AIMEMO_URL") or "memory://", settings)]

    try:
        found = environment_settings()
    except AimemoError as error:
        return [Finding("settings", "bad", str(error), "correct the variable that is named")]
    settings: dict[str, Any] = {name: found[name] for name in _EXAMINED if name in found}
    return asyncio.run(work())


def show_stats(server: str, *, watch: bool, key: str, as_json: bool) -> None:
    """Ask a management API for its counts, once or again and again."""
    while True:
        try:
            request = urllib.request.Request(f"{server.rstrip('/')}/stats", headers={"X-API-Key": key} if key else {})
            with urllib.request.urlopen(request, timeout=5) as answer:
                found = json.load(answer)
        except (OSError, ValueError) as error:
            raise _exit(1, error) from error
        operations = found.pop("by_operation")
        rows = [{"operation": name or "(by hand)", **own} for name, own in [*operations.items(), ("all", found)]]
        wanted = ("operation", "hit_rate", "hits", "stale_hits", "coalesced", "misses", "seconds_saved", "errors")
        show([{name: row[name] for name in wanted} for row in rows], as_json, server)
        if not watch:
            return
        time.sleep(WATCH_SECONDS)


def serve(target: str, host: str, port: int, folder: Path) -> None:
    """Run uvicorn until it is interrupted."""
    try:
        import uvicorn
    except ImportError as error:
        raise _exit(2, ImportError("serving needs the extra 'server': pip install '.[server]'")) from error
    Console().print(f"the page: http://{host}:{port}/internal/cache/", highlight=False)
    uvicorn.run(target, host=host, port=port, app_dir=str(folder), log_level="warning")
