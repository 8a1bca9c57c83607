"""MIG instances in words: which profiles there are, and how many of each are free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from llmos_operator.scheduler.geometry.products import usable_bytes
from llmos_operator.state.cutting import being_cut, state_of
from llmos_operator.state.types import Sharing

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llmos_operator.scheduler.request import Request
    from llmos_operator.state.ledger import NodeState

_SHOWN: Final = 6


def profiles(states: Iterable[NodeState]) -> str:
    """Return the profiles of instances with how many of each are free: "3 of 7 1g.10gb free, 0 of 1 3g.40gb free"."""
    counts: dict[str, list[int]] = {}
    withheld = 0
    for state in states:
        for one in state.devices:
            if one.device.mig:
                profile = one.device.profile
                found = counts.setdefault(str(profile) if profile else one.device.product, [0, 0])
                found[0] += one.idle and one.usable
                found[1] += 1
                withheld += one.withheld
    shown = [f"{free} of {count} {name} free" for name, (free, count) in sorted(counts.items())[:_SHOWN]]
    if len(counts) > _SHOWN:
        shown.append(f"{len(counts) - _SHOWN} more profiles")
    if withheld:
        shown.append(
            f"{withheld} held by nobody, but not given now: no unit is left, or their GPU is being cut"
        )
    return ", ".join(shown) or "no MIG instances"


def being_cut_for(states: Iterable[NodeState], request: Request) -> str:
    """Return that a node's GPUs are being cut into instances that would do for a request; "" where none are."""
    if request.constraints.sharing is not Sharing.MIG:
        return ""
    asked = request.constraints.mig_profile
    for state in states:
        node = state.node
        if node is None or node.recut is None or not being_cut(node.labels, node.recut):
            continue
        if any(
            usable_bytes(one) >= request.bytes_per_device and (asked is None or one.holds(asked))
            for one in node.recut.profiles
        ):
            stands = state_of(node.labels) or "asked for"
            return f"waits until the GPUs of node {state.name} are cut into {node.recut.layout} ({stands})"
    return ""


def no_instance(states: Iterable[NodeState], request: Request) -> str:
    """Return why no instance of the cluster is of the kind asked for."""
    known = tuple(states)
    if not any(one.device.mig for state in known for one in state.devices):
        return (
            "spec.resources.sharing is MIG, and no node has MIG instances: cut a GPU into some (nvidia-smi mig, or NVIDIA's "
            "mig-manager), or choose Exclusive or Shared"
        )
    asked = request.constraints.mig_profile
    wanted = f"spec.resources.migProfile {asked} and " if asked is not None else ""
    return f"no MIG instance is what {wanted}spec.resources.selector ask for; there are: {profiles(known)}"
