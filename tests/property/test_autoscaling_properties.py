"""Autoscaling over random histories: within its bounds, monotone in load, calm under noise, never down in the dark."""

from __future__ import annotations

import copy
import random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from llmos_operator.control import scaling
from llmos_operator.control.scaling import Demand, Memory, Promise
from llmos_operator.scheduler.autoscaling.autoscaler import Autoscaler
from llmos_operator.scheduler.autoscaling.erlang import slots_needed
from llmos_operator.scheduler.autoscaling.values import Aim, Arrivals, Capacity

NOW = 1_700_000_000.0

demands = st.builds(
    Demand,
    waiting=st.integers(0, 500),
    running=st.integers(0, 500),
    per_minute=st.integers(0, 5000),
    kv_percent=st.integers(0, 400),
    lost=st.sampled_from(["", "", "no report from gateway a"]),
)
promises = st.one_of(st.none(), st.builds(Promise, st.integers(0, 60), st.just("latency")))
steps = st.lists(st.tuples(st.floats(0.5, 400.0), demands, promises), min_size=1, max_size=30)
capacities = st.builds(Capacity, st.floats(1.0, 128.0), st.floats(0.1, 60.0), st.floats(1.0, 900.0))


@st.composite
def specs(draw: st.DrawFn) -> dict[str, Any]:
    least = draw(st.integers(0, 4))
    spec: dict[str, Any] = {"minReplicas": least, "maxReplicas": draw(st.integers(max(1, least), 12))}
    if least == 0:
        spec["idle"] = {"scaleToZeroAfter": draw(st.sampled_from(["30s", "5m"]))}
    return spec


@given(spec=specs(), live=st.integers(0, 20), history=steps)
def test_the_number_stays_within_its_bounds_and_falls_only_on_what_is_known(
    spec: dict[str, Any], live: int, history: list[tuple[float, Demand, Promise | None]]
) -> None:
    now, memory = NOW, scaling.begin(spec, live, NOW)
    for wait, demand, promise in history:
        now += wait
        before = memory.wanted
        memory, verdict = scaling.decide(spec, demand, memory, now, promise)
        assert spec["minReplicas"] <= memory.wanted <= spec["maxReplicas"]
        assert verdict.active
        assert verdict.message
        if demand.lost:
            assert memory.wanted >= before


@given(spec=specs(), live=st.integers(0, 12), history=steps)
def test_the_last_replica_goes_only_after_the_idle_time(
    spec: dict[str, Any], live: int, history: list[tuple[float, Demand, Promise | None]]
) -> None:
    limit = {"30s": 30.0, "5m": 300.0}.get(str(spec.get("idle", {}).get("scaleToZeroAfter")), float("inf"))
    now = busy_at = NOW
    memory = scaling.begin(spec, live, NOW)
    for wait, demand, promise in history:
        now += wait
        if demand.waiting + demand.running:
            busy_at = now
        before = memory.wanted
        memory, _ = scaling.decide(spec, demand, memory, now, promise)
        if before > 0 and memory.wanted == 0:
            assert now - busy_at >= limit
            assert not demand.lost
        if demand.waiting + demand.running:
            assert memory.wanted >= 1


@given(
    memory=st.builds(Memory, st.integers(1, 10), st.just(NOW)),
    waiting=st.integers(0, 200),
    more=st.integers(0, 200),
)
def test_more_load_never_takes_fewer_replicas(memory: Memory, waiting: int, more: int) -> None:
    spec = {"minReplicas": 1, "maxReplicas": 50}
    less, _ = scaling.decide(spec, Demand(waiting=waiting), memory, NOW)
    greater, _ = scaling.decide(spec, Demand(waiting=waiting + more), memory, NOW)
    assert greater.wanted >= less.wanted


def a_taught(capacity: Capacity, rate: float, seed: int, minutes: int = 30) -> Autoscaler:
    draw = random.Random(seed)
    scaler = Autoscaler(Aim(2.0))
    for minute in range(1, minutes + 1):
        scaler.learn(Arrivals(NOW + minute * 60.0, draw.gammavariate(20.0, rate * 3.0), 60.0), capacity)
    return scaler


@given(
    capacity=capacities,
    rate=st.floats(0.001, 50.0),
    seed=st.integers(0, 99),
    now=st.floats(0.0, 60.0),
    arrived=st.integers(0, 3000),
    more=st.integers(0, 3000),
    have=st.integers(0, 40),
    waiting=st.integers(0, 300),
    longer=st.integers(0, 300),
)
def test_from_the_same_state_more_arrivals_or_a_longer_queue_never_need_fewer(
    capacity: Capacity,
    rate: float,
    seed: int,
    now: float,
    arrived: int,
    more: int,
    have: int,
    waiting: int,
    longer: int,
) -> None:
    scaler = a_taught(capacity, rate, seed)
    busier = copy.deepcopy(scaler)
    until = NOW + 1860.0 + now
    scaler.learn(Arrivals(until, float(arrived), 60.0), capacity)
    busier.learn(Arrivals(until, float(arrived + more), 60.0), capacity)
    one = scaler.need(until, capacity, have, have, float(waiting))
    other = busier.need(until, capacity, have, have, float(waiting))
    if other.view == one.view:
        assert other.expected_rate >= one.expected_rate
    # The other forecast, with a margin of its own, is chosen by what was late and what it cost.
    if (
        other.view == one.view and other.margin >= one.margin
    ):  # more requests that are served in time are a reason for a smaller one
        assert other.replicas >= one.replicas
    assert (
        copy.deepcopy(scaler).need(until, capacity, have, have, float(waiting + longer)).replicas
        >= one.replicas
    )


@given(
    rate=st.floats(0.01, 400.0),
    part=st.floats(1.0, 2.0),
    service=st.floats(0.1, 60.0),
    wait=st.floats(0.0, 30.0),
)
def test_more_requests_never_need_fewer_slots(rate: float, part: float, service: float, wait: float) -> None:
    less, more = slots_needed(rate, service, wait, 0.05), slots_needed(rate * part, service, wait, 0.05)
    # Where the formula gives way to its limit, whole slots give way to fractions of one.
    assert more >= less - 1.0
    assert less > rate * service


@given(capacity=capacities, replicas=st.floats(2.0, 30.0), seed=st.integers(0, 10_000))
def test_steady_noise_does_not_make_replicas_swing(capacity: Capacity, replicas: float, seed: int) -> None:
    draw = random.Random(seed)
    rate = replicas * capacity.rate
    scaler = Autoscaler(Aim(2.0))
    have, starts, sizes = 0, 0, []
    for minute in range(1, 181):
        # A mean that stays, with the noise of a quarter a minute that the traces have.
        now = NOW + minute * 60.0
        scaler.learn(Arrivals(now, draw.gammavariate(20.0, rate * 3.0), 60.0), capacity)
        wanted = scaler.need(now, capacity, have, have, 0.0).replicas
        if minute > 60:
            starts += max(0, wanted - have)
            sizes.append(wanted)
        have = wanted
    # Two hours: no more than the fleet twice over, and never near a swing between half and whole.
    assert starts <= max(4.0, 2.0 * max(sizes))
    assert min(sizes) >= 0.55 * max(sizes)
