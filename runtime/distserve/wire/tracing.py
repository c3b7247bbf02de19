"""Trace context between the processes, and spans where an OpenTelemetry exporter is configured.

W3C `traceparent` is passed on in any case, so that a trace of the caller's reaches the engines.
Spans are made only when OTEL_EXPORTER_OTLP_ENDPOINT is set; the SDK is imported only then.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

ENDPOINT_VARIABLES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
)
_MAX_TRACESTATE = 512


class TracingUnavailable(Exception):
    """An exporter is configured, but its library is not installed."""


def trace_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """The valid trace context of a request's headers (names in lower case), else nothing."""
    parent = headers.get("traceparent", "")
    if not _TRACEPARENT.fullmatch(parent):
        return {}
    state = headers.get("tracestate", "")
    return {"traceparent": parent} | (
        {"tracestate": state} if 0 < len(state) <= _MAX_TRACESTATE else {}
    )


class Span(Protocol):
    """A piece of work. Entered as a context; an exception is recorded."""

    def headers(self) -> dict[str, str]:
        """Trace context for calls made within."""
        ...

    def child(self, name: str, **attributes: str | int | float) -> Any:
        """Context manager that yields the child's Span."""
        ...

    def set(self, **attributes: str | int | float) -> None: ...


class Tracing(Protocol):
    def span(self, name: str, incoming: Mapping[str, str], **attributes: str | int | float) -> Any:
        """Context manager that yields the Span; `incoming` are the request's headers."""
        ...

    def close(self) -> None:
        """Send what is left."""
        ...


class _PassingSpan:
    def __init__(self, context: dict[str, str]) -> None:
        self._context = context

    def headers(self) -> dict[str, str]:
        return self._context

    @contextmanager
    def child(self, name: str, **attributes: str | int | float) -> Iterator[Span]:
        yield self

    def set(self, **attributes: str | int | float) -> None:
        pass


class PassingTracing:
    """No exporter: the caller's context goes through unchanged."""

    @contextmanager
    def span(
        self, name: str, incoming: Mapping[str, str], **attributes: str | int | float
    ) -> Iterator[Span]:
        yield _PassingSpan(trace_headers(incoming))

    def close(self) -> None:
        pass


class _RecordingSpan:
    def __init__(self, tracer: Any, span: Any) -> None:
        self._tracer = tracer
        self._span = span

    def headers(self) -> dict[str, str]:
        from opentelemetry.trace import set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        carrier: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(carrier, set_span_in_context(self._span))
        return carrier

    @contextmanager
    def child(self, name: str, **attributes: str | int | float) -> Iterator[Span]:
        from opentelemetry.trace import SpanKind, set_span_in_context

        with self._tracer.start_as_current_span(
            name,
            context=set_span_in_context(self._span),
            kind=SpanKind.CLIENT,
            attributes={f"distserve.{k}": v for k, v in attributes.items()},
        ) as span:
            yield _RecordingSpan(self._tracer, span)

    def set(self, **attributes: str | int | float) -> None:
        self._span.set_attributes({f"distserve.{k}": v for k, v in attributes.items()})


class RecordingTracing:
    """Spans over an OpenTelemetry provider."""

    def __init__(self, provider: Any) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("distserve")

    @contextmanager
    def span(
        self, name: str, incoming: Mapping[str, str], **attributes: str | int | float
    ) -> Iterator[Span]:
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        parent = TraceContextTextMapPropagator().extract(trace_headers(incoming))
        with self._tracer.start_as_current_span(
            name,
            context=parent,
            kind=SpanKind.SERVER,
            attributes={f"distserve.{k}": v for k, v in attributes.items()},
        ) as span:
            yield _RecordingSpan(self._tracer, span)

    def close(self) -> None:
        self._provider.shutdown()


def setup_tracing(process: str, environment: Mapping[str, str]) -> Tracing:
    """Called once by a process's main. Raises TracingUnavailable."""
    if not any(environment.get(name) for name in ENDPOINT_VARIABLES):
        return PassingTracing()
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise TracingUnavailable(
            "OTEL_EXPORTER_OTLP_ENDPOINT is set, but OpenTelemetry is not installed, "
            "in a checkout: pip install '.[tracing]'; or unset the variable"
        ) from error
    # What the environment says (OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES) goes first.
    named = environment.get("OTEL_SERVICE_NAME") or f"distserve-{process}"
    provider = TracerProvider(resource=Resource.create({"service.name": named}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return RecordingTracing(provider)
