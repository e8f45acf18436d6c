"""The cache as a whole, driven at random beside a dictionary, on a clock that is moved by hand."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from aimemo import Cache, InMemoryCache, SQLiteCache, cached_ai_call
from tests.kit.clock import Clock

TEXTS = st.sampled_from(["one", "two", "three"])
MODELS = st.sampled_from([1, 1.0, True, "1", None])
TTL = 10


class Model(RuleBasedStateMachine):
    """Two operations on one cache: `qa` tagged by its text, `qa_long` without tags.

    The dictionary holds what was answered for which exact question, and until when it is fresh. A memory
    cache may forget (it is small), so a miss is always allowed there; a stored answer never lies.
    """

    may_forget: bool

    def make(self, clock: Clock) -> Cache:
        raise NotImplementedError

    @initialize()
    def start(self) -> None:
        self.clock = Clock()
        self.cache = self.make(self.clock)
        self.known: dict[tuple[Any, ...], tuple[Any, float]] = {}
        self.version = 0
        self.calls = 0
        self.lookups = 0
        self.decorate()

    def decorate(self) -> None:
        def answer(operation: str, text: str, model: Any) -> list[Any]:
            self.calls += 1
            return [operation, text, type(model).__name__, model, self.version]

        @cached_ai_call(operation="qa", cache=self.cache, ttl=TTL, tags=lambda text, model=None: (text,))
        def qa(text: str, model: Any = None) -> list[Any]:
            return answer("qa", text, model)

        @cached_ai_call(operation="qa_long", cache=self.cache, ttl=3 * TTL)
        def qa_long(text: str, *, model: Any = None) -> list[Any]:
            return answer("qa_long", text, model)

        self.functions: dict[str, Any] = {"qa": qa, "qa_long": qa_long}
        self.ttls = {"qa": TTL, "qa_long": 3 * TTL}

    def question(self, operation: str, text: str, model: Any) -> tuple[Any, ...]:
        return operation, text, type(model).__name__, model

    def fresh(self, question: tuple[Any, ...]) -> Any:
        value, until = self.known.get(question, (None, 0.0))
        return value if self.clock.now < until else None

    @rule(operation=st.sampled_from(["qa", "qa_long"]), text=TEXTS, model=MODELS)
    def call(self, operation: str, text: str, model: Any) -> None:
        question = self.question(operation, text, model)
        expected, calls = self.fresh(question), self.calls
        given = self.functions[operation](text, model=model)
        self.lookups += 1
        if self.calls == calls:
            assert given == expected
            assert [type(part) for part in given] == [type(part) for part in expected]
        else:
            assert expected is None or self.may_forget
            self.known[question] = (list(given), self.clock.now + self.ttls[operation])
        given.append("changed by the caller")

    @rule(operation=st.sampled_from(["qa", "qa_long"]), text=TEXTS, model=MODELS)
    def refresh(self, operation: str, text: str, model: Any) -> None:
        self.version += 1
        value = self.functions[operation].refresh(text, model=model)
        assert value[-1] == self.version
        self.known[self.question(operation, text, model)] = (value, self.clock.now + self.ttls[operation])

    @rule(operation=st.sampled_from(["qa", "qa_long"]), text=TEXTS, model=MODELS)
    def invalidate(self, operation: str, text: str, model: Any) -> None:
        question = self.question(operation, text, model)
        existed = self.functions[operation].invalidate(text, model=model)
        assert existed == (self.fresh(question) is not None) or self.may_forget
        self.known.pop(question, None)

    def forget(self, is_meant: Any, count: int) -> None:
        meant = [question for question in self.known if is_meant(question)]
        live = sum(self.fresh(question) is not None for question in meant)
        assert count == live or (self.may_forget and count <= live)
        for question in meant:
            del self.known[question]

    @rule(operation=st.sampled_from(["qa", "qa_long"]))
    def invalidate_operation(self, operation: str) -> None:
        self.forget(lambda question: question[0] == operation, self.functions[operation].invalidate_all())

    @rule(text=TEXTS)
    def invalidate_tag(self, text: str) -> None:
        count = self.cache.blocking.invalidate_tag(text)
        self.forget(lambda question: question[0] == "qa" and question[1] == text, count)

    @rule()
    def invalidate_pattern(self) -> None:
        self.forget(lambda question: question[0] == "qa_long", self.cache.blocking.invalidate_pattern("op:*_long|*"))

    @rule()
    def clear(self) -> None:
        self.forget(lambda question: True, self.cache.blocking.clear())

    @rule(seconds=st.floats(0, 2 * TTL))
    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule()
    def reopen(self) -> None:
        """Another process comes to the same store; one in memory goes on."""
        if not self.may_forget:
            self.cache.blocking.close()
            self.cache = self.make(self.clock)
            self.lookups = 0
            self.decorate()

    @invariant()
    def every_lookup_is_counted_once(self) -> None:
        if hasattr(self, "cache"):
            stats = self.cache.stats()
            assert stats.hits + stats.stale_hits + stats.misses + stats.coalesced == self.lookups

    def teardown(self) -> None:
        if hasattr(self, "cache"):
            self.cache.blocking.close()


class InMemory(Model):
    may_forget = True

    def make(self, clock: Clock) -> Cache:
        return InMemoryCache(max_size=6, clock=clock)


class InSQLite(Model):
    may_forget = False

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()

    def make(self, clock: Clock) -> Cache:
        return SQLiteCache(Path(self.folder.name) / "cache.db", clock=clock, deadline=5)

    def teardown(self) -> None:
        super().teardown()
        self.folder.cleanup()


@pytest.mark.parametrize(("machine", "examples"), [(InMemory, 60), (InSQLite, 25)])
def test_a_cache_agrees_with_a_dictionary(machine: type[Model], examples: int) -> None:
    checks = [HealthCheck.too_slow, HealthCheck.filter_too_much]
    run_state_machine_as_test(
        machine,
        settings=settings(max_examples=examples, stateful_step_count=30, deadline=None, suppress_health_check=checks),
    )


@pytest.mark.slow
@pytest.mark.parametrize("machine", [InMemory, InSQLite])
def test_a_cache_agrees_with_a_dictionary_for_long(machine: type[Model]) -> None:
    run_state_machine_as_test(machine, settings=settings(max_examples=500, stateful_step_count=60, deadline=None))
