"""OpenTelemetry traces across all processes: nothing at all unless IMPRINT_TRACING says so.

The rest of the code knows three words: a `span` is work with a beginning and an end, `carried` is what a message takes
along so that the work that it causes belongs to the same trace, and `continued` takes that up on the other side. Where
spans go is said by OpenTelemetry's own variables (OTEL_EXPORTER_OTLP_ENDPOINT and its kin).
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

from core.settings import settings

HEADER = "traceparent"  # https://www.w3.org/TR/trace-context/
_LONGEST = 100  # a version 00 has 55 characters; what is much longer is nobody's


def check() -> None:
    """ValueError if traces are asked for and cannot be made."""
    if settings().tracing:
        try:
            _tracer(os.getpid())
        except ImportError as error:
            raise ValueError(f"install imprint[tracing] ({error.name} is missing)") from None


@contextmanager
def span(name: str, kind: str = "internal", **attributes: object) -> Iterator[Any]:
    """The block is a part of the present trace, or begins one. `kind`: internal, server, client, consumer, producer.

    An error is named by its class alone: its words may quote addresses.
    """
    begun = begin(name, kind, **attributes)
    failed: BaseException | None = None
    try:
        yield begun
    except BaseException as error:
        failed = error
        raise
    finally:
        end(begun, failed)


def begin(name: str, kind: str = "internal", **attributes: object) -> Any:
    """Open a span that `end` closes on the same thread; None where there are no traces."""
    if not settings().tracing:
        return None
    from opentelemetry import context, trace

    told = {f"imprint.{key}": value for key, value in attributes.items() if value is not None}
    opened = _tracer(os.getpid()).start_span(name, kind=trace.SpanKind[kind.upper()], attributes=told)
    return opened, context.attach(trace.set_span_in_context(opened))


def end(begun: Any, failed: BaseException | str | None = None) -> None:
    """Close what `begin` opened."""
    if begun is None:
        return
    from opentelemetry import context
    from opentelemetry.trace import Status, StatusCode

    opened, token = begun
    context.detach(token)
    if failed is not None:
        opened.set_status(Status(StatusCode.ERROR, failed if isinstance(failed, str) else type(failed).__name__))
    opened.end()


def name_job(begun: Any, job_id: str) -> None:
    """Say which job an open span is about, once that is known."""
    if begun is not None:
        begun[0].set_attribute("imprint.job_id", job_id)


def rename(begun: Any, name: str) -> None:
    """Name an open span by what it turned out to be."""
    if begun is not None:
        begun[0].update_name(name)


def carried() -> dict[str, str]:
    """What a message takes along: `traceparent`, or nothing."""
    if not settings().tracing:
        return {}
    carrier: dict[str, str] = {}
    _propagator().inject(carrier)
    return carrier


@contextmanager
def continued(carrier: Mapping[str, Any]) -> Iterator[None]:
    """The block belongs to the trace that a message has carried here; without one, to the present trace."""
    token = take_up(carrier)
    try:
        yield
    finally:
        put_down(token)


def take_up(carrier: Mapping[str, Any]) -> Any:
    """The same as two calls, for where a block cannot be: what this gives is for `put_down` on the same thread."""
    told = carrier.get(HEADER) if settings().tracing else None
    if not isinstance(told, str) or len(told) > _LONGEST:
        return None
    from opentelemetry import context

    return context.attach(_propagator().extract({HEADER: told}))


def put_down(token: Any) -> None:
    if token is not None:
        from opentelemetry import context

        context.detach(token)


def trace_id() -> str | None:
    """The present trace's, for logs."""
    if not settings().tracing:
        return None
    from opentelemetry import trace

    present = trace.get_current_span().get_span_context()
    return f"{present.trace_id:032x}" if present.is_valid else None


def flush() -> None:
    """Send what is held back: a process is about to end."""
    if settings().tracing:
        _provider(os.getpid()).force_flush(2000)


def _propagator() -> Any:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator()


def _tracer(pid: int) -> Any:
    return _provider(pid).get_tracer("imprint")


@cache
def _provider(_pid: int) -> Any:
    """Of this process: the thread that sends does not survive a fork."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    named = {} if "OTEL_SERVICE_NAME" in os.environ else {"service.name": "imprint"}
    provider = TracerProvider(resource=Resource.create(named))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider
