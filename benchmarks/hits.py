"""Hits in process: what they cost beside the floor and the neighbours."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Iterator
from typing import Any

from aimemo import InMemoryCache, cached_ai_call
from benchmarks.measure import Section
from benchmarks.peers import Call, of_world, optional
from benchmarks.texts import texts

LRU = "functools.lru_cache"
AWAIT = "a bare await"


def _sync(answer: Any) -> dict[str, Call]:
    def ask(text: str, *, model: str = "small", temperature: float = 0.0, max_tokens: int = 256) -> Any:
        return answer

    ours = cached_ai_call(operation="bench", cache=InMemoryCache())(ask)
    return {LRU: functools.lru_cache(maxsize=1000)(ask), "aimemo": ours, **dict(of_world("sync", ask))}


def _tasks(answer: Any) -> dict[str, Call]:
    async def ask(text: str, *, model: str = "small", temperature: float = 0.0, max_tokens: int = 256) -> Any:
        return answer

    ours = cached_ai_call(operation="bench", cache=InMemoryCache())(ask)
    return {AWAIT: ask, "aimemo": ours, **dict(of_world("async", ask))}


def _asking(call: Call, text: str) -> Call:
    return lambda: call(text, model="small", temperature=0.0)


def _fresh(call: Call, text: str) -> Call:
    """Each call with an equal text that is another object, so that its hash is not known yet."""
    raw = text.encode()
    return lambda: call(raw.decode(), model="small", temperature=0.0)


def in_process() -> Iterator[Section]:
    for length in (200, 4000):
        text, answer = texts(2, length)
        sync = {name: _asking(call, text) for name, call in _sync(answer).items()}
        goals = {LRU: 2.2, "cachebox (Rust)": 0.5, "cachetools TTLCache": 0.3}
        yield Section(f"sync hit, {length} B text", sync=sync, goals=goals)
        tasks = {name: _asking(call, text) for name, call in _tasks(answer).items()}
        goals = {AWAIT: 3.3, "cachebox (Rust)": 0.45, "async-lru": 0.27, "cashews memory": 0.01}
        yield Section(f"async hit, {length} B text", tasks=tasks, goals=goals)
    for length, goal in ((4000, 1.25), (100_000, 1.05)):
        text, answer = texts(2, length)
        fresh = {name: _fresh(call, text) for name, call in _sync(answer).items()}
        yield Section(f"sync hit, {length} B text, a fresh equal object each time", sync=fresh, goals={LRU: goal})
    yield from _forms()


def _forms() -> Iterator[Section]:
    """All arguments by position, and all by keyword."""
    text, answer = texts(2, 200)

    def ask(text: str, model: str = "small", temperature: float = 0.0, max_tokens: int = 256) -> str:
        return answer

    calls: dict[str, Call] = {
        LRU: functools.lru_cache(ask),
        "aimemo": cached_ai_call(operation="forms", cache=InMemoryCache())(ask),
    }

    def by_position(call: Call) -> Call:
        return lambda: call(text, "small", 0.0, 256)

    def by_keyword(call: Call) -> Call:
        return lambda: call(text=text, model="small", temperature=0.0, max_tokens=256)

    for form, asking, goal in (("position", by_position, 2.2), ("keyword", by_keyword, 1.8)):
        sync = {name: asking(call) for name, call in calls.items()}
        yield Section(f"sync hit, all arguments by {form}", sync=sync, goals={LRU: goal})


def messages() -> Iterator[Section]:
    """The commonest call of all: a list of dicts, which goes through the canonical form."""
    for count in (2, 20):
        turns = [
            {"role": "user" if at % 2 else "assistant", "content": text} for at, text in enumerate(texts(count, 1000))
        ]

        async def chat(messages: list[dict[str, str]], *, model: str = "small") -> str:
            return "answer"

        def dump(turns: list[dict[str, str]] = turns) -> str:
            return json.dumps(turns, sort_keys=True)

        async def dump_async(dump: Call = dump) -> Any:
            return dump()

        calls: dict[str, Call] = {"aimemo": cached_ai_call(operation="chat", cache=InMemoryCache())(chat)}
        calls |= dict(of_world("async", chat, only=("cashews memory",)))
        tasks: dict[str, Call] = {
            "json.dumps(sort_keys=True)": dump_async,
            **{name: functools.partial(call, turns, model="small") for name, call in calls.items()},
        }
        goals = {"json.dumps(sort_keys=True)": 1.0, "cashews memory": 0.5} if count == 20 else {}
        yield Section(f"async hit, {count} messages of 1 KB", tasks=tasks, goals=goals)


def results() -> Iterator[Section]:
    """Answers that can be changed: every caller gets a copy of its own."""
    [text] = texts(1, 1000)
    answer = {
        "text": text,
        "usage": {"input_tokens": 250, "output_tokens": 40},
        "tags": ["a", "b", "c"],
        "model": "small",
    }
    yield _copies("a dict", answer, "dict[str, object]")
    if pydantic := optional("pydantic"):
        kind = pydantic.create_model("Answer", text=str, usage=dict[str, int], tags=list[str], model=str)
        yield _copies("a pydantic model", kind(**answer), kind)


def _copies(what: str, answer: Any, kind: Any) -> Section:
    def ask(text: str) -> Any:
        return answer

    ask.__annotations__["return"] = kind
    cached = cached_ai_call(operation=what, cache=InMemoryCache())(ask)
    sync: dict[str, Call] = {"copy.deepcopy": lambda: copy.deepcopy(answer), "aimemo": lambda: cached("q")}
    return Section(f"sync hit, the result is {what}", sync=sync, goals={"copy.deepcopy": 0.3})
