"""`python -m tests.mutation`: does a test fail for every small mistake in the modules below?

Each mutant is tested in a process of its own, in a copy of the project. Exits with 1 if one survives.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.mutation.mutants import Mutant, mutants

ROOT = Path(__file__).parent.parent.parent
NO_SERVERS = "not redis and not cluster"
FLIGHTS = ["test_flights.py", "test_flights_tasks.py", "test_flights_threads.py", "test_forks.py"]
TESTS: dict[str, tuple[list[str], str]] = {
    "aimemo/core/keys.py": (["test_keys.py"], NO_SERVERS),
    "aimemo/core/state.py": (["test_canonical.py"], NO_SERVERS),
    "aimemo/core/canonical.py": (["test_canonical.py"], NO_SERVERS),
    "aimemo/core/envelope.py": (["test_envelope.py"], f"{NO_SERVERS} and not planted and not bomb"),
    "aimemo/core/single_flight.py": (FLIGHTS, NO_SERVERS),
    "aimemo/coordination/rate_limiter.py": (
        ["test_rate_limiter.py"], "not cluster and not decoding and not eight_processes and not simple_model"
    ),
}  # fmt: skip
"""The tests of each module that are quick enough to be run for every mutant, and which of them."""
TIMEOUT = 60


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("modules", nargs="*", help=f"one or more of {', '.join(TESTS)}; all unless given")
    parser.add_argument("--every", type=int, default=1, help="test every n-th mutant only")
    parser.add_argument("--lines", type=int, nargs="*", help="test the mutants of these lines only")
    parser.add_argument("--workers", type=int, default=2, help="how many mutants are tested at one time")
    return parser.parse_args()


def copy_of_project(folder: Path) -> Path:
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "aimemo", folder / "aimemo", ignore=ignored)
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def passes(project: Path, module: str) -> bool:
    """Whether the tests of a module pass in a copy of the project."""
    files, selection = TESTS[module]
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "tests.mutation.quick", "-k", selection]
    command = [sys.executable, "-m", "pytest", *options, *(f"tests/{file}" for file in files)]
    process = subprocess.Popen(
        command, cwd=project, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        return process.wait(TIMEOUT) == 0
    except subprocess.TimeoutExpired:
        return False
    finally:  # servers that the tests started are of its group
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def survives(mutant: Mutant, module: str, projects: queue.Queue[Path]) -> bool:
    project = projects.get()
    try:
        path = project / module
        path.write_text(mutant.source)
        for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*"):
            compiled.unlink()
        alive = passes(project, module)
        if alive:
            say(f"{module}:{mutant.line}: {mutant.change}")
        return alive
    finally:
        projects.put(project)


def count_survivors(module: str, chosen: Sequence[Mutant], workers: int) -> int:
    with contextlib.ExitStack() as stack:
        projects: queue.Queue[Path] = queue.Queue()
        for number in range(workers):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="aimemo-mutants-")))
            projects.put(copy_of_project(folder / str(number)))
        project = projects.get()
        if not passes(project, module):
            sys.exit(f"the tests of {module} fail without any mutant")
        projects.put(project)
        pool = stack.enter_context(ThreadPoolExecutor(workers))
        return sum(pool.map(lambda mutant: survives(mutant, module, projects), chosen))


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> int:
    given = arguments()
    total = 0
    for module in given.modules or TESTS:
        made = list(mutants((ROOT / module).read_text()))
        chosen = [mutant for mutant in made[:: given.every] if given.lines is None or mutant.line in given.lines]
        left = count_survivors(module, chosen, given.workers)
        say(f"{module}: {len(chosen)} of {len(made)} mutants, {len(chosen) - left} killed, {left} survived")
        total += left
    return 1 if total else 0


if __name__ == "__main__":
    sys.exit(main())
