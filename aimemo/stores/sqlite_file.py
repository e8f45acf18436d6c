"""One SQLite file as this process has it open: two connections, patience with other writers, damage set aside."""

from __future__ import annotations

import os
import random
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from aimemo.core.runtime import forget_after_fork, fork_safe_lock

T = TypeVar("T")
E = TypeVar("E", bound=BaseException)

IDENTITY_INTERVAL: Final = 1.0

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS aimemo_entries (
    id INTEGER PRIMARY KEY, namespace TEXT NOT NULL, operation TEXT NOT NULL, key TEXT NOT NULL,
    tags TEXT, usable_until REAL NOT NULL, envelope BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS aimemo_by_operation ON aimemo_entries (namespace, operation);
CREATE INDEX IF NOT EXISTS aimemo_by_end ON aimemo_entries (usable_until);
CREATE INDEX IF NOT EXISTS aimemo_by_tags ON aimemo_entries (namespace, tags) WHERE tags IS NOT NULL;
CREATE TABLE IF NOT EXISTS aimemo_invalidations (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL,
    namespace TEXT NOT NULL, kind TEXT NOT NULL, name TEXT NOT NULL);
"""
_DAMAGE: Final = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_BUSY: Final = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}

# A child must not close what its parent had open: closing would drop the parent's file locks.
_left_open: list[sqlite3.Connection] = []


@dataclass(slots=True)
class _Handle:
    """A connection, and which file it was opened on: another process may have put a new one in its place."""

    connection: sqlite3.Connection
    inode: tuple[int, int]
    next_check: float


class SQLiteFile:
    """The connections of this process to one file: one that reads, one that writes.

    Args:
        damaged: called with the error that showed the file to be damaged, after it was set aside.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, busy_seconds: float, damaged: Callable[[Exception], None]
    ) -> None:
        self.path = Path(path).absolute()
        self._busy_seconds = busy_seconds
        self._damaged = damaged
        self._handles: dict[str, _Handle] = {}
        self._locks = {"reader": fork_safe_lock(), "writer": fork_safe_lock()}
        forget_after_fork(self)

    def forget(self) -> None:
        _left_open.extend(handle.connection for handle in self._handles.values())
        self._handles.clear()

    def read(self, sql: str, args: tuple[Any, ...] = ()) -> list[Any]:
        """The rows of a SELECT; none where the file is found damaged."""
        try:
            with self._locks["reader"]:
                handle = self._handle("reader")
                try:
                    return handle.connection.execute(sql, args).fetchall()
                except sqlite3.DatabaseError as error:
                    raise _on(handle.inode, error) from None
        except sqlite3.DatabaseError as error:
            self._recover(error)
            return []

    def write(self, body: Callable[[sqlite3.Connection], T]) -> T:
        """What `body` returns, run in one transaction that waits for other writers for the busy deadline."""
        try:
            return self._transact(body)
        except sqlite3.DatabaseError as error:
            self._recover(error)
            return self._transact(body)

    def _transact(self, body: Callable[[sqlite3.Connection], T]) -> T:
        deadline = time.monotonic() + self._busy_seconds
        with self._locks["writer"]:
            handle = self._handle("writer")
            connection = handle.connection
            try:
                _patiently(deadline, connection.execute, "BEGIN IMMEDIATE")
                result = body(connection)
                connection.execute("COMMIT")
                return result
            except sqlite3.DatabaseError as error:
                raise _on(handle.inode, error) from None
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")

    def close(self) -> None:
        for role, lock in self._locks.items():
            with lock:
                self._drop(role)

    def _drop(self, role: str) -> None:
        handle = self._handles.pop(role, None)
        if handle is not None:
            handle.connection.close()

    def _handle(self, role: str) -> _Handle:
        now = time.monotonic()
        handle = self._handles.get(role)
        if handle is not None and now >= handle.next_check:
            handle.next_check = now + IDENTITY_INTERVAL
            if self._inode() != handle.inode:
                self._drop(role)
                handle = None
        if handle is None:
            handle = self._handles[role] = self._open(now + IDENTITY_INTERVAL)
        return handle

    def _inode(self) -> tuple[int, int] | None:
        try:
            stat = os.stat(self.path)
        except FileNotFoundError:
            return None
        return stat.st_dev, stat.st_ino

    def _open(self, next_check: float) -> _Handle:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
        inode = self._inode()
        assert inode is not None
        connection = sqlite3.connect(
            self.path, timeout=self._busy_seconds, isolation_level=None, check_same_thread=False
        )
        try:
            deadline = time.monotonic() + max(self._busy_seconds, 1.0)
            _patiently(deadline, connection.execute, "PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            if not connection.execute("PRAGMA table_info(aimemo_invalidations)").fetchall():
                _patiently(deadline, connection.executescript, f"BEGIN IMMEDIATE;{_SCHEMA}COMMIT;")
        except BaseException as error:
            connection.close()
            raise _on(inode, error) from None
        return _Handle(connection, inode, next_check)

    def _recover(self, error: sqlite3.DatabaseError) -> None:
        """Set a damaged file aside, so that the next use starts a fresh one; raise any other error again."""
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        is_empty = code == sqlite3.SQLITE_ERROR and "no such table" in str(error)
        if code not in _DAMAGE and not is_empty:
            raise error
        self.close()
        if not is_empty:
            self._set_aside(error.inode)  # type: ignore[attr-defined]
        self._damaged(error)

    def _set_aside(self, damaged: tuple[int, int]) -> None:
        """Rename the damaged file, unless another process or thread has done so already."""
        import fcntl

        try:
            descriptor = os.open(self.path, os.O_RDONLY)
        except FileNotFoundError:
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # all who found this file damaged queue here
            if self._inode() == damaged:
                mark = f".corrupt-{time.time_ns() // 1_000_000}"
                for suffix in ("-wal", "-shm", ""):
                    if os.path.exists(f"{self.path}{suffix}"):
                        os.rename(f"{self.path}{suffix}", f"{self.path}{suffix}{mark}")
        finally:
            os.close(descriptor)


def _on(inode: tuple[int, int], error: E) -> E:
    """`error`, marked with the file that it speaks of."""
    error.inode = inode  # type: ignore[attr-defined]
    return error


def _patiently(deadline: float, execute: Callable[[str], Any], sql: str) -> None:
    """Execute, and again while others hold the file. SQLite's own waiting grows to 100 ms and starves."""
    while True:
        try:
            execute(sql)
            return
        except sqlite3.OperationalError as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code not in _BUSY or time.monotonic() >= deadline:
                raise
        time.sleep(random.uniform(0.0002, 0.002))
