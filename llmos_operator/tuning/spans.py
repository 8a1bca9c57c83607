"""Spans of a run, in the trace of its placement: the load with its stages, learning with validations and checkpoints, the result.

An update is none: there may be a hundred thousand. Memory that ran short and a checkpoint a run goes on from are events
of `learn`. Figures of the run are sizes and counts; nothing of the data is in a span.
"""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from llmos_operator.api.conditions import Reason
from llmos_operator.errors import Permanent, Retryable
from llmos_operator.observability import tracing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llmos_operator.observability.tracing import Attributes, Span, Tracer
    from llmos_operator.tuning.progress import Report

RUN: Final = "tune"
LOAD, DATA, LEARN, VALIDATION, CHECKPOINT, RESULT = (
    "load",
    "data",
    "learn",
    "validation",
    "checkpoint",
    "result",
)
RETREAT, RESUMED = "llmos.retreat", "llmos.resumed"  # events
_SHOWN: Final = 200  # spans of one name in a run: a week has thousands of checkpoints


class Stopped(Exception):  # noqa: N818 - it is no error
    """The run was asked to end and has saved what it may save."""


class RunSpans:
    """The spans of one process. Used by one thread; a part that is begun within another lies below it."""

    def __init__(self, tracer: Tracer = tracing.OFF, parent: str = "") -> None:
        """``parent`` is the placement's span, as a traceparent; "" begins a trace."""
        self._tracer = tracer
        self._parent = tracing.parse(parent)
        self._made: Counter[str] = Counter()
        self._stage = tracing.NO_SPAN

    @contextmanager
    def part(self, name: str, attributes: Attributes | None = None) -> Iterator[Span]:
        """Time a part of the run; an error that leaves it is told by its reason."""
        self._made[name] += 1
        if not self._tracer.on or self._made[name] > _SHOWN:
            yield tracing.NO_SPAN
            return
        above = tracing.current().context or self._parent
        span = self._tracer.start(name, parent=above, attributes=attributes)
        try:
            with tracing.entered(span):
                yield span
        except Stopped:
            raise
        except Exception as error:
            span.fail(reason_of(error))
            raise
        finally:
            span.end()

    def stage(self, name: str) -> None:
        """Begin a stage of the load, which ends the one before; "" begins none."""
        self._stage.end()
        self._stage = tracing.NO_SPAN
        if name and self._tracer.on:
            self._stage = self._tracer.start(f"{LOAD} {name}", parent=tracing.current().context)


def reason_of(error: Exception) -> str:
    """Return the reason of a failure, as the pod's termination message has it."""
    if isinstance(error, Permanent):
        return error.reason
    if isinstance(error, Retryable):
        return Reason.DOWNLOAD_FAILED
    return Reason.OUT_OF_MEMORY if isinstance(error, MemoryError) else Reason.FAILED


def learned(span: Span, report: Report) -> None:
    """Say how far a run has come when its learning ends."""
    span.set(
        {
            "llmos.updates": report.step,
            "llmos.updates.planned": report.total_steps,
            "llmos.samples": report.samples,
            "llmos.tokens": report.tokens,
            "llmos.checkpoints": report.checkpoints,
            "llmos.bytes.peak": report.peak_bytes,
        }
    )
