"""Who can be put to sleep, what it keeps while it sleeps, and what that costs.

A replica that sleeps keeps its pod, its name and its place in quota. Its weights wait in the memory of its node, so that
memory bounds how many may sleep there; what stays on the devices is the process without weights and KV cache:

    left = estimate without KV cache (corrected by measurement) - weights + S
    loss = part of a device x (seconds of waking + streams), never above the loss of ending it

Streams are what its requests in progress lose, as where it ends (`victims`): its engine forgets them when it sleeps.
S, the slack of the memory model, is added once more: a process that has served keeps somewhat more than one that begins to
(measured with the 135 M model: 47 MiB beyond R0 and activations). Seconds of waking are what runtimes have measured (load path Hot), else weights / the rate at which bytes are loaded.
Only replicas that serve on shared devices: a device that a pod holds as a whole is the pod's for the kubelet, too, for as
long as the pod exists, however little of it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmos_operator.api import vllm
from llmos_operator.api.runtime import memory
from llmos_operator.scheduler.sizing import base_bytes, corrected, fullest, kv_element_bytes
from llmos_operator.state.types import FULL_MILLI, DisruptionStep, Sharing, Sleeping, WorkloadKind

if TYPE_CHECKING:
    from llmos_operator.scheduler.policy import Policy
    from llmos_operator.state.types import Claim, Pod, Profile, Workload

_MILLISECONDS = 1000
_SLEEPERS = frozenset({"builtin", vllm.ENGINE})
HOT = "Hot"  # load path of a model that was woken


def can_sleep(pod: Pod, claim: Claim, workload: Workload, now: float) -> bool:
    """Return whether a replica could sleep: it serves on shared devices of its own right, is awake, and did not just fail to."""
    return (
        workload.kind is WorkloadKind.INFERENCE
        and workload.engine in _SLEEPERS
        and workload.members == 1
        and workload.together <= 1
        and claim.sharing is Sharing.SHARED
        and bool(claim.devices)
        and pod.ready
        and claim.sleeping is None
        and not claim.lender
        and (not claim.lowered or (claim.yielded and not claim.asked_format))
        and now >= pod.firm_until
    )


def may_be_put_to_sleep(pod: Pod, claim: Claim, workload: Workload, policy: Policy, now: float) -> bool:
    """Return whether a replica may be put to sleep for somebody else."""
    step = DisruptionStep.SLEEP
    return (
        step in workload.disruption_order
        and step in policy.preemption.steps
        and can_sleep(pod, claim, workload, now)
    )


def asleep_as(
    claim: Claim,
    workload: Workload,
    profile: Profile | None,
    policy: Policy,
    now: float,
    beneficiary: str = "",
) -> Sleeping | None:
    """Return as what a replica would sleep; None where its model's size is not known or nothing would be won."""
    if profile is None or profile.shape is None or claim.format not in memory.BITS_PER_WEIGHT_MILLI:
        return None
    estimate = fullest(
        workload,
        profile.shape,
        claim.format,
        max_model_len=claim.max_model_len,
        max_num_seqs=workload.max_num_seqs,
        kv_tokens=0,
        base_bytes=base_bytes(workload, profile, policy),
        kv_bytes_per_element=kv_element_bytes(workload),
        adapters=workload.max_adapters,
        adapter_rank=workload.adapter_rank,
    )
    measured = corrected(estimate.total_bytes, workload, profile, claim.format)
    left = max(estimate.total_bytes, measured) - estimate.weights_bytes + memory.SLACK_BYTES
    if left >= claim.held_bytes:
        return None
    host = estimate.weights_bytes * max(1, len(claim.devices))
    return Sleeping(left, host, round(now * _MILLISECONDS) / _MILLISECONDS, beneficiary)


def sleep_cost(
    claim: Claim,
    sleeping: Sleeping,
    profile: Profile | None,
    policy: Policy,
    eviction: int,
    streams: float = 0.0,
) -> int:
    """Return the expected loss in milliseconds of one device; `eviction` is that of ending the replica, `streams` of its requests."""
    measured = wake_seconds(profile, claim.format)
    seconds = measured if measured is not None else sleeping.host_bytes / policy.load_bytes_per_second
    parts = claim.gpu_milli or FULL_MILLI
    return min(eviction, max(1, round((seconds + streams) * _MILLISECONDS) * parts // FULL_MILLI))


def wake_seconds(profile: Profile | None, fmt: str) -> float | None:
    """Return the slowest measured waking at a format, None where nobody has measured any."""
    if profile is None:
        return None
    times = [t.milliseconds for t in profile.load_times if t.format == fmt and t.path == HOT]
    return max(times) / _MILLISECONDS if times else None
