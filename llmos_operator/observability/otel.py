"""The tracer that sends spans: OpenTelemetry's SDK with OTLP over HTTP/protobuf.

Imported only by `observability.tracing`, and only when spans are wanted. Ended spans wait in a bounded queue
(OTEL_BSP_MAX_QUEUE_SIZE, 2048) for a thread of the SDK's; when the receiver is slow or gone the oldest are dropped, and
nothing but that thread waits. The SDK reads its own variables (OTEL_EXPORTER_OTLP_HEADERS, OTEL_BSP_*, OTEL_RESOURCE_ATTRIBUTES …).
"""

from __future__ import annotations

import logging as stdlib_logging
import os
import threading
import time
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

from opentelemetry import trace as api
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased, Sampler, TraceIdRatioBased

from llmos_operator import __version__
from llmos_operator.api import names
from llmos_operator.clock import Clock, SystemClock
from llmos_operator.observability.tracing import ERROR_TYPE, Kind, TraceContext

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from opentelemetry.sdk.trace import ReadableSpan

    from llmos_operator.observability.tracing import Attributes, Span

CLOSE_SECONDS: Final = 3.0  # for the last spans when a process ends
TROUBLE_SECONDS: Final = 60.0  # between log lines about a receiver that does not take spans
_NANO: Final = 1_000_000_000
_KINDS: Final = {
    Kind.INTERNAL: api.SpanKind.INTERNAL,
    Kind.SERVER: api.SpanKind.SERVER,
    Kind.CLIENT: api.SpanKind.CLIENT,
}
# What the pod's environment says of the process, by the attribute it becomes.
_ORIGIN: Final = {
    "k8s.pod.name": names.ENV_POD_NAME,
    "k8s.pod.uid": names.ENV_POD_UID,
    "k8s.namespace.name": names.ENV_POD_NAMESPACE,
    "k8s.node.name": names.ENV_NODE_NAME,
}
_identity: ContextVar[TraceContext | None] = ContextVar("llmos_span_identity", default=None)


class OtelTracer:
    """A :class:`~llmos_operator.observability.tracing.Tracer` on the SDK."""

    on = True

    def __init__(
        self,
        process: str,
        *,
        endpoint: str,
        ratio: float,
        always: bool,
        count: Callable[[str, int], None],
        clock: Clock | None = None,
    ) -> None:
        """``endpoint`` is the receiver's address without the path, "" to take the standard's variables."""
        self._clock = clock or SystemClock()
        exporter = OTLPSpanExporter(endpoint=f"{endpoint}/v1/traces" if endpoint else None)
        _quieten()
        self._provider = TracerProvider(
            sampler=_sampler(ratio, always=always),
            resource=_resource(process),
            shutdown_on_exit=False,  # close() does it, within its limit
            id_generator=_Identities(),
        )
        self._provider.add_span_processor(_Ended(count))
        self._provider.add_span_processor(BatchSpanProcessor(_Counted(exporter, count)))
        self._tracer = self._provider.get_tracer("llmos_operator", __version__)

    def start(
        self,
        name: str,
        kind: Kind = Kind.INTERNAL,
        *,
        parent: TraceContext | None = None,
        identity: TraceContext | None = None,
        attributes: Attributes | None = None,
        at: float | None = None,
    ) -> Span:
        """Begin a span."""
        token = _identity.set(identity)
        try:
            made = self._tracer.start_span(
                name,
                context=_under(parent),
                kind=_KINDS[kind],
                attributes=attributes,
                start_time=_nano(at),
            )
        finally:
            _identity.reset(token)
        return _Span(made, parent.state if parent is not None else "")

    def moment(self, monotonic: float) -> float:
        """Return a moment of the monotonic clock in seconds since 1970."""
        return self._clock.now() - (self._clock.monotonic() - monotonic)

    def close(self) -> None:
        """Send what is left, for a few seconds at most: the SDK's own end may take half a minute."""
        ending = threading.Thread(target=self._provider.shutdown, name="tracing-end", daemon=True)
        ending.start()
        ending.join(CLOSE_SECONDS)


class _Span:
    """A span of the SDK under our port."""

    __slots__ = ("_span", "context")

    def __init__(self, span: api.Span, state: str) -> None:
        self._span = span
        own = span.get_span_context()
        self.context = TraceContext(
            api.format_trace_id(own.trace_id),
            api.format_span_id(own.span_id),
            sampled=own.trace_flags.sampled,
            state=state,
        )

    @property
    def recording(self) -> bool:
        return self._span.is_recording()

    def set(self, attributes: Attributes) -> None:
        self._span.set_attributes(attributes)

    def event(self, name: str, attributes: Attributes | None = None, at: float | None = None) -> None:
        self._span.add_event(name, attributes, _nano(at))

    def fail(self, kind: str) -> None:
        self._span.set_attribute(ERROR_TYPE, kind)
        self._span.set_status(api.StatusCode.ERROR)

    def end(self, at: float | None = None) -> None:
        self._span.end(_nano(at))


class _Identities(RandomIdGenerator):
    """Random ids, but for spans that were given one."""

    def generate_trace_id(self) -> int:
        given = _identity.get()
        return int(given.trace_id, 16) if given is not None else super().generate_trace_id()

    def generate_span_id(self) -> int:
        given = _identity.get()
        return int(given.span_id, 16) if given is not None else super().generate_span_id()


class _Ended(SpanProcessor):
    """Counts the spans that should be sent."""

    def __init__(self, count: Callable[[str, int], None]) -> None:
        self._count = count

    def on_end(self, span: ReadableSpan) -> None:
        if span.context is not None and span.context.trace_flags.sampled:
            self._count("ended", 1)


class _Counted(SpanExporter):
    """Counts what became of spans; what ended and is neither sent nor failed waits or was dropped."""

    def __init__(self, inner: SpanExporter, count: Callable[[str, int], None]) -> None:
        self._inner = inner
        self._count = count

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._inner.export(spans)
        self._count("sent" if result is SpanExportResult.SUCCESS else "failed", len(spans))
        return result

    def shutdown(self) -> None:
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._inner.force_flush(timeout_millis)


class _Seldom(stdlib_logging.Filter):
    """Lets one line through in a while: a receiver that is gone for a day is one piece of news."""

    def __init__(self) -> None:
        super().__init__()
        self._last = float("-inf")

    def filter(self, record: stdlib_logging.LogRecord) -> bool:
        now = time.monotonic()
        if now - self._last < TROUBLE_SECONDS:
            return False
        self._last = now
        return super().filter(record)


def _quieten() -> None:
    """Bound what the SDK says of a receiver that does not take spans."""
    for name in (
        "opentelemetry.exporter.otlp.proto.http.trace_exporter",
        "opentelemetry.sdk._shared_internal",
    ):
        found = stdlib_logging.getLogger(name)
        if not any(isinstance(one, _Seldom) for one in found.filters):
            found.addFilter(_Seldom())


def _sampler(ratio: float, *, always: bool) -> Sampler | None:
    """Return the sampler; None lets the SDK read OTEL_TRACES_SAMPLER."""
    if always:
        return ALWAYS_ON
    if os.environ.get("OTEL_TRACES_SAMPLER", "").strip():
        return None
    return ParentBased(TraceIdRatioBased(ratio))


def _resource(process: str) -> Resource:
    """Return what all spans of the process have in common; OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES come first."""
    own = {"service.name": f"llmos-{process}", "service.version": __version__, "service.namespace": "llmos"}
    own |= {key: found for key, name in _ORIGIN.items() if (found := os.environ.get(name, ""))}
    return Resource.create(own).merge(OTELResourceDetector().detect())


def _under(parent: TraceContext | None) -> Context:
    """Return the SDK's context for a child of ``parent``; never the ambient one, which is not ours."""
    if parent is None:
        return Context()
    above = api.SpanContext(
        int(parent.trace_id, 16),
        int(parent.span_id, 16),
        is_remote=True,
        trace_flags=api.TraceFlags(api.TraceFlags.SAMPLED if parent.sampled else api.TraceFlags.DEFAULT),
    )
    return api.set_span_in_context(api.NonRecordingSpan(above), Context())


def _nano(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * _NANO)
