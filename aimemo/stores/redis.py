"""Entries in Redis or Valkey, which any number of processes share.

`link/layout.py` says where they are. A read is one GET, or one MGET for many; nothing else is checked, because
whatever an invalidation means is gone from there before it is acknowledged. A computation's answer is kept by
a script that compares its ticket with the generations of now.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from aimemo.core.entry import Entry, PackedEntry
from aimemo.core.envelope import HEAD_SIZE, DamagedEntry, Envelope, read_head, seal, unseal
from aimemo.core.guard import time_limit
from aimemo.core.keys import operation_of
from aimemo.core.opened import LatelyOpened
from aimemo.core.ports import Clock, Listener, Selector, Stored
from aimemo.link.layout import (
    BORN,
    BUCKETS,
    Layout,
    Place,
    generation,
    generations_of,
    members,
    members_of,
    message,
    new_stamp,
)
from aimemo.link.link import COMMAND_SECONDS, Link, script
from aimemo.link.server_time import ServerTime

BATCH: Final = 500


class RedisStore:
    """The entries of one namespace.

    An entry's operation is the one that its key carries. An invalidation may void the tickets of more keys than it
    means (see `link/layout.py`).

    Args:
        sender: says, in messages, which process they come from.
        listener: is awake before anything is read.
        clock: the process's clock, of the times in entries.
        time: the server's clock, of the times in envelopes.
    """

    reads_inline = False
    keeps_time = True

    def __init__(
        self, link: Link, layout: Layout, *, sender: Callable[[], str], listener: Listener, clock: Clock,
        time: ServerTime, compression_threshold: int, compression_level: int,
    ) -> None:  # fmt: skip
        self._link = link
        self._layout = layout
        self._sender = sender
        self._listener = listener
        self._clock = clock
        self._time = time
        self._threshold = compression_threshold
        self._level = compression_level
        self._opened = LatelyOpened()
        self._read = link.reader(self._read_places)

    def find(self, key: str) -> Entry | None:
        raise NotImplementedError("what Redis holds has to be waited for")

    async def connect(self) -> None:
        await self._ready()
        await self._link.ask(0, ("PING",))

    async def get(self, key: str) -> Entry | None:
        if not self._listener.is_awake or self._time.is_due():
            await self._ready()
        known = self._opened.get(key)
        place = known.place if known is not None else self._layout.place(key)
        data = await self._read(place, time_limit(COMMAND_SECONDS))
        return None if data is None else self._open(key, place, data)

    async def get_many(self, keys: Iterable[str]) -> dict[str, Entry | DamagedEntry]:
        await self._ready()
        places = {key: self._layout.place(key) for key in keys}
        found: dict[str, Entry | DamagedEntry] = {}
        values = await self._read_places(list(places.values()))
        for (key, place), data in zip(places.items(), values, strict=True):
            try:
                entry = None if data is None else self._open(key, place, data)
                if entry is not None:
                    found[key] = entry
            except DamagedEntry as error:
                found[key] = error
        return found

    async def ticket(self, key: str, operation: str, tags: tuple[str, ...]) -> list[Any]:
        await self._ready()
        place = self._layout.place(key)
        names = [BORN, *generations_of(key, tags)]
        generations = self._layout.generations(place.bucket)
        read = ("HMGET", generations, *names)
        [values] = await self._link.ask(place.bucket, read)
        if values[0] is None:
            _, values = await self._link.ask(place.bucket, ("HSETNX", generations, BORN, new_stamp()), read)
        return [*names, *(value or b"" for value in values)]

    async def set(self, key: str, entry: Entry, ticket: Any = None, *, replaces: bool = False) -> bool | None:
        await self._ready()
        place = self._layout.place(key)
        [kept] = await self._link.ask(place.bucket, self._keep(place, entry, ticket, replaces))
        return bool(kept)

    async def set_many(self, entries: Mapping[str, Entry]) -> int:
        await self._ready()
        commands: dict[int, list[Any]] = {}
        for key, entry in entries.items():
            place = self._layout.place(key)
            commands.setdefault(place.bucket, []).append(self._keep(place, entry, None, True))
        return sum(map(sum, (await self._link.ask_each(commands)).values()))

    async def page(self, cursor: str, count: int) -> tuple[list[Stored], str]:
        await self._ready()
        names, cursor = await self._link.scan_page(self._layout.entries(Selector("all")), cursor, count)
        commands: dict[int, list[Any]] = {}
        keys: dict[int, list[tuple[str, Place]]] = {}
        for name in dict.fromkeys(names):
            entry = self._layout.entry(name)
            if entry is not None:
                place = self._layout.place(entry[1])
                keys.setdefault(place.bucket, []).append((entry[1], place))
                commands.setdefault(place.bucket, []).extend(
                    (("STRLEN", place.name), ("GETRANGE", place.name, 0, HEAD_SIZE - 1))
                )
        replies = await self._link.ask_each(commands)
        stored = (
            self._stored(key, place, *replies[bucket][2 * at : 2 * at + 2])
            for bucket in keys
            for at, (key, place) in enumerate(keys[bucket])
        )
        return [each for each in stored if each is not None], cursor

    def _stored(self, key: str, place: Place, size: int, data: bytes) -> Stored | None:
        head = read_head(data, place.fingerprint)
        if head is None:
            return None
        offset = self._time.offset
        times = (head.created - offset, head.fresh_until - offset, head.usable_until - offset)
        return Stored(key, head.raw_length, size, *times, head.seconds, None)

    async def delete_many(self, keys: Iterable[str]) -> frozenset[str]:
        await self._ready()
        commands: dict[int, dict[str, Any]] = {}
        for key in keys:
            place = self._layout.place(key)
            selector = Selector("key", key)
            commands.setdefault(place.bucket, {})[key] = script("delete")(
                (place.name, self._layout.generations(place.bucket)),
                generation(selector), new_stamp(), self._layout.channel, message(self._sender(), selector),
            )  # fmt: skip
        replies = await self._link.ask_each({bucket: list(batch.values()) for bucket, batch in commands.items()})
        counts = (
            (key, count) for bucket in commands for key, count in zip(commands[bucket], replies[bucket], strict=True)
        )
        return frozenset(key for key, count in counts if count)

    async def sweep(self, selector: Selector) -> int:
        await self._ready()
        stamp = new_stamp()
        move = generation(selector)
        await self._link.ask_each(
            {bucket: [script("move")((self._layout.generations(bucket),), move, stamp)] for bucket in range(BUCKETS)}
        )
        if selector.kind == "tag":
            count = await self._remove_tagged(selector.name)
        else:
            count = await self._remove(selector)
            if self._link.is_cluster:  # slots may have moved to nodes that the scan had left behind
                count += await self._remove(selector)
        await self._link.ask(0, ("PUBLISH", self._layout.channel, message(self._sender(), selector)))
        return count

    async def close(self) -> None:
        self._listener.sleep()
        await self._link.close()

    async def _ready(self) -> None:
        if not self._listener.is_awake:
            await self._listener.awake(self._link.runtime)
        if self._time.is_due():
            await self._time.learn(self._link)

    async def _read_places(self, places: Sequence[Place]) -> list[bytes | None]:
        """The values at some places, in one round trip to each server."""
        if len(places) == 1:
            return await self._link.ask(places[0].bucket, ("GET", places[0].name))
        if not self._link.is_cluster:
            [found] = await self._link.ask(0, ("MGET", *(place.name for place in places))) if places else [[]]
            return list(found)
        buckets: dict[int, dict[str, None]] = {}
        for place in places:
            buckets.setdefault(place.bucket, {})[place.name] = None
        replies = await self._link.ask_each({bucket: [("MGET", *names)] for bucket, names in buckets.items()})
        values = {
            name: value for bucket in buckets for name, value in zip(buckets[bucket], replies[bucket][0], strict=True)
        }
        return [values[place.name] for place in places]

    def _open(self, key: str, place: Place, data: bytes) -> Entry | None:
        envelope = self._opened.open(key, place, data, place.fingerprint)
        created, fresh_until, usable_until, seconds, facts, tags, payload = envelope
        offset = self._time.offset
        if usable_until - offset <= self._clock():
            return None
        entry = PackedEntry(
            key, payload, created - offset, fresh_until - offset, usable_until - offset, "", tags, seconds, facts
        )
        entry.stored_size = len(data)
        return entry

    def _keep(self, place: Place, entry: Entry, ticket: Sequence[Any] | None, replaces: bool) -> Any:
        assert entry.payload is not None
        offset = self._time.offset
        envelope = Envelope(
            entry.created + offset, entry.fresh_until + offset, entry.usable_until + offset,
            entry.seconds, entry.facts or {}, entry.tags, entry.payload,
        )  # fmt: skip
        data = seal(envelope, place.fingerprint, self._threshold, self._level)
        entry.stored_size = len(data)
        left = entry.usable_until - self._clock()
        milliseconds = 0 if left == float("inf") else max(1, math.ceil(left * 1000))
        ticket = ticket or ()
        selector = Selector("key", entry.key)
        return script("keep")(
            (place.name, self._layout.generations(place.bucket), *self._layout.index(place.bucket)),
            data, milliseconds, self._layout.channel, message(self._sender(), selector),
            generation(selector) if replaces else "", new_stamp(),
            len(ticket) // 2, *ticket, *members(entry.key, entry.tags),
        )  # fmt: skip

    async def _remove(self, selector: Selector) -> int:
        count = 0
        async for names in self._link.scan(self._layout.entries(selector)):
            meant: dict[int, list[bytes]] = {}
            for name in names:
                place = self._layout.entry(name)
                if place is not None and selector.matches(place[1], operation_of(place[1]), ()):
                    meant.setdefault(place[0], []).append(name)
            count += await self._unlink(meant)
        return count

    async def _unlink(self, names: Mapping[int, Sequence[Any]]) -> int:
        replies = await self._link.ask_each({bucket: [("UNLINK", *batch)] for bucket, batch in names.items()})
        return sum(reply for [reply] in replies.values())

    async def _remove_tagged(self, tag: str) -> int:
        count = 0
        for bucket in range(BUCKETS):
            index = self._layout.index(bucket)
            [found] = await self._link.ask(bucket, ("ZRANGEBYLEX", index[0], *members_of(tag)))
            for start in range(0, len(found), BATCH):
                batch = found[start : start + BATCH]
                places = [self._layout.place(member.decode().partition("|")[2]) for member in batch]
                names = [place.name for place in places]
                [values] = await self._link.ask(bucket, ("MGET", *names))
                meant = [place.name for place, data in zip(places, values, strict=True) if _has_tag(data, place, tag)]
                count += await self._unlink({bucket: meant} if meant else {})
                await self._link.ask(bucket, script("unindex")((*index, *names), *batch))
        return count


def _has_tag(data: bytes | None, place: Place, tag: str) -> bool:
    """Whether what is stored has a tag. The index may still know tags of an entry that was overwritten."""
    try:
        return data is not None and tag in unseal(data, place.fingerprint).tags
    except DamagedEntry:
        return True
