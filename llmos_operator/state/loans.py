"""Memory that idle replicas have lent: what of a device is kept for those who borrow, and who they are.

A lender came down, as for anybody (`Claim.asked_bytes`), and gets all of it back when it works again. So what it lent
is counted as taken for everybody but those who may be sent away at that moment:

    kept = sum over lenders of max(0, lent - what stands in it)

and headroom is what is free beside it. Then nothing that stays ever stands in lent memory, and sending borrowers away
gives nothing to anybody but their lender.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from llmos_operator.state.types import PodPhase

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmos_operator.state.ledger import DeviceState, NodeState
    from llmos_operator.state.types import Claim, Pod, PodKey


def concerned(claim: Claim) -> bool:
    """Return whether a claim is one side of a loan, or may be."""
    return claim.lent or bool(claim.lender)


def marked(devices: tuple[DeviceState, ...], pods: Mapping[PodKey, Pod]) -> tuple[DeviceState, ...]:
    """Return devices with what is kept of each for borrowers, as these pods stand."""
    kept: dict[str, int] = {}
    for lender, claim in _lenders(pods).items():
        for uuid in claim.devices:
            left = claim.lent_bytes - sum(
                one.claim.held_bytes
                for one in _borrowers(pods, lender)
                if one.claim is not None and uuid in one.claim.devices
            )
            kept[uuid] = kept.get(uuid, 0) + max(0, left)
    return tuple(
        replace(one, kept_bytes=kept.get(one.uuid, 0)) if one.kept_bytes != kept.get(one.uuid, 0) else one
        for one in devices
    )


def opened(state: NodeState, lender: PodKey) -> NodeState:
    """Return a node as it stands open to who borrows from one lender, and to the lender itself."""
    others = {
        key: pod
        for key, pod in state.pods.items()
        if key != lender and not (pod.claim is not None and pod.claim.lender == lender)
    }
    return replace(state, devices=marked(state.devices, others))


def borrowers(state: NodeState, lender: PodKey) -> list[Pod]:
    """Return who stands in what a replica of a node has lent, those on their way out included; by key."""
    return sorted(_borrowers(state.pods, lender), key=lambda pod: pod.key)


def lends(state: NodeState, lender: PodKey) -> bool:
    """Return whether a replica of a node has lent memory that it was seen to give up."""
    claim = _lenders(state.pods).get(lender)
    return claim is not None and claim.yielded


def _lenders(pods: Mapping[PodKey, Pod]) -> dict[PodKey, Claim]:
    return {
        key: pod.claim
        for key, pod in pods.items()
        if pod.claim is not None and pod.claim.lent and pod.phase is not PodPhase.FINISHED
    }


def _borrowers(pods: Mapping[PodKey, Pod], lender: PodKey) -> list[Pod]:
    return [
        pod
        for pod in pods.values()
        if pod.claim is not None and pod.claim.lender == lender and pod.phase is not PodPhase.FINISHED
    ]
