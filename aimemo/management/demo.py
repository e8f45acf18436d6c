"""The demonstration: real documents, an async and a plain decorated function, a store that outlives the process."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from aimemo import AimemoError, Cache, CacheStats, cached_ai_call, configure

DEFAULT_URL: Final = "sqlite:///.aimemo/demo.db"
CHECKOUT: Final = Path(__file__).resolve().parents[2]
STAND_IN: Final = "stand-in"
MONTH: Final = 30 * 86_400
AT_ONCE: Final = 4
MAX_CHARACTERS: Final = 12_000

_STOP_WORDS: Final = frozenset(
    """about after again all also and any are because been before but can could does each every for from had has
    have here how into its like made make may more most must name not once one only other out over own same should
    since some such than that the their them then there these they this those through too two under until was were
    what when where which while who why will with would you your""".split()  # noqa: SIM905 - prose is not a list
)


@cached_ai_call(operation="summarize", ttl=MONTH)
async def summarize(text: str, *, model: str, sentences: int = 2) -> str:
    """The gist of a text in a few sentences."""
    if model != STAND_IN:
        return await _ask_model_async(f"Summarise in {sentences} sentences:\n\n{text}", model)
    await asyncio.sleep(_delay(text))
    return extract_summary(text, sentences)


@cached_ai_call(operation="keywords", ttl=MONTH)
def find_keywords(text: str, *, model: str, count: int = 6) -> list[str]:
    """The words that a text is about."""
    if model != STAND_IN:
        answer = _ask_model(f"Name the {count} most important keywords, separated by commas:\n\n{text}", model)
        return [word.strip() for word in answer.split(",")][:count]
    time.sleep(_delay(text) / 2)
    return [word for word, _ in _frequencies(text).most_common(count)]


def _delay(text: str) -> float:
    """Seconds that a model might take for a text of this length."""
    return min(0.4 + len(text) / 20_000, 1.5)


def extract_summary(text: str, sentences: int) -> str:
    """The sentences with the most frequent words, in their own order: what stands in for a model offline."""
    prose = re.sub(r"(?s:```.*?```)|^\s*[|#>*-].*$|[`*_]", " ", text, flags=re.MULTILINE)
    found = [" ".join(sentence.split()) for sentence in re.split(r"(?<=[.!?])\s+", prose)]
    candidates = [sentence for sentence in found if 40 <= len(sentence) <= 300] or found[:sentences]
    frequencies = _frequencies(text)

    def weight(sentence: str) -> float:
        words = re.findall(r"[a-z]{3,}", sentence.lower())
        return sum(frequencies[word] for word in words) / (len(words) + 5)

    best = set(sorted(candidates, key=weight, reverse=True)[:sentences])
    return " ".join(sentence for sentence in dict.fromkeys(candidates) if sentence in best)


def _frequencies(text: str) -> Counter[str]:
    return Counter(word for word in re.findall(r"[a-z]{4,}", text.lower()) if word not in _STOP_WORDS)


async def _ask_model_async(prompt: str, model: str) -> str:
    from openai import AsyncOpenAI

    async with AsyncOpenAI() as client:
        answer = await client.chat.completions.create(model=model, messages=[{"role": "user", "content": prompt}])
        return answer.choices[0].message.content or ""


def _ask_model(prompt: str, model: str) -> str:
    from openai import OpenAI

    with OpenAI() as client:
        answer = client.chat.completions.create(model=model, messages=[{"role": "user", "content": prompt}])
        return answer.choices[0].message.content or ""


def choose_model() -> str:
    """The model that the environment offers (`OPENAI_BASE_URL`, `OPENAI_API_KEY`), else the stand-in."""
    if os.environ.get("OPENAI_BASE_URL") and os.environ.get("OPENAI_API_KEY"):
        try:
            import openai  # noqa: F401
        except ModuleNotFoundError:
            return STAND_IN
        return os.environ.get("AIMEMO_DEMO_MODEL") or "gpt-4o-mini"
    return STAND_IN


def read_documents(files: Iterable[Path]) -> tuple[dict[str, str], list[str]]:
    """The texts by file name, and one line for each file that is none."""
    texts: dict[str, str] = {}
    faults: list[str] = []
    for file in files:
        try:
            text = file.read_bytes().decode("utf-8")
        except UnicodeDecodeError:
            faults.append(f"{file}: not a text file (not UTF-8)")
        except OSError as error:
            faults.append(f"{file}: {(error.strerror or type(error).__name__).lower()}")
        else:
            if "\0" in text or not text.strip():
                faults.append(f"{file}: {'not a text file' if text.strip() else 'empty'}")
            else:
                texts[str(file)] = text[:MAX_CHARACTERS]
    return texts, faults


def run(files: list[Path], url: str | None) -> int:
    """Run the demonstration; the exit code."""
    console, complaints = Console(), Console(stderr=True)
    chosen = files or [*sorted(CHECKOUT.glob("*.md")), *sorted(CHECKOUT.glob("docs/**/*.md"))]
    if not chosen:
        complaints.print("there are no documents beside the package; name some files")
        return 2
    try:
        cache = configure(url or os.environ.get("AIMEMO_URL") or DEFAULT_URL)
    except AimemoError as error:
        complaints.print(escape(str(error)))
        return 2
    texts, faults = read_documents(chosen)
    for fault in faults:
        complaints.print(escape(fault), soft_wrap=True)
    model = choose_model()
    if texts:
        _say_what_happens(console, model, len(texts))
        try:
            asyncio.run(_work(console, cache, texts, model))
        except Exception as error:
            complaints.print(escape(f"the model {model} failed: {type(error).__name__}: {error}"), soft_wrap=True)
            return 1
    return 2 if faults else 0


def _say_what_happens(console: Console, model: str, count: int) -> None:
    who = "the model " + escape(model)
    if model == STAND_IN:
        who = "an offline stand-in for a model (it picks sentences, and waits as a model would)"
    console.print(f"{count} documents, two questions about each, answered by {who}\n")


async def _work(console: Console, cache: Cache, texts: dict[str, str], model: str) -> None:
    gate = asyncio.Semaphore(AT_ONCE)
    summaries: dict[str, str] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    started = time.perf_counter()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("asking", total=2 * len(texts))

        async def ask(question: Callable[[], Awaitable[Any]]) -> Any:
            async with gate:
                answer = await question()
            progress.advance(task)
            return answer

        async def read(name: str, text: str) -> None:
            summary, keywords = await asyncio.gather(
                ask(lambda: summarize(text, model=model)),
                ask(lambda: asyncio.to_thread(find_keywords, text, model=model)),
            )
            summaries[name] = f"{escape(summary)} [dim]({escape(', '.join(keywords))})[/dim]"

        await asyncio.gather(*(read(name, text) for name, text in texts.items()))
    for name in texts:
        console.print(f"[bold]{escape(Path(name).name)}[/bold] {summaries[name]}")
    console.print(_table(cache.stats()))
    seconds = time.perf_counter() - started
    where = str(getattr(cache, "path", cache))
    console.print(f"{seconds:.1f} s in all. Run it again: the answers are in {escape(where)}", soft_wrap=True)
    await cache.close()


def _table(stats: CacheStats) -> Table:
    table = Table(title="what it cost, and what was stored now", show_footer=True)
    total = _row(stats)
    for at, heading in enumerate(("calls", "hits", "misses", "hit rate", "saved", "raw", "stored")):
        if at == 0:
            table.add_column("operation", footer="all")
        table.add_column(heading, justify="right", footer=total[at])
    for operation, counts in sorted(stats.by_operation.items()):
        table.add_row(operation, *_row(counts))
    return table


def _row(stats: CacheStats) -> list[str]:
    answered = stats.hits + stats.stale_hits + stats.coalesced
    sizes = (f"{stats.bytes_raw:,} B", f"{stats.bytes_stored:,} B")
    calls = (f"{answered + stats.misses}", f"{answered}", f"{stats.misses}", f"{stats.hit_rate:.0%}")
    return [*calls, f"{stats.seconds_saved:.1f} s", *sizes]
