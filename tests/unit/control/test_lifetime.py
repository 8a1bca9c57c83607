from __future__ import annotations

from dataclasses import replace

from llmos_operator.api.conditions import Reason
from llmos_operator.control import lifetime, reconcile
from llmos_operator.control.reconcile import Situation
from llmos_operator.state.types import Pod, PodPhase, Workload
from tests.support.replicas import NOW, a_pod_of, a_work

WORK = a_work(scheduling={"maxRuntime": "1h30m"}, replicas=2)


def bound(work: Workload, ordinal: int, seconds_ago: float, phase: PodPhase = PodPhase.BOUND) -> Pod:
    pod = a_pod_of(work, ordinal)
    assert pod.claim is not None
    return replace(pod, claim=replace(pod.claim, bound_at=NOW - seconds_ago), phase=phase)


def test_time_counts_from_the_first_replica_that_has_a_place() -> None:
    pods = (bound(WORK, 0, 100.0), bound(WORK, 1, 4000.0))
    assert lifetime.over_at(WORK, pods) == NOW - 4000.0 + 5400.0


def test_a_replica_that_failed_does_not_count_and_one_on_its_way_out_does() -> None:
    assert lifetime.over_at(WORK, (bound(WORK, 0, 4000.0, PodPhase.FINISHED),)) is None
    leaving = bound(WORK, 0, 4000.0, PodPhase.TERMINATING)
    assert lifetime.over_at(WORK, (leaving, bound(WORK, 1, 10.0))) == NOW - 4000.0 + 5400.0


def test_without_a_limit_or_without_a_place_there_is_no_end() -> None:
    assert lifetime.over_at(a_work(), (bound(a_work(), 0, 1e9),)) is None
    assert lifetime.over_at(WORK, ()) is None


def test_the_verdict_says_how_long_it_ran_and_what_to_do() -> None:
    told = lifetime.verdict(WORK, NOW)
    assert told.reason is Reason.DEADLINE_EXCEEDED
    assert "1h30m" in told.message


def test_pods_of_finished_work_are_given_back_whatever_state_they_are_in() -> None:
    done = replace(WORK, finished=True)
    pods = (a_pod_of(done, 0, ready=True), a_pod_of(done, 1))
    retired = reconcile.rule(Situation(done, NOW, pods)).retire
    assert [(one.pod_uid, one.reason) for one in retired] == [("pod-0", "Complete"), ("pod-1", "Complete")]
