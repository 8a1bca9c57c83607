"""Health of a node, and what of it outlives the agent."""

from __future__ import annotations

import json

import pytest

from llmos_operator.api.telemetry import Verdict
from llmos_operator.telemetry import policy
from llmos_operator.telemetry.node_health import MEMORY_LIMIT, NodeHealth
from llmos_operator.telemetry.policy import Action, Reason
from llmos_operator.telemetry.sample import DeviceEvent, DeviceInfo, Hang, Sample
from tests.support.devices import a_device, a_sample, an_xid

A, B = a_device("GPU-a", 0), a_device("GPU-b", 1)
NOW = 1_700_000_000.0


def observe(
    health: NodeHealth,
    now: float,
    *events: DeviceEvent,
    devices: tuple[DeviceInfo, ...] = (A, B),
    samples: tuple[Sample, ...] | None = None,
    hangs: tuple[Hang, ...] = (),
    owners: dict[str, frozenset[str]] | None = None,
) -> None:
    found = samples if samples is not None else tuple(a_sample(device.uuid) for device in devices)
    health.observe(devices, {s.uuid: s for s in found}, events, hangs, owners or {}, now)


def test_an_event_concerns_only_its_device() -> None:
    health = NodeHealth(1.0)
    observe(health, NOW, an_xid(79, "GPU-b"))
    assert health.of("GPU-a").verdict is Verdict.HEALTHY
    assert health.of("GPU-b").reason is Reason.FALLEN_OFF_BUS


def test_an_event_of_a_device_nobody_knows_harms_nobody() -> None:
    health = NodeHealth(1.0)
    observe(health, NOW, an_xid(79, ""), an_xid(79, "GPU-elsewhere"))
    assert {health.of(uuid).verdict for uuid in ("GPU-a", "GPU-b")} == {Verdict.HEALTHY}


def test_a_device_is_unknown_after_three_intervals_without_a_sample() -> None:
    health = NodeHealth(1.0)
    observe(health, NOW)
    observe(health, NOW + 3, samples=(a_sample("GPU-a"),))
    assert health.of("GPU-b").verdict is Verdict.HEALTHY
    observe(health, NOW + 3.1, samples=(a_sample("GPU-a"),))
    assert health.of("GPU-b").verdict is Verdict.UNKNOWN
    assert health.of("GPU-a").verdict is Verdict.HEALTHY


def test_a_hang_of_one_device_is_not_the_others_and_one_of_the_node_is_everybodys() -> None:
    health = NodeHealth(1.0)
    observe(health, NOW, hangs=(Hang("call", "GPU-a", 0.0),), samples=(a_sample("GPU-b"),))
    assert health.of("GPU-a").reason is Reason.DRIVER_HANG
    assert health.of("GPU-b").verdict is Verdict.HEALTHY
    observe(health, NOW + 1, hangs=(Hang("count", "", 0.0),))
    assert health.of("GPU-b").reason is Reason.DRIVER_HANG


def test_a_device_that_went_away_sick_comes_back_sick() -> None:
    health = NodeHealth(1.0)
    observe(health, NOW, an_xid(79, "GPU-b"))
    observe(health, NOW + 1, devices=(A,))
    observe(health, NOW + 60)
    assert health.of("GPU-b").reason is Reason.FALLEN_OFF_BUS


def test_a_restart_does_not_heal() -> None:
    before = NodeHealth(1.0)
    observe(before, NOW, an_xid(48, "GPU-a"))
    after = NodeHealth(1.0)
    assert after.restore(before.dump(), NOW + 5) == 1
    observe(after, NOW + 6)
    state = after.of("GPU-a")
    assert (state.verdict, state.reason, state.detail) == (
        Verdict.UNHEALTHY,
        Reason.DOUBLE_BIT_ECC,
        "XID 48: Double bit ECC error",
    )
    assert after.of("GPU-b").verdict is Verdict.HEALTHY
    for second in range(610):
        observe(after, NOW + 7 + second)
    assert after.of("GPU-a").verdict is Verdict.HEALTHY, "the clean time counts from the restart"


def test_repeats_and_relapses_survive_a_restart() -> None:
    before = NodeHealth(1.0)
    observe(before, NOW, an_xid(48, "GPU-a"))
    observe(before, NOW + 700)
    assert before.of("GPU-a").verdict is Verdict.HEALTHY
    after = NodeHealth(1.0)
    after.restore(before.dump(), NOW + policy.DAY)
    observe(after, NOW + policy.DAY, an_xid(48, "GPU-a"))
    assert after.of("GPU-a").action is Action.REPLACE
    third = NodeHealth(1.0)
    third.restore(after.dump(), NOW + 2 * policy.DAY)
    observe(third, NOW + 2 * policy.DAY)
    observe(third, NOW + 90 * policy.DAY)
    assert third.of("GPU-a").action is Action.REPLACE


def test_application_faults_survive_a_restart() -> None:
    first = NodeHealth(1.0)
    for turn, owner in enumerate(("ns/a", "ns/b")):
        observe(first, NOW + turn, an_xid(31, "GPU-a"), owners={"GPU-a": frozenset({owner})})
    second = NodeHealth(1.0)
    second.restore(first.dump(), NOW + 10)
    observe(second, NOW + 11, an_xid(31, "GPU-a"), owners={"GPU-a": frozenset({"ns/c"})})
    assert second.of("GPU-a").reason is Reason.SUSPECT


def test_the_memory_is_still_while_nothing_happens() -> None:
    health = NodeHealth(1.0)
    observe(
        health, NOW, an_xid(48, "GPU-a"), samples=(a_sample("GPU-a"), a_sample("GPU-b", remap_pending=True))
    )
    first = health.dump()
    for second in range(1, 60):
        observe(health, NOW + second, samples=(a_sample("GPU-a"), a_sample("GPU-b", remap_pending=True)))
        assert health.dump() == first, "a write a second into etcd"


def test_a_healthy_node_has_nothing_to_remember() -> None:
    health = NodeHealth(1.0)
    observe(health, NOW)
    assert health.dump() == ""


def test_a_person_can_say_that_a_device_is_repaired() -> None:
    health = NodeHealth(1.0)
    observe(health, NOW, an_xid(79, "GPU-a"), an_xid(79, "GPU-b"))
    health.forget("GPU-a", NOW + 1)
    observe(health, NOW + 2)
    assert health.of("GPU-a").verdict is Verdict.HEALTHY
    assert health.of("GPU-b").verdict is Verdict.UNHEALTHY
    health.forget("*", NOW + 3)
    observe(health, NOW + 4)
    assert health.of("GPU-b").verdict is Verdict.HEALTHY


GOOD = {"reason": "DoubleBitEcc", "since": NOW, "active": True}


@pytest.mark.parametrize(
    "text",
    [
        "not json",
        "[]",
        "7",
        '"text"',
        '{"GPU-a": 7}',
        '{"GPU-a": {"causes": 7}}',
        '{"GPU-a": {"causes": [7, null, "x", {}, {"reason": "Unheard"}, {"reason": "DoubleBitEcc"}]}}',
        '{"GPU-a": {"causes": [{"reason": "DoubleBitEcc", "since": "x"}], "faults": [1, [2], ["x", []], [3, 4]]}}',
        json.dumps({"GPU-a": {"causes": [{**GOOD, "relapses": "many"}]}}),
    ],
)
def test_a_damaged_memory_is_left_out(text: str) -> None:
    health = NodeHealth(1.0)
    assert health.restore(text, NOW) == 0
    observe(health, NOW)
    assert health.of("GPU-a").verdict is Verdict.HEALTHY


def test_a_memory_from_the_future_is_taken_as_of_now() -> None:
    health = NodeHealth(1.0)
    health.restore(json.dumps({"GPU-a": {"causes": [{**GOOD, "since": NOW + 1e9, "relapses": 10**9}]}}), NOW)
    for second in range(3700):
        observe(health, NOW + second)
    assert health.of("GPU-a").verdict is Verdict.HEALTHY, "an absurd number of relapses is an hour at most"


def test_the_memory_stays_below_what_an_annotation_may_hold() -> None:
    health = NodeHealth(1.0)
    devices = tuple(a_device(f"GPU-{index:036d}", index) for index in range(64))
    codes = (46, 48, 54, 62, 63, 64, 74, 79, 92, 95, 110, 119, 143, 151, 156, 157, 168, 172, 200)
    for code in codes:
        observe(health, NOW + code, *(an_xid(code, device.uuid) for device in devices), devices=devices)
    text = health.dump()
    assert len(text) <= MEMORY_LIMIT
    assert text, "what matters most has to be kept"
