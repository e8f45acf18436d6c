"""Flights among threads: one execution for all who ask at one time, whatever becomes of the leader."""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from aimemo import Cache, cached_ai_call
from aimemo.core.runtime import ThreadRuntime
from tests.kit.looking import followers

EVERYBODY = 50
SECONDS = 5


class Held:
    """A function that waits in its body until it is let go, and then does what `end` does."""

    def __init__(self, end: Callable[[str], Any] = lambda text: [text]) -> None:
        self.end = end
        self.calls = 0
        self.started = threading.Semaphore(0)
        self.gate = threading.Event()

    def run(self, text: str) -> Any:
        self.calls += 1
        self.started.release()
        assert self.gate.wait(SECONDS)
        return self.end(text)


def remember(held: Any, cache: Cache, **options: Any) -> Any:
    @cached_ai_call(operation="ask", cache=cache, **options)
    def ask(text: str) -> Any:
        return held.run(text)

    return ask


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(EVERYBODY) as pool:
        yield pool


def start(pool: ThreadPoolExecutor, ask: Any, held: Held, count: int = EVERYBODY) -> list[Future[Any]]:
    """Callers that all wait for the one execution that has begun; the first of them leads."""
    callers = [pool.submit(ask, "question")]
    assert held.started.acquire(timeout=SECONDS)
    callers += [pool.submit(ask, "question") for _ in range(count - 1)]
    deadline = time.monotonic() + SECONDS
    while followers(ask.cache) < count - 1:
        assert time.monotonic() < deadline
        time.sleep(0.0005)
    return callers


def fail(error: BaseException) -> Callable[[str], Any]:
    def end(text: str) -> Any:
        raise error

    return end


def test_a_leader_that_is_interrupted_before_it_began_leaves_nobody_waiting(
    cache: Cache, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def interrupted(runtime: Any, body: Any, ended: Any) -> None:
        body.close()
        raise KeyboardInterrupt

    ask = cached_ai_call(operation="ask", cache=cache)(lambda text: [text])
    with monkeypatch.context() as patch:
        patch.setattr(ThreadRuntime, "launch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ask("q")
    assert pool.submit(ask, "q").result(SECONDS) == ["q"]
    assert ask("q") == ["q"]


def test_fifty_equal_calls_run_once_and_each_gets_an_object_of_its_own(cache: Cache, pool: ThreadPoolExecutor) -> None:
    held = Held()
    callers = start(pool, remember(held, cache), held)
    held.gate.set()
    answers = [caller.result(SECONDS) for caller in callers]
    assert answers == [["question"]] * EVERYBODY
    assert len({id(answer) for answer in answers}) == EVERYBODY
    assert held.calls == 1
    assert (cache.stats().misses, cache.stats().coalesced) == (1, EVERYBODY - 1)


def test_fifty_threads_that_start_at_once_run_the_function_once(cache: Cache, pool: ThreadPoolExecutor) -> None:
    held = Held()
    held.gate.set()
    ask = remember(held, cache)
    at_once = threading.Barrier(EVERYBODY, timeout=SECONDS)

    def call(_: int) -> Any:
        at_once.wait()
        return ask("question")

    assert list(pool.map(call, range(EVERYBODY))) == [["question"]] * EVERYBODY
    assert held.calls == 1
    stats = cache.stats()
    assert stats.misses == 1
    assert stats.hits + stats.coalesced == EVERYBODY - 1


def test_unequal_calls_share_nothing(cache: Cache, pool: ThreadPoolExecutor) -> None:
    held = Held()
    held.gate.set()
    texts = [str(n) for n in range(EVERYBODY)]
    assert list(pool.map(remember(held, cache), texts)) == [[text] for text in texts]
    assert held.calls == EVERYBODY


class OwnBaseException(BaseException):
    pass


@pytest.mark.parametrize("error", [ValueError("no"), StopIteration("end"), OwnBaseException()], ids=repr)
def test_an_error_reaches_all_who_wait_and_is_not_kept(
    cache: Cache, pool: ThreadPoolExecutor, error: BaseException
) -> None:
    held = Held(fail(error))
    ask = remember(held, cache)
    callers = start(pool, ask, held)
    held.gate.set()
    assert [type(caller.exception(SECONDS)) for caller in callers] == [type(error)] * EVERYBODY
    assert held.calls == 1
    held.end = str.upper
    assert ask("question") == "QUESTION"
    assert held.calls == 2


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_a_follower_takes_over_when_the_leader_is_interrupted(
    cache: Cache, pool: ThreadPoolExecutor, interruption: type[BaseException]
) -> None:
    def end(text: str) -> Any:
        held.end = lambda text: [text]
        raise interruption

    held = Held(end)
    leader, *others = start(pool, remember(held, cache), held)
    held.gate.set()
    assert type(leader.exception(SECONDS)) is interruption
    assert [other.result(SECONDS) for other in others] == [["question"]] * (EVERYBODY - 1)
    assert held.calls == 2


@pytest.mark.parametrize("door", ["call", "bypass", "refresh", "get_or_compute"])
def test_a_stop_iteration_reaches_the_caller_as_itself(cache: Cache, door: str) -> None:
    held = Held(fail(StopIteration("end")))
    held.gate.set()
    ask = remember(held, cache)
    doors = {
        "call": lambda: ask("question"),
        "bypass": lambda: ask.bypass("question"),
        "refresh": lambda: ask.refresh("question"),
        "get_or_compute": lambda: cache.blocking.get_or_compute("key", lambda: held.run("question")),
    }
    with pytest.raises(StopIteration, match="end"):
        doors[door]()


def test_a_cached_call_inside_a_cached_call_is_kept_too(cache: Cache) -> None:
    calls: list[str] = []

    @cached_ai_call(operation="inner", cache=cache)
    def inner(text: str) -> list[str]:
        calls.append("inner")
        return [text]

    @cached_ai_call(operation="outer", cache=cache)
    def outer(text: str) -> list[list[str]]:
        calls.append("outer")
        return [inner(text), inner(text)]

    assert outer("a") == outer("a") == [["a"], ["a"]]
    assert inner("a") == ["a"]
    assert calls == ["outer", "inner"]


def test_a_function_that_calls_itself_with_other_arguments(cache: Cache) -> None:
    @cached_ai_call(operation="sum", cache=cache)
    def total(n: int) -> int:
        return n + total(n - 1) if n else 0

    assert total(20) == 210
    assert cache.stats().misses == 21


def test_a_function_that_calls_itself_under_its_own_key_does_not_wait_for_itself(cache: Cache) -> None:
    @cached_ai_call(operation="retrying", cache=cache, ignore=("attempt",))
    def ask(text: str, attempt: int = 0) -> str:
        return text if attempt else ask(text, attempt + 1)

    answers: list[str] = []
    thread = threading.Thread(target=lambda: answers.append(ask("question")), daemon=True)
    thread.start()
    thread.join(2.5)  # less than a lease lasts
    assert answers == ["question"]


def test_an_answer_that_cannot_be_packed_is_not_one_object_for_all(cache: Cache, pool: ThreadPoolExecutor) -> None:
    held = Held(lambda text: threading.Lock())
    callers = start(pool, remember(held, cache), held, 5)
    held.gate.set()
    assert len({id(caller.result(SECONDS)) for caller in callers}) == 5


def test_unequal_scopes_share_no_flight(cache: Cache, pool: ThreadPoolExecutor) -> None:
    tenant = contextvars.ContextVar("tenant", default="")
    held = Held(lambda text: f"{text} of {tenant.get()}")
    ask = remember(held, cache, scope=tenant.get)

    def call_as(name: str) -> Any:
        tenant.set(name)
        return ask("question")

    callers = [pool.submit(call_as, name) for name in "ab"]
    for _ in callers:
        assert held.started.acquire(timeout=SECONDS)
    held.gate.set()
    assert [caller.result(SECONDS) for caller in callers] == ["question of a", "question of b"]
    assert cache.stats().coalesced == 0


def test_what_a_caller_does_to_its_answer_is_seen_by_nobody(cache: Cache, pool: ThreadPoolExecutor) -> None:
    held = Held()
    ask = remember(held, cache)

    def use(_: int) -> list[str]:
        answer = ask("question")
        seen = list(answer)
        answer.append("mine")
        return seen

    held.gate.set()
    assert list(pool.map(use, range(EVERYBODY))) == [["question"]] * EVERYBODY
