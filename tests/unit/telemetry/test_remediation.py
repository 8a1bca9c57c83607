"""Remediation: the right action, dry-run first, and never more of the fleet than the breaker allows."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from llmos_operator.api.telemetry import Verdict
from llmos_operator.state.breaker import Breaker
from llmos_operator.telemetry.policy import RULES, Action, Reason
from llmos_operator.telemetry.remediation import DISRUPTIVE, Limits, Proposal, SickDevice
from llmos_operator.telemetry.remediation import plan as make_plan
from llmos_operator.telemetry.xids import XIDS, Effect

if TYPE_CHECKING:
    from collections.abc import Iterable

NOW = 1_000_000.0
LIVE = Limits(dry_run=False)


BREAKER = Breaker(renew=0.0)


def plan(
    devices: Iterable[SickDevice], nodes: int, disturbed: dict[str, float], limits: Limits, now: float
) -> tuple[tuple[Proposal, ...], dict[str, float]]:
    """Return the proposals, and what was acted on when all that may be done is done."""
    made = make_plan(devices, nodes, disturbed, BREAKER, limits, now)
    recent = BREAKER.recent(disturbed, now)
    kept = {name: disturbed[name] for name in recent}
    began = {
        one.node: now for one in made if one.action in DISRUPTIVE and not one.held and one.node not in kept
    }
    return made, kept | began


def sick(
    node: str = "n1",
    uuid: str = "GPU-a",
    reason: Reason = Reason.GSP_ERROR,
    *,
    age: float = 60.0,
    busy: bool = False,
) -> SickDevice:
    return SickDevice(node, uuid, RULES[reason].verdict, reason, NOW - age, busy)


def test_a_dry_run_says_what_it_would_do_and_permits_nothing() -> None:
    proposals, history = plan([sick()], 10, {}, Limits(), NOW)
    assert proposals == (Proposal("n1", "GPU-a", Action.EVICT_AND_RESET, "GspError", "dry run"),)
    assert history == {}


def test_a_dry_run_tells_what_the_breaker_would_hold_back() -> None:
    proposals, _ = plan([sick(f"n{n}") for n in range(5)], 20, {}, Limits(), NOW)
    assert [p.held == "dry run" for p in proposals] == [True, True, False, False, False]


@pytest.mark.parametrize(
    ("nodes", "allowed"), [(0, 0), (1, 1), (9, 1), (10, 1), (19, 1), (20, 2), (1000, 100)]
)
def test_the_allowance_is_a_tenth_and_at_least_one(nodes: int, allowed: int) -> None:
    assert BREAKER.allowance(nodes) == allowed


def test_devices_of_one_node_are_dealt_with_together() -> None:
    devices = [sick("n1", f"GPU-{n}") for n in range(8)]
    proposals, history = plan(devices, 10, {}, LIVE, NOW)
    assert all(proposal.held == "" for proposal in proposals)
    assert history == {"n1": NOW}


def test_what_concerns_the_node_is_asked_once() -> None:
    devices = [sick("n1", f"GPU-{n}", Reason.FALLEN_OFF_BUS) for n in range(4)]
    (proposal,), _ = plan(devices, 10, {}, LIVE, NOW)
    assert (proposal.device, proposal.action) == ("", Action.REBOOT_NODE)


def test_the_most_urgent_goes_first_when_there_is_room_for_one() -> None:
    devices = [
        sick("n1", reason=Reason.DOUBLE_BIT_ECC, age=900),
        sick("n2", reason=Reason.FALLEN_OFF_BUS, age=60),
    ]
    first, second = plan(devices, 10, {}, LIVE, NOW)[0]
    assert (first.node, first.held) == ("n2", "")
    assert second.held.startswith("circuit breaker: 1 of 10 nodes")


def test_the_window_passes() -> None:
    _, history = plan([sick("n1")], 10, {}, LIVE, NOW)
    held, history = plan([sick("n2")], 10, history, LIVE, NOW + 599)
    assert held[0].held
    free, _ = plan([sick("n2")], 10, history, LIVE, NOW + 600)
    assert free[0].held == ""


def test_a_verdict_has_to_stand_before_work_is_disturbed() -> None:
    (proposal,), history = plan([sick(age=1.0)], 10, {}, LIVE, NOW)
    assert "younger than 5 s" in proposal.held
    assert history == {}


def test_advice_is_free() -> None:
    devices = [sick(f"n{n}", reason=Reason.NVLINK_ERROR) for n in range(50)]
    proposals, history = plan(devices, 50, {}, LIVE, NOW)
    assert {p.action for p in proposals} == {Action.NO_MULTI_GPU}
    assert all(p.held == "" for p in proposals)
    assert history == {}


def test_a_reset_waits_until_the_device_is_idle() -> None:
    assert plan([sick(reason=Reason.REMAP_PENDING, busy=True)], 10, {}, LIVE, NOW)[0] == ()
    (proposal,), _ = plan([sick(reason=Reason.REMAP_PENDING)], 10, {}, LIVE, NOW)
    assert proposal.action is Action.RESET_WHEN_IDLE


def test_what_is_unknown_is_left_alone() -> None:
    unknown = SickDevice("n1", "GPU-a", Verdict.UNKNOWN, Reason.NO_SAMPLES, NOW - 600)
    of_another_version = SickDevice("n1", "GPU-b", Verdict.UNHEALTHY, "InventedLater", NOW - 600)
    assert plan([unknown, of_another_version], 10, {}, LIVE, NOW)[0] == ()


@pytest.mark.parametrize("code", [code for code, xid in XIDS.items() if xid.effect is not Effect.DEVICE])
def test_no_xid_that_is_not_the_devices_leads_to_anything(code: int) -> None:
    assert XIDS[code].reason is None, "without a reason there is nothing to plan for"


@pytest.mark.parametrize("seed", range(200))
def test_a_storm_never_takes_more_than_the_breakers_share(seed: int) -> None:
    rng = random.Random(seed)
    nodes = rng.randint(1, 300)
    share_sick = rng.uniform(0.05, 1.0)
    reasons = [reason for reason, rule in RULES.items() if rule.action in DISRUPTIVE]
    one_bad_rule = rng.random() < 0.5
    when = {
        f"n{n}": (rng.uniform(0, 600), reasons[0] if one_bad_rule else rng.choice(reasons))
        for n in range(nodes)
        if rng.random() < share_sick
    }
    history: dict[str, float] = {}
    done: list[tuple[float, str]] = []
    for second in range(0, 1800, 15):
        now = NOW + second
        devices = [
            SickDevice(node, "GPU-a", RULES[reason].verdict, reason, NOW + at)
            for node, (at, reason) in when.items()
            if NOW + at <= now
        ]
        rng.shuffle(devices)
        before = dict(history)
        _, history = plan(devices, nodes, history, LIVE, now)
        done.extend((at, node) for node, at in history.items() if before.get(node) != at)
    for end, _ in done:
        window = {node for at, node in done if end - BREAKER.window < at <= end}
        assert len(window) <= max(1, int(nodes * 0.10))
    if when:
        assert done, "a breaker that never lets anything through repairs nothing"


def test_the_order_of_what_comes_in_does_not_matter() -> None:
    devices = [sick(f"n{n}", f"GPU-{n}", reason, age=60 + n) for n, reason in enumerate(RULES)]
    expected = plan(devices, 30, {}, LIVE, NOW)
    for seed in range(20):
        shuffled = devices[:]
        random.Random(seed).shuffle(shuffled)
        assert plan(shuffled, 30, {}, LIVE, NOW) == expected


def test_what_is_under_treatment_is_not_begun_again() -> None:
    device = SickDevice(
        "n1", "GPU-a", Verdict.UNHEALTHY, Reason.GSP_ERROR, NOW - 60, treated=frozenset({"GPU-a"})
    )
    (proposal,), history = plan([device], 10, {}, LIVE, NOW)
    assert (proposal.held, history) == ("under treatment", {})


# The codes the published table of immediate actions names, by what it says to do (facts: NVIDIA's catalogue).
APPLICATION = (11, 13, 25, 31, 32, 68, 109)
FOLLOW_ON = (43, 45)
ASKS = {
    48: Action.DRAIN_AND_RESET, 63: Action.RESET_WHEN_IDLE, 64: Action.EVICT_AND_RESET, 95: Action.EVICT_AND_RESET,
    46: Action.EVICT_AND_RESET, 62: Action.EVICT_AND_RESET, 119: Action.EVICT_AND_RESET, 120: Action.EVICT_AND_RESET,
    74: Action.NO_MULTI_GPU, 79: Action.REBOOT_NODE,
}  # fmt: skip


@pytest.mark.parametrize("code", sorted(ASKS))
def test_each_xid_of_the_device_asks_for_what_the_table_says(code: int) -> None:
    reason = XIDS[code].reason
    assert reason is not None
    assert RULES[reason].action is ASKS[code]


@pytest.mark.parametrize("code", [*APPLICATION, *FOLLOW_ON, 94])
def test_xids_of_applications_and_consequences_ask_for_nothing(code: int) -> None:
    assert XIDS[code].effect is not Effect.DEVICE


def test_not_even_many_faults_of_applications_cordon_or_drain() -> None:
    assert RULES[Reason.SUSPECT].verdict is Verdict.DEGRADED
    assert RULES[Reason.SUSPECT].action not in DISRUPTIVE
    (proposal,), history = plan([sick(reason=Reason.SUSPECT)], 10, {}, LIVE, NOW)
    assert (proposal.action, history) == (Action.INSPECT, {})


def test_every_code_up_to_the_catalogues_last_has_a_rule() -> None:
    for code in range(1, max(XIDS) + 1):
        assert code in XIDS
        assert (XIDS[code].reason is not None) == (XIDS[code].effect is Effect.DEVICE)


def test_sick_instances_of_one_gpu_are_one_treatment_of_the_gpu() -> None:
    instances = [replace(sick(uuid=f"MIG-{n}"), gpu="GPU-a") for n in range(3)]
    (one,), _ = plan([*instances], 10, {}, LIVE, NOW)
    assert (one.device, one.target, one.held) == ("GPU-a", "GPU-a", "")
    treated = [replace(one, treated=frozenset({"GPU-a"})) for one in instances]
    assert [one.held for one in plan(treated, 10, {}, LIVE, NOW)[0]] == ["under treatment"]
