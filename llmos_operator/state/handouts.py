"""What device plugins hand out on a node: under which resource each device goes, who got it, and what is left.

Whole devices are units of nvidia.com/gpu. MIG instances are units of nvidia.com/mig-<profile> (strategy mixed) or of
nvidia.com/gpu (strategy single: every GPU of the node is cut alike); where no plugin knows them (strategy none, or no plugin at
all) a pod names its instance itself. https://github.com/NVIDIA/k8s-device-plugin#configuration-option-details
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from llmos_operator.api import names
from llmos_operator.api.mig import RESOURCE_PREFIX
from llmos_operator.state import plugin
from llmos_operator.state.cutting import being_cut
from llmos_operator.state.types import PodPhase

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from llmos_operator.state.ledger import DeviceState
    from llmos_operator.state.slices import Allocation
    from llmos_operator.state.types import Device, Node, Pod, PodKey

_MIXED: Final = "mixed"
_SINGLE: Final = "single"
_NONE: Final = "none"
# Words of the kubelet for a pod whose devices it does not have: pkg/kubelet/lifecycle/predicate.go.
_REFUSED: Final = "UnexpectedAdmissionError"
_OUT_OF: Final = (f"OutOf{names.RESOURCE_GPU}", f"OutOf{RESOURCE_PREFIX}")


def refuses_devices(reason: str) -> bool:
    """Return whether a failed pod's status.reason says that the kubelet had no devices for it."""
    return reason == _REFUSED or reason.startswith(_OUT_OF)


def resource_of(device: Device, node: Node | None, devices: Sequence[Device]) -> str:
    """Return the extended resource by which pods get a device of a node from a device plugin, "" where they name it themselves.

    ``devices`` are all of the node. The kubelet's own word goes first, then the strategy that GPU feature discovery found, then
    what the node advertises. Devices that are claimed are under none.
    """
    if claims_devices(node, devices):
        return ""
    if not device.mig:
        return names.RESOURCE_GPU
    if device.resource == names.RESOURCE_GPU or device.resource.startswith(RESOURCE_PREFIX):
        return device.resource
    strategy = node.labels.get(names.LABEL_MIG_STRATEGY, "") if node is not None else _NONE
    mixed = device.profile.resource if device.profile is not None else ""
    if node is None or strategy == _NONE:
        return ""
    if strategy == _MIXED or (not strategy and mixed in node.partitions):
        return mixed
    single = strategy == _SINGLE or (
        node.gpus > 0 and not node.partitions and all(one.mig for one in devices)
    )
    return names.RESOURCE_GPU if single else ""


def claims_devices(node: Node | None, devices: Iterable[Device]) -> bool:
    """Return whether pods get the devices of a node by ResourceClaims: a device plugin that offers any goes first."""
    return node is not None and not node.gpus and any(one.claimable for one in devices)


def resources_of(devices: Sequence[DeviceState], node: Node | None) -> tuple[str, ...]:
    """Return :func:`resource_of` of every device of a node. It changes with node and devices, not with pods."""
    known = [one.device for one in devices]
    return tuple(resource_of(one, node, known) for one in known)


def units(pod: Pod, resource: str) -> int:
    """Return how many units of a resource a pod takes of its node."""
    if pod.phase is PodPhase.FINISHED:
        return 0
    if pod.claim is not None:
        return len(pod.claim.devices) if pod.claim.resource == resource else 0
    return pod.gpus if resource == names.RESOURCE_GPU else pod.partitions.get(resource, 0)


def foreign_units(pod: Pod) -> int:
    """Return how many devices a pod that is not ours takes. Which ones, the kubelet may have told."""
    return pod.gpus + sum(pod.partitions.values()) if pod.claim is None and not pod.holder else 0


def given(devices: Sequence[DeviceState], key: PodKey) -> tuple[str, ...]:
    """Return the devices the kubelet gave to a pod, in the node's order; () where it does not tell."""
    return tuple(one.device.uuid for one in devices if key in one.device.holders)


def marked(
    devices: tuple[DeviceState, ...],
    resources: Sequence[str],
    node: Node | None,
    pods: Mapping[PodKey, Pod],
    *,
    refusing: bool,
) -> tuple[DeviceState, ...]:
    """Return the devices of a node as `foreign`, `secured`, `bare` and `withheld` say now who has them from a plugin.

    `resources` are those of the devices, as :func:`resources_of` says.
    """
    secured = plugin.secured(devices, pods)
    foreign = _foreign(devices, resources, pods, secured)
    bare = plugin.unsecured(devices, pods, secured)
    withheld = _withheld(devices, resources, foreign, node, pods, refusing=refusing)
    return tuple(
        _with(one, foreign=i in foreign, secured=i in secured, bare=i in bare, withheld=i in withheld)
        for i, one in enumerate(devices)
    )


def _with(one: DeviceState, *, foreign: bool, secured: bool, bare: bool, withheld: bool) -> DeviceState:
    if (one.foreign, one.secured, one.bare, one.withheld) == (foreign, secured, bare, withheld):
        return one
    return replace(one, foreign=foreign, secured=secured, bare=bare, withheld=withheld)


def _foreign(
    devices: Sequence[DeviceState],
    resources: Sequence[str],
    pods: Mapping[PodKey, Pod],
    secured: set[int],
) -> set[int]:
    """Return the devices that ResourceClaims have or the kubelet gave to others, and of the rest as many as they asked for beside.

    Which ones of the rest is a guess: those without claims, the most used first, then the highest index.
    """
    claimed = [(i, one.device.claimed_by) for i, one in enumerate(devices) if one.device.claimed_by]
    ours = {own_claim(pod) for pod in pods.values()} if claimed else set()
    taken = {i for i, claims in claimed if not ours.issuperset(claims)}
    told: Counter[tuple[PodKey, str]] = Counter()
    for i, one in enumerate(devices):
        others = [key for key in one.device.holders if _is_foreign(pods.get(key))]
        if others:
            taken.add(i)
            told.update((key, resources[i]) for key in others)
    if any(one.device.published for one in devices):
        return taken  # what is asked for there, ResourceClaims get: nothing is left to guess
    for resource in dict.fromkeys(resources):
        asked = sum(units(pod, resource) for pod in pods.values() if _is_foreign(pod))
        asked -= sum(min(count, units(pods[key], of)) for (key, of), count in told.items() if of == resource)
        order = sorted(
            (
                i
                for i in range(len(devices))
                if i not in taken and i not in secured and resources[i] == resource
            ),
            key=lambda i: (
                devices[i].claims > 0,
                -(devices[i].observed_bytes or 0),
                -devices[i].device.index,
                -i,
            ),
        )
        taken.update(i for i in order[: max(0, asked)] if devices[i].claims == 0)
    return taken


def own_claim(pod: Pod) -> str:
    """Return the key of the ResourceClaim a pod of ours has its devices by, "" where it has none or has ended."""
    if pod.claim is None or not pod.claim.resource_claim or pod.phase is PodPhase.FINISHED:
        return ""
    return f"{pod.namespace}/{pod.claim.resource_claim}"


def uses_claim(pod: Pod | None, one: Allocation) -> bool:
    """Return whether a pod that has not ended has its devices by a ResourceClaim, or is to get them.

    What its spec names and for whom the claim is reserved counts beside its annotation, which anybody may edit who may edit the pod.
    """
    if pod is None or pod.phase is PodPhase.FINISHED:
        return False
    named = f"{pod.namespace}/{pod.resource_claim}" if pod.resource_claim else own_claim(pod)
    return named == one.key or pod.uid in one.users


def _is_foreign(pod: Pod | None) -> bool:
    """Return whether a pod is somebody else's and holds something. One nobody knows of is on its way out."""
    return pod is not None and pod.claim is None and not pod.holder and pod.phase is not PodPhase.FINISHED


def _withheld(
    devices: Sequence[DeviceState],
    resources: Sequence[str],
    foreign: set[int],
    node: Node | None,
    pods: Mapping[PodKey, Pod],
    *,
    refusing: bool,
) -> set[int]:
    """Return the free instances for which the kubelet has no unit left: it may advertise fewer than the agent finds.

    Where devices are claimed, those that cannot be. While GPUs are being cut nothing that is free is given.
    """
    if node is not None and being_cut(node.labels, node.recut):
        return {i for i, one in enumerate(devices) if one.claims == 0 and i not in foreign}
    found: set[int] = set()
    if claims_devices(node, (one.device for one in devices)):
        return {
            i
            for i, one in enumerate(devices)
            if not one.device.claimable and one.claims == 0 and i not in foreign
        }
    for resource in dict.fromkeys(resources[i] for i, one in enumerate(devices) if one.device.mig):
        if not resource:
            continue
        free = [
            i
            for i, one in enumerate(devices)
            if one.device.mig and resources[i] == resource and one.claims == 0 and i not in foreign
        ]
        left = (
            0 if refusing else advertised(node, resource) - sum(units(pod, resource) for pod in pods.values())
        )
        found.update(free[max(0, left) :])
    return found


def advertised(node: Node | None, resource: str) -> int:
    """Return how many units of a resource a node has."""
    if node is None:
        return 0
    return node.gpus if resource == names.RESOURCE_GPU else node.partitions.get(resource, 0)
