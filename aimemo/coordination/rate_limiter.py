"""`RateLimiter`: no more than so much in any window of so many seconds, for all processes together."""

from __future__ import annotations

import functools
import inspect
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal, ParamSpec, TypeVar, cast

from aimemo.core.events import CacheEvent
from aimemo.core.policy import seconds_of
from aimemo.errors import InfrastructureError, RateLimitedError, ValidationError
from aimemo.link.borrowed import Borrowed, in_world_of_client, tagged

log = logging.getLogger("aimemo")

P = ParamSpec("P")
R = TypeVar("R")

MAX_WEIGHT: Final = 2**31
SHORTEST_PAUSE: Final = 0.001


@dataclass(frozen=True, slots=True)
class RateLimit:
    """What a limiter says of somebody: whether a request has room now, how much weight is left in the window, and
    in how many seconds there would be room (0 if there is)."""

    is_allowed: bool
    remaining: int
    retry_after: float


class RateLimiter:
    """A sliding window by the server's clock, exact: in no window is more admitted than the limit.

    With an asyncio client all methods are awaitable, with a sync one they are plain.

    Args:
        client: of the redis package; stays the user's.
        max_requests: the limit; with weights (tokens, say) of all of them together.
        window_seconds: how long the window is.
        name: keeps apart limiters that count the same names; those of other windows are apart anyway.
        when_away: whether requests are admitted (`open`) while Redis does not answer, or refused (`closed`).
        on_error: called with a `CacheEvent` of kind `error` whenever that decided.
    """

    def __init__(
        self, client: Any, max_requests: int, window_seconds: float, *, name: str = "limit",
        when_away: Literal["open", "closed"] = "open", on_error: Callable[[CacheEvent], Any] | None = None,
    ) -> None:  # fmt: skip
        if type(max_requests) is not int or not 1 <= max_requests <= MAX_WEIGHT:
            raise ValidationError("max_requests must be a positive integer", {"max_requests": max_requests})
        if when_away not in ("open", "closed"):
            raise ValidationError("when_away must be 'open' or 'closed'", {"when_away": when_away})
        self._window = int(seconds_of("window_seconds", window_seconds) * 1_000_000)
        if self._window < 1000:
            raise ValidationError("window_seconds must be at least 0.001", {"window_seconds": window_seconds})
        self._redis = Borrowed(client)
        self.max_requests = max_requests
        self.name = name
        self._admits_when_away = when_away == "open"
        self._on_error = on_error

    @property
    def is_async(self) -> bool:
        """Whether the methods are awaitable."""
        return self._redis.is_async

    @in_world_of_client
    async def is_allowed(self, who: str, weight: int = 1) -> bool:
        """Whether a request of `who` is admitted; if so, it is counted."""
        return (await self._admit(who, weight, secrets.token_hex(8))).is_allowed

    @in_world_of_client
    async def check(self, who: str, weight: int = 1) -> RateLimit:
        """Whether a request would be admitted. Nothing is counted."""
        return await self._admit(who, weight, "")

    @in_world_of_client
    async def acquire(self, who: str, weight: int = 1, deadline: float | None = None) -> bool:
        """Wait until a request is admitted, and count it. False if that would take longer than `deadline` seconds."""
        ends = time.monotonic() + (float("inf") if deadline is None else seconds_of("deadline", deadline))
        while True:
            limit = await self._admit(who, weight, secrets.token_hex(8))
            if limit.is_allowed:
                return True
            pause = max(limit.retry_after, SHORTEST_PAUSE)
            if time.monotonic() + pause > ends:
                return False
            await self._redis.runtime.sleep(pause)

    async def _admit(self, who: str, weight: int, token: str) -> RateLimit:
        keys = self._keys(who)
        if type(weight) is not int or not 1 <= weight <= self.max_requests:
            text = f"weight must be an integer from 1 to max_requests ({self.max_requests}): more is never admitted"
            raise ValidationError(text, {"weight": weight})
        try:
            admitted, left, wait = await self._redis.run("admit", keys, self._window, self.max_requests, weight, token)
        except InfrastructureError as error:
            return self._decide_alone(error)
        return RateLimit(bool(admitted), int(left), int(wait) / 1_000_000)

    def _keys(self, who: str) -> list[str]:
        if not isinstance(who, str):
            raise ValidationError("who must be a text", {"who": type(who).__name__})
        start = tagged("limit", f"{self.name}:{self._window}:{who}")
        return [start, f"{start}:sum"]

    def _decide_alone(self, error: InfrastructureError) -> RateLimit:
        decision = "open" if self._admits_when_away else "closed"
        log.warning("the rate limiter %r fails %s: %s", self.name, decision, error)
        if self._on_error is not None:
            cause = type(error.__cause__).__name__
            event = CacheEvent(kind="error", operation=self.name, reason=f"limiter_{decision}", error=cause)
            try:
                self._on_error(event)
            except Exception as error:
                log.warning("on_error of the rate limiter %r failed: %s", self.name, type(error).__name__)
        return RateLimit(self._admits_when_away, 0, 0.0 if self._admits_when_away else self._window / 1_000_000)


def rate_limited(
    limiter: RateLimiter, who: str | Callable[..., str] = "everybody", *, weight: int | Callable[..., int] = 1,
    deadline: float = 0,
) -> Callable[[Callable[P, R]], Callable[P, R]]:  # fmt: skip
    """Let a function be called only as a limiter allows. Under `@cached_ai_call`, hits spend nothing:

        @cached_ai_call(operation="summarize")
        @rate_limited(limiter, weight=lambda text: len(text) // 4)
        async def summarize(text: str) -> str: ...

    Args:
        limiter: over an asyncio client for an async function, over a sync one for a plain function.
        who: whose quota it is, or a function of the arguments that says so; `weight` likewise.
        deadline: seconds to wait for room.

    Raises:
        RateLimitedError: from the decorated function; its `retry_after` is in seconds.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        is_async = inspect.iscoroutinefunction(function)
        if is_async != limiter.is_async:
            kind = "an asyncio client" if is_async else "a sync client"
            raise ValidationError(f"this function needs a limiter over {kind}", {"limiter": "world"})

        def asked(args: Any, kwargs: Any) -> tuple[str, int]:
            name = who(*args, **kwargs) if callable(who) else who
            return name, weight(*args, **kwargs) if callable(weight) else weight

        def refused(limit: RateLimit) -> RateLimitedError:
            error = RateLimitedError(f"{limiter.name}: no room for this request for {limit.retry_after:.1f} s")
            error.retry_after = limit.retry_after
            return error

        @functools.wraps(function)
        def plain(*args: P.args, **kwargs: P.kwargs) -> R:
            name, share = asked(args, kwargs)
            if not limiter.acquire(name, share, deadline):
                raise refused(limiter.check(name, share))
            return function(*args, **kwargs)

        @functools.wraps(function)
        async def awaitable(*args: P.args, **kwargs: P.kwargs) -> Any:
            name, share = asked(args, kwargs)
            if not await limiter.acquire(name, share, deadline):
                raise refused(await limiter.check(name, share))
            return await cast(Any, function(*args, **kwargs))

        return cast(Callable[P, R], awaitable if is_async else plain)

    return decorate
