"""The management API: a FastAPI router for one's own app, and an app of its own.

`uvicorn aimemo.management.api:app` serves the process's default cache, with the keys of the environment.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

try:
    from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request, Response
    from fastapi import Path as InPath
    from fastapi.responses import FileResponse, RedirectResponse
    from pydantic import BaseModel
except ImportError as error:
    raise ImportError("the management API needs the extra 'server': pip install '.[server]'") from error

from aimemo.caches.interface import Cache
from aimemo.core.aio import TaskRuntime
from aimemo.management.problems import Keys, ProblemRoute, refuse_other_origins, responses
from aimemo.management.prometheus import CONTENT_TYPE, exposition
from aimemo.management.service import MAX_NAME, PAGE, Operations
from aimemo.setup.config import get_cache

PREFIX: Final = "/internal/cache"
SAMPLE_SECONDS: Final = 5.0

_PAGE: Final = Path(__file__).parent / "page"
_FILES: Final = {
    "index.html": "text/html", "page.js": "text/javascript", "page.css": "text/css",
    "uplot.js": "text/javascript", "uplot.css": "text/css", "uplot.LICENSE": "text/plain",
}  # fmt: skip
_POLICY: Final = (
    "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; "
    "frame-ancestors 'none'; base-uri 'none'"
)

Name = Annotated[str | None, Query(min_length=1, max_length=MAX_NAME)]
Cursor = Annotated[str, Query(pattern=r"^(?:[0-9]{1,6}:)?[0-9]{0,20}$")]
Digest = Annotated[str, InPath(pattern="^[0-9a-f]{32}$")]


class Invalidated(BaseModel):
    """What an invalidation removed."""

    message: str
    keys_invalidated: int


class Deleted(BaseModel):
    """Whether an entry was there to be deleted."""

    deleted: bool


class EntryShown(BaseModel):
    """An entry without its value; `ttl` is None if it never expires, `hits` where they are not known."""

    digest: str
    operation: str
    size_raw: int
    size_stored: int
    age: float
    ttl: float | None
    call_seconds: float
    hits: int | None
    key: str | None = None
    value: str | None = None


class EntryPage(BaseModel):
    """Some entries, and the cursor for the next ones."""

    entries: list[EntryShown]
    cursor: str | None


class Health(BaseModel):
    """Whether the process runs, and whether the store answers."""

    status: str


def create_router(
    cache: Cache, api_keys: Sequence[str] = (), *, protect_all: bool = False, expose_values: bool = False,
    operations: Operations | None = None,
) -> APIRouter:  # fmt: skip
    """The routes for one's own app: `app.include_router(create_router(cache, api_keys=[…]))`.

    Args:
        api_keys: any of them opens what changes or lists entries. Without one these routes do not exist.
        protect_all: a key is needed for reading too, the page and `/health` excepted.
        expose_values: show keys and values of single entries to who has a key.
    """
    keys = Keys([api_keys] if isinstance(api_keys, str) else api_keys)
    work = operations or Operations(cache)
    needs_key = [Depends(keys.require)]
    router = APIRouter(
        prefix=PREFIX, route_class=ProblemRoute, dependencies=[Depends(refuse_other_origins)], tags=["cache"],
        responses=responses(403),
    )  # fmt: skip
    reading = APIRouter(route_class=ProblemRoute, dependencies=needs_key if protect_all else [])
    _add_reading(reading, work, responses(401) if protect_all else {})
    router.include_router(reading)
    _add_health(router, work)
    if keys:
        steering = APIRouter(route_class=ProblemRoute, dependencies=needs_key, responses=responses(401, 422, 503))
        _add_steering(steering, work, expose_values)
        router.include_router(steering)
    _add_page(router)
    return router


def create_app(cache: Cache, api_keys: Sequence[str] = (), **options: Any) -> FastAPI:
    """An app with the routes of `create_router`, which opens and closes the cache and samples how it does."""
    work = Operations(cache)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await cache.connect()
        async with sampling(work):
            yield
        work.close()
        await cache.close()

    made = FastAPI(
        title="aimemo", summary="What a cache of AI answers does", lifespan=lifespan, docs_url=None, redoc_url=None
    )
    made.include_router(create_router(cache, api_keys, operations=work, **options))
    return made


@contextlib.asynccontextmanager
async def sampling(work: Operations) -> AsyncIterator[None]:
    """Sample every few seconds while the block runs, for the charts of the page."""
    is_running = True

    async def sample() -> None:
        try:
            while is_running:
                await work.sample()
                await runtime.wait_at_most(SAMPLE_SECONDS, stopped)
        finally:
            ended.wake()

    runtime = TaskRuntime()
    stopped, ended = runtime.waiter(), runtime.waiter()
    runtime.spawn(sample())
    try:
        yield
    finally:
        is_running = False
        stopped.wake()
        await runtime.wait_at_most(SAMPLE_SECONDS, ended)


def _add_reading(router: APIRouter, work: Operations, also: dict[int | str, dict[str, Any]]) -> None:
    @router.get("/metrics", responses=also)
    async def metrics() -> dict[str, Any]:
        """Counts under the names of the seeds' documents; `cache_hit_rate` is from 0 to 1."""
        return work.metrics()

    @router.get(
        "/metrics/prometheus", responses={200: {"content": {"text/plain": {}}}, **also}, response_class=Response
    )
    async def metrics_for_prometheus() -> Response:
        """Counts in the text format of Prometheus."""
        return Response(exposition(work), media_type=CONTENT_TYPE)

    @router.get("/status", responses=also)
    async def status() -> dict[str, Any]:
        """Whether the store answers, what this process holds, how it went. The same shape on every backend."""
        return await work.status()

    @router.get("/stats", responses={**responses(422), **also})
    async def stats(operation: Name = None) -> dict[str, Any]:
        """The counts in all, or of one operation."""
        return work.stats(operation).as_dict()

    @router.get("/history", responses=also)
    async def history() -> list[dict[str, Any]]:
        """Samples of late, oldest first."""
        return work.history()

    @router.get("/invalidation-stats", responses=also)
    async def invalidation_stats() -> dict[str, Any]:
        """How often something was invalidated, by kind, and how many entries that removed."""
        return work.invalidation_stats()


def _add_health(router: APIRouter, work: Operations) -> None:
    @router.get("/health")
    async def health() -> Health:
        """The process runs."""
        return Health(status="ok")

    @router.get("/ready", responses=responses(503))
    async def ready() -> Health:
        """The store answers."""
        if not await work.cache.ping():
            raise HTTPException(503, "the store does not answer; calls go through uncached")
        return Health(status="ready")


def _add_steering(router: APIRouter, work: Operations, expose_values: bool) -> None:
    @router.post("/invalidate")
    async def invalidate(pattern: Name = None, operation: Name = None, tag: Name = None) -> Invalidated:
        """Remove the entries that a glob, an operation or a tag means: exactly one of the three."""
        count = await work.invalidate(pattern=pattern, operation=operation, tag=tag)
        meant = next(
            f"{kind} {name!r}" for kind, name in (("pattern", pattern), ("operation", operation), ("tag", tag)) if name
        )
        return Invalidated(message=f"{count} entries invalidated by {meant}", keys_invalidated=count)

    @router.get("/entries")
    async def entries(
        cursor: Cursor = "", limit: Annotated[int, Query(ge=1, le=1000)] = PAGE,
        operation: Name = None,
    ) -> EntryPage:  # fmt: skip
        """Some entries, never their keys or values, and the cursor for the next ones."""
        return EntryPage.model_validate(await work.entries(cursor, limit, operation))

    @router.get("/entries/{digest}", responses=responses(404))
    async def entry(digest: Digest) -> EntryShown:
        """One entry."""
        found = await work.entry(digest, with_value=expose_values)
        if found is None:
            raise HTTPException(404, "there is no such entry")
        return EntryShown.model_validate(found)

    @router.delete("/entries/{digest}")
    async def delete(digest: Digest) -> Deleted:
        """Remove one entry."""
        return Deleted(deleted=await work.delete(digest))


def _add_page(router: APIRouter) -> None:
    @router.get("", include_in_schema=False)
    async def to_page(request: Request) -> RedirectResponse:
        return RedirectResponse(f"{request.url.path}/")

    @router.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return _file("index.html")

    @router.get("/page/{name}", include_in_schema=False)
    async def page_file(name: str) -> FileResponse:
        if name not in _FILES:
            raise HTTPException(404, "there is no such file")
        return _file(name)


def _file(name: str) -> FileResponse:
    headers = {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache"}
    return FileResponse(_PAGE / name, media_type=_FILES[name], headers=headers)


def keys_of_environment() -> list[str]:
    """`AIMEMO_API_KEYS`, and the seeds' `API_KEY` and `ADDITIONAL_API_KEYS`: keys with commas between them."""
    texts: Iterable[str] = (os.environ.get(name, "") for name in ("AIMEMO_API_KEYS", "API_KEY", "ADDITIONAL_API_KEYS"))
    return [key.strip() for text in texts for key in text.split(",") if key.strip()]


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    made = globals()["app"] = create_app(get_cache(), keys_of_environment())
    return made
