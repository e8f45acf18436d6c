"""The documents are true as far as a machine can tell."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_file_that_a_document_names_is_there(document: Path) -> None:
    text = document.read_text()
    for target in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (document.parent / target).exists(), target
    for path in re.findall(r"`((?:tests|docs|aimemo|benchmarks)/[\w./]+\.\w+)`", text):
        assert (ROOT / path).exists(), path


def test_architecture_names_every_file_of_the_core() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    for file in sorted((ROOT / "aimemo" / "core").glob("[a-z]*.py")):
        assert f"`{file.name}`" in text, file.name


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_python_example_compiles(document: Path) -> None:
    for example in re.findall(r"```python\n(.*?)```", document.read_text(), re.DOTALL):
        compile(example, str(document), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def test_nobody_is_told_to_install_somebody_elses_project() -> None:
    for document in DOCUMENTS:
        assert not re.search(r"pip install ['\"]?aimemo(?!-cache)\b", document.read_text())


def test_the_two_commands_stand_at_the_top_of_the_readme() -> None:
    top = (ROOT / "README.md").read_text()[:600]
    assert "make demo" in top
    assert "make test" in top
