"""The XID table: complete, and never hard on a device for what an application did."""

from __future__ import annotations

import pytest

from llmos_operator.api.telemetry import Verdict
from llmos_operator.telemetry.health import DeviceHealth, Observation, fold
from llmos_operator.telemetry.policy import RULES, SEVERITY, Action, Reason, rule_of
from llmos_operator.telemetry.xids import XIDS, Effect, describe
from tests.support.devices import a_sample, an_xid

# What the facts of the vendor's catalogue and of operators who published their runbooks ask for, typed by hand.
APPLICATION = (8, 11, 13, 25, 31, 32, *range(39, 42), 60, 68, 69, *range(70, 73), 75, 76, 77, 80, *range(82, 87), 88, 89,
               *range(96, 106), 109, *range(126, 136), 139)  # fmt: skip
RESETS = (46, 62, 64, 95, 110, 119, 120, 140, 143, 158)
LINKS = (74, *range(144, 151))


def verdict_of(*codes: int, times: int = 1) -> DeviceHealth:
    state = DeviceHealth()
    for turn in range(times):
        events = tuple(an_xid(code) for code in codes)
        state = fold(state, Observation(a_sample(), events, owners=frozenset({"ns/one"})), 1000.0 + turn)
    return state


def test_every_code_of_the_catalogue_is_there() -> None:
    assert list(XIDS) == list(range(1, 173))


@pytest.mark.parametrize("code", XIDS)
def test_every_code_leads_to_a_rule_or_to_nothing(code: int) -> None:
    xid = XIDS[code]
    assert (xid.reason is not None) == (xid.effect is Effect.DEVICE)
    assert xid.text
    state = verdict_of(code)
    if xid.reason is None:
        assert state.verdict is Verdict.HEALTHY
    else:
        rule = RULES[xid.reason]
        assert (state.verdict, state.reason, state.action) == (rule.verdict, xid.reason, rule.action)
        assert f"XID {code}" in state.detail


@pytest.mark.parametrize("code", APPLICATION)
@pytest.mark.parametrize("times", [1, 1000])
def test_application_faults_never_touch_the_device(code: int, times: int) -> None:
    state = verdict_of(code, times=times)
    assert state.verdict is Verdict.HEALTHY
    assert state.action is Action.NONE


def test_application_faults_make_at_most_suspect_never_unplaceable() -> None:
    state = DeviceHealth()
    for turn in range(5000):
        code = APPLICATION[turn % len(APPLICATION)]
        seen = Observation(a_sample(), (an_xid(code),), owners=frozenset({f"ns/{turn}"}))
        state = fold(state, seen, 1000.0 + turn)
        assert state.verdict is not Verdict.UNHEALTHY
    assert state.reason is Reason.SUSPECT


@pytest.mark.parametrize("code", [43, 45])
def test_consequences_are_left_to_their_cause(code: int) -> None:
    assert verdict_of(code).verdict is Verdict.HEALTHY
    assert verdict_of(79, code).reason is Reason.FALLEN_OFF_BUS


@pytest.mark.parametrize("code", RESETS)
def test_what_needs_a_reset_evicts(code: int) -> None:
    state = verdict_of(code)
    assert state.verdict is Verdict.UNHEALTHY
    assert state.action is Action.EVICT_AND_RESET


@pytest.mark.parametrize("code", LINKS)
def test_link_errors_leave_single_device_work_alone(code: int) -> None:
    state = verdict_of(code)
    assert (state.verdict, state.action) == (Verdict.DEGRADED, Action.NO_MULTI_GPU)


def test_a_double_bit_error_drains_and_resets() -> None:
    assert verdict_of(48).action is Action.DRAIN_AND_RESET
    assert verdict_of(48, 63).action is Action.DRAIN_AND_RESET
    assert verdict_of(48, 64).action is Action.EVICT_AND_RESET


@pytest.mark.parametrize("code", [63, 92])
def test_remapped_rows_wait_for_a_quiet_moment(code: int) -> None:
    assert (verdict_of(code).verdict, verdict_of(code).action) == (Verdict.DEGRADED, Action.RESET_WHEN_IDLE)


def test_a_contained_memory_error_is_the_workloads_loss_and_not_its_fault() -> None:
    assert describe(94).effect is Effect.WORKLOAD
    state = DeviceHealth()
    for turn in range(10):
        seen = Observation(a_sample(), (an_xid(94),), owners=frozenset({f"ns/{turn}"}))
        state = fold(state, seen, 1000.0 + turn)
    assert state.verdict is Verdict.HEALTHY


def test_a_gpu_off_the_bus_concerns_the_node() -> None:
    assert verdict_of(79).action is Action.REBOOT_NODE
    assert verdict_of(79).node
    assert not verdict_of(119).node


@pytest.mark.parametrize("code", [0, 173, 999, 12345])
def test_a_code_nobody_knows_is_worth_a_look_and_no_reason_to_stop(code: int) -> None:
    state = verdict_of(code)
    assert (state.verdict, state.reason) == (Verdict.DEGRADED, Reason.UNCLASSIFIED_XID)


def test_every_reason_has_a_rule_and_fits_the_wire() -> None:
    assert set(RULES) == set(Reason)
    assert all(len(reason) <= 64 and reason.isalnum() for reason in Reason)
    for rule in RULES.values():
        assert 1 <= rule.needs <= rule.window <= 10
        assert rule.early is None or SEVERITY[rule.early] < SEVERITY[rule.verdict]
        if rule.action in {Action.DRAIN_AND_RESET, Action.EVICT_AND_RESET, Action.REBOOT_NODE}:
            assert rule.verdict is Verdict.UNHEALTHY, "nothing is drained from a device that may get new work"


def test_a_reason_of_another_version_has_no_rule() -> None:
    assert rule_of("FallenOffBus") is RULES[Reason.FALLEN_OFF_BUS]
    assert rule_of("InventedLater") is None
