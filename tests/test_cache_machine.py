"""The cache as a whole, driven at random beside a dictionary, on a clock that is moved by hand."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
import tempfile
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from aimemo import Cache, GenericRedisCache, InMemoryCache, SQLiteCache, cached_ai_call
from tests.kit.clock import Clock
from tests.kit.looking import background
from tests.kit.redis_caches import redis_cache, shared
from tests.kit.servers import ClusterOfThree, Server, wait_until

TEXTS = st.sampled_from(["one", "two", "three"])
MODELS = st.sampled_from([1, 1.0, True, "1", None])
OPERATIONS = st.sampled_from(["qa", "qa_long"])
PROCESSES = st.sampled_from([0, 1])
WORLDS = st.sampled_from(["tasks", "threads"])
DAMAGES = st.sampled_from(["flipped", "truncated", "empty", "of another"])
TTL, WINDOW = 10, 10
_numbers = itertools.count()

Question = tuple[Any, ...]


class Known:
    """What is stored as the answer to one question."""

    def __init__(self, value: Any, until: float, *, has_tag: bool) -> None:
        self.value = value
        self.until = until
        self.has_tag = has_tag
        self.is_damaged = False


class Model(RuleBasedStateMachine):
    """Two operations on one store: `qa` tagged by its text, `qa_long` without tags.

    Two caches share the store, as two processes do. The dictionary holds what was answered for which exact question,
    and until when it is fresh; after that it may stand in for an error for a while. A memory cache may forget
    (it is small), so a miss is always allowed there; a stored answer never lies.
    """

    may_forget = False
    shares = True
    has_l1 = False

    def make(self) -> Cache:
        raise NotImplementedError

    @initialize()
    def start(self) -> None:
        self.clock = Clock()
        self.loop = asyncio.new_event_loop()
        self.known: dict[Question, Known] = {}
        self.version = 0
        self.calls = 0
        self.fails = False
        self.lookups = [0, 0]
        self.caches = [self.make()]
        self.caches.append(self.make() if self.shares else self.caches[0])
        self.functions = [self.decorate(cache) for cache in self.caches]

    def decorate(self, cache: Cache) -> dict[tuple[str, str], Any]:
        def answer(operation: str, text: str, model: Any) -> list[Any]:
            self.calls += 1
            if self.fails:
                raise ValueError(text)
            return [operation, text, type(model).__name__, model, self.version]

        def tags(text: str, model: Any = None) -> tuple[str, ...]:
            return (text,)

        @cached_ai_call(operation="qa", cache=cache, ttl=TTL, tags=tags, stale_if_error=WINDOW)
        def qa(text: str, model: Any = None) -> list[Any]:
            return answer("qa", text, model)

        @cached_ai_call(operation="qa_long", cache=cache, ttl=3 * TTL, stale_if_error=WINDOW)
        def qa_long(text: str, *, model: Any = None) -> list[Any]:
            return answer("qa_long", text, model)

        async def in_tasks(text: str, model: Any = None) -> list[Any]:
            await asyncio.sleep(0)
            return answer("qa", text, model)

        async def long_in_tasks(text: str, *, model: Any = None) -> list[Any]:
            await asyncio.sleep(0)
            return answer("qa_long", text, model)

        return {
            ("qa", "threads"): qa,
            ("qa_long", "threads"): qa_long,
            ("qa", "tasks"): cached_ai_call(operation="qa", cache=cache, ttl=TTL, tags=tags, stale_if_error=WINDOW)(
                in_tasks
            ),
            ("qa_long", "tasks"): cached_ai_call(operation="qa_long", cache=cache, ttl=3 * TTL, stale_if_error=WINDOW)(
                long_in_tasks
            ),
        }

    def ttl(self, operation: str) -> int:
        return TTL if operation == "qa" else 3 * TTL

    def question(self, operation: str, text: str, model: Any) -> Question:
        return operation, text, type(model).__name__, model

    def fresh(self, question: Question) -> Any:
        known = self.known.get(question)
        return known.value if known is not None and self.clock.now < known.until and not known.is_damaged else None

    def is_usable(self, question: Question) -> bool:
        known = self.known.get(question)
        return known is not None and self.clock.now < known.until + WINDOW

    def finish(self, world: str, make: Any, *args: Any, **options: Any) -> Any:
        """What a call gives, on the machine's own event loop if it has to be awaited."""
        if world == "threads":
            return make(*args, **options)

        async def wait() -> Any:
            return await make(*args, **options)

        return self.loop.run_until_complete(wait())

    def changing(self, process: int, world: str, make: Any, *args: Any, **options: Any) -> Any:
        """As `finish`, of what the other process is told: its L1 follows as soon as it has heard of it."""
        given = self.finish(world, make, *args, **options)
        if self.has_l1:
            self.let_hear(self.caches[1 - process])
        return given

    def let_hear(self, cache: Cache) -> None:
        """Wait until a cache is done with all that it was told."""
        raise NotImplementedError

    def learn(self, question: Question, value: Any, *, has_tag: bool) -> None:
        self.known[question] = Known(list(value), self.clock.now + self.ttl(question[0]), has_tag=has_tag)

    @rule(process=PROCESSES, world=WORLDS, operation=OPERATIONS, text=TEXTS, model=MODELS)
    def call(self, process: int, world: str, operation: str, text: str, model: Any) -> None:
        question = self.question(operation, text, model)
        expected, calls = self.fresh(question), self.calls
        given = self.finish(world, self.functions[process][operation, world], text, model=model)
        self.lookups[process] += 1
        if self.calls == calls:
            self.check_equal(given, expected)
        else:
            assert expected is None or self.may_forget
            self.learn(question, given, has_tag=operation == "qa")
        given.append("changed by the caller")

    def check_equal(self, given: Any, expected: Any) -> None:
        assert given == expected
        assert [type(part) for part in given] == [type(part) for part in expected]

    @rule(process=PROCESSES, world=WORLDS, operation=OPERATIONS, text=TEXTS, model=MODELS)
    def call_in_vain(self, process: int, world: str, operation: str, text: str, model: Any) -> None:
        """The function fails: what is fresh goes out all the same, and for a while what was."""
        question = self.question(operation, text, model)
        known, is_usable = self.known.get(question), self.is_usable(question)
        self.fails = True
        try:
            given = self.finish(world, self.functions[process][operation, world], text, model=model)
        except ValueError:
            assert known is None or known.is_damaged or not is_usable or self.may_forget
        else:
            assert known is not None
            assert is_usable
            self.check_equal(given, known.value)
        finally:
            self.fails = False
        self.lookups[process] += 1

    @rule(process=PROCESSES, operation=OPERATIONS, text=TEXTS, model=MODELS)
    def cancelled_call(self, process: int, operation: str, text: str, model: Any) -> None:
        """A caller who goes away before its answer is there: what was begun is ended, and kept."""
        question = self.question(operation, text, model)
        calls = self.calls

        async def cancel() -> None:
            caller = asyncio.ensure_future(self.functions[process][operation, "tasks"](text, model=model))
            await asyncio.sleep(0)
            caller.cancel()
            await asyncio.gather(caller, return_exceptions=True)
            self.was_counted = not caller.cancelled()
            while tasks := background():
                await asyncio.wait(tasks)

        self.loop.run_until_complete(cancel())
        self.lookups[process] += self.was_counted
        if self.calls != calls:
            assert self.fresh(question) is None or self.may_forget
            answer = [*question, self.version]
            self.learn(question, answer, has_tag=operation == "qa")

    @rule(process=PROCESSES, world=WORLDS, operation=OPERATIONS, text=TEXTS, model=MODELS)
    def refresh(self, process: int, world: str, operation: str, text: str, model: Any) -> None:
        self.version += 1
        function = self.functions[process][operation, world]
        value = self.changing(process, world, function.refresh, text, model=model)
        assert value[-1] == self.version
        self.learn(self.question(operation, text, model), value, has_tag=operation == "qa")

    def by_hand(self, process: int, world: str) -> Any:
        cache = self.caches[process]
        return cache if world == "tasks" else cache.blocking

    def key(self, operation: str, text: str, model: Any) -> str:
        return str(self.functions[0][operation, "threads"].key_for(text, model=model))

    @rule(process=PROCESSES, world=WORLDS, operation=OPERATIONS, text=TEXTS, model=MODELS)
    def get(self, process: int, world: str, operation: str, text: str, model: Any) -> None:
        given = self.finish(world, self.by_hand(process, world).get, self.key(operation, text, model))
        self.lookups[process] += 1
        expected = self.fresh(self.question(operation, text, model))
        assert given == expected or (given is None and self.may_forget)

    @rule(process=PROCESSES, world=WORLDS, operation=OPERATIONS, text=TEXTS, model=MODELS)
    def set(self, process: int, world: str, operation: str, text: str, model: Any) -> None:
        self.version += 1
        value = [operation, text, type(model).__name__, model, self.version]
        cache = self.by_hand(process, world)
        self.changing(process, world, cache.set, self.key(operation, text, model), value, self.ttl(operation))
        self.learn(self.question(operation, text, model), value, has_tag=False)

    @rule(process=PROCESSES, world=WORLDS, operation=OPERATIONS, text=TEXTS, model=MODELS)
    def delete(self, process: int, world: str, operation: str, text: str, model: Any) -> None:
        cache = self.by_hand(process, world)
        existed = self.changing(process, world, cache.delete, self.key(operation, text, model))
        self.forget([self.question(operation, text, model)], int(existed))

    @rule(process=PROCESSES, world=WORLDS, operation=OPERATIONS, text=TEXTS, model=MODELS)
    def invalidate(self, process: int, world: str, operation: str, text: str, model: Any) -> None:
        function = self.functions[process][operation, world]
        existed = self.changing(process, world, function.invalidate, text, model=model)
        self.forget([self.question(operation, text, model)], int(existed))

    def forget(self, meant: list[Question], count: int) -> None:
        """What is meant is gone; how much that was is told, where stale answers and damaged ones may count."""
        known = [question for question in meant if question in self.known]
        least = 0 if self.may_forget else sum(self.fresh(question) is not None for question in known)
        assert least <= count <= sum(self.is_usable(question) for question in known)
        for question in known:
            del self.known[question]

    @rule(process=PROCESSES, world=WORLDS, operation=OPERATIONS)
    def invalidate_operation(self, process: int, world: str, operation: str) -> None:
        count = self.changing(process, world, self.functions[process][operation, world].invalidate_all)
        self.forget([question for question in self.known if question[0] == operation], count)

    @rule(process=PROCESSES, world=WORLDS, text=TEXTS)
    def invalidate_tag(self, process: int, world: str, text: str) -> None:
        count = self.changing(process, world, self.by_hand(process, world).invalidate_tag, text)
        self.forget(
            [question for question, known in self.known.items() if known.has_tag and question[1] == text], count
        )

    @rule(process=PROCESSES, world=WORLDS)
    def invalidate_pattern(self, process: int, world: str) -> None:
        count = self.changing(process, world, self.by_hand(process, world).invalidate_pattern, "op:*_long|*")
        self.forget([question for question in self.known if question[0] == "qa_long"], count)

    @rule(process=PROCESSES, world=WORLDS)
    def clear(self, process: int, world: str) -> None:
        self.forget(list(self.known), self.changing(process, world, self.by_hand(process, world).clear))

    @rule(seconds=st.sampled_from([5, 10, 15, 20, 45]))
    def advance(self, seconds: int) -> None:
        self.clock.advance(seconds)

    @precondition(lambda self: self.shares)
    @rule(process=PROCESSES, is_closed=st.booleans())
    def reopen(self, process: int, is_closed: bool) -> None:
        """A process ends, with or without a goodbye, and another one comes to the same store."""
        if is_closed:
            self.close(self.caches[process])
        else:
            self.crashed = [*getattr(self, "crashed", ()), self.caches[process]]
        self.caches[process] = self.make()
        self.lookups[process] = 0
        self.functions[process] = self.decorate(self.caches[process])

    @precondition(lambda self: self.shares and not self.has_l1 and self.known)
    @rule(data=st.data(), damage=DAMAGES)
    def corrupt(self, data: st.DataObject, damage: str) -> None:
        question = data.draw(st.sampled_from(sorted(self.known, key=repr)))
        held = self.stored(self.key(question[0], question[1], question[3]))
        if held is None or self.known[question].is_damaged:
            return
        damaged = {
            "flipped": held[:-9] + bytes([held[-9] ^ 1]) + held[-8:],
            "truncated": held[: len(held) // 2],
            "empty": b"",
            "of another": self.bytes_of_another(question),
        }[damage]
        self.store_damaged(self.key(question[0], question[1], question[3]), damaged)
        self.known[question].is_damaged = True

    def bytes_of_another(self, question: Question) -> bytes:
        others = [known for known in self.known if known != question]
        found = [self.stored(self.key(other[0], other[1], other[3])) for other in sorted(others, key=repr)]
        return next((data for data in found if data), b"nothing")

    def stored(self, key: str) -> bytes | None:
        raise NotImplementedError

    def store_damaged(self, key: str, data: bytes) -> None:
        raise NotImplementedError

    @invariant()
    def every_lookup_is_counted_once(self) -> None:
        if hasattr(self, "functions"):
            for at, cache in enumerate(self.caches if self.shares else self.caches[:1]):
                stats = cache.stats()
                expected = self.lookups[at] if self.shares else sum(self.lookups)
                assert stats.hits + stats.stale_hits + stats.misses + stats.coalesced == expected

    def close(self, cache: Cache) -> None:
        async def end() -> None:
            await cache.close()
            for _ in range(3):  # transports are closed in the turns of the loop that follow
                await asyncio.sleep(0)

        self.loop.run_until_complete(end())
        cache.blocking.close()

    def teardown(self) -> None:
        if hasattr(self, "functions"):
            for cache in [*self.caches, *getattr(self, "crashed", ())]:
                self.close(cache)
            while tasks := asyncio.all_tasks(self.loop):
                self.loop.run_until_complete(asyncio.wait(tasks))
            self.loop.close()


class InMemory(Model):
    may_forget = True
    shares = False

    def make(self) -> Cache:
        return InMemoryCache(max_size=6, clock=self.clock)


class InSQLite(Model):
    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "cache.db"

    def make(self) -> Cache:
        return SQLiteCache(self.path, clock=self.clock, deadline=5)

    def stored(self, key: str) -> bytes | None:
        with sqlite3.connect(self.path) as connection:
            row = connection.execute("SELECT envelope FROM aimemo_entries WHERE key = ?", (key.encode(),)).fetchone()
        connection.close()
        return row[0] if row is not None else None

    def store_damaged(self, key: str, data: bytes) -> None:
        with sqlite3.connect(self.path) as connection:
            connection.execute("UPDATE aimemo_entries SET envelope = ? WHERE key = ?", (data, key.encode()))
        connection.close()

    def teardown(self) -> None:
        super().teardown()
        self.folder.cleanup()


class InRedis(Model):
    kind: Literal["server", "cluster"] = "server"

    def make(self) -> Cache:
        if not getattr(self, "namespace", ""):
            cache = redis_cache(self.kind, self.clock, strict=False, enable_l1_cache=self.has_l1)
            self.namespace = cache.namespace
        else:
            cache = GenericRedisCache(
                shared(self.kind).url, namespace=self.namespace, clock=self.clock, deadline=5,
                enable_l1_cache=self.has_l1,
            )  # fmt: skip
        if self.has_l1:
            self.note_what_is_heard(cache)
        assert cache.blocking.connect()
        return cache

    def note_what_is_heard(self, cache: GenericRedisCache) -> None:
        listener = cache._listener
        hear, listener.noted = listener._heard, set()  # type: ignore[attr-defined]

        def heard(data: bytes) -> None:
            hear(data)
            listener.noted.add(data)  # type: ignore[attr-defined]

        listener._heard = heard

    def let_hear(self, cache: Cache) -> None:
        """What is said last, and means nothing, is heard last."""
        assert isinstance(cache, GenericRedisCache)
        server, listener = shared("server"), cache._listener
        assert isinstance(server, Server)
        said = f"that is all {next(_numbers)}".encode()

        def has_heard() -> bool:
            server.ask("PUBLISH", cache._layout.channel, said)
            return said in listener.noted  # type: ignore[attr-defined]

        wait_until(has_heard, "the other process has heard of it")

    def place(self, key: str) -> tuple[Any, str]:
        """The client of the node that has a key, and the name it has there."""
        servers = shared(self.kind)
        nodes = servers.nodes if isinstance(servers, ClusterOfThree) else [servers]
        cache = self.caches[0]
        assert isinstance(cache, GenericRedisCache)
        name = cache._layout.place(key).name
        pattern = name.replace("\\", "\\\\").replace("*", "\\*").replace("?", "\\?").replace("[", "\\[")
        holders = [node.client for node in nodes if next(node.client.scan_iter(pattern, count=10_000), None)]
        return (holders or [nodes[0].client])[0], name if holders else ""

    def stored(self, key: str) -> bytes | None:
        client, name = self.place(key)
        return client.get(name) if name else None

    def store_damaged(self, key: str, data: bytes) -> None:
        client, name = self.place(key)
        client.set(name, data, keepttl=True)


class InRedisBehindL1(InRedis):
    has_l1 = True


class InCluster(InRedis):
    kind = "cluster"


MACHINES = [(InMemory, 40), (InSQLite, 20), (InRedis, 15), (InRedisBehindL1, 12), (InCluster, 3)]
two_functions_share_an_operation = pytest.mark.filterwarnings("ignore:.* share the operation")
checks = [HealthCheck.too_slow, HealthCheck.filter_too_much]


@two_functions_share_an_operation
@pytest.mark.parametrize(("machine", "examples"), MACHINES)
def test_a_cache_agrees_with_a_dictionary(machine: type[Model], examples: int) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(max_examples=examples, stateful_step_count=30, suppress_health_check=checks),
    )


@pytest.mark.slow
@two_functions_share_an_operation
@pytest.mark.parametrize(("machine", "examples"), MACHINES)
def test_a_cache_agrees_with_a_dictionary_for_long(machine: type[Model], examples: int) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(max_examples=20 * examples, stateful_step_count=60, suppress_health_check=checks),
    )
