"""Says after a long run how many examples each fuzz target has run."""

from __future__ import annotations

from typing import Any

from tests.fuzz.running import EXAMPLES, SECONDS


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if SECONDS:
        for name, count in EXAMPLES.items():
            terminalreporter.write_line(f"{count:>9,} examples of {name}")
