"""Spans: how long which part of one request or one placement took, for whoever collects them over OTLP.

A process gets one :class:`Tracer`. Without an address to send to it is :data:`OFF`, which does nothing; only a tracer that
is on imports OpenTelemetry (`observability.otel`). Callers ask `tracer.on` before they make attributes, so that switched
off costs a look at one field.

Spans hold sizes, times, names of objects and words of closed lists: never a prompt, an answer or a key.
W3C Trace Context, level 1: https://www.w3.org/TR/trace-context/
"""

from __future__ import annotations

import os
import re
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

from llmos_operator.errors import Permanent
from llmos_operator.observability.logging import context, logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

log = logger(__name__)

Value: TypeAlias = str | int | float | bool | tuple[str, ...]
Attributes: TypeAlias = "Mapping[str, Value]"

TRACEPARENT: Final = "traceparent"
TRACESTATE: Final = "tracestate"
ERROR_TYPE: Final = "error.type"
# The standard's variables that name a receiver; https://opentelemetry.io/docs/specs/otel/protocol/exporter/
_ADDRESSES: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_PARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_SAMPLED: Final = 1  # bit of trace-flags
_STATE_BYTES: Final = 512  # what must be passed on at least; longer ones are dropped


class BadTracing(Permanent):
    """Spans cannot be sent as asked. The message names setting, value and fix; the process must not start."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reason="BadSettings")


class Kind(StrEnum):
    """Which side of a call a span is."""

    INTERNAL = "internal"
    SERVER = "server"
    CLIENT = "client"


@dataclass(frozen=True, slots=True)
class TraceContext:
    """Who a span is, in this process and over the wire. Identities are lower-case hex of 32 and 16 digits."""

    trace_id: str
    span_id: str
    sampled: bool = True
    state: str = ""  # tracestate: other systems' words, passed on unread

    @property
    def parent(self) -> str:
        """The header `traceparent` for what this span calls."""
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.sampled else '00'}"


class Span(Protocol):
    """One timed piece of work. Times are seconds since 1970; None is now."""

    @property
    def context(self) -> TraceContext | None:
        """Its identity, None where tracing is off."""
        ...

    @property
    def recording(self) -> bool:
        """Whether anybody will see it: attributes of others need not be made."""
        ...

    def set(self, attributes: Attributes) -> None:
        """Add attributes."""
        ...

    def event(self, name: str, attributes: Attributes | None = None, at: float | None = None) -> None:
        """Note a moment within it."""
        ...

    def fail(self, kind: str) -> None:
        """Say that it ended in an error: ``kind`` is a word of a closed list (`error.type`), never a message."""
        ...

    def end(self, at: float | None = None) -> None:
        """End it; nothing may be added afterwards."""
        ...


class Tracer(Protocol):
    """Makes spans and sends the ended ones away. Never raises, never waits."""

    @property
    def on(self) -> bool:
        """Whether spans are made at all."""
        ...

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
        """Begin a span under ``parent``, the first of a new trace without one.

        ``identity`` sets the span's own id, and the trace's without a parent, instead of random ones.
        """
        ...

    def moment(self, monotonic: float) -> float:
        """Return a moment of the monotonic clock in seconds since 1970."""
        ...

    def close(self) -> None:
        """Send what is left, for a few seconds at most."""
        ...


class _NoSpan:
    """Stands for a span where tracing is off."""

    context = None
    recording = False

    def set(self, attributes: Attributes) -> None:
        pass

    def event(self, name: str, attributes: Attributes | None = None, at: float | None = None) -> None:
        pass

    def fail(self, kind: str) -> None:
        pass

    def end(self, at: float | None = None) -> None:
        pass


class _Off:
    """The tracer that does nothing."""

    on = False

    def start(
        self,
        name: str,  # noqa: ARG002 - as Tracer has it
        kind: Kind = Kind.INTERNAL,  # noqa: ARG002 - same
        *,
        parent: TraceContext | None = None,  # noqa: ARG002 - same
        identity: TraceContext | None = None,  # noqa: ARG002 - same
        attributes: Attributes | None = None,  # noqa: ARG002 - same
        at: float | None = None,  # noqa: ARG002 - same
    ) -> Span:
        return NO_SPAN

    def moment(self, monotonic: float) -> float:
        return monotonic

    def close(self) -> None:
        pass


NO_SPAN: Final[Span] = _NoSpan()
OFF: Final[Tracer] = _Off()
_current: ContextVar[Span] = ContextVar("llmos_span", default=NO_SPAN)


def current() -> Span:
    """Return the span this code runs in, one that takes everything and keeps nothing if there is none."""
    return _current.get()


@contextmanager
def entered(span: Span) -> Iterator[None]:
    """Make ``span`` the current one inside, also for log lines, in this task and what it awaits."""
    token = _current.set(span)
    known = span.context
    try:
        if known is None:
            yield
        else:
            with context(trace_id=known.trace_id, span_id=known.span_id):
                yield
    finally:
        _current.reset(token)


def parse(parent: str | None, state: str | None = None) -> TraceContext | None:
    """Return what a caller's headers say of its span; None for none and for malformed ones, as the standard wants it."""
    found = _PARENT.fullmatch((parent or "").strip())
    if found is None:
        return None
    version, trace_id, span_id, flags, more = found.groups()
    if version == "ff" or (version == "00" and more) or not int(trace_id, 16) or not int(span_id, 16):
        return None
    kept = (state or "").strip()
    return TraceContext(
        trace_id,
        span_id,
        sampled=bool(int(flags, 16) & _SAMPLED),
        state=kept if len(kept) <= _STATE_BYTES and kept.isascii() and kept.isprintable() else "",
    )


def open_tracer(
    process: str,
    *,
    endpoint: str = "",
    ratio: float = 1.0,
    always: bool = False,
    count: Callable[[str, int], None],
    environ: Mapping[str, str] | None = None,
) -> Tracer:
    """Return the tracer of a process: OFF unless ``endpoint`` or the standard's variables name a receiver.

    ``ratio`` is the share of traces that begin here and are kept, unless OTEL_TRACES_SAMPLER says otherwise; with ``always``
    all are. ``count`` is told of spans by what became of them: ended, sent, failed. Raises BadTracing if ``endpoint`` is set and spans
    cannot be sent; where only variables ask for it, which may be meant for another program, that is a warning.
    """
    env = os.environ if environ is None else environ
    if not _wanted(endpoint, env):
        return OFF
    try:
        return _open(process, endpoint, ratio, always=always, count=count, env=env)
    except BadTracing as error:
        if endpoint:
            raise
        log.warning("no spans are sent", error=error)
        return OFF


def _wanted(endpoint: str, env: Mapping[str, str]) -> bool:
    if env.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    if env.get("OTEL_TRACES_EXPORTER", "").strip().lower() == "none":
        return False
    return bool(endpoint or any(env.get(name, "").strip() for name in _ADDRESSES))


def _open(
    process: str,
    endpoint: str,
    ratio: float,
    *,
    always: bool,
    count: Callable[[str, int], None],
    env: Mapping[str, str],
) -> Tracer:
    protocol = next((found for name in _PROTOCOLS if (found := env.get(name, "").strip())), "http/protobuf")
    if protocol != "http/protobuf":
        raise BadTracing(
            f"OTEL_EXPORTER_OTLP_PROTOCOL = {protocol!r} is not spoken here; set it to http/protobuf and name the "
            "receiver's HTTP port (4318)"
        )
    try:
        from llmos_operator.observability.otel import OtelTracer  # noqa: PLC0415 - only who wants spans pays for it
    except ModuleNotFoundError as missing:
        if missing.name is None or missing.name.startswith("llmos_operator"):
            raise
        raise BadTracing(
            f"tracing.endpoint = {endpoint!r} needs OpenTelemetry ({missing.name} is not installed): "
            "pip install 'llmos-operator[otel]', or leave the setting empty"
        ) from missing
    return OtelTracer(process, endpoint=endpoint, ratio=ratio, always=always, count=count)
