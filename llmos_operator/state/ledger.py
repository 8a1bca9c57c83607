"""The ledger: what every node and device holds, in exact integers.

A :class:`NodeState` is an immutable value; `with_pod` and `without_pod` return the next one. Assumed, bound and
terminating pods all count (invariant I1); finished pods hold only their name. The same pods give the same state in
any order, which is what makes a rebuild after a restart equal (I11) and an undo exact.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from llmos_operator.api import names
from llmos_operator.api.runtime.memory import MIB
from llmos_operator.api.telemetry import Verdict
from llmos_operator.state import handouts, loans, power
from llmos_operator.state.care import Phase
from llmos_operator.state.cutting import being_cut
from llmos_operator.state.telemetry import Observation, worse
from llmos_operator.state.types import FULL_MILLI, PodPhase, Sharing

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from llmos_operator.state.types import Claim, Device, GpuNode, Node, Pod, PodKey, Sleeping

_LARGEST_MARGIN = 256 * MIB
_MARGIN_SHARE = 64  # of the device's memory
_NOTHING = Observation()


def observation_margin(capacity_bytes: int) -> int:
    """Return what is kept free above observed use: 1/64 of the device, at most 256 MiB."""
    return min(_LARGEST_MARGIN, capacity_bytes // _MARGIN_SHARE)


@dataclass(frozen=True, slots=True)
class DeviceState:
    """One device with its reservations and what was observed on it."""

    device: Device
    reserved_bytes: int = 0
    compute_milli: int = 0
    claims: int = 0
    exclusive: bool = False  # one of the claims does not share
    foreign: bool = False  # taken by a pod that is not ours: the kubelet says so, or it is deemed to be
    domain: str = ""  # sharing domain of its claims
    observed_bytes: int | None = None
    verdict: Verdict = Verdict.HEALTHY
    reason: str = ""
    quarantined: str = ""  # why new work is kept off it whatever the verdict: it is being treated
    strange_bytes: int = 0  # used by processes of nobody the ledger knows of there
    throttled_milli: int = 0  # of its time, held down by heat or a power brake
    risk_milli: int = 0  # how its memory ages
    held_down: bool = False  # for so much of its time that it takes nothing new
    secured: bool = False  # a holder pod of ours has it from the device plugin
    bare: bool = False  # shared work is on it, the plugin offers it, and no holder pod has it
    withheld: bool = False  # nobody holds it, nor would be given it: no unit is left of its resource, or its GPU is being cut
    kept_bytes: int = 0  # lent, and free: for borrowers alone

    @property
    def usable(self) -> bool:
        """Whether new work may be placed on it."""
        return (
            not self.quarantined
            and not self.held_down
            and self.verdict in {Verdict.HEALTHY, Verdict.DEGRADED}
        )

    @property
    def strain_milli(self) -> int:
        """Thousandths of a device that work on it is expected to lose."""
        return min(FULL_MILLI, self.throttled_milli + self.risk_milli)

    @property
    def uuid(self) -> str:
        """The device's UUID."""
        return self.device.uuid

    @property
    def idle(self) -> bool:
        """Whether nobody holds any part of it, and somebody would be given it."""
        return self.claims == 0 and not self.foreign and not self.withheld

    @property
    def open(self) -> bool:
        """Whether shared work may start on it without a holder pod being made for it first."""
        return self.secured or not (self.device.offered or self.device.claimable)

    @property
    def entry(self) -> int:
        """Whether shared work may be planned on it: 0 no, 1 where a unit of nvidia.com/gpu is free, 2 yes.

        A device that the plugin offers has to be taken from it. Nothing joins work that lost its holder pod. A ResourceClaim
        of ours has a device for one pod.
        """
        if self.device.claimable:
            return 0
        if self.secured or not self.device.offered:
            return 2
        return 0 if self.bare else 1 + (self.claims > 0)

    def shareable(self, free_gpus: int) -> bool:
        """Return whether shared work may be planned on it, on a node with so many units of nvidia.com/gpu free."""
        return self.entry + (free_gpus > 0) > 1

    def headroom_bytes(self) -> int:
        """Return capacity - max(reserved, observed + margin) - kept, never below 0; 0 where it is held as a whole.

        What a device holds without any claim of ours (driver, context) counts through the observation.
        """
        if self.exclusive or self.foreign:
            return 0
        capacity = self.device.memory_bytes
        taken = self.reserved_bytes
        if self.observed_bytes is not None and self.observed_bytes > 0:
            taken = max(taken, self.observed_bytes + observation_margin(capacity))
        return max(0, capacity - taken - self.kept_bytes)

    def headroom_milli(self) -> int:
        """Return the free compute in thousandths of the device."""
        return 0 if self.exclusive or self.foreign else max(0, FULL_MILLI - self.compute_milli)


@dataclass(frozen=True, slots=True)
class NodeState:
    """A node, its devices and every pod on it. `node` is None while only pods or devices of it are known."""

    name: str
    node: Node | None = None
    gpu: GpuNode | None = None
    pods: Mapping[PodKey, Pod] = field(default_factory=dict)
    devices: tuple[DeviceState, ...] = ()
    observed: Mapping[str, Observation] = field(default_factory=dict)
    cpu_milli: int = 0  # used
    memory_bytes: int = 0  # used, weights of replicas that sleep included
    sleep_bytes: int = 0  # of it, those weights
    gpus: int = 0  # nvidia.com/gpu used: by our pods, by those of others, and by holder pods
    foreign_gpus: int = 0  # devices of others, whole ones and MIG instances, as they ask for them
    holder_gpus: int = 0  # units of nvidia.com/gpu of holder pods
    pod_count: int = 0
    stray_claims: int = 0  # claims on devices the node does not have (any more)
    sick: bool = False  # a device is Unhealthy, or work is asked to leave it
    refusing: bool = False  # its kubelet has lately refused devices to a pod: it has fewer than it advertises
    claimed_milliwatts: int = 0  # that our claims are expected to add to the idle draw of the devices
    plugged: bool = False  # the kubelet says which of its devices a device plugin offers as nvidia.com/gpu
    resources: tuple[str, ...] = ()  # under which the kubelet hands out each device

    def with_pod(self, pod: Pod) -> NodeState:
        """Return the state with `pod` added (or replaced)."""
        base = self.without_pod(pod.key) if pod.key in self.pods else self
        pods = {**base.pods, pod.key: pod}
        return base.charged(pod, 1, pods)

    def without_pod(self, key: PodKey) -> NodeState:
        """Return the state without the pod; itself if it is not there."""
        pod = self.pods.get(key)
        if pod is None:
            return self
        pods = {k: p for k, p in self.pods.items() if k != key}
        return self.charged(pod, -1, pods)

    def charged(self, pod: Pod, sign: int, pods: Mapping[PodKey, Pod]) -> NodeState:
        """Return the state with the pod's amounts added (`sign` 1) or taken off (-1), holding `pods` afterwards."""
        if pod.phase is PodPhase.FINISHED:
            return replace(self, pods=pods)
        foreign = self.foreign_gpus + sign * handouts.foreign_units(pod)
        asleep = pod.claim.host_bytes if pod.claim is not None else 0
        devices = self.devices
        if pod.claim is not None and pod.claim.devices:
            devices = _devices_after(devices, pod.claim, sign, pods)
            if loans.concerned(pod.claim):
                devices = loans.marked(devices, pods)
        if foreign or self.foreign_gpus or self._handed_out(devices):
            devices = handouts.marked(devices, self.resources, self.node, pods, refusing=self.refusing)
        return NodeState(
            self.name,
            self.node,
            self.gpu,
            pods,
            devices,
            self.observed,
            self.cpu_milli + sign * pod.cpu_milli,
            self.memory_bytes + sign * (pod.memory_bytes + asleep),
            self.sleep_bytes + sign * asleep,
            self.gpus + sign * whole_gpus(pod),
            foreign,
            self.holder_gpus + sign * (pod.gpus if pod.holder else 0),
            self.pod_count + sign,
            self.stray_claims + sign * self._strays(pod),
            self.sick,
            self.refusing,
            self.claimed_milliwatts + (sign * self.added_by(pod.claim) if pod.claim is not None else 0),
            self.plugged,
            self.resources,
        )

    def added_by(self, claim: Claim) -> int:
        """Return the milliwatts a claim is expected to add to what the devices draw idle."""
        if self.gpu is None or not claim.devices:
            return 0
        return power.added_by(claim, self.gpu.devices)

    def power_room(self) -> int:
        """Return the milliwatts its budget leaves; `power.NO_BUDGET` without one, `power.UNKNOWN` where a device is silent."""
        if self.node is None or self.node.power_milliwatts is None:
            return power.NO_BUDGET
        return power.room(self.node.power_milliwatts, self.power_draw())

    def power_draw(self) -> int | None:
        """Return the milliwatts its devices are expected to draw, None where one of them does not tell its limit."""
        return power.draw(self.devices, self.claimed_milliwatts)

    def free_gpus(self) -> int:
        """Return how many units of nvidia.com/gpu can be planned with, never below 0: it may advertise fewer than it gave.

        Devices with shared work count, with a holder pod or without one yet; holder pods without any give theirs back.
        """
        if self.node is None or self.refusing:
            return 0
        return max(0, self.whole_units - self.gpus + self.holder_gpus - self._shared_gpus())

    def granted_gpus(self) -> int:
        """Return how many units of nvidia.com/gpu its kubelet would grant to a pod at once, never below 0."""
        return 0 if self.node is None or self.refusing else max(0, self.whole_units - self.gpus)

    @property
    def claims_devices(self) -> bool:
        """Whether pods get its devices by ResourceClaims that the operator makes."""
        return handouts.claims_devices(self.node, (one.device for one in self.devices))

    @property
    def whole_units(self) -> int:
        """How many whole devices it gives to pods: units of nvidia.com/gpu, or those that can be claimed where it advertises none."""
        if self.node is None:
            return 0
        return self.node.gpus or sum(one.device.claimable and not one.device.mig for one in self.devices)

    def _shared_gpus(self) -> int:
        if not self.plugged:
            return 0
        return sum(
            one.device.offered and one.claims > 0 and not one.exclusive and not one.foreign
            for one in self.devices
        )

    def _handed_out(self, devices: Iterable[DeviceState]) -> bool:
        """Return whether more than claims decides what can be given."""
        cut = self.node is not None and being_cut(self.node.labels, self.node.recut)
        return (
            cut
            or self.plugged
            or any(
                one.device.holders or one.device.mig or one.device.claimed_by or one.device.claimable
                for one in devices
            )
        )

    def settled(self) -> NodeState:
        """Return the state with what the node advertises, or its kubelet grants, taken into account anew."""
        resources, devices = handouts.resources_of(self.devices, self.node), self.devices
        if self._handed_out(devices) or any(one.withheld for one in devices):
            devices = handouts.marked(devices, resources, self.node, self.pods, refusing=self.refusing)
        return replace(self, devices=devices, resources=resources)

    def _strays(self, pod: Pod) -> int:
        if pod.claim is None or self.gpu is None:
            return 0
        return int(any(self.device(uuid) is None for uuid in pod.claim.devices))

    def vacated(self, key: PodKey) -> NodeState:
        """Return the state as it will be when the pod has gone: what it was seen to use goes with its reservation."""
        pod = self.pods.get(key)
        after = self.without_pod(key)
        if pod is None or pod.claim is None or pod.phase is PodPhase.FINISHED:
            return after
        return _freed(after, pod.claim, pod.claim.held_bytes)

    def lowered(self, key: PodKey, asked_bytes: int, *, lent: bool = False) -> NodeState:
        """Return the state as it will be when the pod has come down to `asked_bytes` of each device, as a loan or for good."""
        pod = self.pods[key]
        if pod.claim is None:
            return self
        freed = pod.claim.held_bytes - asked_bytes
        claim = replace(pod.claim, asked_bytes=asked_bytes, yielded=True, lent=lent)
        return _freed(self.with_pod(replace(pod, claim=claim)), claim, freed)

    def slept(self, key: PodKey, sleeping: Sleeping) -> NodeState:
        """Return the state as it will be when the pod sleeps."""
        pod = self.pods[key]
        if pod.claim is None:
            return self
        freed = pod.claim.held_bytes - sleeping.bytes_per_device
        claim = replace(pod.claim, sleeping=replace(sleeping, down=True))
        return _freed(self.with_pod(replace(pod, claim=claim)), claim, freed)

    def may_wake(self, claim: Claim) -> bool:
        """Return whether the reservations leave a replica of this node that sleeps the room it had awake."""
        if not claim.asleep:
            return True
        found = [self.device(uuid) for uuid in claim.devices]
        return self.added_by(replace(claim, sleeping=None)) <= self.power_room() and all(
            one is not None
            and one.reserved_bytes + one.kept_bytes + claim.awake_bytes - claim.held_bytes
            <= one.device.memory_bytes
            and one.compute_milli + claim.compute_milli <= FULL_MILLI
            for one in found
        )

    def may_rise(self, claim: Claim) -> bool:
        """Return whether the reservations leave a replica of this node that came down all it was bound with."""
        state = loans.opened(self, claim.pod) if claim.lent else self
        missing = claim.bytes_per_device - claim.awake_bytes
        found = [state.device(uuid) for uuid in claim.devices]
        return all(
            one is not None and one.reserved_bytes + one.kept_bytes + missing <= one.device.memory_bytes
            for one in found
        )

    def has_beds_for(self, host_bytes: int) -> bool:
        """Return whether weights of that size can wait in the node's memory."""
        return self.node is not None and self.node.memory_bytes - self.memory_bytes >= host_bytes

    def device(self, uuid: str) -> DeviceState | None:
        """Return the device of that UUID, or None if the node has no such device (any more)."""
        return next((d for d in self.devices if d.device.uuid == uuid), None)

    def claims(self) -> Iterable[Claim]:
        """Yield the claims of all pods that hold capacity."""
        return (
            p.claim for p in self.pods.values() if p.claim is not None and p.phase is not PodPhase.FINISHED
        )


def _freed(state: NodeState, claim: Claim, freed: int) -> NodeState:
    """Return a node with so much less seen in use on each device of a claim."""
    held = set(claim.devices)
    devices = tuple(
        replace(d, observed_bytes=max(0, d.observed_bytes - freed))
        if d.device.uuid in held and d.observed_bytes is not None
        else d
        for d in state.devices
    )
    return replace(state, devices=devices)


def whole_gpus(pod: Pod) -> int:
    """Return how many units of nvidia.com/gpu the pod takes from its node."""
    if pod.claim is None:
        return pod.gpus
    return pod.claim.whole_units


def build(
    name: str,
    node: Node | None,
    gpu: GpuNode | None,
    pods: Mapping[PodKey, Pod],
    observed: Mapping[str, Observation],
    *,
    refusing: bool = False,
) -> NodeState:
    """Return a node's state from nothing but what was listed; `refusing`: its kubelet has lately refused devices."""
    devices = _fresh_devices(gpu, observed)
    sick = any(d.verdict is Verdict.UNHEALTHY for d in devices) or (
        gpu is not None and any(one.phase is Phase.DRAINING for one in gpu.care.treatments)
    )
    plugged = any(one.device.offered for one in devices)
    state = NodeState(
        name, node, gpu, observed=observed, devices=devices, sick=sick, refusing=refusing, plugged=plugged
    ).settled()
    for pod in pods.values():
        state = state.with_pod(pod)
    return state


def _fresh_devices(gpu: GpuNode | None, observed: Mapping[str, Observation]) -> tuple[DeviceState, ...]:
    if gpu is None:
        return ()
    states = []
    for device in gpu.devices:
        seen = observed.get(device.uuid, _NOTHING)
        verdict = worse(device.verdict, seen.verdict)
        reason = device.reason if verdict is device.verdict else seen.reason
        held = gpu.care.holding(device.uuid, device.parent)
        states.append(
            DeviceState(
                device,
                observed_bytes=seen.used_bytes,
                verdict=verdict,
                reason=reason,
                quarantined=f"{held.phase} after {held.reason}" if held is not None else "",
                strange_bytes=seen.strange_bytes,
                throttled_milli=seen.throttled_milli,
                risk_milli=seen.risk_milli,
                held_down=seen.held_down,
            )
        )
    return tuple(states)


def _devices_after(
    devices: tuple[DeviceState, ...], claim: Claim, sign: int, pods: Mapping[PodKey, Pod]
) -> tuple[DeviceState, ...]:
    held = set(claim.devices)
    return tuple(
        _charged_device(one, claim, sign, pods) if one.device.uuid in held else one for one in devices
    )


def _charged_device(state: DeviceState, claim: Claim, sign: int, pods: Mapping[PodKey, Pod]) -> DeviceState:
    whole = claim.sharing is not Sharing.SHARED
    if sign > 0:
        exclusive = state.exclusive or whole
    else:
        exclusive = state.exclusive and (not whole or _held_whole(state.device.uuid, pods))
    return DeviceState(
        state.device,
        state.reserved_bytes + sign * claim.held_bytes,
        state.compute_milli + sign * claim.held_milli,
        state.claims + sign,
        exclusive,
        state.foreign,
        _domain_after(state, claim, sign, pods, mixed=whole or state.exclusive),
        state.observed_bytes,
        state.verdict,
        state.reason,
        state.quarantined,
        state.strange_bytes,
        state.throttled_milli,
        state.risk_milli,
        state.held_down,
        state.secured,
        state.bare,
        state.withheld,
        state.kept_bytes,
    )


def _domain_after(
    state: DeviceState, claim: Claim, sign: int, pods: Mapping[PodKey, Pod], *, mixed: bool
) -> str:
    """Return the sharing domain of a device's claims. Whole and shared ones meet where the kubelet gives what is shared."""
    if mixed and state.claims + sign:
        held = (p.claim for p in pods.values() if p.claim is not None and p.phase is not PodPhase.FINISHED)
        return max((one.domain for one in held if state.device.uuid in one.devices), default="")
    return claim.domain if sign > 0 else state.domain if state.claims > 1 else ""


def _held_whole(uuid: str, pods: Mapping[PodKey, Pod]) -> bool:
    return any(
        p.claim is not None
        and p.phase is not PodPhase.FINISHED
        and p.claim.sharing is not Sharing.SHARED
        and uuid in p.claim.devices
        for p in pods.values()
    )


def shortfall(state: NodeState, claim: Claim) -> str:
    """Return why the reservations of a node cannot take `claim`, "" if they can. Observation is not asked."""
    node = state.node
    if node is None:
        return f"node {state.name} is not registered"
    for what, used, needed, capacity in (
        ("millicores of CPU", state.cpu_milli, claim.cpu_milli, node.cpu_milli),
        ("bytes of memory", state.memory_bytes, claim.memory_bytes, node.memory_bytes),
        ("pods", state.pod_count, 1, node.pods),
        (
            "whole devices" if state.claims_devices else names.RESOURCE_GPU,
            state.whole_units - state.granted_gpus(),
            claim.whole_units,
            state.whole_units,
        ),
    ):
        if needed and used + needed > capacity:
            return f"node {state.name} has {capacity - used} {what} free of {needed} needed"
    watts, left = state.added_by(claim), state.power_room()
    if claim.devices and watts > left:
        return f"node {state.name} has {left} milliwatts of its power budget left of {watts} needed"
    if claim.lender:
        if not loans.lends(state, claim.lender):
            return f"{claim.lender} lends nothing on node {state.name} any more"
        state = loans.opened(state, claim.lender)
    whole = claim.sharing is not Sharing.SHARED
    problems = (_device_shortfall(state.device(uuid), uuid, claim, whole=whole) for uuid in claim.devices)
    return next((problem for problem in problems if problem), "")


def _device_shortfall(one: DeviceState | None, uuid: str, claim: Claim, *, whole: bool) -> str:
    if one is None:
        return f"device {uuid} is not on node {claim.node}"
    if one.withheld:
        resource = claim.resource or "its resource"
        return f"device {uuid}: node {claim.node} has no unit of {resource} left for it, or cuts its GPUs"
    if one.exclusive or one.foreign or (one.claims and (whole or one.domain != claim.domain)):
        return f"device {uuid} is held by others"
    if not whole and not one.open:
        missing = "is had by whole pods alone" if one.device.claimable else "has no holder pod"
        return f"device {uuid} {missing}"
    return _room_shortfall(one, uuid, claim)


def _room_shortfall(one: DeviceState, uuid: str, claim: Claim) -> str:
    free = one.device.memory_bytes - one.reserved_bytes - one.kept_bytes
    if claim.bytes_per_device > free:
        return f"device {uuid} has {free} bytes unreserved of {claim.bytes_per_device} needed"
    if one.compute_milli + claim.compute_milli > FULL_MILLI:
        return f"device {uuid} has {FULL_MILLI - one.compute_milli} of 1000 compute free of {claim.compute_milli}"
    return ""
