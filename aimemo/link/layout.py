"""Where things are in Redis: the names of one namespace, the same on one server and on a cluster.

    {ns:b}e:<key>           an entry's envelope; it expires when the entry can no longer be used
    {ns:b}g                 a hash of generations: `@` when it was made, `*` of everything, and 4096 stripes
    {ns:b}t  {ns:b}u        sorted sets that index the tagged entries, by tag and by expiry
    {ns:b}l:<fingerprint>   a lease
    {ns:b}f                 the last fencing number
    ns:inv                  the channel of invalidations

`b` is one of sixteen buckets, the fingerprint modulo 16. The hash tag in braces keeps a bucket in one slot of
a cluster, so that a script may touch all that belongs to an entry.

An invalidation gives the generation that it means another value; a ticket is the values that its computation
depends on. Single keys, tags, and what keys start with (up to their first bar: the operation) share 4096 stripes
in each bucket, so that the generations never outgrow some megabytes. Two that meet in one stripe cost an answer
its keeping, never its truth; so does a glob that does not say what keys start with, because it means everything.
"""

from __future__ import annotations

import os
from typing import Any, Final, NamedTuple

import msgpack
import xxhash

from aimemo.core.keys import escape, fingerprint
from aimemo.core.ports import Selector

BUCKETS: Final = 16
STRIPES: Final = 4096
BORN: Final = "@"
EVERYTHING: Final = "*"

_AFTER_BAR: Final = chr(ord("|") + 1)


class Place(NamedTuple):
    """Where one key's entry is."""

    name: str
    bucket: int
    fingerprint: bytes


class Layout:
    """The names of one namespace."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._tags = [f"{{{namespace}:{bucket}}}" for bucket in range(BUCKETS)]
        self._buckets = {f"{tag}e": bucket for bucket, tag in enumerate(self._tags)}
        self.channel = f"{namespace}:inv"

    def place(self, key: str) -> Place:
        mark = fingerprint(self._namespace, key)
        bucket = mark[0] % BUCKETS
        return Place(f"{self._tags[bucket]}e:{key}", bucket, mark)

    def hash_tag(self, bucket: int) -> str:
        """What decides the cluster slot of a bucket."""
        return self._tags[bucket][1:-1]

    def generations(self, bucket: int) -> str:
        return f"{self._tags[bucket]}g"

    def index(self, bucket: int) -> tuple[str, str]:
        """The tagged entries of a bucket: by tag, and by expiry."""
        return f"{self._tags[bucket]}t", f"{self._tags[bucket]}u"

    def lock(self, name: str) -> tuple[int, str, str]:
        """The bucket of a lock, its lease, and its bucket's fencing number."""
        _, bucket, mark = self.place(name)
        return bucket, f"{self._tags[bucket]}l:{mark.hex()}", f"{self._tags[bucket]}f"

    def entries(self, selector: Selector) -> str:
        """A pattern for SCAN that matches at least the entries that a selector means."""
        match selector.kind:
            case "operation":
                start = f"op:{escape(selector.name)}|"
            case "glob":
                start = _literal_start(selector.name)
            case _:
                start = ""
        return f"{{{self._namespace}:*}}e:{_escape_glob(start)}*"

    def entry(self, name: bytes) -> tuple[int, str] | None:
        """The bucket and the key of an entry's name; None if it is no name of this namespace."""
        start, _, key = name.decode("utf-8", "replace").partition("}e:")
        bucket = self._buckets.get(f"{start}}}e")
        return None if bucket is None else (bucket, key)


def generations_of(key: str, tags: tuple[str, ...]) -> list[str]:
    """The generations that a computation of a key depends on."""
    named = [_stripe("key", key), _stripe("start", key.partition("|")[0]), *(_stripe("tag", tag) for tag in tags)]
    return [EVERYTHING, *named]


def generation(selector: Selector) -> str:
    """The generation that a selector moves: of all the keys that it can mean."""
    match selector.kind:
        case "key" | "tag":
            return _stripe(selector.kind, selector.name)
        case "operation" if escape(selector.name) == selector.name:  # else a key may write it in two ways
            return _stripe("start", f"op:{selector.name}")
        case "glob" if "|" in (start := _literal_start(selector.name)):
            return _stripe("start", start.partition("|")[0])
    return EVERYTHING


def _stripe(kind: str, name: str) -> str:
    return str(xxhash.xxh3_64_intdigest(f"{kind}:{name}".encode()) % STRIPES)


def new_stamp() -> bytes:
    """A value that no generation has had before: a count would come round again if its hash were evicted."""
    return os.urandom(8)


def members(key: str, tags: tuple[str, ...]) -> list[str]:
    """What the index holds of an entry."""
    return [f"{escape(tag)}|{key}" for tag in tags]


def members_of(tag: str) -> tuple[str, str]:
    """The range of the index that one tag has."""
    return f"[{escape(tag)}|", f"({escape(tag)}{_AFTER_BAR}"


def message(sender: str, selector: Selector) -> bytes:
    """What the channel says of an invalidation."""
    packed: bytes = msgpack.packb([sender, selector.kind, selector.name])
    return packed


def read_message(data: Any) -> tuple[str, Selector] | None:
    """Who sent a message, and what it means; None if it is not one of ours."""
    try:
        sender, kind, name = msgpack.unpackb(data)
    except Exception:
        return None
    if kind not in ("key", "operation", "tag", "glob", "all") or not isinstance(name, str):
        return None
    return sender, Selector(kind, name)


def _literal_start(pattern: str) -> str:
    """A glob up to its first special character."""
    for at, char in enumerate(pattern):
        if char in "*?[\\":
            return pattern[:at]
    return pattern


def _escape_glob(text: str) -> str:
    return "".join(f"\\{char}" if char in "*?[]\\^-" else char for char in text)
