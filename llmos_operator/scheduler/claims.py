"""From a size to a request, and from a chosen place to a claim."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmos_operator.api import names, vllm
from llmos_operator.api.v1alpha1.modelprofile import profile_name
from llmos_operator.scheduler.interference import subject_of
from llmos_operator.scheduler.request import Constraints, Request
from llmos_operator.scheduler.sizing import granted
from llmos_operator.state.handouts import resource_of
from llmos_operator.state.types import FULL_MILLI, Claim, Sharing, WorkloadKind

if TYPE_CHECKING:
    from llmos_operator.scheduler.policy import Policy
    from llmos_operator.scheduler.queueing import Pending
    from llmos_operator.scheduler.sizing import Size
    from llmos_operator.state.ledger import DeviceState, NodeState
    from llmos_operator.state.snapshot import Snapshot
    from llmos_operator.state.types import Profile, Workload

_MILLISECONDS = 1000


def request_of(
    workload: Workload, size: Size, policy: Policy, domain: str, profile: Profile | None = None
) -> Request:
    """Return what a replica of that size asks of a node; the profile of its model says what it draws."""
    shared = workload.sharing is Sharing.SHARED and workload.accelerators > 0
    cpu_milli, memory_bytes = host_needs(workload, size.bytes_per_device, policy)
    constraints = Constraints(
        workload.accelerators,
        workload.sharing,
        workload.selector,
        workload.node_selector,
        workload.node_affinity,
        workload.tolerations,
        workload.mig_profile,
        tuple(one for one in workload.mounts if one.places),
    )
    model = workload.model.key if workload.model.kept else ""
    if not workload.accelerators:
        return Request(
            constraints,
            cpu_milli=cpu_milli,
            memory_bytes=memory_bytes,
            placement=workload.placement,
            model=model,
        )
    milli = (
        workload.compute_milli if workload.compute_milli is not None else policy.sizing.shared_compute_milli
    )
    return Request(
        constraints,
        size.bytes_per_device,
        milli if shared else FULL_MILLI,
        domain if shared else "",
        cpu_milli,
        memory_bytes,
        workload.placement,
        model,
        measured_draws(profile, size.format)
        if workload.kind is WorkloadKind.INFERENCE and not shared
        else (),
        subject_of(workload) if shared else "",
    )


def host_needs(workload: Workload, bytes_per_device: int, policy: Policy) -> tuple[int, int]:
    """Return (thousandths of a core, bytes of host memory) a pod of the workload asks for, its user's containers included."""
    sizing = policy.sizing
    if not workload.accelerators:
        return sizing.cpu_only_milli + workload.cpu_milli, bytes_per_device + workload.host_memory_bytes
    memory = sizing.vllm_memory_bytes if workload.engine == vllm.ENGINE else sizing.runtime_memory_bytes
    return sizing.runtime_cpu_milli + workload.cpu_milli, memory + workload.host_memory_bytes


def measured_draws(profile: Profile | None, fmt: str) -> tuple[tuple[str, int], ...]:
    """Return the milliwatts a model that serves was measured to draw on each device at a format, by product."""
    if profile is None:
        return ()
    return tuple((one.product, one.milliwatts) for one in profile.draws if one.format == fmt)


def sharing_domain(snapshot: Snapshot, policy: Policy, namespace: str) -> str:
    """Return the sharing domain of a namespace: its label, else itself."""
    known = snapshot.namespaces.get(namespace)
    label = known.labels.get(policy.sharing_domain_label) if known is not None else None
    return label or namespace


def profile_of(snapshot: Snapshot, workload: Workload) -> Profile | None:
    """Return what is known of a workload's model."""
    return snapshot.profiles.get(profile_name(workload.model.uri, workload.model.revision))


def signature(workload: Workload, domain: str) -> tuple[object, ...]:
    """Return a key that workloads with the same sizes and requests share."""
    return (
        workload.kind,
        workload.model.uri,
        workload.model.revision,
        workload.model.kept,
        workload.quantization,
        workload.engine,
        workload.apis,
        workload.accelerators,
        workload.stages,
        workload.pipeline,
        workload.memory_bytes,
        (workload.learned.out_of_memory, workload.learned.needed),
        workload.training,
        workload.selector,
        workload.sharing,
        workload.mig_profile,
        domain,
        workload.compute_milli,
        workload.max_model_len,
        workload.max_num_seqs,
        workload.max_adapters,
        workload.adapter_rank,
        workload.placement,
        workload.node_selector,
        workload.node_affinity,
        workload.tolerations,
        workload.mounts,
        workload.cpu_milli,
        workload.host_memory_bytes,
    )


def claim_for(
    pending: Pending,
    ordinal: int,
    node: NodeState,
    devices: tuple[DeviceState, ...],
    request: Request,
    size: Size,
    policy: Policy,
    now: float,
    member: int = 0,
) -> Claim:
    """Return the claim of one pod on the devices that were picked for it."""
    workload = pending.workload
    now = round(now * _MILLISECONDS) / _MILLISECONDS
    rank = member if workload.members > 1 else None
    room = min((d.headroom_bytes() for d in devices), default=0)
    reserved, kv_tokens = (
        granted(size, room) if devices and request.whole else (size.bytes_per_device, size.kv_tokens)
    )
    gpu_milli, charged = _charges(request, devices, reserved)
    pod = names.pod_name(workload.name, workload.uid, ordinal, member=rank)
    return Claim(
        workload=workload.key,
        workload_uid=workload.uid,
        ordinal=ordinal,
        pod=f"{workload.namespace}/{pod}",
        node=node.name,
        devices=tuple(d.device.uuid for d in devices),
        bytes_per_device=reserved if devices else 0,
        compute_milli=request.compute_milli if devices else 0,
        sharing=workload.sharing,
        domain=request.domain,
        format=size.format,
        max_model_len=size.max_model_len,
        kv_tokens=kv_tokens,
        cpu_milli=request.cpu_milli,
        memory_bytes=request.memory_bytes,
        priority=pending.priority,
        queue=pending.queue,
        gpu_milli=gpu_milli,
        charged_bytes=charged,
        bound_at=now,
        min_runtime=least_runtime(workload, policy),
        member=member,
        draw_milliwatts=_measured(request, devices),
        partition_resource=_partition_resource(workload, node, devices),
        resource_claim=_resource_claim(pod, node, devices, now),
    )


def _resource_claim(pod: str, node: NodeState, devices: tuple[DeviceState, ...], now: float) -> str:
    """Return the name of the ResourceClaim by which a pod gets its devices, "" where it gets them otherwise."""
    if not devices or not node.claims_devices or not all(one.device.claimable for one in devices):
        return ""
    uuids = ",".join(one.uuid for one in devices)
    return names.resource_claim_name(pod, f"{pod} {node.name} {uuids} {now:.3f}")


def _partition_resource(workload: Workload, node: NodeState, devices: tuple[DeviceState, ...]) -> str:
    """Return by which resource the node's device plugin gives out the MIG instance; "" where the pod names it itself."""
    if workload.sharing is not Sharing.MIG or not devices:
        return ""
    return resource_of(devices[0].device, node.node, [one.device for one in node.devices])


def _measured(request: Request, devices: tuple[DeviceState, ...]) -> int | None:
    """Return what a claim is expected to draw on each of its devices as measured, None if it is not known for all."""
    known = dict(request.draws)
    found = [known.get(one.device.product) for one in devices]
    told = [one for one in found if one is not None]
    return max(told) if told and len(told) == len(found) else None


def least_runtime(workload: Workload, policy: Policy) -> float:
    """Return the seconds in which nothing is taken from a replica, in whole milliseconds as the annotation keeps them."""
    least = workload.min_runtime if workload.min_runtime is not None else policy.min_runtime
    return round(least * _MILLISECONDS) / _MILLISECONDS


def _charges(request: Request, devices: tuple[DeviceState, ...], reserved: int) -> tuple[int, int]:
    """Return (thousandths of a device, bytes) that quota is charged: a shared part, and a MIG instance, by its dominant share."""
    if request.whole:
        return sum(d.device.part_milli for d in devices), sum(d.device.memory_bytes for d in devices)
    parts = (
        max(request.compute_milli, -(-reserved * FULL_MILLI // max(1, d.device.memory_bytes)))
        for d in devices
    )
    return sum(parts), reserved * len(devices)
