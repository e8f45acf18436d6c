"""Realistic texts: cut from the project's own documents, never one phrase repeated."""

from __future__ import annotations

from itertools import cycle, islice
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def corpus() -> str:
    """All of the project's prose and code in one text."""
    files = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("aimemo/**/*.py"))]
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


def texts(count: int, length: int) -> list[str]:
    """`count` different texts of `length` characters."""
    source = corpus()
    step = max(1, (len(source) - length) // count)
    return [(f"{at}: " + "".join(islice(cycle(source), at * step, at * step + length)))[:length] for at in range(count)]


def answers(count: int) -> list[dict[str, object]]:
    """Answers of 300 B to 8 KB, as a model gives them."""
    lengths = [300, 500, 800, 1200, 2000, 3000, 5000, 8000]
    return [
        {"text": text, "model": "small", "tokens": len(text) // 4}
        for length in lengths
        for text in texts(count // len(lengths), length)
    ]
