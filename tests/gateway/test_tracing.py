"""Trace context goes through; spans are made only where an exporter is configured."""

import builtins
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from distserve.wire.tracing import (
    PassingTracing,
    RecordingTracing,
    TracingUnavailable,
    setup_tracing,
    trace_headers,
)

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"


@pytest.mark.parametrize(
    "bad",
    ["", "00-0-0-0", PARENT[:-1], f"00-{'0' * 32}-00f067aa0ba902b7-01",
     f"00-{TRACE}-{'0' * 16}-01", f"ff-{TRACE}-00f067aa0ba902b7-01", PARENT.upper()],
)  # fmt: skip
def test_only_a_valid_context_is_taken_over(bad: str) -> None:
    assert trace_headers({"traceparent": bad, "tracestate": "a=b"}) == {}
    good = {"traceparent": PARENT, "tracestate": "a=b"}
    assert trace_headers(good | {"other": "x"}) == good


async def test_the_callers_context_reaches_the_engines(house: Any) -> None:
    body = {"model": "test", "prompt": "hello", "max_tokens": 2}
    await house.post("/v1/completions", body, {"traceparent": PARENT})
    assert [e.headers[0]["traceparent"] for e in house.engines] == [PARENT, PARENT]


async def test_a_span_for_the_request_and_one_for_each_leg(houses: Any) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    house = await houses(tracing=RecordingTracing(provider))
    body = {"model": "test", "prompt": "hello", "max_tokens": 2}
    await house.post("/v1/completions", body, {"traceparent": PARENT, "x-request-id": "mine"})
    await house.until(lambda: len(exporter.get_finished_spans()) == 3)
    spans = {span.name: span for span in exporter.get_finished_spans()}
    root = spans["POST /v1/completions"]
    assert root.parent is not None and f"{root.parent.span_id:x}" == "f067aa0ba902b7"
    assert root.attributes is not None
    assert root.attributes["distserve.request_id"] == "mine"
    assert root.attributes["distserve.status"] == 200
    for engine, phase in zip(house.engines, ("prefill", "decode"), strict=True):
        leg = spans[f"leg {phase}"]
        assert leg.parent is not None and leg.parent.span_id == root.context.span_id
        assert f"{leg.context.trace_id:032x}" == TRACE
        sent = f"00-{TRACE}-{leg.context.span_id:016x}-01"
        assert engine.headers[0]["traceparent"] == sent


def test_without_an_exporter_nothing_is_imported() -> None:
    assert isinstance(setup_tracing("gateway", {}), PassingTracing)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **named: Any) -> Any:
        if name.startswith("opentelemetry"):
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(TracingUnavailable, match=r"\.\[tracing\]"):
        setup_tracing("gateway", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"})


def test_an_exporter_makes_spans() -> None:
    tracing = setup_tracing("gateway", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"})
    assert isinstance(tracing, RecordingTracing)
    tracing.close()
