"""`python -m aimemo demo`, as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from aimemo.management.demo import extract_summary

TEXT = """# A heading is no sentence

The cache remembers every answer that the model gave for exactly these arguments.
It was a rainy day in the mountains, and nobody went out before the afternoon.
A cache that forgets an answer makes the model answer the same question once more.
"""


def demo(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "AIMEMO_"))}
    return subprocess.run(
        [sys.executable, "-m", "aimemo", "demo", *arguments],
        capture_output=True, text=True, cwd=folder, timeout=60, check=False,
        env={**kept, "COLUMNS": "120", "PYTHONPATH": str(Path(__file__).parent.parent), **environment},
    )  # fmt: skip


@pytest.fixture
def document(tmp_path: Path) -> str:
    (tmp_path / "note.md").write_text(TEXT)
    return "note.md"


def row(output: str, name: str) -> list[str]:
    line = next(line for line in output.splitlines() if f" {name} " in line and "│" in line)
    return [cell.strip() for cell in line.split("│")[2:-1]]


def test_the_second_run_hits_everything(tmp_path: Path, document: str) -> None:
    first, second = demo(tmp_path, document), demo(tmp_path, document)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert "stand-in" in first.stdout
    assert "makes the model answer the same question once more" in first.stdout
    assert row(first.stdout, "all")[:4] == ["2", "0", "2", "0%"]
    assert row(second.stdout, "all")[:4] == ["2", "2", "0", "100%"]
    assert row(second.stdout, "summarize")[4] != "0.0 s"
    assert (tmp_path / ".aimemo" / "demo.db").exists()


def test_a_file_that_cannot_be_read_gets_one_line_and_the_rest_goes_on(tmp_path: Path, document: str) -> None:
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\xff\xfe")
    (tmp_path / "empty.md").write_text(" \n")
    done = demo(tmp_path, "missing.md", "picture.png", "empty.md", ".", document)
    assert done.returncode == 2
    lines = done.stderr.strip().splitlines()
    assert [line.split(":")[0] for line in lines] == ["missing.md", "picture.png", "empty.md", "."]
    assert row(done.stdout, "all")[0] == "2"
    assert "Traceback" not in done.stderr


def test_a_faulty_url_gets_one_line(tmp_path: Path, document: str) -> None:
    done = demo(tmp_path, document, AIMEMO_URL="ftp://x")
    assert done.returncode == 2
    assert done.stderr.startswith("url must start with")
    assert "Traceback" not in done.stderr


def test_a_model_that_fails_gets_one_line(tmp_path: Path, document: str) -> None:
    pytest.importorskip("openai")
    nowhere = {"OPENAI_BASE_URL": "http://127.0.0.1:9/v1", "OPENAI_API_KEY": "secret-key"}
    done = demo(tmp_path, document, **nowhere)
    assert done.returncode == 1
    assert "failed" in done.stderr
    assert "Traceback" not in done.stderr
    assert "secret-key" not in done.stderr + done.stdout


def test_the_command_line_says_which_extra_is_missing(tmp_path: Path) -> None:
    code = "import sys; sys.modules['typer'] = None; from aimemo.__main__ import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "extra 'cli'" in done.stderr


def test_the_stand_in_picks_whole_sentences_in_their_order() -> None:
    summary = extract_summary(TEXT, 2)
    assert summary.startswith("The cache remembers")
    assert summary.endswith("once more.")
    assert "rainy" not in summary
    assert extract_summary("Short.", 2) == "Short."
