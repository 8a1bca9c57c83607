"""What is done about a workload that waits in a queue of Kueue, by what is seen of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmos_operator.api import names
from llmos_operator.control.kueue import Seen, Step, rule
from llmos_operator.manifests import kueue as manifests
from llmos_operator.state.reservation import Reservation
from llmos_operator.state.types import Gate, Model, Sharing, Workload

ASKED = manifests.Ask("team", 2, ((names.RESOURCE_GPU, "1"),), "{}")
FOUND = Reservation("w", "team", "u1", "7", "owner", "team", asked=ASKED.mark, pods=2)
HELD = replace(FOUND, reserved=True)
ADMITTED = replace(HELD, admitted=True, flavors=("default",))
SEEN = Seen(ASKED, ADMITTED, pods=2, ready=False, finished=False, known=True, placed=True)
A_WORKLOAD = Workload("team/chat", "owner", Model("hf://acme/tiny"), replicas=2, kueue_queue="team")


def test_it_runs_while_it_is_admitted() -> None:
    ruling = rule(SEEN)
    assert ruling.gate == Gate(closed=False)
    assert ruling.step is None


@pytest.mark.parametrize(
    ("found", "pods", "step", "said"),
    [
        (None, 0, Step.CREATE, "is to be asked for"),
        (None, 2, None, "is to be asked for"),  # the label is new: pods go first
        (FOUND, 0, None, "waits in LocalQueue team"),
        (HELD, 0, None, "admission checks"),
        (replace(ADMITTED, active=False), 2, None, "spec.active"),
        (replace(ADMITTED, evicted="Preempted"), 2, None, "evicted it (Preempted)"),
        (replace(ADMITTED, evicted="Preempted"), 0, Step.RELEASE, "evicted it (Preempted)"),
        (replace(FOUND, evicted="Preempted"), 0, None, "evicted it (Preempted)"),
        (replace(ADMITTED, queue="other"), 2, None, "something else"),
        (replace(ADMITTED, queue="other"), 0, Step.DELETE, "something else"),
        (replace(ADMITTED, pods=1), 0, Step.DELETE, "something else"),
        (replace(ADMITTED, asked="else"), 0, Step.DELETE, "something else"),
        (replace(FOUND, priority="high"), 0, Step.DELETE, "something else"),
    ],
)
def test_it_may_not_run_and_says_why(
    found: Reservation | None, pods: int, step: Step | None, said: str
) -> None:
    ruling = rule(replace(SEEN, found=found, pods=pods))
    assert ruling.gate is not None
    assert ruling.gate.closed
    assert said in ruling.gate.message
    assert ruling.step is step


def test_fewer_pods_and_another_priority_keep_what_is_held() -> None:
    assert rule(replace(SEEN, found=replace(ADMITTED, pods=3, priority="high"))).gate == Gate(closed=False)


def test_what_is_not_known_ends_nothing_and_starts_nothing() -> None:
    for seen in (replace(SEEN, known=False, found=None), replace(SEEN, placed=False)):
        gate = rule(seen).gate
        assert gate is not None
        assert (gate.held, gate.closed, gate.open) == (True, False, False)
        assert gate.message


def test_quota_of_what_wants_nothing_is_given_back_when_its_pods_are_gone() -> None:
    none = replace(SEEN, asked=replace(ASKED, pods=0))
    assert (rule(none).gate, rule(none).step) == (None, None)
    assert rule(replace(none, pods=0)).step is Step.DELETE


def test_an_end_is_told_once_and_readiness_when_it_changes() -> None:
    assert rule(replace(SEEN, finished=True)).step is Step.FINISH
    assert rule(replace(SEEN, finished=True, found=replace(ADMITTED, finished=True))).step is None
    assert rule(replace(SEEN, ready=True)).step is Step.TELL_READY
    assert rule(replace(SEEN, ready=True, found=replace(ADMITTED, ready=True))).step is None


def test_without_a_queue_kueue_is_not_asked() -> None:
    nobody = replace(SEEN, asked=replace(ASKED, queue=""))
    assert (rule(nobody).gate, rule(nobody).step) == (None, Step.DELETE)
    assert rule(replace(nobody, found=None)).step is None


@pytest.mark.parametrize(
    ("workload", "each"),
    [
        (replace(A_WORKLOAD, accelerators=2), ("nvidia.com/gpu", "2")),
        (replace(A_WORKLOAD, sharing=Sharing.SHARED, memory_bytes=4096), ("llmos.dev/gpu-memory", "4096")),
        (replace(A_WORKLOAD, sharing=Sharing.SHARED), ("nvidia.com/gpu", "1")),
        (replace(A_WORKLOAD, accelerators=0), ("cpu", "500m")),
    ],
)
def test_what_one_pod_asks_for(workload: Workload, each: tuple[str, str]) -> None:
    asked = manifests.ask(workload, (500, 1 << 30))
    assert asked.each[0] == each
    assert asked.pods == 2


def test_one_that_scales_asks_for_the_most_it_may_have_unless_it_wants_none() -> None:
    scaled = replace(A_WORKLOAD, spec={"scaling": {"maxReplicas": 5}})
    assert manifests.ask(scaled, (0, 0)).pods == 5
    assert manifests.ask(replace(scaled, replicas=0), (0, 0)).pods == 0


def test_a_release_keeps_other_conditions_and_changes_a_time_with_a_status_only() -> None:
    def told(kind: str, status: str) -> tuple[tuple[str, str], ...]:
        fields = {
            "type": kind,
            "status": status,
            "reason": "R",
            "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }
        return tuple(fields.items())

    before = (told("Evicted", "True"), told("QuotaReserved", "True"), told("Admitted", "False"))
    patch = manifests.released(replace(ADMITTED, evicted="Deactivated", conditions=before), 1_800_000_000)
    after = {one["type"]: one for one in patch["status"]["conditions"]}
    assert patch["status"]["admission"] is None
    assert patch["metadata"] == {"uid": "u1", "resourceVersion": "7"}
    assert after["Evicted"] == dict(before[0])
    assert after["QuotaReserved"]["status"] == "False"
    assert after["QuotaReserved"]["lastTransitionTime"] > "2026-01-01T00:00:00Z"
    assert after["Admitted"]["lastTransitionTime"] == "2026-01-01T00:00:00Z"
    assert after["Requeued"]["status"] == "False"  # only after a preemption it queues again at once
