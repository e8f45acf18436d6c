"""Why goals are missed, found by profiling; told beside those that a run misses."""

from __future__ import annotations

from typing import Final

REASONS: Final = {
    ("result is a dict", "copy.deepcopy"): (
        "The msgpack call alone is 0.2 of the deepcopy; the hit around it is the same 0.6 µs as for a text."
    ),
    ("result is a pydantic model", "copy.deepcopy"): (
        "A model's own `__deepcopy__` is quick. Two msgpack calls (one for the class, one for its state) are "
        "0.2 of it, putting the state into a new object after comparing the signature of the fields 0.4, "
        "finding the class 0.1. No validator runs."
    ),
    ("SQLite hit, 1 KB", "raw SELECT by key"): (
        "Half of it is the SELECT. The rest is the call's identity, the breaker, and an Entry with its times, "
        "made anew because the row is read on every hit."
    ),
    ("callers: 64", "raw redis-py GET"): (
        "The reads of one tick are one MGET. What is left is 90 Python calls for each hit, of which none "
        "takes more than 6 %: a future for each caller, the budget, the envelope, the counts. Keeping a "
        "second batch on its way won 6 to 14 % for 35 lines, and was left out."
    ),
    ("callers: 64", "cashews"): ("As against the raw GET."),
    ("callers: 64", "aiocache"): ("As against the raw GET."),
    ("miss in memory", "cashews memory"): (
        "Each computation is a task of its own, so that a cancelled caller strands nobody; cashews runs it in "
        "its caller's, and cancels all who wait."
    ),
    ("20 messages", "json.dumps(sort_keys=True)"): (
        "The canonical form is 0.5 to 0.7 of it, its SHA-256 0.2; the rest is encoding it and the call itself."
    ),
    ("stampede: 200 tasks", "the function"): (
        "The two hundred calls take 65 to 90 µs each, one after another on one core: half of it before the "
        "function begins, half after it has answered."
    ),
    ("stampede: 4 processes", "the function"): (
        "The other processes look for the answer in pauses that grow from 10 to 100 ms, and each then has its "
        "50 callers to wake, four processes on two cores."
    ),
    ("stampede: 100 threads", "the function"): ("Starting so many threads takes longer than answering them."),
    ("in Redis:", "langchain RedisCache"): (
        "It stores the text under a hash, and nothing about it; zstd finds 2 : 1 in single answers of this "
        "length. No trained dictionary is shipped."
    ),
    ("in Redis:", "cashews"): ("zstd finds 2 : 1 in single answers of this length."),
    ("on disk:", "diskcache"): ("zstd finds 2 : 1 in single answers of this length; SQLite's pages are not full."),
    ("bytes of memory", "cashews"): (
        "An entry also knows its name, three times, its facts, its hits, and its place in the order of "
        "eviction and in the front index, which is a dictionary of its own."
    ),
    ("among", "1,000 entries"): (
        "The caches of the CPU: a bare lru_cache slows down likewise (beside it in the table); asked at "
        "random among all its entries it takes 5.3 times as long as among 1,000, a dictionary 4.9, aimemo "
        "4.0."
    ),
}
"""By a part of the title, and against whom."""


def reason_for(title: str, against: str) -> str:
    return next((reason for (part, other), reason in REASONS.items() if part in title and other == against), "")
