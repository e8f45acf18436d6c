"""The guard in front of a store: what the store does wrong costs time within a budget, and no errors.

Reads and writes that fail, are late or find damage come back as "not there" and "not kept". A delete or
a sweep that the store did not acknowledge raises, because silence there would be a wrong answer later.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextvars import ContextVar, Token
from typing import Any, Final, Literal, TypeVar

from aimemo.core.entry import Entry
from aimemo.core.envelope import DamagedEntry
from aimemo.core.ports import Clock, Selector, Store
from aimemo.core.runtime import HeldUp, Runtime
from aimemo.errors import CodecError, InfrastructureError

T = TypeVar("T")

log = logging.getLogger("aimemo")

FAILURES_TO_OPEN: Final = 5
PROBE_INTERVAL: Final = 1.0
DELETE_SECONDS: Final = 0.5
SWEEP_SECONDS: Final = 60.0

NO_TICKET: Final = object()
"""The store could not give a ticket: what is computed now must not be written to it."""

Report = Callable[[str, str, BaseException], None]
"""Called with the stage (`get`, `set`…), the key or `""`, and the error."""


class Budget:
    """How long the stores may take within one call, and whether they have failed it already."""

    __slots__ = ("is_spent", "seconds")

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.is_spent = False

    def is_over(self) -> bool:
        """Whether the stores' part in the call is over."""
        return self.is_spent or self.seconds <= 0


BUDGET: Final[ContextVar[Budget | None]] = ContextVar("aimemo_budget", default=None)


class Breaker:
    """After some failures in a row a store is left alone, but for one probe per interval."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.failures = 0
        self._next_probe = 0.0

    @property
    def state(self) -> Literal["closed", "open"]:
        return "open" if self.failures >= FAILURES_TO_OPEN else "closed"

    def admits(self) -> bool:
        if self.failures < FAILURES_TO_OPEN:
            return True
        now = self._clock()
        if now < self._next_probe:
            return False
        self._next_probe = now + PROBE_INTERVAL
        return True

    def succeeded(self) -> None:
        if self.failures:
            if self.failures >= FAILURES_TO_OPEN:
                log.warning("the store answers again")
            self.failures = 0

    def failed(self, error: BaseException) -> None:
        self.failures += 1
        self._next_probe = self._clock() + PROBE_INTERVAL
        if self.failures == FAILURES_TO_OPEN:
            log.warning(
                "the store failed %d times in a row (last with %s) and is left alone but for a probe every %g s",
                *(FAILURES_TO_OPEN, type(error).__name__, PROBE_INTERVAL),
            )


async def _inline(seconds: float, awaitable: Awaitable[T]) -> tuple[T, bool]:
    return await awaitable, False


class Guard:
    """A store that keeps to a budget and hides its faults.

    Args:
        clock: of real seconds, whatever clock the entries live by: it times waiting.
        seconds: the budget of one call.
        strict: raise `InfrastructureError` for every fault instead of hiding it.
        report: told of every fault.
    """

    def __init__(
        self, store: Store, runtime: Runtime, breaker: Breaker, *,
        clock: Clock, seconds: float, strict: bool, report: Report,
    ) -> None:  # fmt: skip
        self.reads_inline = store.reads_inline
        self.breaker = breaker
        self.write_breaker = Breaker(clock)  # a full disk or a read-only replica is no reason not to read
        self.faults = 0
        self._store = store
        self._runtime = runtime
        self._clock = clock
        self._seconds = seconds
        self._strict = strict
        self._report = report

    def start_call(self, *, is_spent: bool = False) -> Token[Budget | None]:
        """Give the call that begins here one budget for all that it asks of the store."""
        budget = Budget(self._seconds)
        budget.is_spent = is_spent
        return BUDGET.set(budget)

    async def connect(self) -> None:
        await self._store.connect()

    async def get(self, key: str) -> Entry | None:
        return self.find(key) if self.reads_inline else await self._ask("get", key, self._store.get, key)

    def find(self, key: str) -> Entry | None:
        """As `get`, where reads are inline."""
        budget, breaker = BUDGET.get(), self.breaker
        if (budget is not None and budget.is_over()) or (breaker.failures and not breaker.admits()):
            return None
        started = self._clock() if budget is not None else 0.0
        try:
            entry = self._store.find(key)
        except Exception as error:
            self._failed("get", key, error, budget)
            return None
        if budget is not None:
            budget.seconds -= self._clock() - started
        if breaker.failures:
            breaker.succeeded()
        return entry

    async def get_many(self, keys: Iterable[str]) -> dict[str, Entry | DamagedEntry]:
        answers = await self._ask("get", "", self._store.get_many, keys, inline=self.reads_inline) or {}
        for key, answer in answers.items():
            if isinstance(answer, DamagedEntry):
                self._report("get", key, answer)
        return {key: answer for key, answer in answers.items() if isinstance(answer, Entry)}

    async def ticket(self, key: str, operation: str, tags: tuple[str, ...]) -> Any:
        inline = self.reads_inline
        ticket = await self._ask("ticket", key, self._store.ticket, key, operation, tags, inline=inline)
        return NO_TICKET if ticket is None else ticket

    async def set(self, key: str, entry: Entry, ticket: Any = None) -> bool | None:
        if ticket is NO_TICKET:
            return None
        return await self._ask("set", key, self._store.set, key, entry, ticket)

    async def set_many(self, entries: Mapping[str, Entry]) -> int | None:
        return await self._ask("set", "", self._store.set_many, entries)

    async def delete(self, key: str) -> bool:
        return await self._insist("delete", key, DELETE_SECONDS, self._store.delete(key))

    async def sweep(self, selector: Selector) -> int:
        return await self._insist("invalidate", "", SWEEP_SECONDS, self._store.sweep(selector))

    async def close(self) -> None:
        await self._store.close()

    async def _ask(
        self, stage: str, key: str, method: Callable[..., Awaitable[T]], *args: Any, inline: bool = False
    ) -> T | None:
        budget = BUDGET.get() or Budget(self._seconds)
        breaker = self.write_breaker if stage == "set" else self.breaker
        if budget.is_over() or not breaker.admits():
            return None
        try:
            result = await self._timed(budget, method(*args), inline)
        except Exception as error:
            self._failed(stage, key, error, budget)
            return None
        breaker.succeeded()
        return result

    async def _timed(self, budget: Budget, awaitable: Awaitable[T], inline: bool) -> T:
        started = self._clock()
        within = _inline if inline else self._runtime.within
        result, was_held_up = await within(budget.seconds, awaitable)
        if not was_held_up:
            budget.seconds -= self._clock() - started
        return result

    def _failed(self, stage: str, key: str, error: Exception, budget: Budget | None) -> None:
        self.faults += 1
        breaker = self.write_breaker if stage == "set" else self.breaker
        if isinstance(error, CodecError):  # one entry's fault: the store did answer
            breaker.succeeded()
        else:
            if not isinstance(error, HeldUp):
                breaker.failed(error)
            if budget is not None:
                budget.is_spent = True
        self._report(stage, key, error)
        if self._strict and not isinstance(error, DamagedEntry):
            raise InfrastructureError(f"the store failed in {stage}: {type(error).__name__}") from error

    async def _insist(self, stage: str, key: str, seconds: float, awaitable: Awaitable[T]) -> T:
        try:
            result, _ = await self._runtime.within(seconds, awaitable)
        except Exception as error:
            self.breaker.failed(error)
            self._report(stage, key, error)
            raise InfrastructureError(f"the store did not acknowledge the {stage}: {type(error).__name__}") from error
        self.breaker.succeeded()
        return result
