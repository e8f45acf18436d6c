"""What readers of the code found: cases that no other file is about."""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections.abc import Callable
from dataclasses import InitVar, dataclass
from typing import Any

import pytest

import aimemo
from aimemo import Cache, InMemoryCache, SQLiteCache, cached_ai_call
from aimemo.core.ports import compile_glob


def test_what_a_partial_gives_to_kwargs_counts(cache: Cache) -> None:
    def llm(prompt: str, **options: Any) -> Any:
        return options["model"]

    asked = [cached_ai_call(cache=cache)(functools.partial(llm, model=model)) for model in "AB"]
    assert [ask("q") for ask in asked] == ["A", "B"]
    assert asked[0]("q", model="C") == "C"


CAPTURED: list[Callable[[str], Any]] = [
    lambda model: {"model": model},
    lambda model: [model],
    lambda model: lambda: model,
    lambda model: functools.partial(str, model),
    lambda model: {"A": lambda: "A", "B": lambda: "B"}[model],
]


@pytest.mark.parametrize("setting_of", CAPTURED)
def test_settings_that_a_factory_captures_in_any_form_count(cache: Cache, setting_of: Callable[[str], Any]) -> None:
    def agent(setting: Any) -> Any:
        @cached_ai_call(operation="agent", cache=cache)
        def ask(text: str) -> str:
            found = setting() if callable(setting) else setting
            return f"{text} for {found}"

        return ask

    answers = [agent(setting_of(model))("q") for model in "AB"]
    assert answers[0] != answers[1]
    assert agent(setting_of("A"))("q") == answers[0]


def test_a_record_of_the_calls_is_no_setting(cache: Cache) -> None:
    calls: list[str] = []
    counts = {"calls": 0}

    def note(text: str) -> None:
        calls.append(text)

    def make() -> Any:
        @cached_ai_call(operation="noted", cache=cache)
        def ask(text: str) -> str:
            note(text)
            counts["calls"] += 1
            return text

        return ask

    assert (make()("q"), make()("q")) == ("q", "q")
    assert (calls, counts) == (["q"], {"calls": 1})


def test_settings_that_came_as_init_variables_count(cache: Cache) -> None:
    @dataclass
    class Service:
        name: str
        model: InitVar[str]

        def __post_init__(self, model: str) -> None:
            self._model = model

        @cached_ai_call(operation="ask", cache=cache)
        def ask(self, text: str) -> str:
            return self._model

    assert [Service("n", model).ask("q") for model in "AB"] == ["A", "B"]


def test_what_a_method_carries_wants_the_instance(cache: Cache) -> None:
    class Service:
        @cached_ai_call(operation="ask", cache=cache, ignore=("self",))
        def ask(self, text: str, model: str = "small") -> str:
            return text

    service = Service()
    assert service.ask("t", "big") == "t"
    carried: Any = Service.ask
    for wrong in (("t", "big"), ("t",)):
        with pytest.raises(TypeError, match="instance as the first argument"):
            carried.invalidate(*wrong)
    assert carried.invalidate(service, "t", "big") is True


def test_an_overwrite_that_is_refused_does_not_bring_the_old_answer_back(cache: Cache) -> None:
    answers = iter(["good", "bad", "good again"])
    ask = cached_ai_call(operation="ask", cache=cache, store_if=lambda answer: answer != "bad")(lambda: next(answers))
    assert (ask(), ask.refresh(), ask()) == ("good", "bad", "good again")


def test_a_value_too_large_takes_the_old_one_with_it() -> None:
    cache = InMemoryCache(max_bytes=100).blocking
    cache.set("k", "old")
    cache.set("k", "x" * 500)
    assert cache.get("k") is None


def test_a_flight_begun_before_a_set_does_not_overwrite_it(cache: Cache) -> None:
    for put in (lambda: cache.blocking.set("k", "new"), lambda: cache.blocking.set_many({"k": "new"})):

        def compute(put: Callable[[], None] = put) -> str:
            put()
            return "older"

        cache.blocking.delete("k")
        assert cache.blocking.get_or_compute("k", compute) == "older"
        assert cache.blocking.get("k") == "new"


def explorer(cache: Cache, meet: Callable[[], Any]) -> Any:
    graph = {"a": "b", "b": "a"}

    @cached_ai_call(operation="explore", cache=cache, ignore=("visited",))
    def explore(node: str, visited: frozenset[str] = frozenset()) -> list[str]:
        if not visited:
            meet()
        following = graph[node]
        return [node] if following in visited else [node, *explore(following, visited | {node})]

    return explore


def test_two_computations_that_need_each_other_do_not_wait_for_ever(cache: Cache) -> None:
    explore = explorer(cache, threading.Barrier(2).wait)
    threads = [threading.Thread(target=explore, args=(node,), daemon=True) for node in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert not any(thread.is_alive() for thread in threads)


async def test_two_tasks_that_need_each_other_do_not_wait_for_ever(cache: Cache) -> None:
    graph = {"a": "b", "b": "a"}
    both = asyncio.Barrier(2)

    @cached_ai_call(operation="explore", cache=cache, ignore=("visited",))
    async def explore(node: str, visited: frozenset[str] = frozenset()) -> list[str]:
        if not visited:
            await both.wait()
        following = graph[node]
        return [node] if following in visited else [node, *await explore(following, visited | {node})]

    await asyncio.wait_for(asyncio.gather(explore("a"), explore("b")), 5)


def test_a_glob_of_many_stars_takes_no_time() -> None:
    started = time.thread_time()  # not of the clock: a machine that gives no time takes nothing
    assert not compile_glob("*o" * 40 + "z").match("op:x|txt:" + "o" * 2000 + "|")
    assert compile_glob("*a*b*").match("xxaxxbxx")
    assert time.thread_time() - started < 1


def test_a_class_registered_anew_turns_old_answers_into_misses() -> None:
    def make(*fields: str) -> Any:
        return aimemo.register_type(
            dataclass(type("Reshaped", (), {"__annotations__": dict.fromkeys(fields, int), "__module__": __name__}))
        )

    made = [make("x")(1)]
    cache = InMemoryCache()
    ask = cached_ai_call(operation="ask", cache=cache)(lambda text: made[0])
    assert ask("q") == ask("q") == made[0]
    made[0] = make("x", "y")(1, 2)
    assert ask("q") == made[0]
    assert cache.stats().misses == 2


async def test_a_busy_default_executor_loses_no_answer(tmp_path: Any) -> None:
    cache = SQLiteCache(tmp_path / "c.db", deadline=5)
    gate = threading.Event()
    busy = [asyncio.create_task(asyncio.to_thread(gate.wait, 60)) for _ in range(64)]
    await asyncio.sleep(0)
    await cache.set("k", 1)
    assert await cache.get("k") == 1
    assert await cache.delete("k") is True
    gate.set()
    await asyncio.gather(*busy)
    await cache.close()


def test_a_hook_that_reads_the_cache_does_not_call_itself(cache: Cache) -> None:
    told: list[Any] = []

    def on_hit(event: Any) -> None:
        told.append(event)
        cache.blocking.get("k")

    cache.blocking.set("k", 1)
    cache.on("hit", on_hit)
    cache.blocking.get("k")
    assert len(told) == 1
    cache.off("hit", on_hit)


def test_no_log_of_any_level_quotes_an_error(cache: Cache, caplog: pytest.LogCaptureFixture) -> None:
    def refuse(answer: Any) -> bool:
        raise ValueError(f"canary {answer}")

    ask = cached_ai_call(operation="ask", cache=cache, store_if=refuse)(lambda text: f"canary {text}")
    with caplog.at_level("DEBUG", "aimemo"), pytest.warns(aimemo.AimemoWarning, match="store_if"):
        ask("prompt canary")
    assert "store_if failed" in caplog.text
    assert "canary prompt" not in caplog.text
    assert "canary canary" not in caplog.text


def test_contexts_are_about_decorated_calls_only(cache: Cache) -> None:
    with aimemo.record_calls() as calls, aimemo.bypass():
        assert cache.blocking.get_or_compute("k", lambda: 1) == 1
    assert calls == []
    assert cache.blocking.get("k") == 1


def test_the_blocking_view_watches_too(cache: Cache) -> None:
    view = cache.blocking
    told: list[Any] = []
    view.register_callback("set_success", lambda key, value: told.append((key, value)))
    view.set("k", 1)
    assert told == [("k", 1)]
    assert view.stats().sets == 1
    assert (view.default_ttl, view.namespace) == (cache.default_ttl, cache.namespace)
