"""OpenTelemetry traces across all processes. Without IMPRINT_TRACING every function here does nothing.

A `span` is a piece of work with a beginning and an end. A message carries `current_headers`, and `continue_trace` on
the other side makes the work that the message causes part of the same trace. OpenTelemetry's own variables
(OTEL_EXPORTER_OTLP_ENDPOINT and others) say where spans are sent.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

from core.settings import settings

HEADER = "traceparent"  # https://www.w3.org/TR/trace-context/
_MAX_HEADER = 100  # version 00 has 55 characters; a much longer header is not a trace


def check() -> None:
    """Raise ValueError if tracing is on and its packages are not installed."""
    if settings().tracing:
        try:
            _tracer(os.getpid())
        except ImportError as error:
            raise ValueError(f"install imprint[tracing]: the module {error.name} is missing") from None


@contextmanager
def span(name: str, kind: str = "internal", **attributes: object) -> Iterator[Any]:
    """Record the block as a span of the current trace, or of a new one.

    `kind`: internal, server, client, consumer, producer. An error is recorded by its class alone, since its message may
    quote addresses.
    """
    opened = start_span(name, kind, **attributes)
    failed: BaseException | None = None
    try:
        yield opened
    except BaseException as error:
        failed = error
        raise
    finally:
        end_span(opened, failed)


def start_span(name: str, kind: str = "internal", **attributes: object) -> Any:
    """Open a span that `end_span` closes on the same thread; None where tracing is off."""
    if not settings().tracing:
        return None
    from opentelemetry import context, trace

    named = {f"imprint.{key}": value for key, value in attributes.items() if value is not None}
    started = _tracer(os.getpid()).start_span(name, kind=trace.SpanKind[kind.upper()], attributes=named)
    return started, context.attach(trace.set_span_in_context(started))


def end_span(opened: Any, failed: BaseException | str | None = None) -> None:
    """Close what `start_span` opened."""
    if opened is None:
        return
    from opentelemetry import context
    from opentelemetry.trace import Status, StatusCode

    started, token = opened
    context.detach(token)
    if failed is not None:
        started.set_status(Status(StatusCode.ERROR, failed if isinstance(failed, str) else type(failed).__name__))
    started.end()


def name_job(opened: Any, job_id: str) -> None:
    """Add the job's id to an open span."""
    if opened is not None:
        opened[0].set_attribute("imprint.job_id", job_id)


def rename(opened: Any, name: str) -> None:
    """Change the name of an open span."""
    if opened is not None:
        opened[0].update_name(name)


def current_headers() -> dict[str, str]:
    """The headers that carry the current trace in a message: `traceparent`, or none."""
    if not settings().tracing:
        return {}
    carrier: dict[str, str] = {}
    _propagator().inject(carrier)
    return carrier


@contextmanager
def continue_trace(carrier: Mapping[str, Any]) -> Iterator[None]:
    """The block belongs to the trace in a message's headers, or without one to the current trace."""
    token = attach_trace(carrier)
    try:
        yield
    finally:
        detach_trace(token)


def attach_trace(carrier: Mapping[str, Any]) -> Any:
    """Like `continue_trace` for code that cannot use a block. Pass the result to `detach_trace` on the same thread."""
    traceparent = carrier.get(HEADER) if settings().tracing else None
    if not isinstance(traceparent, str) or len(traceparent) > _MAX_HEADER:
        return None
    from opentelemetry import context

    return context.attach(_propagator().extract({HEADER: traceparent}))


def detach_trace(token: Any) -> None:
    """End what `attach_trace` began."""
    if token is not None:
        from opentelemetry import context

        context.detach(token)


def trace_id() -> str | None:
    """The id of the current trace, for logs."""
    if not settings().tracing:
        return None
    from opentelemetry import trace

    current = trace.get_current_span().get_span_context()
    return f"{current.trace_id:032x}" if current.is_valid else None


def flush() -> None:
    """Send the spans that are still buffered, because this process is about to end."""
    if settings().tracing:
        _provider(os.getpid()).force_flush(2000)


def _propagator() -> Any:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator()


def _tracer(pid: int) -> Any:
    return _provider(pid).get_tracer("imprint")


@cache
def _provider(_pid: int) -> Any:
    """The provider of this process. Each process needs its own, since its sending thread does not survive a fork."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    named = {} if "OTEL_SERVICE_NAME" in os.environ else {"service.name": "imprint"}
    provider = TracerProvider(resource=Resource.create(named))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider
