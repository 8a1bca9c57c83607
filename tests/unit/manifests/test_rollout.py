"""Where an update goes on in place, and what is said of that."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from llmos_operator.api.conditions import Reason
from llmos_operator.manifests.observed import Observed
from llmos_operator.manifests.rollout import instead, progress
from llmos_operator.manifests.verdicts import ready
from llmos_operator.scheduler.plan import Decision
from tests.support.replicas import NOW, a_pod_of, a_work

if TYPE_CHECKING:
    from llmos_operator.state.types import Pod, Workload


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
def test_it_is_told_whether_replicas_are_replaced_in_place_for_lack_of_room(reason: Reason) -> None:
    work = surging()
    said = f"There is no room for a replica beside them ({reason})"
    for decision, pods, therefore in (
        (
            replace(decided(work, reason), instead="team/one"),
            old(work, 0, 1),
            ": they are replaced in place.",
        ),
        (decided(work, reason), old(work, 0, 1), ", and none of them would make enough: they stay."),
        (decided(work, reason), (*old(work, 0, 1), a_pod_of(work, 2)), "."),
    ):
        assert progress(Observed(work, NOW, pods=pods, decision=decision)).endswith(said + therefore)


@pytest.mark.parametrize(
    "decision",
    [
        decided(surging(), Reason.WAITING_FOR_PREEMPTION),
        decided(surging(), pending=0),
        replace(decided(surging()), generation=0, instead="team/one"),
    ],
)
def test_nothing_is_said_of_room_while_there_may_be_some(decision: Decision) -> None:
    work = surging()
    assert "room" not in progress(Observed(work, NOW, pods=old(work, 0, 1), decision=decision))
    assert instead(work, decision) == ""
    assert instead(work, None) == ""


def test_replicas_beside_those_that_are_wanted_are_told_apart() -> None:
    work = surging()
    seen = Observed(work, NOW, pods=(*old(work, 0, 1), a_pod_of(work, 2, ready=True)))
    assert ready(seen).message == "3 replicas (wanted: 2) serve."
    assert ready(replace(seen, pods=old(work, 0, 1))).message == "2 of 2 replicas serve."
