"""Errors of the API as problem details (RFC 9457), and what a caller may do."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Coroutine, Iterable
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import urlsplit

from fastapi import HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel

from aimemo.core.aio import TaskRuntime
from aimemo.errors import InfrastructureError, ValidationError

FAILURE_SECONDS: Final = 0.3
"""How long a refused key is kept waiting for its answer."""

_SAME_SITE: Final = ("same-origin", "none")


class Problem(BaseModel):
    """What went wrong, as in RFC 9457."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str


def responses(*codes: int) -> dict[int | str, dict[str, Any]]:
    """For the OpenAPI description: the errors of a route."""
    content = {"application/problem+json": {"schema": Problem.model_json_schema()}}
    return {code: {"description": HTTPStatus(code).phrase, "content": content} for code in codes}


def problem(status: int, detail: str, headers: Any = None) -> JSONResponse:
    body = Problem(title=HTTPStatus(status).phrase, status=status, detail=detail).model_dump()
    return JSONResponse(body, status, headers, "application/problem+json")


class ProblemRoute(APIRoute):
    """A route whose errors are problem details, in whatever app it is."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_problems(request: Request) -> Response:
            try:
                return await handle(request)
            except HTTPException as error:
                return problem(error.status_code, str(error.detail), error.headers)
            except RequestValidationError as error:
                faults = (f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
                return problem(422, "; ".join(faults))
            except ValidationError as error:
                return problem(422, error.message)
            except InfrastructureError as error:
                return problem(503, str(error))

        return handle_problems


async def refuse_other_origins(request: Request) -> None:
    """Pages of other sites may neither read nor steer.

    Raises:
        HTTPException: 403.
    """
    origin = request.headers.get("origin")
    is_other = origin is not None and urlsplit(origin).netloc != request.headers.get("host")
    if is_other or request.headers.get("sec-fetch-site", "none") not in _SAME_SITE:
        raise HTTPException(403, "requests from other origins are refused")


class Keys:
    """The API keys that open the door, of which any number may be in force at one time."""

    def __init__(self, keys: Iterable[str]) -> None:
        given = list(keys)
        if not all(isinstance(key, str) and key.strip() == key for key in given):
            raise ValidationError("api_keys must be strings without spaces around them", {"api_keys": "refused"})
        self._digests = [_digest(key.encode()) for key in given if key]

    def __bool__(self) -> bool:
        return bool(self._digests)

    async def require(self, request: Request) -> None:
        """Refuse who has no key, slowly.

        Raises:
            HTTPException: 401.
        """
        if not self._admit(request):
            await TaskRuntime().sleep(FAILURE_SECONDS)
            text = "give a valid key as X-API-Key or as a Bearer token"
            raise HTTPException(401, text, {"WWW-Authenticate": "Bearer"})

    def _admit(self, request: Request) -> bool:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        given = request.headers.get("x-api-key") or (token.strip() if scheme.lower() == "bearer" else "")
        digest = _digest(given.encode("latin-1", "replace"))
        # Every key is compared, each in constant time, so that the time says nothing about any.
        return sum([hmac.compare_digest(digest, known) for known in self._digests]) > 0


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
