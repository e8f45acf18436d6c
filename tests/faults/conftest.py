"""The verdicts of the fault table: noted by each case, put together at the end of the run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.faults.rows import ROWS
from tests.faults.stands import Stand, open_stand
from tests.kit import stalls
from tests.kit.crowd import Crowd

BUDGET: Final = 0.1
LOADED_MACHINE: Final = 1.0
"""Seconds that a machine with other work may add to the slowest of hundreds of calls, beside what it was seen to add
without a fault. A call that is held up by one costs more: two seconds for a connection, five for a reply."""

NAMES: Final = {"W": "no wrong answer", "L": "nothing lost", "B": "bounded", "R": "recovers"}
_reports: dict[str, list[pytest.TestReport]] = defaultdict(list)


class Case:
    """The verdicts of one case of a row. What does not hold fails the test there and then."""

    def __init__(self, row: str, on: str, noted: list[tuple[str, object]]) -> None:
        self._noted = noted
        noted += [("row", row), ("on", on)]

    def right(self, holds: bool, what: Any = "") -> None:
        """**W**: what was handed out was stored for exactly the arguments asked, and is fresh."""
        self._note("W", holds, what)

    def nothing_lost(self, holds: bool, what: Any = "") -> None:
        """**L**: every value that was computed reached its caller, and nobody got an error of the cache's making."""
        self._note("L", holds, what)

    def bounded(self, seconds: float, limit: float = BUDGET + LOADED_MACHINE) -> None:
        """**B**: no more than so many seconds were added, beside what the machine kept everybody waiting."""
        self._noted.append(("seconds", seconds))
        limit += stalls.longest()
        self._note("B", seconds <= limit, f"{seconds:.3f} s added, {limit:.3f} s are the limit")

    def in_time(self, holds: bool, what: Any = "") -> None:
        """**B** of what is not added to a call, but has a bound of its own."""
        self._note("B", holds, what)

    def recovers(self, holds: bool, what: Any = "") -> None:
        """**R**: by itself, once the fault is over."""
        self._note("R", holds, what)

    def crowd(self, crowd: Crowd, usual: float = 0.0, budget: float = BUDGET) -> None:
        """W, L and B of all that a crowd got; `usual` is what this machine adds without a fault."""
        self.right(not crowd.wrong, crowd.wrong[:3])
        self.nothing_lost(not crowd.lost, crowd.lost[:3])
        self.bounded(max(crowd.added, default=0.0), budget + LOADED_MACHINE + 2 * usual)

    def _note(self, verdict: str, holds: bool, what: Any) -> None:
        self._noted.append((verdict, bool(holds)))
        assert holds, f"{NAMES[verdict]}: {what}"


@pytest.fixture
def case(request: pytest.FixtureRequest) -> Case:
    mark = request.node.get_closest_marker("row")
    kinds = getattr(request.node, "callspec", None)
    params = kinds.params if kinds is not None else {}
    on = mark.kwargs.get("on") or params.get("stand") or params.get("cache") or "any"
    return Case(mark.args[0], on, request.node.user_properties)


@pytest.fixture
def stand(request: pytest.FixtureRequest) -> Iterator[Stand]:
    """Servers of the test's own, and caches on them."""
    with open_stand(request.param) as opened:
        yield opened


# The table


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--faults-table", metavar="FILE", help="write the fault table into this file")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    row = dict(report.user_properties).get("row")
    if row is not None and (report.when == "call" or report.failed):
        _reports[str(row)].append(report)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    file = config.getoption("--faults-table", None)
    if file is None:
        return
    table = "\n".join(lines_of_table())
    terminalreporter.write_line(f"\n{table}\n\n{summary()}")
    page = Path(file)
    text = page.read_text()
    head = text[: text.index("<!-- table -->")]
    page.write_text(f"{head}<!-- table -->\n\n{summary()}\n\n{table}\n")


def summary() -> str:
    held = [row for row in ROWS if _reports[row] and all(report.passed for report in _reports[row])]
    missing = [row for row in ROWS if not _reports[row]]
    rest = f"; not run: {', '.join(missing)}" if missing else ""
    cases = sum(map(len, _reports.values()))
    return f"{len(held)} of {len(ROWS) - len(missing)} rows hold, in {cases} cases{rest}."


def lines_of_table() -> Iterator[str]:
    yield "| # | fault | on | cases | W | L | B | R | worst time added |"
    yield "|---|---|---|--:|:-:|:-:|:-:|:-:|--:|"
    for row, fault in ROWS.items():
        reports = _reports[row]
        noted = [pair for report in reports for pair in report.user_properties]
        on = ", ".join(dict.fromkeys(str(value) for name, value in noted if name == "on"))
        seconds = [float(str(value)) for name, value in noted if name == "seconds"]
        verdicts = " | ".join(_verdict(letter, noted) for letter in NAMES)
        broken = "" if all(report.passed for report in reports) else " **does not hold**"
        yield (
            f"| {row} | {fault}{broken} | {on} | {len(reports)} | {verdicts} | "
            f"{f'{max(seconds) * 1000:.0f} ms' if seconds else ''} |"
        )


def _verdict(letter: str, noted: list[tuple[str, object]]) -> str:
    values = [value for name, value in noted if name == letter]
    return "yes" if values and all(values) else "**no**" if values else "–"
