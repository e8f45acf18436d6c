"""Entries in one SQLite file that several processes may share.

A row is found by its rowid, 63 bits of the key's fingerprint, so that a hit is one search in one B-tree.
Should two keys ever meet in one rowid, the fingerprint in the envelope makes the wrong one a miss.

Every invalidation and every replacement leaves a row in a log for an hour. A ticket is the log's end when a
computation began; its result is kept only if nothing after that means it. A flight of more than an hour is not kept.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeVar

from aimemo.core.entry import Entry, PackedEntry
from aimemo.core.envelope import HEAD_SIZE, DamagedEntry, Envelope, read_head, seal
from aimemo.core.guard import time_limit
from aimemo.core.keys import fingerprint
from aimemo.core.opened import LatelyOpened
from aimemo.core.ports import Clock, Selector, Stored
from aimemo.core.runtime import Runtime
from aimemo.stores.sqlite_file import SQLiteFile

T = TypeVar("T")

LOG_SECONDS: Final = 3600.0
PURGE_INTERVAL: Final = 60.0
PURGE_BATCH: Final = 500
BATCH: Final = 500


_SELECT: Final = "SELECT envelope FROM aimemo_entries WHERE id = ?"
_PAGE: Final = (
    "SELECT id, key, length(envelope), substr(envelope, 1, ?) FROM aimemo_entries"
    " WHERE namespace = ? AND id > ? ORDER BY id LIMIT ?"
)


class SQLiteStore:
    """The entries of one namespace in a `SQLiteFile`.

    Args:
        clock: the process's clock, of the times in entries.
        wall: the clock of the times in the file.
    """

    reads_inline = True
    keeps_time = False

    def __init__(
        self, file: SQLiteFile, runtime: Runtime, *, namespace: str, clock: Clock, wall: Clock,
        compression_threshold: int, compression_level: int,
    ) -> None:  # fmt: skip
        self._file = file
        self._runtime = runtime
        self._namespace = namespace
        self._clock = clock
        self._wall = wall
        self._threshold = compression_threshold
        self._level = compression_level
        self._next_purge = 0.0
        self._opened = LatelyOpened()

    async def connect(self) -> None:
        self._file.read("SELECT 1")

    def find(self, key: str) -> Entry | None:
        known = self._opened.get(key)
        mark, rowid = known.place if known is not None else _address(self._namespace, key)
        rows = self._file.read(_SELECT, (rowid,))
        if not rows:
            return None
        data = rows[0][0]
        return self._entry(key, self._opened.open(key, (mark, rowid), data, mark), len(data))

    async def get(self, key: str) -> Entry | None:
        return self.find(key)

    async def get_many(self, keys: Iterable[str]) -> dict[str, Entry | DamagedEntry]:
        found: dict[str, Entry | DamagedEntry] = {}
        for key in keys:
            try:
                entry = self.find(key)
                if entry is not None:
                    found[key] = entry
            except DamagedEntry as error:
                found[key] = error
        return found

    async def ticket(self, key: str, operation: str, tags: tuple[str, ...]) -> tuple[int, float]:
        rows = self._file.read("SELECT max(seq) FROM aimemo_invalidations")
        return (rows[0][0] or 0) if rows else 0, self._wall()

    async def set(self, key: str, entry: Entry, ticket: Any = None, *, replaces: bool = False) -> bool | None:
        row = self._row(key, entry)

        def keep(connection: sqlite3.Connection) -> bool:
            if ticket is not None and self._is_void(connection, key, entry, ticket):
                return False
            if replaces:
                self._log(connection, Selector("key", key))  # what was computed before this is older
            self._insert(connection, [row])
            return True

        return await self._write(keep)

    async def set_many(self, entries: Mapping[str, Entry]) -> int:
        rows = [self._row(key, entry) for key, entry in entries.items()]

        def keep(connection: sqlite3.Connection) -> None:
            for key in entries:
                self._log(connection, Selector("key", key))
            self._insert(connection, rows)

        await self._write(keep)
        return len(rows)

    async def page(self, cursor: str, count: int) -> tuple[list[Stored], str]:
        rows = self._file.read(_PAGE, (HEAD_SIZE, self._namespace, min(int(cursor or -1), 2**63 - 1), count))
        offset = self._clock() - self._wall()
        found = []
        for _, text, size, data in rows:
            key = text.decode("utf-8", "replace")
            head = read_head(data, _address(self._namespace, key)[0])
            if head is not None:
                times = (head.created + offset, head.fresh_until + offset, head.usable_until + offset)
                found.append(Stored(key, head.raw_length, size, *times, head.seconds, None))
        return found, str(rows[-1][0]) if len(rows) == count else ""

    async def delete_many(self, keys: Iterable[str]) -> frozenset[str]:
        def remove(connection: sqlite3.Connection, key: str) -> int:
            self._log(connection, Selector("key", key))
            return self._remove(connection, "id = ? AND key = ?", (_address(self._namespace, key)[1], key))

        return await self._write(lambda connection: frozenset(key for key in keys if remove(connection, key)))

    async def sweep(self, selector: Selector) -> int:
        def remove(connection: sqlite3.Connection) -> int:
            self._log(connection, selector)
            match selector.kind:
                case "operation":
                    return self._remove(connection, "operation = ?", (selector.name,))
                case "tag":
                    tag = _tag_text((selector.name,))
                    return self._remove(connection, "tags IS NOT NULL AND instr(tags, ?)", (tag,))
                case "glob":
                    return self._remove_matching(connection, selector)
            return self._remove(connection, "true", ())

        return await self._write(remove)

    async def close(self) -> None:
        self._file.close()

    def _entry(self, key: str, envelope: Envelope, size: int) -> Entry | None:
        created, fresh_until, usable_until, seconds, facts, tags, payload = envelope
        wall = self._wall()
        if usable_until <= wall:
            return None
        offset = self._clock() - wall
        entry = PackedEntry(
            key, payload, created + offset, fresh_until + offset, usable_until + offset, "", tags, seconds, facts
        )
        entry.stored_size = size
        return entry

    def _row(self, key: str, entry: Entry) -> tuple[Any, ...]:
        assert entry.payload is not None
        mark, rowid = _address(self._namespace, key)
        offset = self._wall() - self._clock()
        envelope = Envelope(
            entry.created + offset, entry.fresh_until + offset, entry.usable_until + offset,
            entry.seconds, entry.facts or {}, entry.tags, entry.payload,
        )  # fmt: skip
        data = seal(envelope, mark, self._threshold, self._level)
        entry.stored_size = len(data)
        tags = _tag_text(entry.tags) if entry.tags else None
        return rowid, self._namespace, entry.operation, key, tags, envelope.usable_until, data

    def _insert(self, connection: sqlite3.Connection, rows: list[tuple[Any, ...]]) -> None:
        connection.executemany("INSERT OR REPLACE INTO aimemo_entries VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
        self._purge(connection)

    def _purge(self, connection: sqlite3.Connection) -> None:
        """Now and then, remove a batch of what nobody can use any more."""
        now = self._wall()
        if now < self._next_purge:
            return
        self._next_purge = now + PURGE_INTERVAL
        ended = "SELECT id FROM aimemo_entries WHERE usable_until <= ? LIMIT ?"
        connection.execute(f"DELETE FROM aimemo_entries WHERE id IN ({ended})", (now, PURGE_BATCH))
        connection.execute("DELETE FROM aimemo_invalidations WHERE at < ? AND kind <> 'made'", (now - LOG_SECONDS,))

    def _is_void(self, connection: sqlite3.Connection, key: str, entry: Entry, ticket: tuple[int, float]) -> bool:
        seq, taken = ticket
        if self._wall() - taken > LOG_SECONDS:
            return True
        since = "SELECT kind, name FROM aimemo_invalidations WHERE seq > ? AND (namespace = ? OR kind = 'made')"
        return any(
            kind == "made" or Selector(kind, name).matches(key, entry.operation, entry.tags)
            for kind, name in connection.execute(since, (seq, self._namespace))
        )

    def _log(self, connection: sqlite3.Connection, selector: Selector) -> None:
        connection.execute(
            "INSERT INTO aimemo_invalidations (at, namespace, kind, name) VALUES (?, ?, ?, ?)",
            (self._wall(), self._namespace, selector.kind, selector.name),
        )

    def _remove(self, connection: sqlite3.Connection, where: str, args: tuple[Any, ...]) -> int:
        """Delete what matches; how many of those were still usable."""
        scope = f"FROM aimemo_entries WHERE namespace = ? AND {where}"
        args = (self._namespace, *args)
        usable = connection.execute(f"SELECT count(*) {scope} AND usable_until > ?", (*args, self._wall()))
        count: int = usable.fetchone()[0]
        connection.execute(f"DELETE {scope}", args)
        return count

    def _remove_matching(self, connection: sqlite3.Connection, selector: Selector) -> int:
        rows = connection.execute("SELECT id, key FROM aimemo_entries WHERE namespace = ?", (self._namespace,))
        ids = [rowid for rowid, key in rows if selector.matches(key, "", ())]
        count = 0
        for start in range(0, len(ids), BATCH):
            batch = ids[start : start + BATCH]
            count += self._remove(connection, f"id IN ({','.join('?' * len(batch))})", tuple(batch))
        return count

    async def _write(self, body: Callable[[sqlite3.Connection], T]) -> T:
        is_waited_for = self._runtime.world == "threads"  # for as long as it takes; a task goes on
        until = math.inf if is_waited_for else time_limit(math.inf)
        return await self._runtime.offload(self._file.write, body, until)


def _address(namespace: str, key: str) -> tuple[bytes, int]:
    """A key's fingerprint and rowid."""
    mark = fingerprint(namespace, key)
    return mark, int.from_bytes(mark[:8], "big") >> 1


def _tag_text(tags: tuple[str, ...]) -> str:
    """Tags as one text in which each can be searched for whole."""
    return "\x1f" + "\x1f".join(tags) + "\x1f"
