"""`python -m aimemo`."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line. 2 if the extra that it needs is not installed."""
    try:
        from aimemo.management.cli import app
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        print(f"{error.name} is missing: the command line needs the extra 'cli' of aimemo-cache", file=sys.stderr)  # noqa: T201
        return 2
    app()
    return 0


if __name__ == "__main__":
    sys.exit(main())
