"""The guard in front of a store: what the store does wrong costs time within a budget, and no errors.

Reads and writes that fail, are late or find damage come back as "not there" and "not kept". A delete or
a sweep that the store did not acknowledge raises, because silence there would be a wrong answer later.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from contextvars import ContextVar, Token
from typing import Any, Final, Literal, TypeVar

from aimemo.core.context import put_back
from aimemo.core.entry import Entry
from aimemo.core.envelope import DamagedEntry
from aimemo.core.ports import Clock, Selector, Store, Stored
from aimemo.core.runtime import LATE, HeldUp, Runtime
from aimemo.errors import CodecError, InfrastructureError

T = TypeVar("T")

log = logging.getLogger("aimemo")

FAILURES_TO_OPEN: Final = 5
PROBE_INTERVAL: Final = 1.0
DELETE_SECONDS: Final = 0.5
DELETE_SECONDS_EACH: Final = 0.001
SWEEP_SECONDS: Final = 60.0
CONNECT_SECONDS: Final = 2.0

_READS: Final = ("get", "ticket")

NO_TICKET: Final = object()
"""The store could not give a ticket: what is computed now must not be written to it."""

Report = Callable[[str, str, BaseException], None]
"""Called with the stage (`get`, `set`…), the key or `""`, and the error."""


class Budget:
    """How long the stores may take within one call, and whether they have failed it already.

    `until`, on the monotonic clock, is when the operation that is under way must end.
    """

    __slots__ = ("is_spent", "seconds", "until")

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.until = float("inf")
        self.is_spent = False

    @classmethod
    def ending_in(cls, seconds: float) -> Budget:
        """A budget whose time runs already."""
        budget = cls(seconds)
        budget.until = time.monotonic() + seconds
        return budget

    def is_over(self) -> bool:
        """Whether the stores' part in the call is over."""
        return self.is_spent or self.seconds <= 0


BUDGET: Final[ContextVar[Budget | None]] = ContextVar("aimemo_budget", default=None)


def time_limit(seconds: float) -> float:
    """When what a store does now must end, on the monotonic clock: in `seconds`, or with the budget before that."""
    budget = BUDGET.get()
    if budget is not None and budget.seconds <= seconds:
        return budget.until
    limit = time.monotonic() + seconds
    return limit if budget is None else min(limit, budget.until)


class Breaker:
    """After some failures in a row a store is left alone, but for one probe per interval.

    `changed` is called with each new state, `open` or `closed`, and the name of the last error.
    """

    def __init__(self, clock: Clock, changed: Callable[[str, str], None]) -> None:
        self._clock = clock
        self._changed = changed
        self.failures = 0
        self.last_error: BaseException | None = None
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

    def succeeded(self) -> bool:
        """Whether it closes with that."""
        was_open, self.failures = self.failures >= FAILURES_TO_OPEN, 0
        if was_open:
            self._changed("closed", "")
        return was_open

    def hurry(self) -> None:
        """Let the next one through as a probe: there is a sign that the store is well again."""
        self._next_probe = 0.0

    def failed(self, error: BaseException) -> None:
        if error is self.last_error:
            return  # one fault, however many waited for what failed
        self.last_error = error
        self.failures += 1
        self._next_probe = self._clock() + PROBE_INTERVAL
        if self.failures == FAILURES_TO_OPEN:
            self._changed("open", type(error).__name__)


class Guard:
    """A store that keeps to a budget and hides its faults.

    Args:
        clock: of real seconds, whatever clock the entries live by: it times waiting.
        seconds: the budget of one call.
        strict: raise `InfrastructureError` for every fault instead of hiding it.
        report: told of every fault.
        changed: told when a breaker opens or closes. Reads and writes have one each: a full disk or a read-only
            replica is no reason not to read. So has each world: where connections are few, the one that has some
            goes on.
    """

    def __init__(
        self, store: Store, runtime: Runtime, *, clock: Clock, seconds: float, strict: bool, report: Report,
        changed: Callable[[str, str], None] = lambda state, why: None,
    ) -> None:  # fmt: skip
        self.reads_inline = store.reads_inline
        self.keeps_time = True
        self._has_own_timer = store.keeps_time
        self.breaker, self.write_breaker = Breaker(clock, changed), Breaker(clock, changed)
        self.faults = 0
        self._store = store
        self._runtime = runtime
        self._clock = clock
        self._seconds = seconds
        self._patience = max(DELETE_SECONDS, seconds)
        self._strict = strict
        self._report = report

    @property
    def is_leaving_alone(self) -> bool:
        return "open" in (self.breaker.state, self.write_breaker.state)

    def start_call(self, *, is_spent: bool = False) -> Token[Budget | None]:
        """Give the call that begins here one budget for all that it asks of the store."""
        budget = Budget(self._seconds)
        budget.is_spent = is_spent
        return BUDGET.set(budget)

    def renew_budget(self) -> None:
        """Start anew, unless the store has failed: its caller is going to wait for something else."""
        budget = BUDGET.get()
        if budget is not None:
            budget.seconds = self._seconds

    async def connect(self) -> None:
        token = BUDGET.set(Budget.ending_in(max(CONNECT_SECONDS, self._seconds)))
        try:
            await self._store.connect()
        finally:
            put_back(BUDGET, token)

    def get(self, key: str) -> Coroutine[Any, Any, Entry | None]:
        return self._find(key) if self.reads_inline else self.ask("get", key, self._store.get, key)

    async def _find(self, key: str) -> Entry | None:
        return self.find(key)

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
            self._succeeded(breaker)
        return entry

    async def get_many(self, keys: Iterable[str]) -> dict[str, Entry | DamagedEntry]:
        answers = await self.ask("get", "", self._store.get_many, keys) or {}
        for key, answer in answers.items():
            if isinstance(answer, DamagedEntry):
                self._report("get", key, answer)
        return {key: answer for key, answer in answers.items() if isinstance(answer, Entry)}

    async def ticket(self, key: str, operation: str, tags: tuple[str, ...]) -> Any:
        ticket = await self.ask("ticket", key, self._store.ticket, key, operation, tags)
        return NO_TICKET if ticket is None else ticket

    async def set(self, key: str, entry: Entry, ticket: Any = None, *, replaces: bool = False) -> bool | None:
        kept = None
        if ticket is not NO_TICKET:
            kept = await self.ask("set", key, self._set, key, entry, ticket, replaces)
        if kept is None and replaces:
            await self._drop([key])
        return kept

    def _set(self, key: str, entry: Entry, ticket: Any, replaces: bool) -> Awaitable[bool | None]:
        return self._store.set(key, entry, ticket, replaces=replaces)

    async def set_many(self, entries: Mapping[str, Entry]) -> int | None:
        kept = await self.ask("set", "", self._store.set_many, entries)
        if kept is None:
            await self._drop(list(entries))
        return kept

    async def _drop(self, keys: list[str]) -> None:
        """Remove what was to be replaced, if that can be done in the time that is left."""
        budget = BUDGET.get()
        if budget is not None and budget.seconds > 0:
            budget.is_spent = False
            await self.ask("delete", "", self._store.delete_many, keys)

    async def delete_many(self, keys: Iterable[str]) -> frozenset[str]:
        keys = list(keys)
        seconds = self._patience + len(keys) * DELETE_SECONDS_EACH
        return await self._insist("delete", keys[0] if keys else "", seconds, self._store.delete_many, keys)

    async def sweep(self, selector: Selector) -> int:
        return await self._insist("invalidate", "", SWEEP_SECONDS, self._store.sweep, selector)

    async def page(self, cursor: str, count: int) -> tuple[list[Stored], str]:
        return await self._insist("list", "", self._patience, self._store.page, cursor, count)

    async def close(self) -> None:
        await self._store.close()

    async def ask(self, stage: str, key: str, method: Callable[..., Awaitable[T]], *args: Any) -> T | None:
        """What `method` gives, within the budget of this call; None if the store is in trouble."""
        budget, token = BUDGET.get(), None
        if budget is None:
            token = self.start_call()
            budget = BUDGET.get()
            assert budget is not None
        try:
            breaker = self._breaker(stage)
            if budget.is_spent or budget.seconds <= 0:
                return None
            if (breaker.failures and not breaker.admits()) or self._is_unread(breaker):
                self._leave_alone(stage)
                return None
            is_inline = self.reads_inline and stage in _READS
            started = self._clock()
            try:
                budget.until = started + budget.seconds
                if self._has_own_timer or is_inline:
                    result = await method(*args)
                else:
                    result = await self._runtime.within(budget.seconds, method(*args))
            except Exception as error:
                budget.seconds -= self._clock() - started
                self._failed(stage, key, error, budget)
                return None
            taken = self._clock() - started
            if taken <= budget.seconds + LATE or is_inline or not self._runtime.can_be_held_up:
                budget.seconds -= taken
            if breaker.failures:
                self._succeeded(breaker)
            return result
        finally:
            put_back(BUDGET, token)

    def _is_unread(self, breaker: Breaker) -> bool:
        """Whether this is about writing to a store that is not even read."""
        return breaker is not self.breaker and self.breaker.state == "open"

    def _leave_alone(self, stage: str) -> None:
        if self._strict:
            cause = self.breaker.last_error or self.write_breaker.last_error
            raise InfrastructureError(f"the store is left alone, no {stage}: it failed several times") from cause

    def _succeeded(self, breaker: Breaker) -> None:
        if breaker.succeeded() and breaker is self.breaker:
            self.write_breaker.hurry()  # what can be read again can perhaps be written to

    def _breaker(self, stage: str) -> Breaker:
        return self.breaker if stage == "get" else self.write_breaker

    def _failed(self, stage: str, key: str, error: Exception, budget: Budget | None) -> None:
        breaker = self._breaker(stage)
        if isinstance(error, CodecError):  # one entry's fault: the store did answer
            self._succeeded(breaker)
        else:
            self.faults += 1
            if not isinstance(error, HeldUp):
                breaker.failed(error)
            if budget is not None:
                budget.is_spent = True
        self._report(stage, key, error)
        if self._strict and not isinstance(error, DamagedEntry):
            raise InfrastructureError(f"the store failed in {stage}: {type(error).__name__}") from error

    async def _insist(self, stage: str, key: str, seconds: float, method: Callable[..., Awaitable[T]], *args: Any) -> T:
        token = BUDGET.set(Budget.ending_in(seconds))
        try:
            if self._has_own_timer:
                result = await method(*args)
            else:
                result = await self._runtime.within(seconds, method(*args))
        except Exception as error:
            if not isinstance(error, CodecError):
                self.write_breaker.failed(error)
            self._report(stage, key, error)
            raise InfrastructureError(f"the store did not acknowledge the {stage}: {type(error).__name__}") from error
        finally:
            put_back(BUDGET, token)
        self.write_breaker.succeeded()
        return result
