"""Lookups as span events of OpenTelemetry (its API only): which SDK receives them is the application's matter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

try:
    from opentelemetry import trace
except ImportError as error:
    raise ImportError("tracing needs the extra 'otel': pip install '.[otel]'") from error

from aimemo.caches.interface import Cache
from aimemo.core.events import CacheEvent

KINDS: Final = ("hit", "miss", "stale", "coalesced")


def instrument(cache: Cache) -> Callable[[], None]:
    """Add an event `aimemo.lookup` to the current span for every lookup in a cache; gives what undoes it.

    Attributes: `aimemo.outcome`, `aimemo.operation`, `aimemo.key_digest`, and where known `aimemo.tier`, `aimemo.age`,
    `aimemo.seconds`, `aimemo.tokens`. No prompts, no answers. While instrumented, every hit takes the longer way.
    """
    for kind in KINDS:
        cache.on(kind, _tell)

    def undo() -> None:
        for kind in KINDS:
            cache.off(kind, _tell)

    return undo


def _tell(event: CacheEvent) -> None:
    span = trace.get_current_span()
    if span.is_recording():
        known = {"tier": event.tier, "age": event.age, "seconds": event.seconds, "tokens": event.tokens}
        span.add_event(
            "aimemo.lookup",
            {
                "aimemo.outcome": event.kind, "aimemo.operation": event.operation, "aimemo.key_digest": event.digest,
                **{f"aimemo.{name}": value for name, value in known.items() if value is not None},
            },
        )  # fmt: skip
