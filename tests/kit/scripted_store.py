"""A store that fails, hangs and finds damage on demand, with a guard in front of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from typing import Any

from aimemo.core.aio import TaskRuntime
from aimemo.core.entry import Entry
from aimemo.core.envelope import DamagedEntry
from aimemo.core.guard import Guard
from aimemo.core.ports import Selector
from aimemo.core.runtime import ThreadRuntime, drive

ENTRY = Entry("k", b"value", created=0.0, fresh_until=1e9, usable_until=1e9)


class ScriptedStore:
    """Answers everything, after `trouble()`, which may raise, wait or move a clock."""

    def __init__(self, reads_inline: bool = False) -> None:
        self.reads_inline = reads_inline
        self.keeps_time = False
        self.asked: list[str] = []
        self.trouble: Callable[[], Awaitable[None] | None] = lambda: None

    async def _answer(self, what: str, answer: Any) -> Any:
        self.asked.append(what)
        waits = self.trouble()
        if waits is not None:
            await waits
        return answer

    async def connect(self) -> None:
        await self._answer("connect", None)

    def find(self, key: str) -> Entry | None:
        return drive(self._answer("get", ENTRY))

    async def get(self, key: str) -> Entry | None:
        return await self._answer("get", ENTRY)

    async def get_many(self, keys: Iterable[str]) -> Mapping[str, Entry | DamagedEntry]:
        return await self._answer("get_many", {"good": ENTRY, "bad": DamagedEntry("checksum")})

    async def ticket(self, key: str, operation: str, tags: tuple[str, ...]) -> Any:
        return await self._answer("ticket", 1)

    async def set(self, key: str, entry: Entry, ticket: Any = None, *, replaces: bool = False) -> bool | None:
        return await self._answer("set", True)

    async def set_many(self, entries: Mapping[str, Entry]) -> int | None:
        return await self._answer("set_many", len(entries))

    async def delete_many(self, keys: Iterable[str]) -> frozenset[str]:
        return await self._answer("delete", frozenset(keys))

    async def sweep(self, selector: Selector) -> int:
        return await self._answer("sweep", 3)

    async def page(self, cursor: str, count: int) -> tuple[list[Any], str]:
        return [], ""

    async def close(self) -> None: ...


class Bench:
    """A guard over a scripted store in one world, on a clock that is moved by hand."""

    def __init__(
        self, world: str, clock: Any, *, strict: bool = False, reads_inline: bool = False, seconds: float = 0.1
    ) -> None:
        self.world = world
        self.clock = clock
        self.store = ScriptedStore(reads_inline)
        self.reports: list[tuple[str, str, BaseException]] = []
        self.guard = Guard(
            self.store, TaskRuntime() if world == "tasks" else ThreadRuntime(), clock=clock, seconds=seconds,
            strict=strict, report=lambda *what: self.reports.append(what),
        )  # fmt: skip

    async def run(self, body: Coroutine[Any, Any, Any]) -> Any:
        return await body if self.world == "tasks" else drive(body)

    async def get(self, times: int = 1) -> list[Entry | None]:
        """Get, each time in a call of its own."""
        return [await self.run(self.guard.get("k")) for _ in range(times)]

    def fail(self) -> None:
        def trouble() -> None:
            raise ConnectionError("down")

        self.store.trouble = trouble

    def find_damage(self) -> None:
        def trouble() -> None:
            raise DamagedEntry("checksum")

        self.store.trouble = trouble

    def work(self) -> None:
        self.store.trouble = lambda: None
