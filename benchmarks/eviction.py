"""Hit rates of SIEVE and LRU on the same stream: Zipf-distributed keys mixed with keys that are asked once."""

from __future__ import annotations

import functools
import itertools
import random
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Final

from aimemo.core.entry import Entry
from aimemo.core.runtime import drive
from aimemo.stores.memory import MemoryStore
from benchmarks.measure import Table

TITLE: Final = "hit rate by eviction policy"
ROOM: Final = 500


def stream(requests: int, *, skew: float, once: float, keys: int = 10_000, seed: int = 7) -> Iterator[str]:
    """Keys with Zipf's popularity of exponent `skew`, a fraction `once` of the requests for keys never seen again."""
    chance = random.Random(seed)
    weights = list(itertools.accumulate(1 / rank**skew for rank in range(1, keys + 1)))
    popular = iter(chance.choices(range(keys), cum_weights=weights, k=requests))
    for at in range(requests):
        yield f"once:{at}" if chance.random() < once else f"key:{next(popular)}"


def sieve(keys: Iterator[str], size: int) -> float:
    """The hit rate of aimemo's own store."""
    store = MemoryStore(size, None, clock=lambda: 0.0, left=lambda entry, reason: None)
    hits = total = 0
    for key in keys:
        total += 1
        entry = store.find(key)
        if entry is not None:
            entry.hits += 1
            hits += 1
        else:
            made = Entry(key, b"", created=0, fresh_until=1, usable_until=1)
            made.value = None
            drive(store.set(key, made))
    return hits / total


def lru(keys: Iterator[str], size: int) -> float:
    held: OrderedDict[str, None] = OrderedDict()
    hits = total = 0
    for key in keys:
        total += 1
        if key in held:
            hits += 1
            held.move_to_end(key)
        else:
            held[key] = None
            if len(held) > size:
                held.popitem(last=False)
    return hits / total


def loop(requests: int, keys: int = 600) -> Iterator[str]:
    """The same keys over and over, a few more than there is room for."""
    return (f"key:{at % keys}" for at in range(requests))


def scan(requests: int, seed: int = 7) -> Iterator[str]:
    """Popular keys, and now and then a thousand keys in a row that nobody asks for again."""
    fresh = itertools.count()
    for at, key in enumerate(stream(requests, skew=0.9, once=0.0, seed=seed)):
        yield key
        if at % 5000 == 4999:
            yield from (f"scan:{next(fresh)}" for _ in range(1000))


def rates(requests: int) -> Iterator[Callable[[], Table]]:
    """One table for each kind of stream."""
    kinds: dict[str, Callable[[], Iterator[str]]] = {
        f"Zipf {skew}, {once:.0%} asked once": functools.partial(stream, requests, skew=skew, once=once)
        for skew in (0.7, 0.9, 1.1)
        for once in (0.0, 0.2)
    }
    kinds["a loop over 600 keys"] = functools.partial(loop, requests)
    kinds["Zipf 0.9 with scans"] = functools.partial(scan, requests)
    for title, keys in kinds.items():
        yield functools.partial(_table, title, keys)


def _table(title: str, keys: Callable[[], Iterator[str]]) -> Table:
    values = {"LRU": 100 * lru(keys(), ROOM), "aimemo": 100 * sieve(keys(), ROOM)}
    return Table(f"{TITLE}, room for {ROOM}: {title}", "%", values, more_is_better=True)
