"""Telemetry over random histories: absent is never 0, health never forgets to return, batches never go back."""

from __future__ import annotations

import itertools
import json
from dataclasses import fields
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from llmos_operator.api.telemetry import TelemetryBatch, Verdict
from llmos_operator.telemetry import policy, report
from llmos_operator.telemetry.figures import DCGM, FIGURES
from llmos_operator.telemetry.health import DeviceHealth, Observation, fold
from llmos_operator.telemetry.ingest import BadBatch, Ingest
from llmos_operator.telemetry.metrics import DeviceMetrics, DeviceView
from llmos_operator.telemetry.node_health import NodeHealth
from llmos_operator.telemetry.policy import RULES, Action, Reason
from llmos_operator.telemetry.sample import (
    ClockReason,
    Counters,
    DeviceEvent,
    EventKind,
    Fault,
    FaultKind,
    Hang,
    RecoveryAction,
    Sample,
)
from llmos_operator.telemetry.xids import XIDS, Effect
from tests.support.devices import a_device, a_sample

HEALTHY = DeviceHealth(Verdict.HEALTHY, Reason.AS_EXPECTED)
NUMBERS = [
    f.name
    for f in fields(Sample)
    if f.name.endswith(("_bytes", "_percent", "_celsius", "_milliwatts", "_millijoules"))
]
COUNTS = [f.name for f in fields(Counters) if f.name not in {"at", "recovery_action"}]
WIRE = {
    "memoryTotalBytes": "memory_total_bytes",
    "memoryUsedBytes": "memory_used_bytes",
    "utilizationPercent": "utilization_percent",
    "temperatureCelsius": "temperature_celsius",
    "powerMilliwatts": "power_milliwatts",
    "energyMillijoules": "energy_millijoules",
}
APPLICATION = [code for code, xid in XIDS.items() if xid.effect is Effect.APPLICATION]


@st.composite
def partial_samples(draw: st.DrawFn) -> Sample:
    """A sample in which each value is either absent or above 0."""
    values: dict[str, Any] = {name: draw(st.none() | st.integers(1, 10**12)) for name in NUMBERS}
    counts: dict[str, Any] = {name: draw(st.none() | st.integers(1, 10**9)) for name in COUNTS}
    counters = draw(st.none() | st.just(Counters(0.0, **counts)))
    return Sample("GPU-a", 0.0, **values, counters=counters)


@given(partial_samples())
def test_an_absent_value_becomes_a_zero_nowhere(sample: Sample) -> None:
    view = DeviceView(a_device(), HEALTHY, sample)
    (entry,) = report.batch("n", 1, 1, [view])["devices"]
    for wire, name in WIRE.items():
        assert entry.get(wire) == getattr(sample, name), "told as it is, or not told"
    parsed = TelemetryBatch.model_validate_json(json.dumps(report.batch("n", 1, 1, [view])))
    assert all(getattr(parsed.devices[0], name) == getattr(sample, name) for name in WIRE.values())
    registry = CollectorRegistry()
    metrics = DeviceMetrics("n", dcgm=True)
    registry.register(metrics)
    metrics.show([view])
    told = {line.split("{")[0] for line in generate_latest(registry).decode().splitlines() if "{" in line}
    for figure in (*FIGURES, *DCGM):
        same = [other for other in (*FIGURES, *DCGM) if other.name == figure.name]
        assert (figure.name in told) == any(other.read(sample) is not None for other in same)


FAULTS = st.lists(st.sampled_from(list(FaultKind)), max_size=2)
EVENTS = st.lists(
    st.one_of(
        st.builds(DeviceEvent, st.just("GPU-a"), st.just(EventKind.XID), st.integers(0, 200)),
        st.builds(DeviceEvent, st.just("GPU-a"), st.sampled_from(list(EventKind)), st.just(0)),
    ),
    max_size=2,
)


@st.composite
def observations(draw: st.DrawFn) -> Observation:
    kinds = draw(FAULTS)
    sample = a_sample(
        faults=tuple(Fault(kind, "call", 1) for kind in kinds),
        clock_reasons=frozenset(draw(st.lists(st.sampled_from(list(ClockReason)), max_size=2))),
        remap_pending=draw(st.none() | st.booleans()),
        recovery_action=draw(st.none() | st.sampled_from(list(RecoveryAction))),
        ecc_volatile_uncorrected=draw(st.none() | st.integers(0, 5)),
    )
    return Observation(
        sample=draw(st.none() | st.just(sample)),
        events=tuple(draw(EVENTS)),
        hang=draw(st.none() | st.just(Hang("call", "GPU-a", 0.0))),
        owners=frozenset(draw(st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=2))),
        stale=draw(st.booleans()),
    )


HISTORY = st.lists(st.tuples(observations(), st.floats(0.1, 5000)), max_size=25)


@settings(max_examples=150, deadline=None)
@given(HISTORY)
def test_a_verdict_always_has_its_cause_and_a_clean_device_always_returns(
    history: list[tuple[Observation, float]],
) -> None:
    state, now = DeviceHealth(), 1_000_000.0
    for seen, pause in history:
        state = fold(state, seen, now)
        active = [cause for cause in state.causes if cause.active]
        if state.verdict in {Verdict.DEGRADED, Verdict.UNHEALTHY}:
            assert any(cause.reason is state.reason for cause in active)
        if state.verdict is Verdict.HEALTHY:
            assert not active
            assert state.reason is Reason.AS_EXPECTED
        assert state.since <= now
        now += pause
    for _ in range(5):
        now += policy.SUSPECT_SECONDS + policy.CLEAN_LIMIT
        state = fold(state, Observation(a_sample()), now)
    if any(cause.repeated for cause in state.causes):
        assert state.action is Action.REPLACE
    else:
        assert state.verdict is Verdict.HEALTHY, "nothing keeps a clean device out for ever"


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(APPLICATION), st.sampled_from("abcdefgh"), st.floats(0.1, 50_000)),
        max_size=60,
    )
)
def test_no_history_of_application_faults_takes_a_device_away(faults: list[tuple[int, str, float]]) -> None:
    state, now = DeviceHealth(), 1_000_000.0
    for code, owner, pause in faults:
        event = DeviceEvent("GPU-a", EventKind.XID, code)
        state = fold(state, Observation(a_sample(), (event,), owners=frozenset({owner})), now)
        assert state.verdict is not Verdict.UNHEALTHY
        assert state.action in {Action.NONE, Action.INSPECT}
        now += pause


@settings(max_examples=100, deadline=None)
@given(HISTORY)
def test_a_restart_neither_heals_nor_condemns(history: list[tuple[Observation, float]]) -> None:
    device, health, now = a_device(), NodeHealth(1e9), 1_000_000.0
    for seen, pause in history:
        samples = {"GPU-a": seen.sample} if seen.sample is not None else {}
        hangs = (seen.hang,) if seen.hang is not None else ()
        health.observe([device], samples, seen.events, hangs, {"GPU-a": seen.owners}, now)
        now += pause
    standing = {reason for reason, _ in health.of("GPU-a").strength}
    after = NodeHealth(1e9)
    after.restore(health.dump(), now)
    after.observe([device], {}, (), (), {}, now)
    assert {reason for reason, _ in after.of("GPU-a").strength} == standing
    for reason, weight in after.of("GPU-a").strength:
        assert weight in {RULES[reason].verdict, RULES[reason].early}
    assert after.of("GPU-a").action is health.of("GPU-a").action


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 6), st.floats(0, 8)), max_size=60))
def test_batches_are_taken_in_order_whatever_the_network_does(arrivals: list[tuple[int, int, float]]) -> None:
    ingest, now = Ingest(), 0.0
    taken: list[tuple[int, int, float]] = []
    for epoch, sequence, pause in arrivals:
        now += pause
        body = json.dumps({"node": "n", "epoch": epoch, "sequence": sequence, "devices": []}).encode()
        if ingest.accept(body, "n", now) is not None:
            taken.append((epoch, sequence, now))
    for before, after in itertools.pairwise(taken):
        newer = after[:2] > before[:2]
        took_over = after[0] < before[0] and after[2] - before[2] >= 10.0
        assert newer or took_over
    assert ingest.counts.accepted + ingest.counts.dropped == len(arrivals)


@given(st.binary(max_size=400))
def test_no_body_breaks_the_ingest(body: bytes) -> None:
    reason = ""
    try:
        Ingest().accept(body, "n", 0.0)
    except BadBatch as refused:
        reason = refused.reason
    assert reason == "Malformed", "random bytes are no batch, and nothing but BadBatch may come of them"
