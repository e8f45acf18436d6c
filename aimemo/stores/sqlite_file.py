"""One SQLite file as this process has it open: two connections, patience with other writers, damage set aside.

SQLite keeps files apart from each other by POSIX locks, which a process loses as soon as it closes *any*
descriptor of the file. So nothing here ever opens the file but SQLite itself, and nothing is open over a fork.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import random
import sqlite3
import tempfile
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

from aimemo.core.runtime import fork_safe_lock, release_before_fork

T = TypeVar("T")

log = logging.getLogger("aimemo")

IDENTITY_INTERVAL: Final = 1.0
"""Seconds after which a reader looks whether another process has put a new file in the place of its own."""

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
_TABLES: Final = "SELECT count(*) FROM sqlite_master WHERE name IN ('aimemo_entries', 'aimemo_invalidations')"
_MADE: Final = "INSERT INTO aimemo_invalidations VALUES (?, ?, '', 'made', '')"
_DAMAGE: Final = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_BUSY: Final = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_ERRORS: Final = (sqlite3.DatabaseError, UnicodeDecodeError)

Inode = tuple[int, int]


class _Link:
    """A connection, opened when needed and used under `lock`.

    Args:
        text: what becomes of text; bytes where what is read is not trusted to be text.
    """

    def __init__(self, path: Path, busy_seconds: float, text: type = str) -> None:
        self.lock = fork_safe_lock()
        self.inode: Inode | None = None
        self.next_check = 0.0
        self._path = path
        self._busy_seconds = busy_seconds
        self._text = text
        self._connection: sqlite3.Connection | None = None
        self._close: Callable[[], Any] = lambda: None

    def open(self) -> sqlite3.Connection:
        now = time.monotonic()
        if self._connection is not None and now < self.next_check:
            return self._connection
        self.next_check = now + IDENTITY_INTERVAL
        if self._connection is not None and not self.is_current():
            self.drop()
        if self._connection is None:
            self._connection = self._connect()
            closing = weakref.finalize(self, self._connection.close)  # a cache may be dropped without being closed
            closing.atexit = False
            self._close = closing
        return self._connection

    def is_current(self) -> bool:
        """Whether the file still is the one that was opened: another process may have replaced it."""
        return _inode(self._path) == self.inode

    def drop(self) -> None:
        self._connection = None
        self._close()

    def roll_back(self) -> None:
        if self._connection is not None and self._connection.in_transaction:
            with contextlib.suppress(sqlite3.Error):  # the error that led here is the one to tell
                self._connection.execute("ROLLBACK")

    def _connect(self) -> sqlite3.Connection:
        _make_file(self._path)
        self.inode = _inode(self._path)
        connection = sqlite3.connect(self._path, timeout=0, isolation_level=None, check_same_thread=False)
        try:
            deadline = time.monotonic() + self._busy_seconds
            _patiently(deadline, connection.execute, "PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            if connection.execute(_TABLES).fetchone()[0] < 2:
                _patiently(deadline, connection.execute, "BEGIN IMMEDIATE")
                _make_tables(connection)
            connection.execute(f"PRAGMA busy_timeout={int(self._busy_seconds * 1000)}")
            connection.text_factory = self._text
        except BaseException:
            connection.close()
            raise
        return connection


def _make_file(path: Path) -> None:
    """Make the file if it is not there, for its owner only, without ever closing a descriptor of a file in use."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, made = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)  # of mode 0600
    os.close(descriptor)
    try:
        os.link(made, path)
    except FileExistsError:
        pass  # another thread or process was first
    finally:
        os.unlink(made)


def _make_tables(connection: sqlite3.Connection) -> None:
    for statement in _SCHEMA.split(";"):
        connection.execute(statement)
    # The log of a fresh file begins beyond every position in the log of the file that it takes the place of.
    now = time.time()
    if connection.execute("SELECT count(*) FROM aimemo_invalidations").fetchone()[0] == 0:
        connection.execute(_MADE, (int(now * 1_000_000), now))
    connection.execute("COMMIT")


def _inode(path: Path) -> Inode | None:
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_dev, stat.st_ino


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
        self._reading = _Link(self.path, busy_seconds, text=bytes)
        self._writing = _Link(self.path, busy_seconds)
        release_before_fork(self)

    def read(self, sql: str, args: tuple[Any, ...] = ()) -> list[Any]:
        """The rows of a SELECT, text in them as bytes; none where the file is found damaged."""
        with self._reading.lock:
            try:
                return self._reading.open().execute(sql, args).fetchall()
            except _ERRORS as error:
                caught, inode = error, self._reading.inode
        self._recover(caught, inode)
        return []

    def write(self, body: Callable[[sqlite3.Connection], T], until: float = math.inf) -> T:
        """What `body` returns, run in one transaction that waits for other writers for the busy deadline.

        Args:
            until: on the monotonic clock, when its caller goes on without it.

        Raises:
            TimeoutError: other threads of this process kept it waiting for so long, or its caller has gone on: what is
                written after that would take the place of what came later.
        """
        deadline = time.monotonic() + self._busy_seconds
        try:
            return self._transact(body, deadline, until)
        except _ERRORS as error:
            self._recover(error, self._writing.inode)
            return self._transact(body, deadline, until)

    def _transact(self, body: Callable[[sqlite3.Connection], T], deadline: float, until: float) -> T:
        link = self._writing
        if not link.lock.acquire(timeout=max(deadline - time.monotonic(), 0)):
            raise TimeoutError("other writers of this process held the file for too long")
        try:
            while True:
                connection = link.open()
                _patiently(deadline, connection.execute, "BEGIN IMMEDIATE")
                if time.monotonic() > until:
                    raise TimeoutError("the file was free too late")
                result = body(connection)
                connection.execute("COMMIT")
                if self._reading.inode != link.inode:
                    self._reading.next_check = 0.0
                if link.is_current():  # looked at afterwards: an invalidation must not go to a lost file
                    return result
                link.drop()
        finally:
            try:
                link.roll_back()
            finally:
                link.lock.release()

    def close(self) -> None:
        for link in (self._reading, self._writing):
            with link.lock:
                link.drop()

    def before_fork(self) -> None:
        """Leave nothing open: parent and child would share locks that only one of them has. The locks are held."""
        self._reading.drop()
        self._writing.drop()

    def _recover(self, error: Exception, inode: Inode | None) -> None:
        """Set a damaged file aside, so that the next use starts a fresh one; raise any other error again."""
        has_lost_tables = "no such table" in str(error)
        if not has_lost_tables and not self._is_damage(error):
            raise error
        self.close()
        if not has_lost_tables:
            self._set_aside(inode)
        self._damaged(error)

    def _is_damage(self, error: Exception) -> bool:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_READONLY:  # damage can make a file look as if it were of a newer format
            return os.access(self.path, os.W_OK)
        # Our statements are fixed, so an SQLITE_ERROR speaks of the file, not of them.
        return code in _DAMAGE or code == sqlite3.SQLITE_ERROR or isinstance(error, UnicodeDecodeError)

    def _set_aside(self, damaged: Inode | None) -> None:
        """Rename the damaged file, unless another process or thread has done so already."""
        import fcntl

        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)  # all who found this file damaged queue here
            if damaged is not None and _inode(self.path) == damaged:
                mark = f".corrupt-{time.time_ns() // 1_000_000}"
                log.warning("%s is damaged; it is set aside as %s%s", self.path, self.path.name, mark)
                for suffix in ("-wal", "-shm", ""):
                    if os.path.exists(f"{self.path}{suffix}"):
                        os.rename(f"{self.path}{suffix}", f"{self.path}{suffix}{mark}")
        finally:
            os.close(folder)


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
