"""Lookups on spans: what is told, and what is not."""

from __future__ import annotations

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from aimemo import InMemoryCache, cached_ai_call
from aimemo.core.events import GATE
from aimemo.integrations.otel import instrument


async def test_lookups_are_events_of_the_current_span_without_prompts() -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    cache = InMemoryCache()
    undo = instrument(cache)

    @cached_ai_call(operation="qa", cache=cache)
    async def ask(text: str) -> str:
        return f"answer {text}"

    with provider.get_tracer("test").start_as_current_span("request"):
        await ask("canary")
        await ask("canary")
    await ask("canary")  # outside of any span
    [span] = exporter.get_finished_spans()
    outcomes = [(event.name, event.attributes["aimemo.outcome"]) for event in span.events]
    assert outcomes == [("aimemo.lookup", "miss"), ("aimemo.lookup", "hit")]
    assert span.events[1].attributes["aimemo.operation"] == "qa"
    assert "canary" not in span.to_json()
    undo()
    assert not GATE
