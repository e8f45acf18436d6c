"""The in-process tier in front of Redis stays true: over processes, lost messages, forks, loops and threads."""

from __future__ import annotations

import asyncio
import functools
import gc
import itertools
import os
import re
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any

import pytest

from aimemo import Cache, GenericRedisCache, cached_ai_call, record_calls
from tests.kit import stalls
from tests.kit.clock import Clock
from tests.kit.forks import Fork
from tests.kit.looking import until
from tests.kit.redis_caches import redis_cache, shared
from tests.kit.redis_processes import OtherProcess
from tests.kit.servers import HOST, ClusterOfThree, Server, binaries, wait_until
from tests.test_invalidation_races import Held, finish, numbered, remember

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

SECONDS = 5
FLEET = "fleet"
"""The namespace of the other process."""

Make = Callable[..., GenericRedisCache]
Start = Callable[..., Future[Any]]

_numbers = itertools.count()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


@pytest.fixture(scope="module")
def other(server: Server) -> Iterator[OtherProcess]:
    with OtherProcess(server.url, namespace=FLEET, deadline=5, strict=True) as process:
        yield process


@pytest.fixture
def make(server: Server) -> Iterator[Make]:
    """Makes caches in one namespace; each stands for a process of its own."""
    namespace = f"l1-{next(_numbers)}"
    made: list[GenericRedisCache] = []

    def make_one(url: str = server.url, **settings: Any) -> GenericRedisCache:
        # Five seconds for the stores: a slow machine must not turn a hit into a miss.
        made.append(GenericRedisCache(url, **{"namespace": namespace, "deadline": 5, "strict": True, **settings}))
        return made[-1]

    yield make_one
    for cache in made:
        cache.blocking.close()


@pytest.fixture(params=["tasks", "threads"])
def world(request: pytest.FixtureRequest) -> str:
    world: str = request.param
    return world


@pytest.fixture
def start() -> Iterator[Start]:
    """Begins something in a thread of its own and, if it is awaitable, on a loop of its own."""
    with ThreadPoolExecutor(8) as pool:
        yield lambda function, *args: pool.submit(finish, functools.partial(function, *args))


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    made = Proxy(server.port)
    yield made
    made.close()


@pytest.fixture
def deaf(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server of the test's own, on which subscribing can be forbidden."""
    with Server(getattr(request, "param", "valkey")) as running:
        yield running


on_each_server = pytest.mark.parametrize("deaf", binaries(), indirect=True)


def deafen(server: Server) -> None:
    """Cut off all who listen, until `let_listen`."""
    server.ask("ACL", "SETUSER", "default", "-subscribe")
    server.ask("CLIENT", "KILL", "TYPE", "pubsub")


def let_listen(server: Server) -> None:
    server.ask("ACL", "SETUSER", "default", "+subscribe")


def view(cache: Cache, world: str) -> Any:
    """The cache as one world sees it."""
    return cache if world == "tasks" else cache.blocking


def l1_holds(cache: GenericRedisCache, key: str) -> bool:
    return cache.l1_cache is not None and cache.l1_cache.blocking.exists(key)


def warm(cache: GenericRedisCache, key: str) -> None:
    """Have L1 hold what Redis has. The message of a set just before may arrive only now."""

    def is_held() -> bool:
        cache.blocking.get(key)
        return l1_holds(cache, key)

    wait_until(is_held, "L1 has it")


def stored_name(server: Server, cache: GenericRedisCache, key: str) -> str | None:
    """Where Redis has a key, if it has it."""
    names = [f"{{{cache.namespace}:{bucket}}}e:{key}" for bucket in range(16)]
    return next((name for name in names if server.client.exists(name)), None)


def listening(server: Server, cache: GenericRedisCache) -> int:
    [(_, count)] = server.client.pubsub_numsub(f"{cache.namespace}:inv")
    return int(count)


def catch_up(here: GenericRedisCache, there: GenericRedisCache) -> None:
    """Let `here` hear all that `there` has said."""
    mark = f"mark-{next(_numbers)}"
    there.blocking.set(mark, 1)
    warm(here, mark)
    there.blocking.delete(mark)
    wait_until(lambda: not l1_holds(here, mark), "a message is heard")


class Giver:
    def __init__(self, give: Callable[[], Any]) -> None:
        self.give = give


def memo(cache: GenericRedisCache, give: Callable[[], Any], world: str = "threads", **options: Any) -> Any:
    """A decorated function whose keys are those of `remember` and of the other process."""
    held = Giver(give)  # what a function captures counts into its keys, by name

    def compute(what: Any) -> Any:
        return held.give()

    async def compute_in_tasks(what: Any) -> Any:
        return held.give()

    decorate = cached_ai_call(operation="ask", cache=cache, tags=("news",), **options)
    return decorate(compute_in_tasks if world == "tasks" else compute)


class Proxy:
    """Passes on what clients and a server say to each other, until told otherwise."""

    def __init__(self, port: int) -> None:
        self._server = (HOST, port)
        self._door = socket.create_server((HOST, 0))
        self._word: bytes | None = None
        self._may_pass = threading.Event()
        self._may_pass.set()
        self._silenced: set[socket.socket] = set()
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()
        self.url = f"redis://{HOST}:{self._door.getsockname()[1]}/0"
        self.is_holding = False

    def hold(self, word: bytes) -> None:
        """Keep back the replies to the next client that says `word`."""
        self._may_pass.clear()
        self._word = word

    def release(self) -> None:
        self._may_pass.set()

    def silence(self) -> None:
        """Let nothing more pass over the connections of now, which stay open."""
        self._silenced.update(self._sockets)

    def close(self) -> None:
        self._may_pass.set()
        for each in [self._door, *self._sockets]:
            try:
                each.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # its other side has gone
            each.close()
        for thread in self._threads:
            thread.join(SECONDS)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._door.accept()
            except OSError:
                return
            server = socket.create_connection(self._server)
            self._sockets += [client, server]
            is_held = threading.Event()
            for arguments in ((client, server, is_held, True), (server, client, is_held, False)):
                thread = threading.Thread(target=self._pass_on, args=arguments, daemon=True)
                self._threads.append(thread)
                thread.start()

    def _pass_on(self, source: socket.socket, sink: socket.socket, is_held: threading.Event, asks: bool) -> None:
        try:
            while data := source.recv(1 << 16):
                if source in self._silenced:
                    continue
                if asks and self._word is not None and self._word in data:
                    self._word = None
                    is_held.set()
                if not asks and is_held.is_set():
                    self.is_holding = True
                    self._may_pass.wait()
                sink.sendall(data)
            sink.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # one side has gone


# Invalidations while a function runs (F18)

WAYS: dict[str, Callable[[str], tuple[str, ...]]] = {
    "delete": lambda key: ("delete", key),
    "tag": lambda key: ("invalidate_tag", "news"),
    "operation": lambda key: ("invalidate_operation", "ask"),
    "glob": lambda key: ("invalidate_pattern", "op:as?|*"),
    "clear": lambda key: ("clear",),
}
each_way = pytest.mark.parametrize("way", WAYS)
with_and_without_l1 = pytest.mark.parametrize("l1", [True, False], ids=["l1", "no l1"])


@pytest.fixture(params=["another cache", "another process"])
def ask_someone(request: pytest.FixtureRequest, make: Make, other: OtherProcess) -> Callable[..., Any]:
    """Has somebody else who shares the namespace do something; the cache itself: see test_invalidation_races."""
    if request.param == "another process":
        return other.ask
    there = make(namespace=FLEET)
    return lambda name, *args: getattr(there.blocking, name)(*args)


@pytest.mark.slow
@with_and_without_l1
@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["old lands first", "new lands first"])
@each_way
def test_an_answer_whose_computation_began_before_an_invalidation_goes_out_and_is_kept_nowhere(
    make: Make, server: Server, start: Start, ask_someone: Any, world: str, way: str, order: tuple[int, int], l1: bool
) -> None:
    here = make(namespace=FLEET, enable_l1_cache=l1)
    held, text = Held(numbered), f"q{next(_numbers)}"
    ask = remember(held, here, world)
    key = ask.key_for(text)
    callers = [start(ask, text)]
    assert held.has_started()
    ask_someone(*WAYS[way](key))
    wait_until(lambda: not here._flights._flights, "the invalidation has been heard", SECONDS)
    callers.append(start(ask, text))
    assert held.has_started(), "the later caller joined the old flight"
    for at in order:
        held.gates[at].set()
        assert callers[at].result(SECONDS) == f"{text} {at}"
        if (at, order[0]) == (0, 0):
            assert not l1_holds(here, key)
            assert stored_name(server, here, key) is None
    assert finish(lambda: ask(text)) == f"{text} 1"
    assert here.blocking.get(key) == f"{text} 1"
    assert l1_holds(here, key) is l1


@each_way
def test_who_asks_after_an_invalidation_does_not_wait_for_what_another_process_computed_before_it(
    make: Make, other: OtherProcess, start: Start, world: str, way: str
) -> None:
    here = make(namespace=FLEET)
    held, text = Held(numbered), f"q{next(_numbers)}"
    ask = remember(held, here, world)
    held.gates[0].set()
    assert other.ask("key_for", text) == ask.key_for(text)
    other.send("hold", text, "old")
    assert other.receive() == "computing"
    getattr(here.blocking, WAYS[way](text)[0])(*WAYS[way](ask.key_for(text))[1:])
    caller = start(ask, text)
    try:
        assert caller.result(SECONDS) == f"{text} 0"
    finally:
        other.send("end")
        assert other.receive() == "old"


REPLACEMENTS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "set": lambda cache, ask, new: cache.set(ask.key_for("q"), new),
    "set_many": lambda cache, ask, new: cache.set_many({ask.key_for("q"): new}),
    "refresh": lambda cache, ask, new: ask.refresh("q"),
}


@pytest.mark.parametrize("hears", [True, False], ids=["told", "not told"])
@pytest.mark.parametrize("way", REPLACEMENTS)
def test_what_replaces_an_answer_is_not_replaced_by_what_another_process_computed_before_it(
    deaf: Server, make: Make, start: Start, world: str, way: str, hears: bool
) -> None:
    here, there = make(deaf.url), make(deaf.url)
    held = Held(lambda what, at: "old")
    theirs = remember(held, there, world)
    caller = start(theirs, "q")
    assert held.has_started()
    if not hears:
        deafen(deaf)
    finish(lambda: REPLACEMENTS[way](view(here, world), memo(here, lambda: "new", world), "new"))
    if hears:
        wait_until(lambda: not there._flights._flights, "the replacement has been heard", SECONDS)
    held.gates[0].set()
    assert caller.result(SECONDS) == "old"
    assert stored_value(deaf, make, theirs.key_for("q")) == "new"


def test_what_a_new_cache_keeps_first_is_in_l1(make: Make, world: str) -> None:
    here = make()
    finish(lambda: view(here, world).set("k", 1))
    assert finish(lambda: view(here, world).get("k")) == 1
    assert (here.stats().l1_hits, here.stats().l2_hits) == (1, 0)


def stored_value(server: Server, make: Make, key: str) -> Any:
    """What Redis itself has."""
    return make(server.url, enable_l1_cache=False).blocking.get(key)


@pytest.mark.leaves("who connects to a server that hangs")
@pytest.mark.parametrize("way", REPLACEMENTS)
def test_a_replacement_that_redis_does_not_answer_costs_one_deadline(
    deaf: Server, make: Make, world: str, way: str
) -> None:
    here = make(deaf.url, strict=False, deadline=0.4)
    ask = memo(here, lambda: "new", world)
    key = ask.key_for("q")
    here.blocking.set(key, "old")
    deaf.freeze()
    try:
        started = time.monotonic()
        finish(lambda: REPLACEMENTS[way](view(here, world), ask, "new"))
        took = time.monotonic() - started
    finally:
        deaf.thaw()
    assert took < 0.7 + stalls.longest()


@pytest.mark.parametrize("who", ["itself", "another cache"])
@each_way
def test_an_invalidation_while_l1_is_being_filled_from_redis_discards_the_fill(
    make: Make, proxy: Proxy, start: Start, world: str, way: str, who: str
) -> None:
    here, there = make(proxy.url), make()
    ask = memo(there, lambda: "old")
    assert ask("q") == "old"
    key = ask.key_for("q")
    here.blocking.connect()
    proxy.hold(b"\r\nGET\r\n")
    reader = start(view(here, world).get, key)
    wait_until(lambda: proxy.is_holding, "the reply to the reader is held")
    name, *args = WAYS[way](key)
    assert getattr((here if who == "itself" else there).blocking, name)(*args) == 1
    catch_up(here, there)
    proxy.release()
    reader.result(SECONDS)
    assert not l1_holds(here, key)
    assert finish(lambda: view(here, world).get(key)) is None


def test_what_was_read_before_a_set_does_not_come_back_once_l1_has_evicted_what_was_set(
    make: Make, proxy: Proxy, start: Start, world: str
) -> None:
    here, there = make(proxy.url, l1_cache_size=1), make()
    there.blocking.set("k", "old")
    here.blocking.connect()
    proxy.hold(b"\r\nGET\r\n")
    reader = start(view(here, world).get, "k")
    wait_until(lambda: proxy.is_holding, "the reply to the reader is held")
    here.blocking.set("k", "new")
    here.blocking.set("another", 1)
    proxy.release()
    reader.result(SECONDS)
    assert finish(lambda: view(here, world).get("k")) == "new"


# Messages between processes


def measure(other: OtherProcess, key: str, old: Any, act: Callable[[], Any]) -> tuple[float, Any]:
    """Milliseconds from the beginning of an act until the other process sees a new value, and that value."""
    wait_until(lambda: other.ask("get", key) == old and other.ask("holds", key), "its L1 has the old value")
    other.send("watch", key)
    assert other.receive() == "watching"
    started = time.monotonic()
    act()
    seen, value = other.receive()
    return 1000 * (seen - started), value


CHANGES: dict[str, Callable[[str], tuple[Any, ...]]] = {
    **WAYS,
    "set": lambda key: ("set", key, "new"),
    "set_many": lambda key: ("set_many", {key: "new"}),
    "refresh": lambda key: ("refresh",),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_in_one_process_is_seen_by_the_l1_of_another_within_50_ms(
    make: Make, other: OtherProcess, change: str
) -> None:
    here = make(namespace=FLEET)
    answers = itertools.count()
    ask = memo(here, lambda: next(answers))
    key = ask.key_for("q")

    def act(world: str) -> None:
        name, *args = CHANGES[change](key)
        finish(lambda: ask.refresh("q") if name == "refresh" else getattr(view(here, world), name)(*args))

    took = []
    for number in range(50):
        old = ask.refresh("q")
        milliseconds, value = measure(other, key, old, functools.partial(act, ["tasks", "threads"][number % 2]))
        took.append(milliseconds)
        assert value == (None if change in WAYS else old + 1 if change == "refresh" else "new")
    figures = {"median": statistics.median(took), "max": max(took)}
    assert figures["median"] < 50, figures


@pytest.mark.parametrize("kind", ["server", "cluster"])
@pytest.mark.parametrize("change", [*WAYS, "set"])
def test_a_change_by_one_cache_leaves_the_l1_of_another_on_a_server_and_on_a_cluster(
    kind: Any, world: str, change: str
) -> None:
    here = redis_cache(kind)
    there = GenericRedisCache(shared(kind).url, namespace=here.namespace, deadline=5, strict=True)
    try:
        ours, theirs = memo(here, lambda: "anew", world), memo(there, lambda: "old")
        for text in map(str, range(10)):
            theirs(text)
            key = ours.key_for(text)
            warm(here, key)
            assert finish(lambda text=text: ours(text)) == "old"
            name, *args = CHANGES[change](key)
            finish(lambda name=name, args=args: getattr(view(there, world), name)(*args))
            wait_until(lambda key=key: not l1_holds(here, key), "the other L1 drops it", SECONDS)
            assert finish(lambda text=text: ours(text)) == ("anew" if change in WAYS else "new")
    finally:
        here.blocking.close()
        there.blocking.close()


def test_a_refresh_is_told_although_redis_has_lost_what_it_replaces(make: Make, server: Server, world: str) -> None:
    here, there = make(), make()
    answers = iter(["old", "new"])
    ask = memo(there, lambda: next(answers), world)
    key = ask.key_for("q")
    assert finish(lambda: ask("q")) == "old"
    warm(here, key)
    server.client.delete(stored_name(server, here, key) or "")  # as an eviction would
    assert finish(lambda: ask.refresh("q")) == "new"
    wait_until(lambda: here.blocking.get(key) == "new", "the refreshed answer is seen", SECONDS)


@pytest.fixture
def watcher(server: Server) -> Iterator[Callable[[str], Callable[[], list[Any]]]]:
    """Listens to the channel of a namespace; what it gives says what has come since it was last asked."""
    client = server.client.pubsub()

    def watch(namespace: str) -> Callable[[], list[Any]]:
        client.subscribe(f"{namespace}:inv")
        assert client.get_message(timeout=SECONDS)["type"] == "subscribe"

        def heard() -> list[Any]:
            server.client.publish(f"{namespace}:inv", b"end")
            messages = iter(lambda: client.get_message(timeout=SECONDS)["data"], b"end")
            return list(messages)

        return heard

    yield watch
    client.close()


async def test_first_writes_of_decorated_calls_are_not_told_and_what_replaces_or_removes_is_told_once(
    make: Make, watcher: Any
) -> None:
    cache, clock = make(), Clock()
    heard = watcher(cache.namespace)
    aged = make(clock=clock)
    ask = memo(cache, lambda: "a")
    ask_in_tasks = memo(make(), lambda: "a", "tasks")
    assert (ask("q"), await ask_in_tasks("r"), cache.blocking.get_or_compute("k", lambda: 1)) == ("a", "a", 1)
    assert await cache.get_or_compute("l", lambda: 1) == 1
    assert heard() == []
    stale = memo(aged, lambda: "a", ttl=10, stale_while_revalidate=100)
    stale("old")
    assert heard() == []
    clock.advance(11)
    stale("old")
    wait_until(lambda: aged.blocking.ttl(stale.key_for("old")) == 10, "it is renewed")
    assert len(heard()) == 1
    for tell in (lambda: ask.refresh("q"), lambda: ask.invalidate("q"), lambda: cache.blocking.set("k", 1),
                 lambda: cache.blocking.delete("k"), lambda: cache.blocking.invalidate_tag("news"),
                 lambda: ask.invalidate_all(), lambda: cache.blocking.invalidate_pattern("*x"),
                 lambda: cache.blocking.clear()):  # fmt: skip
        tell()
        assert len(heard()) == 1


def test_what_is_said_in_other_namespaces_is_not_heard(make: Make, world: str) -> None:
    here = make()
    others = [make(namespace=here.namespace + end) for end in ("2", ".", "-inv")]
    here.blocking.set("k", "mine")
    warm(here, "k")
    for there in others:
        for way in WAYS.values():
            there.blocking.set("k", "theirs")
            finish(lambda there=there, way=way: getattr(view(there, world), way("k")[0])(*way("k")[1:]))
        catch_up(there, make(namespace=there.namespace))
    assert l1_holds(here, "k")
    assert here.blocking.get("k") == "mine"


JUNK = [
    b"", b"end", b"\x00" * 100, b"\xc1", b"\xdd\xff\xff\xff\xff", b"\x93\xa1x\xa3key", b"\x91" * 5000, b"\xa1k",
    b"\x93\xa1x\xa3key\xa1\xff", b"\x93\xa1x\xa3key\x01", b"\x93\xa1x\xa5other\xa1k", b"\x93\xa1x\x90\xa1k",
    b"\x93\x80\x80\x80", b"\x93\xa1x\xc0\xc0", b"\x94\xa1x\xa3key\xa1k\xa1k", os.urandom(200), b"\x81\x01\x02",
    b"\x93\xa1x\xa4glob\xa4[^-\\",
]  # fmt: skip


def test_junk_on_the_channel_is_ignored_and_what_comes_after_it_is_heard(make: Make, server: Server) -> None:
    here, there = make(client_name="listens-well"), make()
    there.blocking.set("kept", "kept")
    warm(here, "kept")
    before = clients(server, "listens-well")
    for junk in JUNK:
        server.client.publish(f"{here.namespace}:inv", junk)
    there.blocking.set("other", 1)
    catch_up(here, there)
    assert l1_holds(here, "kept")
    assert clients(server, "listens-well") == before
    there.blocking.delete("kept")
    wait_until(lambda: not l1_holds(here, "kept"), "the message after the junk is heard")


def clients(server: Server, name: str) -> set[str]:
    """The connections with a name, as the server knows them."""
    return {each["id"] for each in server.client.client_list() if each["name"] == name}


@pytest.mark.parametrize("size", [100_000, 5_000_000])
def test_a_large_value_that_replaces_a_small_one_leaves_the_small_one_nowhere(
    make: Make, other: OtherProcess, size: int
) -> None:
    key = f"k{next(_numbers)}"
    caches = [make(namespace=FLEET) for _ in range(2)]
    caches[0].blocking.set(key, "small")
    warm(caches[1], key)
    assert other.ask("holds", key)
    caches[0].blocking.set(key, os.urandom(size))
    assert len(caches[0].blocking.get(key)) == size
    wait_until(lambda: len(caches[1].blocking.get(key)) == size, "the other cache sees it", SECONDS)
    wait_until(lambda: other.ask("length", key) == size, "the other process sees it", SECONDS)
    other.ask("set", key, "small again")
    wait_until(lambda: all(cache.blocking.get(key) == "small again" for cache in caches), "both see it", SECONDS)
    other.ask("set_large", key, size)
    wait_until(lambda: all(len(cache.blocking.get(key)) == size for cache in caches), "both see it", SECONDS)


@pytest.mark.parametrize("refuse", [("proto-max-bulk-len", "1mb"), ("maxmemory", "1")], ids=["too large", "full"])
@with_and_without_l1
@pytest.mark.parametrize("way", REPLACEMENTS)
def test_a_value_that_redis_does_not_take_leaves_the_one_that_it_replaces_nowhere(
    deaf: Server, make: Make, world: str, way: str, l1: bool, refuse: tuple[str, str]
) -> None:
    here, there = (make(deaf.url, strict=False, enable_l1_cache=l1) for _ in range(2))
    new = os.urandom(2_000_000)
    answers = iter(["old", new])
    ask = memo(here, lambda: next(answers), world)
    key = ask.key_for("q")
    assert finish(lambda: ask("q")) == there.blocking.get(key) == "old"
    deaf.client.config_set(*refuse)
    finish(lambda: REPLACEMENTS[way](view(here, world), ask, new))
    assert here.blocking.get(key) in (new, None)
    wait_until(lambda: there.blocking.get(key) in (new, None), "the other cache lets go of it", SECONDS)


@on_each_server
@each_way
def test_what_is_invalidated_on_a_full_server_is_gone(deaf: Server, make: Make, way: str) -> None:
    here, there = make(deaf.url), make(deaf.url)
    ask = memo(there, lambda: "old")
    ask("q")
    key = ask.key_for("q")
    warm(here, key)
    deaf.client.config_set("maxmemory", "1")
    name, *args = WAYS[way](key)
    assert getattr(there.blocking, name)(*args) == 1
    wait_until(lambda: here.blocking.get(key) is None, "the other cache lets go of it", SECONDS)


# Lost messages (F19)


@on_each_server
def test_a_lost_connection_is_made_anew_by_the_listener_itself(deaf: Server, make: Make) -> None:
    here = make(deaf.url)
    here.blocking.connect()
    for _ in range(3):
        wait_until(lambda: listening(deaf, here) == 1, "the listener is back", SECONDS)
        deaf.ask("CLIENT", "KILL", "TYPE", "pubsub")
    deafen(deaf)
    wait_until(lambda: "NOPERM" in str(deaf.client.info("errorstats")), "the listener is refused")
    let_listen(deaf)
    wait_until(lambda: listening(deaf, here) == 1, "the listener is back", SECONDS)


@each_way
def test_what_was_invalidated_while_nobody_listened_is_gone_once_the_listener_is_back(
    deaf: Server, make: Make, world: str, way: str
) -> None:
    here, there = make(deaf.url), make(deaf.url)
    ask = memo(there, lambda: "old")
    ask("q")
    key = ask.key_for("q")
    ours = memo(here, lambda: "new", world)
    warm(here, key)
    assert finish(lambda: ours("q")) == "old"
    deafen(deaf)
    name, *args = WAYS[way](key)
    assert getattr(there.blocking, name)(*args) == 1
    let_listen(deaf)
    wait_until(lambda: listening(deaf, here) == 2, "both listen again", SECONDS)
    wait_until(lambda: not l1_holds(here, key), "L1 is dropped", seconds=2)
    assert finish(lambda: ours("q")) == "new"


def test_without_a_listener_l1_serves_no_longer_than_its_own_limit(
    deaf: Server, make: Make, clock: Clock, world: str
) -> None:
    here, there = make(deaf.url, clock=clock, l1_max_ttl=30), make(deaf.url, clock=clock)
    keys = ["before", "meanwhile"]
    there.blocking.set_many(dict.fromkeys(keys, "old"))
    warm(here, "before")
    deafen(deaf)
    warm(here, "meanwhile")
    there.blocking.delete_many(keys)
    clock.advance(29.9)
    assert [l1_holds(here, key) for key in keys] == [True, True]
    clock.advance(0.2)
    assert [finish(lambda key=key: view(here, world).get(key)) for key in keys] == [None, None]


@pytest.mark.slow
def test_however_often_the_listener_is_cut_off_the_last_value_is_seen_soon(
    deaf: Server, make: Make, world: str
) -> None:
    here, there = make(deaf.url), make(deaf.url)
    for number in range(20):
        there.blocking.set("k", number - 1)
        here.blocking.get("k")
        deaf.ask("CLIENT", "KILL", "TYPE", "pubsub")
        there.blocking.set("k", number)
        wait_until(lambda number=number: finish(lambda: view(here, world).get("k")) == number, "it is seen", SECONDS)


def test_who_asks_after_the_listener_came_back_does_not_join_what_was_computed_before_a_lost_invalidation(
    deaf: Server, make: Make, start: Start, world: str
) -> None:
    here, there = make(deaf.url), make(deaf.url)
    held = Held(numbered)
    ask = remember(held, here, world)
    there.blocking.connect()
    callers = [start(ask, "q")]
    assert held.has_started()
    deafen(deaf)
    there.blocking.delete(ask.key_for("q"))
    let_listen(deaf)
    wait_until(lambda: listening(deaf, here) == 2, "both listen again", SECONDS)
    catch_up(here, there)
    callers.append(start(ask, "q"))
    began = held.started.acquire(timeout=2)
    for gate in held.gates:
        gate.set()
    assert [caller.result(SECONDS) for caller in callers] == ["q 0", "q 1"]
    assert began


@pytest.mark.slow
def test_a_listener_whose_connection_died_silently_notices_by_itself(make: Make, proxy: Proxy, server: Server) -> None:
    here, there = make(proxy.url, strict=False, deadline=0.5), make()
    there.blocking.set("k", "old")
    warm(here, "k")
    wait_until(lambda: listening(server, here) == 2, "both listen")
    proxy.silence()
    there.blocking.delete("k")
    wait_until(lambda: not l1_holds(here, "k"), "the silence is noticed", seconds=6)
    there.blocking.set("k", "new")
    wait_until(lambda: here.blocking.get("k") == "new", "Redis is reached again", SECONDS)
    warm(here, "k")
    there.blocking.delete("k")
    wait_until(lambda: not l1_holds(here, "k"), "messages are heard again", SECONDS)


def test_a_listener_notices_that_its_server_hangs_and_listens_again_once_it_does_not(deaf: Server, make: Make) -> None:
    here, there = make(deaf.url), make(deaf.url)
    there.blocking.set("k", "old")
    warm(here, "k")
    wait_until(lambda: listening(deaf, here) == 2, "both listen")
    before = sockets()
    deaf.freeze()
    try:
        wait_until(lambda: not before <= sockets(), "it hangs up", SECONDS)
    finally:
        deaf.thaw()
    there.blocking.delete("k")
    wait_until(lambda: here.blocking.get("k") is None, "it listens again", SECONDS)


# How long


SKEWED = "skewed"


@pytest.fixture(scope="module", params=[-5_000, 500_000])
def skewed(request: pytest.FixtureRequest, server: Server) -> Iterator[OtherProcess]:
    """A process whose clocks are behind or ahead of ours."""
    with OtherProcess(server.url, ahead=request.param, namespace=SKEWED, deadline=5) as process:
        yield process


def outlived(here: GenericRedisCache, server: Server, key: str) -> float:
    """For how many seconds a key is still served that Redis has let go of."""
    name = stored_name(server, here, key) or ""
    wait_until(lambda: not server.client.exists(name), "it expires in Redis")
    gone = asked = last = time.monotonic()
    while here.blocking.get(key) is not None:
        last, asked = asked, time.monotonic()
        assert last - gone < SECONDS
    return last - gone


def test_an_entry_lives_in_l1_no_longer_than_in_redis_whatever_the_clock_of_who_wrote_it(
    make: Make, server: Server, skewed: OtherProcess
) -> None:
    here = make(namespace=SKEWED)
    for read in (lambda: here.get("k"), lambda: here.blocking.get("k")):

        def is_read(read: Callable[[], Any] = read) -> bool:
            skewed.ask("set", "k", "old", 0.5)
            return bool(finish(read) == "old")

        wait_until(is_read, "it is read before it expires")
        assert outlived(here, server, "k") < 0.1 + stalls.longest()


@pytest.mark.parametrize("clock", [time.time, lambda: time.monotonic() + 1e9], ids=["time.time", "one of their own"])
def test_an_entry_lives_in_l1_no_longer_than_in_redis_with_a_clock_that_is_passed_in(
    make: Make, server: Server, world: str, clock: Any
) -> None:
    here, there = make(clock=clock), make(clock=clock)

    def is_read() -> bool:
        there.blocking.set("k", "old", 0.5)
        return bool(finish(lambda: view(here, world).get("k")) == "old")

    wait_until(is_read, "it is read before it expires")
    assert outlived(here, server, "k") < 0.1 + stalls.longest()


def test_what_was_read_late_lives_in_l1_for_what_was_left_of_it(clock: Clock, world: str) -> None:
    there = redis_cache("server", clock)
    here = GenericRedisCache(shared("server").url, namespace=there.namespace, clock=clock, deadline=5)
    try:
        there.blocking.set("k", "old", 60)
        clock.advance(50)
        assert finish(lambda: view(here, world).get("k")) == "old"
        assert here.blocking.ttl("k") == pytest.approx(10)
        clock.advance(9.9)
        assert l1_holds(here, "k")
        clock.advance(0.2)
        assert not l1_holds(here, "k")
        assert finish(lambda: view(here, world).get("k")) is None
    finally:
        here.blocking.close()
        there.blocking.close()


def test_ttl_tells_what_is_left_in_redis_however_short_l1_keeps_it(
    make: Make, server: Server, skewed: OtherProcess
) -> None:
    here = make(namespace=SKEWED, l1_max_ttl=5)
    skewed.ask("set", "theirs", "x", 100)
    here.blocking.set("mine", "x", 200)
    for key in ("theirs", "mine"):
        warm(here, key)
        left = server.client.pttl(stored_name(server, here, key) or "") / 1000
        told = [finish(lambda key=key: here.ttl(key)), here.blocking.ttl(key), skewed.ask("ttl", key)]
        assert told == [pytest.approx(left, abs=0.1 + stalls.longest())] * 3


@pytest.mark.parametrize("kind", ["server", "cluster"])
def test_redis_keeps_an_entry_for_its_ttl_and_the_larger_stale_window(kind: Any, world: str) -> None:
    cache = redis_cache(kind)
    try:
        for number, (swr, sie) in enumerate([(0, 0), (30, 0), (0, 50), (70, 50)]):
            for jitter in (0.0, 0.2):
                windows = {"stale_while_revalidate": swr, "stale_if_error": sie}
                ask = memo(cache, lambda: "x", world, ttl=1000, jitter=jitter, **windows)
                texts = [f"{number} {jitter} {at}" for at in range(10)]
                for text in texts:
                    finish(lambda ask=ask, text=text: ask(text))
                found = lifetimes(kind, cache)
                lives = [found[ask.key_for(text)] - max(swr, sie) for text in texts]
                assert all(1000 * (1 - jitter) - 5 <= life <= 1000 * (1 + jitter) for life in lives)
                assert (max(lives) - min(lives) > 20) is (jitter > 0)
        cache.blocking.set("for ever", "x", 0)
        assert lifetimes(kind, cache)["for ever"] < 0
    finally:
        cache.blocking.close()


def lifetimes(kind: Any, cache: GenericRedisCache) -> dict[str, float]:
    """Seconds that Redis will keep each key of a cache."""
    servers = shared(kind)
    return {
        name.decode().partition("}e:")[2]: node.client.pttl(name) / 1000
        for node in (servers.nodes if isinstance(servers, ClusterOfThree) else [servers])
        for name in node.client.scan_iter(f"{{{cache.namespace}:*}}e:*", count=1000)
    }


# Forks (F12)


KEYS = [f"key-{number}" for number in range(30)]


def use(cache: GenericRedisCache, ask: Any, keys: list[str] = KEYS) -> int:
    """Reads, writes and calls by threads; how many answers were wrong."""

    def one(key: str) -> int:
        cache.blocking.set(key, [key])
        many = cache.blocking.get_many(keys)
        wrong = sum(value != [found] for found, value in many.items())
        return wrong + (cache.blocking.get(key) != [key]) + (ask(key) != f"answer to {key}")

    with ThreadPoolExecutor(4) as pool:
        return sum(pool.map(one, keys))


async def use_in_tasks(cache: GenericRedisCache, ask: Any) -> int:
    async def one(key: str) -> int:
        await cache.set(key, [key])
        many = await cache.get_many(KEYS)
        wrong = sum(value != [found] for found, value in many.items())
        return wrong + (await cache.get(key) != [key]) + (await ask(key) != f"answer to {key}")

    return sum(await asyncio.gather(*map(one, KEYS)))


def answering(cache: GenericRedisCache, world: str) -> Any:
    decorate = cached_ai_call(operation=f"answer in {world}", cache=cache)

    def answer(what: str) -> str:
        return f"answer to {what}"

    async def answer_in_tasks(what: str) -> str:
        await asyncio.sleep(0)
        return f"answer to {what}"

    return decorate(answer_in_tasks if world == "tasks" else answer)


@with_and_without_l1
async def test_both_sides_of_a_fork_go_on_in_both_worlds_without_a_wrong_value(make: Make, l1: bool) -> None:
    cache = make(enable_l1_cache=l1)
    in_threads, in_tasks = answering(cache, "threads"), answering(cache, "tasks")

    async def use_both() -> int:
        threads = asyncio.to_thread(use, cache, in_threads)
        return sum(await asyncio.gather(threads, use_in_tasks(cache, in_tasks)))

    assert await use_both() == 0
    for _ in range(2):
        with Fork(lambda pipe: pipe.send(asyncio.run(use_both()))) as child:
            wrong = [await use_both() for _ in range(2)]
            assert (child.hear(), wrong) == (0, [0, 0])
    assert cache.stats().errors == 0


@with_and_without_l1
def test_forks_in_the_middle_of_the_work_of_threads_leave_both_sides_whole(make: Make, l1: bool) -> None:
    cache = make(enable_l1_cache=l1)
    ask = answering(cache, "threads")
    is_over = threading.Event()
    wrong = []

    def go_on() -> None:
        while not is_over.is_set():
            wrong.append(use(cache, ask, KEYS[:10]))

    worker = threading.Thread(target=go_on)
    worker.start()
    try:
        for _ in range(8):
            with Fork(lambda pipe: pipe.send(use(cache, ask, KEYS[:10]))) as child:
                assert child.hear() == 0
    finally:
        is_over.set()
        worker.join()
    assert not any(wrong)
    assert cache.stats().errors == 0


@pytest.mark.parametrize("end", ["exits", "closes", "forgets"])
async def test_a_forked_child_opens_connections_of_its_own_and_leaves_its_parents_alone(
    make: Make, server: Server, end: str
) -> None:
    name = f"fork-{end}"
    cache = make(client_name=name)
    cache.blocking.set("k", 1)
    await cache.set("k", 1)
    await until(lambda: listening(server, cache) == 1)
    before = clients(server, name)

    def body(pipe: Connection) -> None:
        nonlocal cache
        cache.blocking.set("k", 1)
        asyncio.run(cache.set("k", 1))
        wait_until(lambda: listening(server, cache) == 2, "the child listens too")
        if end == "closes":
            asyncio.run(cache.close())
            cache.blocking.close()
        elif end == "forgets":
            del cache
            gc.collect()
        pipe.send("used")
        pipe.recv()

    server.client.close()  # the child makes its own
    with Fork(body) as child:
        assert child.hear() == "used"
        meanwhile = clients(server, name)
        child.pipe.send("end")
    assert before < meanwhile or end != "exits"
    await until(lambda: clients(server, name) == before)
    for key in KEYS:
        await cache.set(key, key)
        cache.blocking.set(key, key)
    assert clients(server, name) == before
    there = make()
    catch_up(cache, there)
    assert clients(server, name) == before


def test_what_a_forked_child_removes_leaves_its_parents_l1(make: Make, world: str) -> None:
    here = make()
    here.blocking.set("k", "old")
    warm(here, "k")
    with Fork(lambda pipe: pipe.send(finish(lambda: view(here, world).delete("k")))) as child:
        assert child.hear() is True
        wait_until(lambda: not l1_holds(here, "k"), "the parent hears its child", SECONDS)
        assert here.blocking.get("k") is None


@pytest.mark.parametrize("has_used_redis", [True, False], ids=["which is used", "which is not used yet"])
def test_what_a_parent_removes_leaves_the_l1_of_its_forked_child(make: Make, world: str, has_used_redis: bool) -> None:
    here = make()
    here.blocking.set("k", "old")
    warm(here, "k")

    def body(pipe: Connection) -> None:
        get = view(here, world).get
        if has_used_redis:
            here.blocking.set("more", 1)
        assert finish(lambda: get("k")) == "old"
        pipe.send("has read it")
        pipe.recv()
        wait_until(lambda: finish(lambda: get("k")) is None, "the child hears its parent", SECONDS)

    with Fork(body) as child:
        assert child.hear() == "has read it"
        here.blocking.delete("k")
        child.pipe.send("removed")


@pytest.mark.parametrize("seconds", [0.3, pytest.param(4.5, marks=pytest.mark.slow)])
def test_a_forked_child_waits_for_what_a_thread_of_its_parent_computes(
    make: Make, start: Start, seconds: float
) -> None:
    """However long: the parent's lease is renewed after the fork too."""
    here = make()
    held = Held(numbered)
    ask = remember(held, here, "threads")
    caller = start(ask, "q")
    assert held.has_started()
    with Fork(lambda pipe: pipe.send(ask("q"))) as child:
        assert not child.pipe.poll(seconds), "it computes for itself"
        held.gates[0].set()
        assert (child.hear(), caller.result(SECONDS)) == ("q 0", "q 0")


def test_a_forked_child_takes_leases_and_keeps_its_answers_while_its_parent_does_too(
    make: Make, start: Start, world: str
) -> None:
    here = make()
    held = Held(numbered)
    ask = remember(held, here, world)
    caller = start(ask, "parent's")
    assert held.has_started()

    def body(pipe: Connection) -> None:
        for gate in held.gates:
            gate.set()
        pipe.send(finish(lambda: ask("child's")))

    with Fork(body) as child:
        assert child.hear() == "child's 1"
    held.gates[0].set()
    assert caller.result(SECONDS) == "parent's 0"
    assert [finish(lambda what=what: ask(what)) for what in ("parent's", "child's")] == ["parent's 0", "child's 1"]
    assert held.calls == 1


# Loops and threads (F13)

two_functions_share_an_operation = pytest.mark.filterwarnings("ignore:.* share the operation")


@with_and_without_l1
def test_one_event_loop_after_another_and_several_at_once_use_one_cache(make: Make, l1: bool) -> None:
    cache = make(enable_l1_cache=l1)
    ask = answering(cache, "tasks")
    wrong = [asyncio.run(use_in_tasks(cache, ask)) for _ in range(2)]
    with ThreadPoolExecutor(5) as pool:
        wrong += pool.map(lambda _: asyncio.run(use_in_tasks(cache, ask)), range(5))
    assert wrong == [0] * 7
    assert cache.stats().errors == 0


@two_functions_share_an_operation
async def test_callers_of_both_worlds_share_one_l1(make: Make) -> None:
    cache = make()
    in_threads, in_tasks = memo(cache, lambda: ["a"]), memo(cache, lambda: ["a"], "tasks")
    with record_calls() as calls:
        in_threads("q")
        await in_tasks("q")
        await in_tasks("r")
        in_threads("r")
    assert [(call.outcome, call.tier) for call in calls] == [("miss", None), ("hit", "l1")] * 2
    await cache.delete(in_threads.key_for("q"))
    assert not l1_holds(cache, in_threads.key_for("q"))
    cache.blocking.clear()
    with record_calls() as calls:
        await in_tasks("r")
    assert [call.outcome for call in calls] == ["miss"]


# Closing


def sockets() -> set[str]:
    found = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            found.add(os.readlink(f"/proc/self/fd/{number}"))
        except OSError:
            pass  # that of the listing itself
    return {each for each in found if each.startswith("socket:")}


class Footprint:
    """The sockets and threads of this process, and whether there are more by now."""

    def __init__(self, server: Server) -> None:
        server.ask("PING")  # the test's own connection is there
        self.sockets = sockets()
        self.threads = set(threading.enumerate())

    def grown(self) -> tuple[int, list[str]]:
        threads = [thread.name for thread in set(threading.enumerate()) - self.threads]
        return len(sockets() - self.sockets), threads

    def is_back(self) -> bool:
        return self.grown() == (0, [])


async def use_a_little(cache: GenericRedisCache) -> None:
    cache.blocking.set("k", "v")
    await cache.set("k", "v")
    assert (cache.blocking.get("k"), await cache.get("k")) == ("v", "v")


async def test_a_hundred_caches_opened_and_closed_leave_nothing(server: Server) -> None:
    footprint = Footprint(server)
    caches = []
    for number in range(100):
        caches.append(GenericRedisCache(server.url, namespace=f"many{number}", deadline=5, strict=True))
        await use_a_little(caches[-1])
        await caches[-1].close()
    await until(footprint.is_back)


def test_a_hundred_caches_opened_and_closed_by_threads_leave_nothing(server: Server) -> None:
    footprint = Footprint(server)
    caches = []
    for number in range(100):
        caches.append(GenericRedisCache(server.url, namespace=f"many{number}", deadline=5, strict=True))
        with caches[-1].blocking as cache:
            cache.set("k", "v")
            assert cache.get("k") == "v"
    wait_until(footprint.is_back, "everything is released")


async def test_a_cache_is_usable_within_async_with_and_leaves_nothing(server: Server) -> None:
    footprint = Footprint(server)
    async with GenericRedisCache(server.url, namespace="with", deadline=5, strict=True) as cache:
        await use_a_little(cache)
        assert not footprint.is_back()
    await until(footprint.is_back)


def test_a_cache_that_was_closed_can_be_used_again_time_and_again(server: Server) -> None:
    footprint = Footprint(server)
    cache = GenericRedisCache(server.url, namespace="again", deadline=5, strict=True)
    there = GenericRedisCache(server.url, namespace="again", deadline=5, strict=True)
    for number in range(50):
        for key in KEYS[:10]:
            cache.blocking.set(key, number)
        asyncio.run(cache.close()) if number % 2 else cache.blocking.close()
    cache.blocking.set("k", "old")
    catch_up(cache, there)
    wait_until(lambda: listening(server, cache) == 2, "each cache listens once", SECONDS)
    there.blocking.delete("k")
    wait_until(lambda: cache.blocking.get("k") is None, "it listens again", SECONDS)
    for each in (cache, there):
        each.blocking.close()
    wait_until(footprint.is_back, "everything is released")


def test_what_was_removed_while_a_cache_was_closed_is_gone_when_it_is_used_again(make: Make, world: str) -> None:
    here, there = make(), make()
    here.blocking.set("k", "old")
    warm(here, "k")
    finish(lambda: view(here, world).close())
    there.blocking.delete("k")
    assert finish(lambda: view(here, world).get("k")) is None


def test_what_is_removed_once_a_closed_cache_is_used_again_leaves_its_l1(make: Make, world: str) -> None:
    here, there = make(), make()
    here.blocking.set("k", "old")
    warm(here, "k")
    finish(lambda: view(here, world).close())
    assert finish(lambda: view(here, world).get("k")) == "old"
    there.blocking.delete("k")
    wait_until(lambda: finish(lambda: view(here, world).get("k")) is None, "it hears again", SECONDS)


def test_a_cache_that_is_used_again_before_its_listener_is_back_listens_once(
    make: Make, proxy: Proxy, server: Server
) -> None:
    here = make(proxy.url, strict=False, deadline=0.05)
    for _ in range(15):
        wait_until(lambda: here.blocking.set("k", 1) or here.blocking.get("k") == 1, "Redis is reached")
        proxy.hold(b"SUBSCRIBE")
        here.blocking.close()
        for _ in range(2):
            here.blocking.get("absent")
        proxy.release()
    wait_until(lambda: here.blocking.set("k", 1) or listening(server, here) > 0, "it listens again")
    here.blocking.close()
    wait_until(lambda: listening(server, here) == 0, "nobody listens any more", SECONDS)


def test_closing_while_others_use_it_leaves_no_wrong_value_and_nothing_open(server: Server) -> None:
    footprint = Footprint(server)
    cache = GenericRedisCache(server.url, namespace="busy")
    is_over = threading.Event()
    wrong = []

    def go_on() -> None:
        while not is_over.is_set():
            for key in KEYS[:5]:
                cache.blocking.set(key, key)
                if cache.blocking.get(key) not in (key, None):
                    wrong.append(key)

    users = [threading.Thread(target=go_on) for _ in range(3)]
    for user in users:
        user.start()
    for _ in range(40):
        cache.blocking.close()
    is_over.set()
    for user in users:
        user.join()
    assert wrong == []
    cache.blocking.close()
    wait_until(footprint.is_back, "everything is released", SECONDS)


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
async def test_a_cache_that_is_forgotten_leaves_nothing_while_the_loop_goes_on(server: Server) -> None:
    footprint = Footprint(server)
    for _ in range(5):
        await use_a_little(GenericRedisCache(server.url, namespace="lost", deadline=5, strict=True))
    gc.collect()
    await until(footprint.is_back)


def test_a_cache_that_is_forgotten_after_its_loop_has_ended_leaves_nothing(server: Server) -> None:
    footprint = Footprint(server)
    for _ in range(5):
        asyncio.run(use_a_little(GenericRedisCache(server.url, namespace="lost", deadline=5, strict=True)))
    gc.collect()
    wait_until(footprint.is_back, "everything is released")


# Sweeps


NAMESPACES = ("count", "count2", "Count")
FOREIGN = ("count", "count:inv", "{count}e:k", "{count:}", "x{count:1}e:k", "op:qa|txt:|x", "user:1")
SWEEPS: list[tuple[str, tuple[str, ...], int]] = [
    ("invalidate_operation", ("q*",), 0),
    ("invalidate_operation", ("qa",), 1000),
    ("invalidate_pattern", ("user:1*",), 111),
    ("invalidate_pattern", ("user:[2-3]?",), 20),
    ("invalidate_pattern", (r"a\[b\]\*\?*",), 200),
    ("invalidate_pattern", ("{count:1}e:*",), 0),
    ("invalidate_tag", ("news",), 200),
    ("invalidate_tag", ("news",), 0),
    ("invalidate_pattern", ("op:qa_long|*",), 500),
    ("clear", (), 169),
    ("clear", (), 0),
]


async def fill(cache: GenericRedisCache) -> None:
    """Keep 2,200 entries, 200 of them with a tag."""
    keys = [cache.build_key(str(number), "qa") for number in range(1000)]
    keys += [cache.build_key(str(number), "qa_long") for number in range(500)]
    keys += [f"user:{number}" for number in range(300)] + [f"a[b]*?{number}|c" for number in range(200)]
    await cache.set_many(dict.fromkeys(keys, "x"))
    ask = memo(cache, lambda: "x", "tasks")
    await asyncio.gather(*map(ask, range(200)))


def contents(server: Server, but: str) -> dict[bytes, bytes | None]:
    """All that Redis has but one namespace."""
    start = f"{{{but}:".encode()
    names = [name for name in server.client.scan_iter(count=10_000) if not name.startswith(start)]
    with server.client.pipeline(transaction=False) as pipe:
        for name in names:
            pipe.dump(name)
        return dict(zip(names, pipe.execute(), strict=True))


async def sweep_all(cache: GenericRedisCache, world: str) -> None:
    for sweep, args, count in SWEEPS:
        found = getattr(view(cache, world), sweep)(*args)
        assert (await found if world == "tasks" else found) == count, (sweep, args)


async def test_sweeps_count_exactly_and_touch_nothing_outside_their_namespace() -> None:
    with Server() as server:
        caches = [
            GenericRedisCache(server.url, namespace=name, deadline=5, strict=True, leases=False) for name in NAMESPACES
        ]
        for cache in caches:
            await fill(cache)
        for name in FOREIGN:
            server.client.set(name, "somebody else's")
        server.client.config_resetstat()
        for cache, world in zip(caches, ("tasks", "threads"), strict=False):
            before = contents(server, cache.namespace)
            assert len(before) > 2200
            await sweep_all(cache, world)
            assert contents(server, cache.namespace) == before
        used = set(server.client.info("commandstats"))
        assert "cmdstat_unlink" in used
        assert not {name for name in used if re.match("cmdstat_(keys|flush)", name)}
        for cache in caches:
            await cache.close()


@pytest.mark.slow
async def test_sweeps_of_a_cluster_count_exactly() -> None:
    caches = [redis_cache("cluster", leases=False) for _ in range(3)]
    for cache in caches:
        await fill(cache)
    for cache, world in zip(caches, ("tasks", "threads"), strict=False):
        await sweep_all(cache, world)
    assert await caches[2].clear() == 2200
    for cache in caches:
        await cache.close()


# Counts


@two_functions_share_an_operation
async def test_every_lookup_counts_once_and_for_the_tier_that_answered(make: Make) -> None:
    there, here = make(), make()
    await here.connect()
    in_threads, in_tasks = memo(here, lambda: ["a"]), memo(here, lambda: ["a"], "tasks")
    theirs = memo(there, lambda: ["a"])
    for what in ("p", "q"):
        theirs(what)
    there.blocking.set_many({"a": 1, "b": [2], "c": 3})
    catch_up(here, there)
    before = here.stats().by_operation[""]
    for what in ("p", "q", "new"):
        for _ in range(3):
            assert in_threads(what) == await in_tasks(what) == ["a"]
    for _ in range(2):
        assert (here.blocking.get("a"), await here.get("b"), await here.get("none")) == (1, [2], None)
        assert await here.get_many(["a", "b", "c", "none"]) == {"a": 1, "b": [2], "c": 3}
        assert here.blocking.get_many(["c", "none"]) == {"c": 3}
    await here.exists("a")
    await here.ttl("a")
    await in_tasks.peek("p")
    by_calls, by_hand = (here.stats().by_operation[name] for name in ("ask", ""))
    assert (by_calls.l1_hits, by_calls.l2_hits, by_calls.misses, by_calls.coalesced) == (15, 2, 1, 0)
    assert (by_hand.l1_hits - before.l1_hits, by_hand.l2_hits - before.l2_hits) == (9, 3)
    assert (by_hand.misses - before.misses, by_hand.coalesced, by_hand.stale_hits) == (6, 0, 0)


@two_functions_share_an_operation
async def test_without_l1_every_hit_counts_for_l2(make: Make) -> None:
    cache = make(enable_l1_cache=False)
    in_threads, in_tasks = memo(cache, lambda: ["a"]), memo(cache, lambda: ["a"], "tasks")
    for _ in range(3):
        assert in_threads("q") == await in_tasks("q") == ["a"]
    cache.blocking.set("k", 1)
    assert (cache.blocking.get("k"), await cache.get("k"), await cache.get("none")) == (1, 1, None)
    stats = cache.stats()
    assert (stats.l1_hits, stats.l2_hits, stats.misses, stats.coalesced) == (0, 7, 2, 0)


@with_and_without_l1
async def test_lookups_at_one_time_count_once_each(make: Make, l1: bool) -> None:
    there, here = make(), make(enable_l1_cache=l1)
    memo(there, lambda: "a")("kept")
    ask = memo(here, lambda: "a", "tasks")
    there.blocking.set("k", 1)
    answers = await asyncio.gather(
        *(ask("kept") for _ in range(50)), *(ask("new") for _ in range(50)), *(here.get("k") for _ in range(50))
    )
    assert answers == ["a"] * 100 + [1] * 50
    calls, by_hand = (here.stats().by_operation[name] for name in ("ask", ""))
    assert (by_hand.hits, by_hand.misses) == (50, 0)
    assert (calls.misses, calls.hits + calls.coalesced) == (1, 99)


async def test_hits_of_entries_that_other_processes_remove_stay_counted(make: Make, other: OtherProcess) -> None:
    here, key = make(namespace=FLEET), f"k{next(_numbers)}"
    await here.connect()
    for _ in range(3):
        here.blocking.set(key, "v")
        assert [here.blocking.get(key) for _ in range(5)] == ["v"] * 5
        assert other.ask("delete", key) is True
        await until(lambda: not l1_holds(here, key))
    assert (here.stats().l1_hits, here.stats().l2_hits) == (15, 0)
