"""What runs together ends together."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from llmos_operator.api.conditions import Reason
from llmos_operator.control import engines, gangs, reconcile
from llmos_operator.control.gangs import TOO_FEW, GangLimits
from llmos_operator.control.reconcile import Situation
from llmos_operator.state.replicas import Exit, Replica
from llmos_operator.state.types import Pod, PodPhase
from tests.support.replicas import NOW, a_pod_of, a_work

if TYPE_CHECKING:
    from llmos_operator.state.types import Workload

LIMITS = GangLimits(grace=10.0, start=300.0)
CUSTOM = {"name": "custom", "image": "trainer"}


def a_gang(**spec: Any) -> Workload:
    return a_work(parallelism={"data": 2}, engine=CUSTOM, **spec)


def member(work: Workload, rank: int, ordinal: int = 0, **changes: Any) -> Pod:
    pod = a_pod_of(work, ordinal)
    claim = replace(pod.claim, member=rank, pod=f"{pod.key}-{rank}")  # type: ignore[type-var]
    return replace(pod, key=claim.pod, uid=f"pod-{ordinal}-{rank}", claim=claim, **changes)


def retired(work: Workload, *pods: Pod, overdue: tuple[int, ...] = (), **more: Any) -> list[str]:
    seen = Situation(work, NOW, pods=pods, overdue=frozenset(overdue), limits=LIMITS, **more)
    return sorted(one.pod_uid for one in reconcile.rule(seen).retire)


def test_a_whole_gang_has_no_gap() -> None:
    work = a_gang()
    assert gangs.gaps(work, [member(work, 0), member(work, 1, phase=PodPhase.ASSUMED)]) == frozenset()


@pytest.mark.parametrize("phase", [None, PodPhase.TERMINATING, PodPhase.FINISHED])
def test_a_gang_has_a_gap_where_a_member_is_gone_or_going(phase: PodPhase | None) -> None:
    work = a_gang()
    others = [] if phase is None else [member(work, 1, phase=phase)]
    assert gangs.gaps(work, [member(work, 0), *others]) == {0}


def test_a_gang_that_goes_as_a_whole_has_no_gap() -> None:
    work = a_gang()
    going = [member(work, rank, phase=PodPhase.TERMINATING) for rank in range(2)]
    assert gangs.gaps(work, going) == frozenset()


def test_every_gang_is_counted_in_one_state() -> None:
    work = a_gang(replicas=5)
    gone, going = PodPhase.FINISHED, PodPhase.TERMINATING
    pods = [member(work, rank, 0, ready=True) for rank in range(2)]
    pods += [member(work, 0, 1, ready=True), member(work, 1, 1, phase=PodPhase.ASSUMED)]
    pods += [member(work, 0, 2, ready=True)]
    pods += [member(work, 0, 3, ready=True), member(work, 1, 3, phase=going)]
    pods += [member(work, rank, 4, phase=phase) for rank, phase in enumerate((gone, going))]
    assert gangs.states(work, pods) == {"ready": 1, "starting": 1, "incomplete": 2, "waiting": 1}


def test_what_is_suspended_or_is_one_pod_each_waits_for_no_gang() -> None:
    assert gangs.states(a_gang(replicas=2, suspend=True), ()).total() == 0
    assert gangs.states(a_work(replicas=2), ()).total() == 0


def test_only_the_gang_with_the_overdue_gap_is_given_back() -> None:
    work = a_gang(replicas=2)
    pods = [member(work, 0), member(work, 0, 1), member(work, 1, 1)]
    assert retired(work, *pods) == []
    assert retired(work, *pods, overdue=(0,)) == ["pod-0-0"]


def test_fewer_than_start_together_are_given_back_once_the_grace_is_over() -> None:
    work = a_work(replicas=3, scheduling={"minReplicas": 2})
    pods = [a_pod_of(work, 0)]
    assert gangs.gaps(work, pods) == {TOO_FEW}
    assert retired(work, *pods) == []
    assert retired(work, *pods, overdue=(TOO_FEW,)) == ["pod-0"]
    assert gangs.gaps(work, [*pods, a_pod_of(work, 2)]) == frozenset()


def test_a_replica_that_is_being_replaced_still_counts() -> None:
    work = a_work(replicas=2, scheduling={"minReplicas": 2})
    pods = [a_pod_of(work, 0), a_pod_of(work, 1, phase=PodPhase.TERMINATING)]
    assert gangs.gaps(work, pods) == frozenset()


def test_the_failure_of_one_member_ends_the_others_at_once() -> None:
    work = a_gang()
    pods = [member(work, 0), member(work, 1, phase=PodPhase.FINISHED)]
    ended = Replica(pods[1].key, pods[1].uid, work.uid, phase="Failed", ended=Exit("Error", 1))
    assert retired(work, *pods, replicas={pods[1].key: ended}) == ["pod-0-0", "pod-0-1"]


def test_an_older_spec_is_replaced_gang_by_gang() -> None:
    work = a_gang(replicas=2)
    pods = [member(work, r, o, ready=True, spec_hash="older") for o in range(2) for r in range(2)]
    assert retired(work, *pods) == ["pod-0-0", "pod-0-1"]


def test_a_gang_that_does_not_come_up_in_time_is_given_back_and_counted_once() -> None:
    work = a_gang()
    pods = [member(work, 0, ready=True), member(work, 1)]
    waiting = Replica(
        pods[1].key, pods[1].uid, work.uid, waiting="ErrImagePull", waiting_message="no such image"
    )
    seen = Situation(work, NOW + 299, pods=tuple(pods), replicas={pods[1].key: waiting}, limits=LIMITS)
    assert reconcile.rule(seen).retire == ()
    ruling = reconcile.rule(replace(seen, now=NOW + 301))
    assert sorted(one.pod_uid for one in ruling.retire) == ["pod-0-0", "pod-0-1"]
    (failed,) = ruling.failed
    assert failed.failure.reason == Reason.GANG_INCOMPLETE
    assert "1 of 2 pods" in failed.failure.message
    assert "ErrImagePull" in failed.failure.message
    assert gangs.next_look(work, pods, seen.replicas, LIMITS.start) == NOW + 300


def test_a_container_that_is_restarted_in_place_is_not_late() -> None:
    work = a_gang()
    pods = [member(work, 0, ready=True), member(work, 1)]
    ended = Exit("Error", 3, finished_at=NOW + 5000)
    again = Replica(pods[1].key, pods[1].uid, work.uid, waiting="CrashLoopBackOff", restarts=1, last=ended)
    seen = Situation(work, NOW + 5001, pods=tuple(pods), replicas={pods[1].key: again}, limits=LIMITS)
    ruling = reconcile.rule(seen)
    assert (ruling.retire, ruling.failed) == ((), ())
    assert gangs.next_look(work, pods, seen.replicas, LIMITS.start) == NOW + 5300


def test_a_container_that_does_not_come_back_is_told_as_such() -> None:
    work = a_gang()
    pods = [member(work, 0, ready=True), member(work, 1)]
    ended = Exit("Error", 3, finished_at=NOW + 5000)
    again = Replica(pods[1].key, pods[1].uid, work.uid, waiting="CrashLoopBackOff", restarts=1, last=ended)
    seen = Situation(work, NOW + 5300, pods=tuple(pods), replicas={pods[1].key: again}, limits=LIMITS)
    ruling = reconcile.rule(seen)
    assert sorted(one.pod_uid for one in ruling.retire) == ["pod-0-0", "pod-0-1"]
    (failed,) = ruling.failed
    assert failed.failure.reason == Reason.GANG_INCOMPLETE
    assert (
        "ended with exit code 3 and did not run again within 300 s (CrashLoopBackOff)"
        in failed.failure.message
    )
    assert "came up" not in failed.failure.message


def test_a_member_that_never_came_up_is_named_though_another_ended_meanwhile() -> None:
    work = a_gang()
    pods = [member(work, 0), member(work, 1)]
    ended = Exit("Error", 1, finished_at=NOW + 290)
    replicas = {
        pods[0].key: Replica(pods[0].key, pods[0].uid, work.uid, restarts=2, last=ended),
        pods[1].key: Replica(pods[1].key, pods[1].uid, work.uid, waiting="ErrImagePull"),
    }
    seen = Situation(work, NOW + 301, pods=tuple(pods), replicas=replicas, limits=LIMITS)
    (failed,) = reconcile.rule(seen).failed
    assert f"came up within 300 s, {pods[1].name} did not (ErrImagePull)" in failed.failure.message


def test_a_gang_whose_containers_run_may_take_its_time_to_load() -> None:
    work = a_gang()
    pods = [member(work, 0), member(work, 1)]
    running = {pod.key: Replica(pod.key, pod.uid, work.uid, running=True) for pod in pods}
    seen = Situation(work, NOW + 3000, pods=tuple(pods), replicas=running, limits=LIMITS)
    assert reconcile.rule(seen).retire == ()


def test_copies_that_work_in_step_need_an_engine_of_ones_own() -> None:
    assert "engine custom" in engines.unsupported(a_work(parallelism={"data": 2}))
    assert engines.unsupported(a_gang()) == ""


def test_the_builtin_engine_splits_layers_or_lays_them_over_devices() -> None:
    two = {"resources": {"accelerators": 2}}
    assert engines.unsupported(a_work(**two)) == ""
    assert engines.unsupported(a_work(**two, parallelism={"pipeline": 2})) == ""
    four = {"resources": {"accelerators": 4}}
    why = engines.unsupported(a_work(**four, parallelism={"pipeline": 2}))
    assert "of one device each" in why
    assert "set parallelism.pipeline to 4 or 1" in why
    assert engines.unsupported(a_work(**four, parallelism={"pipeline": 4, "pods": 2})) == ""
    assert engines.unsupported(a_work(**two, parallelism={"pods": 2})) == ""
    adapters = [{"name": "a", "uri": "hf://org/a"}]
    assert "adapters on one device" in engines.unsupported(a_work(**two, adapters=adapters))


def test_a_pod_whose_creation_stays_in_doubt_does_not_keep_the_others_waiting_for_ever() -> None:
    work = a_gang()
    pods = (member(work, 0, ready=True), replace(member(work, 1, phase=PodPhase.ASSUMED), uid=""))
    seen = Situation(work, NOW + 299, pods=pods, limits=LIMITS)
    assert reconcile.rule(seen).retire == ()
    assert [one.pod_uid for one in reconcile.rule(replace(seen, now=NOW + 301)).retire] == ["pod-0-0"]
