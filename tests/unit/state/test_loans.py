"""Lent memory in the ledger: for whom it is room, what a claim's annotation keeps of it, and when it may be had back."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmos_operator.errors import Conflict
from llmos_operator.state import loans
from llmos_operator.state.convert.fields import Fields
from llmos_operator.state.convert.pods import claim_json, claim_of
from llmos_operator.state.types import Claim, Pod, Sharing
from tests.support.builders import GIB, NOW, ClusterBuilder, a_cluster, a_node, a_workload, gpu


def a_lender(*, yielded: bool = True) -> tuple[ClusterBuilder, Pod]:
    """Let a replica with 30 of 48 GiB have lent 10 of them."""
    cluster = a_cluster(a_node("n1").with_gpus(1, "A100-48G", "48Gi"))
    builder = a_workload("chat").with_(sharing=Sharing.SHARED)
    pod = cluster.running(builder, "n1", (0,), memory=str(30 * GIB))
    assert cluster.store.ask_to_lower(pod.key, pod.uid, 20 * GIB, NOW, lent=True)
    if yielded:
        cluster.store.note_yielded(pod.key, pod.uid)
    return cluster, pod


def claim(name: str, amount: int, lender: str = "") -> Claim:
    """Return the claim of a replica that is to start beside the lender."""
    other = a_cluster(a_node("n1").with_gpus(1, "A100-48G", "48Gi"))
    pod = other.running(
        a_workload(name).with_(sharing=Sharing.SHARED), "n1", (0,), memory=str(amount), lender=lender
    )
    assert pod.claim is not None
    return pod.claim


def headroom(cluster: ClusterBuilder, lender: str = "") -> int:
    state = cluster.snapshot().nodes["n1"]
    device = (loans.opened(state, lender) if lender else state).device(gpu("n1", 0))
    assert device is not None
    return device.headroom_bytes()


def test_what_is_lent_is_room_for_borrowers_alone() -> None:
    cluster, lender = a_lender()
    assert headroom(cluster) == 18 * GIB, "as if nothing was lent"
    assert headroom(cluster, lender.key) == 28 * GIB
    cluster.store.assume(claim("spare", 8 * GIB, lender.key))
    assert headroom(cluster) == 18 * GIB
    assert headroom(cluster, lender.key) == 20 * GIB


def test_nothing_is_lent_before_it_was_seen_to_be_given_up() -> None:
    cluster, lender = a_lender(yielded=False)
    assert headroom(cluster, lender.key) == 18 * GIB
    with pytest.raises(Conflict, match="lends nothing on node n1 any more"):
        cluster.store.assume(claim("spare", GIB, lender.key))


def test_a_claim_that_stays_is_not_taken_in_lent_memory() -> None:
    cluster, _ = a_lender()
    with pytest.raises(Conflict, match="bytes unreserved"):
        cluster.store.assume(claim("peer", 18 * GIB + 1))
    cluster.store.assume(claim("peer", 18 * GIB))


def test_it_is_had_back_once_nobody_stands_in_it_any_more() -> None:
    cluster, lender = a_lender()
    borrower = claim("spare", 20 * GIB, lender.key)
    cluster.store.assume(borrower)
    assert cluster.store.restore_memory(lender.key, lender.uid) is None
    cluster.store.forget(borrower.pod)
    back = cluster.store.restore_memory(lender.key, lender.uid)
    assert back is not None
    assert (back.lent, back.lowered) == (False, False)


def test_what_was_lent_may_be_taken_for_good() -> None:
    cluster, lender = a_lender()
    taken = cluster.store.ask_to_lower(lender.key, lender.uid, 20 * GIB, NOW + 1, "default/urgent", NOW + 20)
    assert taken is not None
    assert (taken.lent, taken.yielded) == (False, True)
    assert headroom(cluster) == 28 * GIB
    assert cluster.store.ask_to_lower(lender.key, lender.uid, 20 * GIB, NOW + 2) is None


def test_both_sides_stand_in_the_annotations() -> None:
    cluster, lender = a_lender()
    found = cluster.store.pod(lender.key)
    assert found is not None
    assert found.claim is not None
    for held in (found.claim, claim("spare", GIB, lender.key)):
        owner = {"uid": held.workload_uid, "kind": "ModelWorkload", "controller": True}
        meta = Fields({"ownerReferences": [owner]})
        told = claim_of(claim_json(held), meta, held.pod, held.node, (held.cpu_milli, held.memory_bytes))
        assert told == held
    assert replace(found.claim, lent=False).lent_bytes == 0
