"""The course of a treatment: each phase, the way back, and longer quarantines for what falls ill again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmos_operator.api.telemetry import Verdict
from llmos_operator.scheduler.policy import Policy
from llmos_operator.scheduler.repair import repairs
from llmos_operator.state.care import NODE, Care, Phase, Treatment
from llmos_operator.telemetry.policy import DAY
from llmos_operator.telemetry.treatment import Circumstances, Course, acts, advance, begin
from tests.support.builders import NOW, ClusterBuilder, a_cluster, a_node, a_workload, gpu

UUID = gpu("n1", 0)
COURSE = Course(clean=300.0, resets=3)
HOOKED = replace(COURSE, hook=True)


class Ward:
    """One node of two devices under treatment."""

    def __init__(
        self, course: Course = COURSE, target: str = UUID, phase: Phase | None = None, times: int = 0
    ) -> None:
        self.course = course
        self.target = target
        self.now = NOW
        self.cluster: ClusterBuilder = a_cluster(a_node("n1").with_gpus(2))
        if phase is not None:
            self.set(Care(treatments=(Treatment(target, "RebootNode", "FallenOffBus", phase, NOW, times),)))

    def set(self, care: Care) -> None:
        self.cluster.store.set_care("n1", care)

    def begin(self) -> Ward:
        state = self.cluster.store.node("n1")
        assert state is not None
        self.set(begin(state, self.target, "RebootNode", "FallenOffBus", self.now))
        return self

    def verdict(self, verdict: Verdict, reason: str = "FallenOffBus") -> Ward:
        self.cluster.add(a_node("n1").with_gpus(2).with_device(0, verdict=verdict, reason=reason))
        return self

    def after(self, seconds: float, *, fresh: bool = True, may_act: bool = True, ended: bool = False) -> Ward:
        self.now += seconds
        state = self.cluster.store.node("n1")
        assert state is not None
        done = frozenset({self.target}) if ended else frozenset()
        self.set(advance(state, self.course, Circumstances(self.now, fresh, may_act, done)))
        return self

    @property
    def one(self) -> Treatment | None:
        care = self.cluster.store.care("n1")
        return care.of(self.target) if care is not None else None

    @property
    def phase(self) -> Phase | None:
        return self.one.phase if self.one is not None else None


def test_without_a_reset_job_an_empty_device_waits_for_a_person() -> None:
    assert Ward().verdict(Verdict.UNHEALTHY).begin().after(5).phase is Phase.WAITING


def test_work_leaves_before_anything_is_reset() -> None:
    ward = Ward(HOOKED).verdict(Verdict.UNHEALTHY)
    pod = ward.cluster.running(a_workload("w"), "n1", [0])
    assert ward.begin().after(5).phase is Phase.DRAINING
    ward.cluster.store.delete_pod(pod.key, pod.uid)
    assert ward.after(5).phase is Phase.RESETTING
    assert ward.after(600).phase is Phase.RESETTING
    assert ward.after(5, ended=True).phase is Phase.WAITING


def test_a_node_is_rebooted_only_when_all_of_it_is_empty() -> None:
    ward = Ward(HOOKED, NODE).verdict(Verdict.UNHEALTHY)
    ward.cluster.running(a_workload("beside"), "n1", [1])
    assert ward.begin().after(5).phase is Phase.DRAINING


def test_nothing_is_reset_while_pods_of_others_have_gpus_there() -> None:
    ward = Ward(HOOKED).verdict(Verdict.UNHEALTHY).begin()
    state = ward.cluster.store.node("n1")
    assert state is not None
    seen = Circumstances(NOW)
    assert advance(replace(state, foreign_gpus=1), HOOKED, seen).treatments[0].phase is Phase.DRAINING
    assert advance(state, HOOKED, seen).treatments[0].phase is Phase.RESETTING


def test_the_breaker_holds_back_the_reset_and_not_the_way_back() -> None:
    ward = Ward(HOOKED).verdict(Verdict.UNHEALTHY).begin()
    assert ward.after(5, may_act=False).phase is Phase.DRAINING
    assert ward.verdict(Verdict.HEALTHY, "").after(5, may_act=False).phase is Phase.PROBATION
    assert ward.after(300, may_act=False).phase is Phase.RELEASED


def test_the_way_back_takes_the_clean_time_without_a_break() -> None:
    ward = Ward(phase=Phase.WAITING).verdict(Verdict.HEALTHY, "").after(1)
    assert ward.phase is Phase.PROBATION
    assert ward.after(299).phase is Phase.PROBATION
    ward.verdict(Verdict.UNKNOWN, "NoSamples").after(0)
    assert ward.phase is Phase.WAITING
    ward.verdict(Verdict.HEALTHY, "").after(1)
    assert ward.after(299).phase is Phase.PROBATION
    assert ward.after(1).phase is Phase.RELEASED


def test_without_the_agents_word_nothing_comes_back() -> None:
    ward = Ward(phase=Phase.WAITING).verdict(Verdict.HEALTHY, "")
    assert ward.after(3600, fresh=False).phase is Phase.WAITING
    assert ward.after(1).after(100, fresh=False).phase is Phase.WAITING


def test_a_device_that_is_merely_degraded_comes_back() -> None:
    assert (
        Ward(phase=Phase.WAITING).verdict(Verdict.DEGRADED, "SoftwareThermal").after(1).phase
        is Phase.PROBATION
    )


def test_each_relapse_within_a_day_doubles_the_quarantine() -> None:
    ward, stays = Ward().verdict(Verdict.UNHEALTHY).begin(), []
    for _ in range(4):
        ward.verdict(Verdict.HEALTHY, "").after(5)
        began = ward.now
        while ward.phase is Phase.PROBATION:
            ward.after(60)
        stays.append(ward.now - began)
        ward.after(3600).verdict(Verdict.UNHEALTHY).begin()
    assert stays == [300.0, 600.0, 1200.0, 2400.0]


def test_falling_ill_on_probation_counts_as_a_relapse() -> None:
    ward = Ward(phase=Phase.PROBATION, times=1).verdict(Verdict.UNHEALTHY).after(10)
    assert ward.one is not None
    assert (ward.one.phase, ward.one.times) == (Phase.DRAINING, 2)


def test_a_probation_has_an_end() -> None:
    assert [COURSE.probation(times) for times in (0, 1, 16)] == [300.0, 600.0, DAY]


def test_after_some_resets_it_waits_for_a_person() -> None:
    ward = Ward(HOOKED, phase=Phase.DRAINING, times=HOOKED.resets).verdict(Verdict.UNHEALTHY)
    assert ward.after(5).phase is Phase.WAITING


def test_a_day_after_its_release_a_device_is_like_any_other() -> None:
    ward = Ward(phase=Phase.RELEASED, times=3)
    assert ward.after(DAY - 1).phase is Phase.RELEASED
    assert ward.after(1).one is None


def test_a_cordon_that_was_there_before_is_not_ours() -> None:
    ward = Ward(target=NODE)
    ward.cluster.add(a_node("n1").with_gpus(2).cordoned())
    ward.begin()
    care = ward.cluster.store.care("n1")
    assert care is not None
    assert not care.cordoned
    ours = Ward(target=NODE).begin().cluster.store.care("n1")
    assert ours is not None
    assert ours.cordoned


def test_a_clock_that_was_set_back_keeps_nothing_away_for_longer() -> None:
    ward = Ward(phase=Phase.PROBATION).verdict(Verdict.HEALTHY, "").after(-7200)
    assert ward.after(300).phase is Phase.RELEASED


@pytest.mark.parametrize("phase", list(Phase))
def test_only_draining_and_resetting_act_on_a_node(phase: Phase) -> None:
    before, after = Care(), Care(treatments=(Treatment(UUID, "", "", phase, NOW),))
    assert acts(before, after) == (phase in {Phase.DRAINING, Phase.RESETTING})
    assert not acts(after, after)


def test_a_gpu_is_reset_when_all_its_mig_instances_are_empty_and_they_take_nothing_new() -> None:
    node = a_node("n1").cut_into("1g.10gb", "2g.20gb")
    cluster = a_cluster(node)
    state = cluster.store.node("n1")
    assert state is not None
    sick, beside = state.devices
    whole = sick.device.parent
    pod = cluster.running(a_workload("beside"), "n1", [1])
    assert node.gpus is not None
    failed = replace(sick.device, verdict=Verdict.UNHEALTHY, reason="GspError")
    cluster.store.apply_gpu_node(replace(node.gpus, devices=(failed, beside.device)))

    def look(seconds: float) -> Phase:
        state = cluster.store.node("n1")
        assert state is not None
        cluster.store.set_care("n1", advance(state, HOOKED, Circumstances(NOW + seconds)))
        care = cluster.store.care("n1")
        found = care.of(whole) if care is not None else None
        assert found is not None
        return found.phase

    state = cluster.store.node("n1")
    assert state is not None
    cluster.store.set_care("n1", begin(state, whole, "EvictAndReset", "GspError", NOW))
    assert look(5) is Phase.DRAINING, "its neighbour still works"
    state = cluster.store.node("n1")
    assert state is not None
    assert all(one.quarantined for one in state.devices)
    found = repairs(cluster.snapshot(), Policy(), NOW)
    assert [evict.pod for evict in found.evictions] == [pod.key], "and is asked to leave"
    cluster.store.delete_pod(pod.key, pod.uid)
    assert look(10) is Phase.RESETTING
