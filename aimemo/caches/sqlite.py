"""A cache in one SQLite file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from aimemo.caches.interface import Cache
from aimemo.core.memoizer import Memoizer
from aimemo.core.runtime import Runtime
from aimemo.core.tiers import Tiers
from aimemo.errors import ValidationError
from aimemo.stores.sqlite import SQLiteStore
from aimemo.stores.sqlite_file import SQLiteFile


class SQLiteCache(Cache):
    """A cache in one SQLite file, which outlives the process and may be shared by several on one machine.

    The file is made on first use, with its folder, readable by its owner only. Every hit reads the file,
    so what another process removes is gone here at once.

    Args:
        path: the file.
        default_ttl: as of every `Cache`, like the settings that follow it. `deadline` is also how long a
            write waits for other writers.

    Raises:
        ValidationError: for a path that names a folder, and for faulty settings.
    """

    backend = "sqlite"

    def __init__(self, path: str | os.PathLike[str], default_ttl: int = 3600, **settings: Any) -> None:
        super().__init__(default_ttl=default_ttl, **settings)
        if not isinstance(path, str | os.PathLike) or not os.fspath(path) or os.path.isdir(path):
            raise ValidationError("path must name a file; it names a folder, or nothing", {"path": path})
        if os.fspath(path) == ":memory:":
            raise ValidationError("path must name a file; what is only in memory is an InMemoryCache", {"path": path})
        self.path = Path(path).expanduser()
        self._file = SQLiteFile(self.path, busy_seconds=self.deadline, damaged=self._damaged)

    def __repr__(self) -> str:
        return f"<SQLiteCache path={str(self.path)!r} namespace={self.namespace!r} default_ttl={self.default_ttl}>"

    def _damaged(self, error: Exception) -> None:
        self.journal.error("damaged_file", "", error)

    def _assemble(self, runtime: Runtime) -> Memoizer:
        store = SQLiteStore(
            self._file, runtime, namespace=self.namespace, clock=self.clock, wall=self.wall_clock,
            compression_threshold=self.compression_threshold, compression_level=self.compression_level,
        )  # fmt: skip
        guard = self._guarded(store, runtime)
        tiers = Tiers(store=guard, local=None, guard=guard, journal=self.journal, clock=self.clock)
        return Memoizer(tiers, runtime, self._flights, enabled=self.enabled)
