"""Tells who uses devices beyond the ledger: strangers on them, ResourceClaims of others, and replicas that use more than they were given.

The filters already keep new work away from such devices (`StrangerOnDevice`, `DeviceOverused`, devices held by others); this says so to people, as
Events on the GPUNode and on the workload and as figures. An Event is told when a finding begins, and again when it has gone
and come back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmos_operator.api import names
from llmos_operator.api.conditions import Reason
from llmos_operator.api.quantity import human_bytes
from llmos_operator.cluster.events import Subject
from llmos_operator.state.handouts import own_claim
from llmos_operator.state.ledger import observation_margin
from llmos_operator.state.types import PodPhase

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from llmos_operator.cluster.events import EventRecorder
    from llmos_operator.control.metrics import OperatorMetrics
    from llmos_operator.state.ledger import DeviceState, NodeState
    from llmos_operator.state.snapshot import Snapshot
    from llmos_operator.state.strangers import Uses

_NOTICED_SHARE = 8  # a pod is told of when it uses an eighth more than its claim


@dataclass(frozen=True, slots=True)
class Finding:
    """One use beyond the ledger. `key` is the same as long as it is the same finding."""

    subject: Subject
    reason: Reason
    key: str
    note: str


class Trespass:
    """Looks at the store every few seconds. One caller."""

    def __init__(
        self, metrics: OperatorMetrics, recorder: EventRecorder, gpu_node_uid: Callable[[str], str]
    ) -> None:
        """`gpu_node_uid` gives the UID of a node's GPUNode, "" if there is none."""
        self._metrics = metrics
        self._recorder = recorder
        self._uid = gpu_node_uid
        self._uses: dict[str, dict[str, dict[str, int | None]]] = {}  # node -> device -> pod UID -> bytes
        self._told: set[tuple[str, str]] = set()  # reason, key

    def listed(self, node: str, uses: Uses) -> None:
        """Take the process lists of a node's devices."""
        known = self._uses.setdefault(node, {})
        known.update({uuid: dict(by_pod) for uuid, by_pod in uses.items()})

    def look(self, snapshot: Snapshot) -> None:
        """Show and tell what stands now."""
        self._uses = {name: uses for name, uses in self._uses.items() if name in snapshot.nodes}
        self._metrics.stranger_bytes.clear()
        self._metrics.overusing_replicas.clear()
        found: list[Finding] = []
        for name, state in snapshot.nodes.items():
            if state.gpu is None:
                continue
            uses = self._uses.get(name, {})
            leaks = list(overusing(state, uses))
            found += [*self._strangers(state, uses), *self._claimed(state), *leaks]
            self._metrics.stranger_bytes.labels(name).set(sum(one.strange_bytes for one in state.devices))
            self._metrics.overusing_replicas.labels(name).set(len({one.key for one in leaks}))
        for one in found:
            if (one.reason, one.key) not in self._told:
                self._recorder.record(one.subject, "Warning", one.reason, one.note, key=one.key)
        self._told = {(one.reason, one.key) for one in found}

    def _strangers(self, state: NodeState, uses: Uses) -> Iterator[Finding]:
        for device in state.devices:
            if not device.strange_bytes:
                continue
            subject = Subject(names.API_VERSION, "GPUNode", state.name, uid=self._uid(state.name))
            note = (
                f"{human_bytes(device.strange_bytes)} of device {device.uuid} are used by {_who(state, device, uses)}. "
                "Nothing new is placed there until they are free: end the process, or take the device from the operator."
            )
            yield Finding(subject, Reason.STRANGER_OBSERVED, device.uuid, note)

    def _claimed(self, state: NodeState) -> Iterator[Finding]:
        ours = {own_claim(pod) for pod in state.pods.values()} if state.claims_devices else set()
        for device in state.devices:
            claims = [one for one in device.device.claimed_by if one not in ours]
            if not claims or not device.claims:
                continue
            subject = Subject(names.API_VERSION, "GPUNode", state.name, uid=self._uid(state.name))
            used = sorted(one.workload for one in state.claims() if device.uuid in one.devices)
            note = (
                f"Device {device.uuid} was given to ResourceClaim {', '.join(claims)} while {', '.join(used[:3])} use it: "
                "both do until one ends, and nothing new is placed there. Taint nodes with a DRA driver for one kind of work."
            )
            yield Finding(subject, Reason.DEVICE_CLAIMED, f"{device.uuid} {' '.join(claims)}", note)


def _who(state: NodeState, device: DeviceState, uses: Uses) -> str:
    """Return whom the strangers on a device belong to, as far as that is known."""
    on_node = {pod.uid: pod.key for pod in state.pods.values()}
    tenants = {
        pod.uid for pod in state.pods.values() if pod.claim is not None and device.uuid in pod.claim.devices
    }
    strange = sorted(uid for uid in uses.get(device.uuid, {}) if uid not in tenants)
    shown = [
        on_node.get(uid, f"a pod that is gone ({uid})") if uid else "processes of no pod" for uid in strange
    ]
    return ", ".join(shown[:3]) or "processes nobody knows"


def overusing(state: NodeState, uses: Uses) -> Iterator[Finding]:
    """Yield the replicas that use clearly more of a device than their claim."""
    for pod in state.pods.values():
        claim = pod.claim
        if claim is None or pod.phase is PodPhase.FINISHED or not claim.held_bytes:
            continue
        for uuid in claim.devices:
            device, used = state.device(uuid), uses.get(uuid, {}).get(pod.uid)
            if device is None or used is None:
                continue
            beyond = used - claim.held_bytes
            if beyond <= max(
                observation_margin(device.device.memory_bytes), claim.held_bytes // _NOTICED_SHARE
            ):
                continue
            namespace, _, name = claim.workload.partition("/")
            note = (
                f"{pod.name} uses {human_bytes(used)} of device {uuid} and was given {human_bytes(claim.held_bytes)}: "
                f"{human_bytes(beyond)} that the ledger does not know of."
            )
            subject = Subject(names.API_VERSION, "ModelWorkload", name, namespace, claim.workload_uid)
            yield Finding(subject, Reason.OVERUSE_OBSERVED, pod.uid, note)
            break
