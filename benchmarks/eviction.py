"""Hit rates of SIEVE and LRU on the same stream: Zipf-distributed keys mixed with keys that are asked once."""

from __future__ import annotations

import itertools
import random
from collections import OrderedDict
from collections.abc import Iterator
from typing import Final

from aimemo.core.entry import Entry
from aimemo.core.runtime import drive
from aimemo.stores.memory import MemoryStore

TITLE: Final = "hit rate by eviction policy"


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


def table(requests: int) -> str:
    lines = [f"\n{TITLE} ({requests:,} requests for 10,000 keys, room for 500)"]
    lines.append(f"{'':<44}{'SIEVE':>8}{'LRU':>8}{'ratio':>8}")
    for skew in (0.7, 0.9, 1.1):
        for once in (0.0, 0.2):
            ours = sieve(stream(requests, skew=skew, once=once), 500)
            theirs = lru(stream(requests, skew=skew, once=once), 500)
            title = f"Zipf {skew}, {once:.0%} of the requests asked once"
            lines.append(f"{title:<44}{ours:>8.1%}{theirs:>8.1%}{ours / theirs:>8.2f}")
    return "\n".join(lines)
