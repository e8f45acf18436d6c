"""What type checkers must see; mypy and pyright check this file, nothing runs it."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, assert_type

from aimemo import CacheStats, InMemoryCache, cached_ai_call
from aimemo.cached import CachedCoroutineFunction, CachedFunction

cache = InMemoryCache()


@cached_ai_call
def bare(text: str, *, model: str = "small") -> int:
    return len(text)


@cached_ai_call(operation="summarize", cache=cache, ttl=60)
async def summarize(text: str, *, model: str = "small") -> str:
    return text


class Service:
    @cached_ai_call(operation="ask", ignore=("self",))
    async def ask(self, text: str) -> list[str]:
        return [text]

    @cached_ai_call(operation="count", ignore=("self",))
    def count(self, text: str) -> int:
        return len(text)


assert_type(bare("x", model="y"), int)
assert_type(bare.stats(), CacheStats)
assert_type(bare.invalidate("x"), bool)
assert_type(bare.refresh("x"), int)
assert_type(Service().count("x"), int)
plain: Callable[..., int] = bare


async def main() -> None:
    assert_type(await summarize("x", model="y"), str)
    assert_type(await summarize.refresh("x"), str)
    assert_type(await summarize.invalidate_all(), int)
    assert_type(summarize.key_for("x"), str)
    assert_type(await Service().ask("x"), list[str])
    waiting: Callable[[str], Coroutine[Any, Any, str]] = summarize
    assert_type(await waiting("x"), str)


kept: CachedFunction[..., int] = bare
kept_async: CachedCoroutineFunction[..., str] = summarize

bare(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
bare("x", "y")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
Service().count(2)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
