"""An LLM service whose endpoint calls a decorated function, with the management API and its page beside it.

`make serve`, then open /internal/cache/ on the printed address. The key of this example is `demo-key`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections.abc import AsyncIterator

from fastapi import FastAPI

import aimemo
from aimemo.management.api import create_router, sampling
from aimemo.management.service import Operations

cache = aimemo.configure(operation_ttls={"summarize": 86_400, "sentiment": 3600})
operations = Operations(cache)


@aimemo.cached_ai_call(operation="summarize")
async def summarize(text: str, *, model: str = "small") -> dict[str, str]:
    """Stands in for a call of a model."""
    await asyncio.sleep(random.uniform(0.3, 0.8))
    return {"summary": " ".join(text.split()[:12]), "model": model}


@aimemo.cached_ai_call(operation="sentiment")
async def sentiment(text: str) -> str:
    """Stands in for another one."""
    await asyncio.sleep(random.uniform(0.1, 0.3))
    return "positive" if len(text) % 2 else "negative"


@contextlib.asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """One cache for the process, opened and closed with the app."""
    async with cache, sampling(operations):
        yield


app = FastAPI(title="LLM service", lifespan=lifespan)
keys = [key for key in os.environ.get("AIMEMO_API_KEYS", "demo-key").split(",") if key]
app.include_router(create_router(cache, api_keys=keys, operations=operations))


@app.post("/summarize")
async def summarize_text(text: str, model: str = "small") -> dict[str, str]:
    """The summary of a text. The second time it costs nothing."""
    return await summarize(text, model=model)


@app.post("/sentiment")
async def sentiment_of(text: str) -> str:
    """How a text sounds."""
    return await sentiment(text)
