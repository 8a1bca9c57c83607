"""Where an update goes on in place, and what is said of that."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmos_operator.api.conditions import Reason
from llmos_operator.manifests.observed import Observed
from llmos_operator.manifests.rollout import in_place, progress
from llmos_operator.manifests.verdicts import ready
from llmos_operator.scheduler.plan import Decision
from llmos_operator.state.types import Pod, PodPhase, Sharing, Workload
from tests.support.replicas import NOW, a_pod_of, a_work


def surging(replicas: int = 2, surge: int = 2) -> Workload:
    return a_work(
        replicas=replicas,
        resources={"accelerators": 1},
        rollout={"maxSurge": surge, "maxUnavailable": 0},
    )


def old(work: Workload, *ordinals: int) -> tuple[Pod, ...]:
    return tuple(a_pod_of(work, one, ready=True, spec_hash="older") for one in ordinals)


def decided(work: Workload, reason: Reason = Reason.NO_CAPACITY, pending: int = 2) -> Decision:
    return Decision(
        work.key, work.uid, work.generation, reason, "", pending=pending, bytes_per_device=1 << 29
    )


@pytest.mark.parametrize("reason", [Reason.NO_CAPACITY, Reason.EXCEEDS_QUOTA, Reason.CLAIM_IN_USE])
def test_without_room_for_one_beside_them_replicas_are_replaced_in_place(reason: Reason) -> None:
    work = surging()
    assert in_place(work, decided(work, reason), old(work, 0, 1))
    said = progress(Observed(work, NOW, pods=old(work, 0, 1), decision=decided(work, reason)))
    assert said.endswith(f"beside them ({reason}): they are replaced in place.")


@pytest.mark.parametrize(
    "decision",
    [
        None,
        decided(surging(), Reason.WAITING_FOR_PREEMPTION),
        decided(surging(), Reason.NO_MATCHING_DEVICE),
        decided(surging(), pending=0),
        replace(decided(surging()), generation=0),
    ],
)
def test_nothing_goes_for_what_may_start_beside_it_or_never(decision: Decision | None) -> None:
    work = surging()
    assert not in_place(work, decision, old(work, 0, 1))


@pytest.mark.parametrize("phase", [PodPhase.ASSUMED, PodPhase.BOUND, PodPhase.TERMINATING])
def test_with_one_beside_them_nothing_goes_for_lack_of_room_for_another(phase: PodPhase) -> None:
    work = surging()
    pods = (*old(work, 0, 1), replace(a_pod_of(work, 2), phase=phase))
    assert not in_place(work, decided(work), pods)
    said = progress(Observed(work, NOW, pods=pods, decision=decided(work)))
    assert said.endswith("beside them (NoCapacity).")


@pytest.mark.parametrize(
    ("change", "enough"),
    [
        ({"accelerators": 2}, False),
        ({"sharing": Sharing.SHARED}, True),
        ({"sharing": Sharing.SHARED, "larger": True}, False),
    ],
)
def test_nothing_goes_for_a_replica_that_needs_more_than_it_leaves(
    change: dict[str, object], enough: bool
) -> None:
    decision = decided(surging())
    if change.pop("larger", False):
        decision = replace(decision, bytes_per_device=2 << 30)
    work = replace(surging(), **change)
    assert in_place(work, decision, old(work, 0, 1)) is enough
    said = progress(Observed(work, NOW, pods=old(work, 0, 1), decision=decision))
    assert said.endswith("in place." if enough else "none of them would leave enough: they stay.")


def test_replicas_beside_those_that_are_wanted_are_told_apart() -> None:
    work = surging()
    seen = Observed(work, NOW, pods=(*old(work, 0, 1), a_pod_of(work, 2, ready=True)))
    assert ready(seen).message == "3 replicas (wanted: 2) serve."
    assert ready(replace(seen, pods=old(work, 0, 1))).message == "2 of 2 replicas serve."
