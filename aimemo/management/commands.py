"""The bodies of the commands: a cache is opened, asked through `Operations`, and closed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import tempfile
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

from aimemo.errors import AimemoError, InfrastructureError, ValidationError
from aimemo.management.doctor import Finding
from aimemo.management.doctor import examine as _examine
from aimemo.management.service import Operations
from aimemo.setup.config import configure, environment_settings

T = TypeVar("T")

WATCH_SECONDS: Final = 2.0
DEADLINE: Final = 5.0
"""Seconds that the store may take for one step: no service waits here, and nobody wants half an export."""

_EXAMINED: Final = ("namespace", "default_ttl", "operation_ttls")


def run(url: str | None, body: Callable[[Operations], Awaitable[T]]) -> T:
    """What `body` gives for a cache that is open for it. Exits with 1 or 2 after one line that says why."""

    async def work() -> T:
        async with configure(url, strict=True, deadline=DEADLINE) as cache:
            return await body(Operations(cache))

    try:
        return asyncio.run(work())
    except InfrastructureError as error:
        raise _exit(1, error) from error
    except (AimemoError, ImportError) as error:
        raise _exit(2, error) from error
    except OSError as error:
        raise _exit(1, error) from error


def _exit(code: int, error: BaseException) -> typer.Exit:
    Console(stderr=True).print(f"aimemo: {_visible(str(error))}", markup=False, emoji=False, highlight=False)
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
    Console(markup=False, emoji=False).print(table)  # who can write to the store names the operations


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{_visible(str(name))} {_text(each)}" for name, each in value.items())
    return f"{value:.3f}" if isinstance(value, float) else "" if value is None else _visible(str(value))


def _visible(text: str) -> str:
    """A text with escapes for what would steer the terminal."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


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
    with _replacing(file) as out, _progress() as progress:
        bar = progress.add_task("entries", total=None)
        async for line in work.export():
            out.write(json.dumps(line, ensure_ascii=True) + "\n")
            count += 1
            progress.update(bar, advance=1)
    return count


@contextlib.contextmanager
def _replacing(file: Path) -> Iterator[TextIO]:
    """A new file for its owner only, since answers are in it; takes the place of `file` if nothing is raised."""
    descriptor, name = tempfile.mkstemp(".partial", f"{file.name}.", file.parent)
    try:
        with open(descriptor, "w", encoding="ascii") as out:
            yield out
        os.replace(name, file)
    finally:
        Path(name).unlink(missing_ok=True)


async def read_export(work: Operations, file: Path) -> int:
    """Keep what a file holds. How many entries."""
    with _progress() as progress:
        return await work.load(_lines(file, progress))


def _lines(file: Path, progress: Progress) -> Iterator[Any]:
    bar = progress.add_task("bytes", total=file.stat().st_size)
    with file.open("rb") as source:
        for number, line in enumerate(source, 1):
            progress.update(bar, advance=len(line))
            yield _parsed(line, number)


def _parsed(line: bytes, number: int) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValidationError(f"line {number} is not JSON", {"line": number}) from error


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


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirection is an error: the key of the API would go along to whatever host it names."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


_OPENER: Final = urllib.request.build_opener(_NoRedirect)


def _counts(server: str, key: str) -> Any:
    try:
        request = urllib.request.Request(f"{server.rstrip('/')}/stats", headers={"X-API-Key": key} if key else {})
        with _OPENER.open(request, timeout=5) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        with error:  # it is an open connection too
            raise _exit(1, error) from error
    except (OSError, ValueError) as error:
        raise _exit(1, error) from error


def show_stats(server: str, *, watch: bool, key: str, as_json: bool) -> None:
    """Ask a management API for its counts, once or again and again."""
    while True:
        found = _counts(server, key)
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
