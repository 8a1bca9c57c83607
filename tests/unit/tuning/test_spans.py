"""Spans of a run as a receiver gets them: what failed, what was only stopped, and how many there may be."""

import pytest

from llmos_operator.api.conditions import Reason
from llmos_operator.errors import Permanent, Retryable
from llmos_operator.observability.tracing import OFF, current, open_tracer
from llmos_operator.tuning.spans import CHECKPOINT, LEARN, RUN, RunSpans, Stopped
from tests.support.otlp import receiver

PLACEMENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def sent():
    """Run something with spans, and return what the receiver has got when the process has ended."""
    with receiver() as made:

        def go(work):
            tracer = open_tracer("tune", endpoint=made.url, always=True, count=lambda *_: None, environ={})
            try:
                work(RunSpans(tracer, PLACEMENT))
            finally:
                tracer.close()
            return made.spans

        yield go


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Permanent("no", reason="InvalidData"), "InvalidData"),
        (Retryable("later"), Reason.DOWNLOAD_FAILED.value),
        (MemoryError(), Reason.OUT_OF_MEMORY.value),
        (ZeroDivisionError("MARKER"), Reason.FAILED.value),
    ],
)
def test_a_failure_is_told_by_its_reason_on_the_part_and_on_the_run(sent, error, reason):
    def work(spans):
        with pytest.raises(type(error)), spans.part(RUN), spans.part(LEARN):
            raise error

    learn, run = sent(work)
    assert (learn.name, learn.parent, run.name) == (LEARN, run.id, RUN)
    assert {one.attributes["error.type"] for one in (learn, run)} == {reason}
    assert "MARKER" not in str([learn, run])


def test_a_run_that_was_asked_to_end_has_not_failed(sent):
    def work(spans):
        with pytest.raises(Stopped), spans.part(RUN):
            raise Stopped

    (run,) = sent(work)
    assert (run.status, run.attributes) == ("unset", {})
    assert (run.trace, run.parent) == tuple(PLACEMENT.split("-")[1:3])


def test_a_stage_of_the_load_ends_with_the_next(sent):
    def work(spans):
        with spans.part("load"):
            for name in ("Starting", "Loading", ""):
                spans.stage(name)

    first, second, load = sent(work)
    assert [one.name for one in (first, second)] == ["load Starting", "load Loading"]
    assert first.end <= second.start
    assert {first.parent, second.parent} == {load.id}


def test_a_long_run_has_a_bounded_number_of_spans(sent):
    def work(spans):
        for _ in range(250):
            with spans.part(CHECKPOINT):
                pass

    assert len(sent(work)) == 200


def test_switched_off_there_is_no_span():
    spans = RunSpans(OFF, PLACEMENT)
    with spans.part(RUN) as span:
        spans.stage("Loading")
        assert not span.recording
        assert current().context is None
