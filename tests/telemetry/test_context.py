"""Installed instrumentors find the call in progress, and what they record belongs to its trace."""

from time import monotonic
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Tracer, get_current_span

from handoff.app import open_app, open_telemetry
from handoff.server.calls import perform
from handoff.server.record import Subject
from handoff.settings import Settings
from handoff.telemetry import calls
from handoff.telemetry.calls import Arrival
from tests.agents import until
from tests.collector import Collector

SAMPLED = "00-11111111111111111111111111111111-2222222222222222-01"
UNSAMPLED = "00-55555555555555555555555555555555-6666666666666666-00"


class Instrumentor:
    """What an instrumentor's package declares; it gets the provider of tracers that instrumentors use."""

    name = "theirs"
    tracer: Tracer

    def load(self) -> Any:
        return lambda: self

    def instrument(self, tracer_provider: TracerProvider, **_: Any) -> None:
        self.tracer = tracer_provider.get_tracer("theirs")

    def uninstrument(self) -> None:
        pass


async def test_the_current_span_within_a_call_is_the_call_s_until_an_instrumentor_begins_its_own(
    collector: Collector,
) -> None:
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("theirs")
    async with open_telemetry(Settings(telemetry=True)):
        assert not get_current_span().get_span_context().is_valid
        with tracer.start_as_current_span("of the server"):  # as an instrumentor of ASGI would begin one around the call
            record = calls.begin({"traceparent": SAMPLED}, {})
            assert get_current_span().get_span_context() == record.context
            with tracer.start_as_current_span("outer") as outer, tracer.start_as_current_span("inner") as inner:
                assert get_current_span() is inner
                assert getattr(outer, "parent", None) == record.context
                assert getattr(inner, "parent", None) == outer.get_span_context()
            assert get_current_span().get_span_context() == record.context
            calls.leave()
            assert get_current_span().get_span_context() != record.context
    calls.begin({"traceparent": SAMPLED}, {})
    assert not get_current_span().get_span_context().is_valid, "without telemetry, nothing is done for instrumentors"
    calls.leave()


async def test_the_spans_of_an_instrumentor_are_exported_if_the_call_s_trace_is_kept(
    settings: Settings, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = Instrumentor()

    def entry_points(group: str) -> list[Instrumentor]:
        return [theirs] if group == "opentelemetry_instrumentor" else []

    monkeypatch.setattr("handoff.telemetry.otlp.entry_points", entry_points)
    watched = settings.model_copy(update={"telemetry": True})

    async def run() -> bytes:
        with theirs.tracer.start_as_current_span("GET"):
            return b"{}"

    async with open_telemetry(watched) as signals, open_app(watched, signals=signals) as app:
        for parent in (UNSAMPLED, SAMPLED):
            arrival = Arrival(monotonic(), {"traceparent": parent}, {})
            await perform(app, Subject("tools/call", "get_inbox"), arrival, run)
        await until(lambda: bool(collector.spans()))

    found = {span.name: span for span in collector.spans()}
    assert [span.name for span in collector.spans()].count("GET") == 1
    assert found["GET"].parent_span_id == found["tools/call get_inbox"].span_id
    assert found["GET"].trace_id.hex() == SAMPLED.split("-")[1]
