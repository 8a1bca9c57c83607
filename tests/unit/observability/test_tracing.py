"""Spans: identity, sampling, and receivers that are slow, broken or gone."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from llmos_operator.observability import tracing
from llmos_operator.observability.logging import JsonFormatter, logger
from llmos_operator.observability.tracing import OFF, BadTracing, Kind, TraceContext, open_tracer, parse
from llmos_operator.settings import BadSettings, GatewaySettings, load
from tests.support.otlp import receiver
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from llmos_operator.observability.tracing import Tracer
    from tests.support.otlp import Receiver

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"


@pytest.fixture(autouse=True)
def _no_tracing_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [one for one in os.environ if one.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")


@pytest.fixture
def collector() -> Iterator[Receiver]:
    with receiver() as made:
        yield made


@pytest.fixture
def opened() -> Iterator[Callable[..., tuple[Tracer, Counter[str]]]]:
    made: list[Tracer] = []

    def make(endpoint: str, **more: object) -> tuple[Tracer, Counter[str]]:
        counts: Counter[str] = Counter()

        def count(result: str, spans: int) -> None:
            counts[result] += spans

        made.append(open_tracer("test", endpoint=endpoint, count=count, **more))
        return made[-1], counts

    yield make
    for one in made:
        one.close()


# -------------------------------------------------------------------- traceparent


def test_a_callers_span_is_read_with_its_flags_and_state() -> None:
    assert parse(PARENT, "vendor=1") == TraceContext(TRACE, SPAN, sampled=True, state="vendor=1")
    assert parse(f" 00-{TRACE}-{SPAN}-00 ") == TraceContext(TRACE, SPAN, sampled=False)
    assert parse(f"01-{TRACE}-{SPAN}-01-future") == TraceContext(TRACE, SPAN)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "junk",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE[:-1]}g-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01\r\nx: y",
        "00-" + "a" * 100_000,
    ],
)
def test_a_malformed_span_is_none(header: str | None) -> None:
    assert parse(header, "vendor=1") is None


@pytest.mark.parametrize("state", ["x" * 600, "a=\x00", "a=ü"])
def test_a_state_that_must_not_be_passed_on_is_dropped(state: str) -> None:
    assert parse(PARENT, state) == TraceContext(TRACE, SPAN)


def test_a_span_tells_the_next_one_what_it_was_told() -> None:
    assert parse(TraceContext(TRACE, SPAN).parent) == TraceContext(TRACE, SPAN)
    assert parse(TraceContext(TRACE, SPAN, sampled=False).parent) == TraceContext(TRACE, SPAN, sampled=False)


# -------------------------------------------------------------------- on and off


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"},
        {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"},
    ],
)
def test_tracing_is_off_unless_a_receiver_is_named(env: dict[str, str]) -> None:
    assert open_tracer("test", count=lambda *_: None, environ=env) is OFF


def test_off_takes_everything_and_imports_nothing() -> None:
    code = (
        "import sys\n"
        "from llmos_operator.gateway import app\n"
        "from llmos_operator.observability import tracing\n"
        "tracer = tracing.open_tracer('gateway', count=print, environ={})\n"
        "span = tracer.start('x', attributes={'a': 1})\n"
        "with tracing.entered(span):\n"
        "    tracing.current().event('y'); tracing.current().fail('z'); span.set({'b': 2}); span.end()\n"
        "tracer.close()\n"
        "print(sorted(m for m in sys.modules if m.partition('.')[0] in {'opentelemetry', 'google', 'requests'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


ABSENT = (
    "import sys\n"
    "class A:\n"
    "    def find_spec(self, name, path=None, target=None):\n"
    "        if name.startswith('opentelemetry'):\n"
    "            raise ModuleNotFoundError('No module named ' + name, name=name)\n"
    "sys.meta_path.insert(0, A())\n"
    "from llmos_operator.observability import logging, tracing\n"
    "logging.setup()\n"
    "try:\n"
    "    print(tracing.open_tracer('t', endpoint=sys.argv[1], count=print) is tracing.OFF)\n"
    "except tracing.BadTracing as error:\n"
    "    print(error)\n"
)


def test_without_the_extra_the_setting_is_refused_and_a_variable_of_the_cluster_only_warned_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(endpoint: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", ABSENT, endpoint], capture_output=True, text=True, check=True
        )

    refused = run("http://127.0.0.1:4318").stdout
    assert "tracing.endpoint = 'http://127.0.0.1:4318'" in refused
    assert "pip install 'llmos-operator[otel]'" in refused
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    warned = run("")
    assert warned.stdout.strip() == "True"
    assert "no spans are sent" in warned.stderr


def test_grpc_is_refused_with_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with pytest.raises(BadTracing, match=r"OTEL_EXPORTER_OTLP_PROTOCOL = 'grpc'.*http/protobuf.*4318"):
        open_tracer("test", endpoint="http://127.0.0.1:4318", count=lambda *_: None)


@pytest.mark.parametrize(
    "endpoint",
    ["collector:4318", "ftp://c", "http://", "http://u:hidden@c:4318", "http://c:x", "http://c/?k=v"],
)
def test_a_bad_address_is_named_with_its_fix(endpoint: str, tmp_path: Path) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_text(json.dumps({"tracing": {"endpoint": endpoint}}))
    with pytest.raises(BadSettings, match=r"tracing.endpoint \(from .*like http://otel-collector"):
        load(GatewaySettings, str(path), {})


def test_the_settings_come_from_variables_too() -> None:
    env = {"LLMOS_TRACING__ENDPOINT": "http://c:4318/", "LLMOS_TRACING__SAMPLE_RATIO": "0.25"}
    tracing_settings = load(GatewaySettings, "", env).tracing
    assert (tracing_settings.endpoint, tracing_settings.sample_ratio) == ("http://c:4318", 0.25)
    with pytest.raises(BadSettings, match=r"tracing\.sampleRatio"):
        load(GatewaySettings, "", {"LLMOS_TRACING__SAMPLE_RATIO": "2"})


# -------------------------------------------------------------------- over the wire


def test_a_span_arrives_as_it_was_told(collector: Receiver, opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POD_NAME", "gateway-1")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=prod")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=blue")
    tracer, counts = opened(collector.url)
    above = tracer.start("above", Kind.SERVER, parent=parse(PARENT), at=100.0)
    below = tracer.start(
        "below", Kind.CLIENT, parent=above.context, attributes={"a": 1, "b": ("x", "y")}, at=101.0
    )
    below.event("moment", {"c": True}, at=102.0)
    below.fail("connect")
    below.end(103.0)
    above.end(104.5)
    outer, inner = collector.one("above"), collector.one("below")
    assert (outer.trace, outer.parent, outer.kind, outer.start, outer.end) == (
        TRACE,
        SPAN,
        "server",
        100,
        104.5,
    )
    assert (inner.trace, inner.parent, inner.kind, inner.status) == (TRACE, outer.id, "client", "error")
    assert inner.attributes == {"a": 1, "b": ["x", "y"], "error.type": "connect"}
    assert inner.events == [("moment", 102.0, {"c": True})]
    assert inner.resource["service.name"] == "llmos-test"
    assert inner.resource["k8s.pod.name"] == "gateway-1"
    assert inner.resource["deployment.environment.name"] == "prod"
    path, headers = collector.requests[0]
    assert path == "/v1/traces"
    assert headers["x-tenant"] == "blue"
    eventually(lambda: counts == {"ended": 2, "sent": 2}, f"both are counted: {counts}")


def test_an_identity_makes_a_span_the_same_whoever_tells_it(collector: Receiver, opened) -> None:
    tracer, _ = opened(collector.url, always=True)
    tracer.start("root", identity=TraceContext(TRACE, SPAN)).end()
    tracer.start("other").end()
    root, other = collector.one("root"), collector.one("other")
    assert (root.trace, root.id, root.parent) == (TRACE, SPAN, "")
    assert other.trace != TRACE


def test_the_share_is_of_traces_that_begin_here(collector: Receiver, opened) -> None:
    tracer, counts = opened(collector.url, ratio=0.0)
    dropped = tracer.start("dropped")
    assert not dropped.recording
    assert dropped.context is not None
    assert dropped.context.parent.endswith("-00")
    dropped.end()
    tracer.start("not wanted", parent=TraceContext(TRACE, SPAN, sampled=False)).end()
    tracer.start("wanted", parent=TraceContext(TRACE, SPAN)).end()
    collector.one("wanted")
    assert {one.name for one in collector.spans} == {"wanted"}
    assert counts["ended"] == 1


def test_the_standards_sampler_counts_where_it_is_set(
    collector: Receiver, opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    tracer, _ = opened(collector.url)
    assert not tracer.start("x", parent=TraceContext(TRACE, SPAN)).recording
    placements, _ = opened(collector.url, ratio=0.0, always=True)
    assert placements.start("x").recording


def test_log_lines_within_a_span_name_it(
    caplog: pytest.LogCaptureFixture, collector: Receiver, opened
) -> None:
    caplog.set_level(logging.INFO)
    tracer, _ = opened(collector.url)
    span = tracer.start("x")
    with tracing.entered(span):
        assert tracing.current() is span
        logger("llmos_operator.x").info("inside")
    logger("llmos_operator.x").info("outside")
    inside, outside = (
        json.loads(JsonFormatter().format(one)) for one in caplog.records if one.name == "llmos_operator.x"
    )
    assert (inside["trace_id"], inside["span_id"]) == (span.context.trace_id, span.context.span_id)
    assert "trace_id" not in outside


# -------------------------------------------------------------------- receivers in trouble


def test_a_receiver_that_refuses_costs_the_spans_and_nothing_else(
    collector: Receiver, opened, caplog: pytest.LogCaptureFixture
) -> None:
    collector.answer = 500
    tracer, counts = opened(collector.url)
    for _ in range(5):
        before = counts["failed"]
        tracer.start("lost").end()
        eventually(lambda before=before: counts["failed"] > before, f"counted as failed: {counts}")
    collector.answer = 200
    tracer.start("found").end()
    collector.one("found")
    assert counts["sent"] >= 1
    told = [one for one in caplog.records if one.name.startswith("opentelemetry")]
    assert len(told) <= 1, "a receiver in trouble is told once a minute"


def test_nobody_at_the_address_costs_the_spans_and_nothing_else(opened, monkeypatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    with socket.socket() as bound:  # bound, not listening: nobody else can take it
        bound.bind(("127.0.0.1", 0))
        tracer, counts = opened(f"http://127.0.0.1:{bound.getsockname()[1]}")
        tracer.start("lost").end()
        eventually(lambda: counts["failed"] == 1, f"counted as failed: {counts}")


def test_a_receiver_that_hangs_fills_a_bounded_queue_and_delays_nobody(
    collector: Receiver, opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "64")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "16")
    collector.gate.clear()
    tracer, counts = opened(collector.url)
    tracer.start("first").end()
    eventually(lambda: collector.requests, "the receiver hangs")
    for number in range(5000):
        tracer.start("many", attributes={"number": number}).end()
    assert counts["ended"] == 5001
    assert counts["sent"] == 0
    collector.gate.set()
    eventually(
        lambda: any(one.attributes["number"] == 4999 for one in collector.named("many")), "the last came"
    )
    assert len(collector.named("many")) <= 64, "the oldest were dropped"


def test_a_process_ends_in_spite_of_a_receiver_that_hangs(
    collector: Receiver, opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmos_operator.observability.otel.CLOSE_SECONDS", 0.2)
    collector.gate.clear()
    tracer, counts = opened(collector.url)
    tracer.start("lost").end()
    eventually(lambda: collector.requests, "the receiver hangs")
    tracer.close()  # the gate is still closed: only the limit lets this return
    assert counts["sent"] == 0
    tracer.start("late").end()  # and whoever comes late is not disturbed
