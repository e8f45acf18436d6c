"""Fifty callers of both worlds on one cache, whose answers carry their questions: a wrong one shows itself."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

from aimemo import Cache, InMemoryCache, cached_ai_call

CALLERS = 50
_PAUSE = 0.01


def answer_to(question: int) -> dict[str, Any]:
    return {"question": question, "padding": f"{question} " * (question % 300)}


class Crowd:
    """Half of the callers are tasks, half are threads.

    `wrong` has the answers that belonged to another question, `lost` the errors that callers got instead of an answer,
    and `added` how long each call took beyond its function, in seconds.
    """

    def __init__(self, cache: Cache, callers: int = CALLERS) -> None:
        self.cache = cache
        self.wrong: list[str] = []
        self.lost: list[BaseException] = []
        self.added: list[float] = []
        self.computed: Counter[int] = Counter()
        self._callers = callers
        self._threads = ThreadPoolExecutor(callers)
        self._new = itertools.count(1_000)

        @cached_ai_call(operation="tasks", cache=cache, tags=("t",))
        async def in_tasks(question: int) -> dict[str, Any]:
            return self._compute(question)

        @cached_ai_call(operation="threads", cache=cache, tags=("t",))
        def in_threads(question: int) -> dict[str, Any]:
            return self._compute(question)

        self.in_tasks, self.in_threads = in_tasks, in_threads

    def _compute(self, question: int) -> dict[str, Any]:
        self.computed[question] += 1
        return answer_to(question)

    def new(self, count: int) -> list[int]:
        """Questions that nobody has asked."""
        return list(itertools.islice(self._new, count))

    async def warm_up(self) -> float:
        """Have some answers stored, and learn what this machine adds without a fault: the most, in seconds."""
        await self.cache.connect()
        for first in range(0, CALLERS, 5):  # many cold connections at once are a fault of their own
            await self.ask(range(first, first + 5))
        self.added.clear()
        await self.ask(range(CALLERS))
        worst = max(self.added)
        self.added.clear()
        return worst

    async def ask(self, questions: Iterable[int]) -> None:
        """Ask all at once, in both worlds."""
        every = list(questions)
        await asyncio.gather(*map(self._in_task, every[::2]), *(self._thread(self._in_thread, q) for q in every[1::2]))

    async def ask_in_turn(self, questions: Iterable[int]) -> float:
        """The median of what is added to calls one after another, in the world that adds more."""
        every, medians = list(questions), []
        before = len(self.added)
        for question in every[::2]:
            await self._in_task(question)
        medians.append(statistics.median(self.added[before:]))
        before = len(self.added)
        await self._thread(lambda: [self._in_thread(question) for question in every[1::2]])
        medians.append(statistics.median(self.added[before:]))
        return max(medians)

    async def load(self, seconds: float, pause: float = _PAUSE) -> None:
        """Everybody asks what was asked before, and what was not, with a pause after each call."""
        end = time.monotonic() + seconds

        def questions() -> Iterator[int]:
            for number in itertools.count():
                if time.monotonic() > end:
                    return
                yield number % CALLERS if number % 3 else next(self._new)

        async def in_task() -> None:
            for question in questions():
                await self._in_task(question)
                await asyncio.sleep(pause)

        def in_thread() -> None:
            for question in questions():
                self._in_thread(question)
                time.sleep(pause)

        half = self._callers // 2
        await asyncio.gather(*(in_task() for _ in range(half)), *(self._thread(in_thread) for _ in range(half)))

    async def recovers(self, seconds: float) -> bool:
        """Whether, by itself and while it is used, the cache comes to keep new answers in both worlds."""
        end = time.monotonic() + seconds
        while not (await self._keeps(self._in_task) and await self._keeps(self._from_thread)):
            if time.monotonic() > end:
                return False
            await asyncio.sleep(_PAUSE)
        return self.cache.stats().breaker == "closed"

    async def _keeps(self, ask: Callable[[int], Awaitable[Any]]) -> bool:
        [question] = self.new(1)
        await ask(question)
        await self.clear_l1()
        await ask(question)
        return self.computed[question] == 1

    async def clear_l1(self) -> None:
        l1: InMemoryCache | None = getattr(self.cache, "l1_cache", None)
        if l1 is not None:
            await l1.clear()

    async def _in_task(self, question: int) -> None:
        started = time.monotonic()
        try:
            self._judge(question, await self.in_tasks(question), started)
        except Exception as error:
            self.lost.append(error)

    def _in_thread(self, question: int) -> None:
        started = time.monotonic()
        try:
            self._judge(question, self.in_threads(question), started)
        except Exception as error:
            self.lost.append(error)

    def _judge(self, question: int, answer: Any, started: float) -> None:
        self.added.append(time.monotonic() - started)
        if answer != answer_to(question):
            self.wrong.append(f"asked {question}, got {answer!r:.80}")

    def _from_thread(self, question: int) -> Awaitable[Any]:
        return self._thread(self._in_thread, question)

    def _thread(self, function: Callable[..., Any], *args: Any) -> Awaitable[Any]:
        return asyncio.get_running_loop().run_in_executor(self._threads, function, *args)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self.cache.close()
        self._threads.shutdown()
