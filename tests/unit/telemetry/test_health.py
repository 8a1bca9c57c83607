"""From observations to verdicts, over time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from llmos_operator.api.telemetry import Verdict
from llmos_operator.telemetry import policy
from llmos_operator.telemetry.health import DeviceHealth, Observation, fold, forget, worst
from llmos_operator.telemetry.policy import Action, Reason
from llmos_operator.telemetry.sample import (
    ClockReason,
    DeviceEvent,
    EventKind,
    FaultKind,
    Hang,
    RecoveryAction,
)
from tests.support.devices import a_sample, a_sick_sample, an_xid

if TYPE_CHECKING:
    from llmos_operator.telemetry.sample import Sample

HANG = Hang("nvmlDeviceGetPowerUsage", "GPU-a", 0.0)


@dataclass
class Device:
    """A device under observation, one a second."""

    now: float = 1_000_000.0
    state: DeviceHealth = field(default_factory=DeviceHealth)
    changes: list[Verdict] = field(default_factory=list)

    def sees(
        self,
        sample: Sample | None = None,
        *events: DeviceEvent,
        hang: Hang | None = None,
        owners: tuple[str, ...] = (),
        stale: bool = False,
    ) -> Device:
        before = self.state.verdict
        seen = Observation(sample, events, hang, frozenset(owners), stale)
        self.state = fold(self.state, seen, self.now)
        if self.state.verdict is not before:
            self.changes.append(self.state.verdict)
        self.now += 1
        return self

    def is_clean_for(self, seconds: float) -> Device:
        for _ in range(int(seconds)):
            self.sees(a_sample())
        return self

    @property
    def verdict(self) -> Verdict:
        return self.state.verdict

    @property
    def reason(self) -> Reason:
        return self.state.reason


def test_a_device_nobody_measured_is_unknown() -> None:
    assert (Device().verdict, Device().reason) == (Verdict.UNKNOWN, Reason.NO_SAMPLES)
    assert Device().sees().verdict is Verdict.UNKNOWN


def test_a_device_that_answers_is_healthy() -> None:
    device = Device().sees(a_sample())
    assert (device.verdict, device.reason) == (Verdict.HEALTHY, Reason.AS_EXPECTED)
    assert device.state.action is Action.NONE


def test_a_device_without_memory_figures_is_healthy_if_it_tells_anything_else() -> None:
    sample = a_sample(memory_used_bytes=None, memory_total_bytes=None, utilization_percent=None)
    assert Device().sees(sample).verdict is Verdict.HEALTHY


def test_samples_that_stop_coming_make_it_unknown_and_come_back() -> None:
    device = Device().sees(a_sample()).sees(stale=True)
    assert (device.verdict, device.reason) == (Verdict.UNKNOWN, Reason.NO_SAMPLES)
    assert device.sees(a_sample()).verdict is Verdict.HEALTHY


def test_a_broken_device_without_samples_stays_broken() -> None:
    device = Device().sees(a_sample(), an_xid(79)).sees(stale=True)
    assert device.reason is Reason.FALLEN_OFF_BUS


@pytest.mark.parametrize("kind", [FaultKind.LOST, FaultKind.RESET_REQUIRED, FaultKind.POWER])
def test_a_clear_fault_counts_at_once(kind: FaultKind) -> None:
    assert Device().sees(a_sample()).sees(a_sick_sample(kind)).verdict is Verdict.UNHEALTHY


@pytest.mark.parametrize("kind", [FaultKind.UNKNOWN, FaultKind.TIMEOUT])
def test_a_vague_fault_is_a_warning_first_and_unhealthy_when_it_repeats(kind: FaultKind) -> None:
    device = Device().sees(a_sample()).sees(a_sick_sample(kind))
    assert device.verdict is Verdict.DEGRADED
    device.sees(a_sample()).sees(a_sick_sample(kind))
    assert device.verdict is Verdict.DEGRADED
    device.sees(a_sample()).sees(a_sick_sample(kind))
    assert device.verdict is Verdict.UNHEALTHY
    device.is_clean_for(policy.CLEAN_SECONDS - 2)
    assert device.verdict is Verdict.UNHEALTHY, "its weight does not fade while it stands"
    assert device.is_clean_for(5).verdict is Verdict.HEALTHY


def test_a_hang_is_unhealthy_until_it_has_been_over_for_a_while() -> None:
    device = Device().sees(a_sample()).sees(hang=HANG).sees(hang=HANG)
    assert (device.verdict, device.reason) == (Verdict.UNHEALTHY, Reason.DRIVER_HANG)
    assert "nvmlDeviceGetPowerUsage" in device.state.detail
    assert device.is_clean_for(policy.CLEAN_SECONDS - 5).verdict is Verdict.UNHEALTHY
    assert device.is_clean_for(10).verdict is Verdict.HEALTHY


def test_the_way_back_needs_time_and_an_answer() -> None:
    device = Device().sees(a_sample(), an_xid(119))
    clean = policy.RULES[Reason.GSP_ERROR].clean_seconds
    device.now += 10 * clean
    device.sees()
    assert device.verdict is Verdict.UNHEALTHY, "time alone proves nothing"
    assert device.sees(a_sample()).verdict is Verdict.HEALTHY


def test_an_answer_with_a_fault_is_no_probe() -> None:
    device = Device().sees(a_sample(), an_xid(119))
    device.now += 10 * policy.RULES[Reason.GSP_ERROR].clean_seconds
    device.sees(a_sick_sample(FaultKind.CORRUPTED, answers=True))
    assert device.reason is Reason.GSP_ERROR


def test_a_relapse_doubles_the_clean_time() -> None:
    device = Device().sees(a_sample())
    for expected in (300, 600, 1200, 2400):
        device.sees(hang=HANG)
        assert device.is_clean_for(expected - 3).verdict is Verdict.UNHEALTHY
        assert device.is_clean_for(6).verdict is Verdict.HEALTHY


def test_the_clean_time_is_bounded_and_forgives() -> None:
    device = Device().sees(a_sample())
    for _ in range(12):
        device.sees(hang=HANG)
        device.now += policy.CLEAN_LIMIT
        assert device.sees(a_sample()).verdict is Verdict.HEALTHY
    device.now += policy.FLAP_SECONDS + 1
    device.sees(hang=HANG)
    assert device.is_clean_for(policy.CLEAN_SECONDS + 3).verdict is Verdict.HEALTHY, (
        "an hour of peace is a fresh start"
    )


@pytest.mark.parametrize("period", [2, 20, 200, 400])
def test_a_flapping_device_changes_its_verdict_seldom(period: int) -> None:
    device = Device().sees(a_sample())
    device.changes.clear()
    for second in range(2 * 3600):
        device.sees(a_sample(), hang=HANG if second % period == 0 else None)
    assert len(device.changes) <= 8, device.changes


def test_heat_counts_only_when_it_lasts() -> None:
    hot = a_sample(clock_reasons=frozenset({ClockReason.HW_THERMAL}))
    device = Device().sees(a_sample())
    for _ in range(20):
        device.sees(hot).sees(a_sample()).sees(a_sample())
    assert device.verdict is Verdict.HEALTHY, "a third of the time is a spike"
    for _ in range(5):
        device.sees(hot)
    assert (device.verdict, device.reason) == (Verdict.DEGRADED, Reason.THERMAL_SLOWDOWN)
    assert device.is_clean_for(70).verdict is Verdict.HEALTHY


def test_wake_ups_between_samples_do_not_dilute_heat() -> None:
    hot = a_sample(clock_reasons=frozenset({ClockReason.HW_THERMAL}))
    device = Device().sees(a_sample())
    for _ in range(5):
        device.sees(hot).sees().sees().sees()
    assert device.reason is Reason.THERMAL_SLOWDOWN


@pytest.mark.parametrize("reason", [ClockReason.IDLE, ClockReason.POWER_CAP, ClockReason.APPLICATION])
def test_normal_reasons_for_low_clocks_are_no_finding(reason: ClockReason) -> None:
    device = Device()
    for _ in range(30):
        device.sees(a_sample(clock_reasons=frozenset({reason})))
    assert device.verdict is Verdict.HEALTHY


@pytest.mark.parametrize(
    ("counters", "reason", "verdict"),
    [
        ({"remap_pending": True}, Reason.REMAP_PENDING, Verdict.DEGRADED),
        ({"remap_failed": True}, Reason.REMAP_FAILED, Verdict.UNHEALTHY),
        ({"retirement_pending": True}, Reason.RETIREMENT_PENDING, Verdict.DEGRADED),
        ({"sram_threshold_exceeded": True}, Reason.SRAM_THRESHOLD, Verdict.DEGRADED),
        ({"nvlinks_down": 2}, Reason.NVLINK_DOWN, Verdict.DEGRADED),
        ({"recovery_action": RecoveryAction.RESET}, Reason.RESET_REQUIRED, Verdict.UNHEALTHY),
        ({"recovery_action": RecoveryAction.DRAIN_AND_RESET}, Reason.RESET_REQUIRED, Verdict.UNHEALTHY),
        ({"recovery_action": RecoveryAction.REBOOT}, Reason.REBOOT_REQUIRED, Verdict.UNHEALTHY),
        ({"recovery_action": RecoveryAction.DRAIN_P2P}, Reason.P2P_DRAIN_REQUIRED, Verdict.DEGRADED),
    ],
)
def test_counters_are_findings_as_long_as_they_say_so(
    counters: dict[str, object], reason: Reason, verdict: Verdict
) -> None:
    device = Device().sees(a_sample(**counters))
    assert (device.reason, device.verdict) == (reason, verdict)
    device.now += 10 * policy.DAY
    assert device.sees(a_sample(**counters)).reason is reason
    device.now += policy.DAY
    device.sees(a_sample())
    if not policy.RULES[reason].repeats:
        assert device.sees(a_sample()).verdict is Verdict.HEALTHY


def test_no_recovery_action_is_no_finding() -> None:
    assert Device().sees(a_sample(recovery_action=RecoveryAction.NONE)).verdict is Verdict.HEALTHY


def test_uncorrected_errors_count_when_they_grow_and_not_when_the_driver_starts_over() -> None:
    device = Device().sees(a_sample(ecc_volatile_uncorrected=7))
    assert device.verdict is Verdict.HEALTHY, "history before the agent is no news"
    assert device.sees(a_sample(ecc_volatile_uncorrected=7)).verdict is Verdict.HEALTHY
    assert device.sees(a_sample(ecc_volatile_uncorrected=0)).verdict is Verdict.HEALTHY
    device.sees(a_sample(ecc_volatile_uncorrected=2))
    assert (device.reason, device.verdict) == (Reason.UNCORRECTED_ECC, Verdict.DEGRADED)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (EventKind.DOUBLE_BIT_ECC, Reason.DOUBLE_BIT_ECC),
        (EventKind.SINGLE_BIT_ECC_STORM, Reason.CORRECTED_ECC_STORM),
        (EventKind.RETIREMENT_FAILURE, Reason.REMAP_FAILED),
        (EventKind.FATAL_POISON, Reason.UNCONTAINED_ECC),
        (EventKind.UNAVAILABLE, Reason.DEVICE_LOST),
    ],
)
def test_other_driver_events_have_their_meaning(kind: EventKind, reason: Reason) -> None:
    assert Device().sees(a_sample(), DeviceEvent("GPU-a", kind)).reason is reason


def test_a_changed_recovery_action_is_read_from_the_device_and_not_guessed_from_the_event() -> None:
    event = DeviceEvent("GPU-a", EventKind.RECOVERY_ACTION)
    assert Device().sees(a_sample(), event, an_xid(154)).verdict is Verdict.HEALTHY


def test_the_second_failure_within_a_week_asks_for_another_card_and_stays() -> None:
    device = Device().sees(a_sample(), an_xid(48))
    assert device.state.action is Action.DRAIN_AND_RESET
    device.is_clean_for(11 * 60)
    assert device.verdict is Verdict.HEALTHY
    device.now += 3 * policy.DAY
    device.sees(a_sample(), an_xid(48))
    assert device.state.action is Action.REPLACE
    assert "second time within a week" in device.state.detail
    device.now += 30 * policy.DAY
    device.sees(a_sample()).sees(a_sample())
    assert device.verdict is Verdict.UNHEALTHY, "only a person may say it is repaired"
    device.state = forget(device.state, device.now)
    assert device.sees(a_sample()).verdict is Verdict.HEALTHY


def test_the_second_failure_after_a_week_is_a_first_one() -> None:
    device = Device().sees(a_sample(), an_xid(48)).is_clean_for(11 * 60)
    device.now += 8 * policy.DAY
    device.sees(a_sample())
    assert device.sees(a_sample(), an_xid(48)).state.action is Action.DRAIN_AND_RESET


def test_the_worst_finding_speaks_and_the_strongest_action_counts() -> None:
    device = Device().sees(a_sample(remap_pending=True), an_xid(74))
    assert device.verdict is Verdict.DEGRADED
    device.sees(a_sample(remap_pending=True), an_xid(79))
    assert device.reason is Reason.FALLEN_OFF_BUS
    assert device.state.action is Action.REBOOT_NODE
    assert device.state.node
    assert {reason for reason, _ in device.state.strength} == {
        Reason.FALLEN_OFF_BUS,
        Reason.REMAP_PENDING,
        Reason.NVLINK_ERROR,
    }


def test_since_moves_only_with_the_verdict() -> None:
    device = Device().sees(a_sample(remap_pending=True))
    since = device.state.since
    device.sees(a_sample(remap_pending=True), an_xid(74))
    assert device.state.since == since
    device.sees(a_sample(), an_xid(79))
    assert device.state.since > since


def test_application_faults_of_one_workload_are_its_own_business() -> None:
    device = Device()
    for _ in range(500):
        device.sees(a_sample(), an_xid(31), owners=("ns/one",))
    assert device.verdict is Verdict.HEALTHY


def test_application_faults_of_three_workloads_make_the_device_suspect() -> None:
    device = Device()
    for owner in ("ns/one", "ns/two", "ns/three"):
        assert device.verdict is not Verdict.DEGRADED
        device.sees(a_sample(), an_xid(31), owners=(owner,))
        device.now += 3600
    assert (device.verdict, device.reason) == (Verdict.DEGRADED, Reason.SUSPECT)


def test_workloads_that_share_a_device_are_not_three_because_of_one_fault() -> None:
    device = Device()
    for _ in range(10):
        device.sees(a_sample(), an_xid(31), owners=("ns/one", "ns/two", "ns/three"))
    assert device.verdict is Verdict.HEALTHY


def test_application_faults_spread_over_days_are_nothing() -> None:
    device = Device()
    for owner in ("a", "b", "c", "d"):
        device.sees(a_sample(), an_xid(31), owners=(owner,))
        device.now += 0.6 * policy.DAY
    assert device.verdict is Verdict.HEALTHY


def test_an_instance_is_never_better_than_its_gpu() -> None:
    good, bad = Device().sees(a_sample()).state, Device().sees(a_sample(), an_xid(79)).state
    assert worst(good, bad) is bad
    assert worst(bad, good) is bad


def test_the_state_does_not_grow() -> None:
    device = Device()
    for turn in range(2000):
        device.sees(a_sample(), *(an_xid(code) for code in (13, 31, 48, 74, 79, 119)), owners=(f"w{turn}",))
    assert len(device.state.causes) <= len(Reason)
    assert len(device.state.faults) <= policy.SUSPECT_WORKLOADS
    assert all(len(cause.hits) <= 10 for cause in device.state.causes)
