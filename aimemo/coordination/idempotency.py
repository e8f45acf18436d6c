"""`IdempotencyService`: a request that is sent again is not carried out again.

As in the IETF draft "The Idempotency-Key HTTP Header Field": one id stands for one payload; while the first request
is being carried out, others wait or are refused; then they get its result.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import time
from collections.abc import Callable
from typing import Any

from aimemo.coordination.json_text import from_json, to_json
from aimemo.core.canonical import canonical
from aimemo.core.fleet import pauses
from aimemo.core.policy import milliseconds_of, seconds_of
from aimemo.core.runtime import Failure
from aimemo.core.state import Unkeyable
from aimemo.errors import (
    AimemoError,
    CodecError,
    IdempotencyConflictError,
    InfrastructureError,
    LockLostError,
    UnkeyableArgumentError,
    ValidationError,
)
from aimemo.link.borrowed import Borrowed, in_world_of_client, tagged, text_of

log = logging.getLogger("aimemo")


class IdempotencyService:
    """Requests by id, and their results, in Redis.

    With an asyncio client all methods are awaitable, with a sync one they are plain. They raise
    `InfrastructureError` if Redis does not answer: whether a request was carried out is not guessed.

    Args:
        client: of the redis package; stays the user's.
        ttl: seconds for which a result is remembered.
        claim: seconds after which a worker that has died is taken over from. A living one renews its claim.
    """

    def __init__(self, client: Any, ttl: float = 86_400, *, claim: float = 10) -> None:
        self._redis = Borrowed(client)
        self._milliseconds = milliseconds_of("ttl", ttl)
        self._claim = milliseconds_of("claim", claim)

    @in_world_of_client
    async def is_duplicate(self, request_id: str) -> bool:
        """Whether a request with this id is being carried out, or has been. `run` asks and claims in one step."""
        return bool(await self._redis.ask("EXISTS", _key(request_id)))

    @in_world_of_client
    async def store_request(self, request_id: str, result: Any) -> bool:
        """Remember the result of a request. False if there is one already, or a worker that `run` it: it stays.

        Raises:
            CodecError: for a result that JSON cannot hold.
        """
        token = secrets.token_hex(16)
        return await self._settle(_key(request_id), token, self._milliseconds, to_json(result), "unclaimed")

    @in_world_of_client
    async def get_result(self, request_id: str) -> Any:
        """The result of a request; None if there is none."""
        text = await self._redis.ask("HGET", _key(request_id), "result")
        return None if text is None else from_json(text)

    @in_world_of_client
    async def run(self, request_id: str, payload: Any, function: Callable[[], Any], *, wait: float = 60) -> Any:
        """The result of a request: of `function`, called once for all who ask, or as it was stored.

        What `function` raises goes to its caller, and the request may be tried again. Two processes can call it
        only if the first one was stopped for longer than its claim; the late one is told by a `LockLostError`.

        Args:
            payload: what the request asks for, anything that can be an argument of a cached call.
            function: plain, or with an asyncio client also async; gives what JSON can hold.
            wait: seconds for which a request is waited for that somebody else carries out; 0 does not wait.

        Raises:
            IdempotencyConflictError: the id stands for another payload, or is still being carried out after `wait`.
            CodecError: JSON cannot hold the result.
            LockLostError, CodecError, InfrastructureError: after `function` was called, with its result as the
                error's `result`: it was not stored.
        """
        key, token, fingerprint = _key(request_id), secrets.token_hex(16), _fingerprint(payload)
        ends = time.monotonic() + seconds_of("wait", wait)
        waits = pauses()
        while True:
            state, *rest = await self._ask_for_claim(key, token, fingerprint)
            match state:
                case "other":
                    raise IdempotencyConflictError("this request id was used with another payload")
                case "done":
                    return from_json(rest[0])
                case "ours":
                    return await self._carry_out(key, token, function)
            if time.monotonic() >= ends:
                raise IdempotencyConflictError("this request is still being carried out")
            await self._redis.runtime.sleep(next(waits))

    async def _ask_for_claim(self, key: str, token: str, fingerprint: str) -> tuple[Any, ...]:
        try:
            state, *rest = await self._redis.run("claim", [key], token, self._claim, fingerprint)
        except Exception:
            raise
        except BaseException:  # cancelled: Redis may give us the claim
            self._redis.runtime.spawn(self._give_up(key, token))
            raise
        return text_of(state), *rest

    async def _carry_out(self, key: str, token: str, function: Callable[[], Any]) -> Any:
        working = _Working()
        self._redis.runtime.spawn(self._renew(key, token, working))
        try:
            result = await self._redis.runtime.attempt(function)
        except BaseException:  # cancelled
            self._redis.runtime.spawn(self._give_up(key, token))
            raise
        finally:
            working.end()
        if isinstance(result, Failure):
            await self._give_up(key, token)
            return result
        try:
            await self._store(key, token, result.value)
        except AimemoError as error:
            error.result = result.value  # type: ignore[attr-defined]
            raise
        return result.value

    async def _store(self, key: str, token: str, value: Any) -> None:
        try:
            text = to_json(value)
        except CodecError:
            await self._give_up(key, token)
            raise
        if not await self._settle(key, token, self._milliseconds, text):
            raise LockLostError("another worker took this request over: its result counts")

    async def _renew(self, key: str, token: str, working: _Working) -> None:
        while True:
            working.pause = self._redis.runtime.waiter()  # before the look: who ends the work wakes what it finds
            if working.is_over:
                return
            await self._redis.runtime.wait_at_most(self._claim / 3000, working.pause)
            try:
                if working.is_over or not await self._settle(key, token, self._claim):
                    return
            except InfrastructureError as error:
                log.info("the claim of a request could not be renewed: %s", error)

    async def _give_up(self, key: str, token: str) -> None:
        try:
            await self._settle(key, token, 0)
        except InfrastructureError as error:
            log.info("a request that failed can be tried again only after its claim: %s", error)

    async def _settle(self, key: str, token: str, milliseconds: int, *more: str) -> bool:
        return bool(await self._redis.run("settle", [key], token, milliseconds, *more))


class _Working:
    """Whether a function is over, and what whoever renews its claim waits for meanwhile."""

    is_over = False
    pause: Any = None

    def end(self) -> None:
        self.is_over = True
        if self.pause is not None:
            self.pause.wake()


def _key(request_id: str) -> str:
    if not isinstance(request_id, str) or not request_id:
        raise ValidationError("request_id must be a text that is not empty", {"request_id": "empty"})
    return tagged("request", request_id)


def _fingerprint(payload: Any) -> str:
    try:
        return hashlib.sha256(canonical(payload).encode("utf-8", "surrogatepass")).hexdigest()
    except Unkeyable as error:
        raise UnkeyableArgumentError(f"payload cannot be told from another: it holds {error}") from error
