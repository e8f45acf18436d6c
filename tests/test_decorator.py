"""The decorator, on every kind of cache and in both worlds."""

from __future__ import annotations

from aimemo import Cache, cached_ai_call


async def test_the_second_equal_call_costs_nothing(cache: Cache) -> None:
    calls: list[str] = []

    @cached_ai_call(operation="summarize", cache=cache)
    async def summarize(text: str, *, model: str = "small") -> str:
        calls.append(text)
        return text.upper()

    assert await summarize("one") == "ONE"
    assert await summarize(text="one", model="small") == "ONE"
    assert calls == ["one"]


def test_the_second_equal_call_costs_nothing_in_threads(cache: Cache) -> None:
    calls: list[str] = []

    @cached_ai_call(operation="summarize", cache=cache)
    def summarize(text: str, *, model: str = "small") -> str:
        calls.append(text)
        return text.upper()

    assert summarize("one") == "ONE"
    assert summarize(text="one", model="small") == "ONE"
    assert calls == ["one"]
