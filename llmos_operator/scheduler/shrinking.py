"""How far a running replica can come down without ending: to the KV cache of one full context.

    left = bound - (KV tokens held - tokens of one context) x bytes of a token, at least what a fresh start would reserve

Only where that is known and of use: an inference workload on shared devices, of an engine that can, whose size came from its model's profile. A
device that is held as a whole gives nothing to others however little of it is used, and `resources.memory` is what
the workload asks for at least. Nobody is ended and nothing is loaded again; what may be lost is keys and values of
requests in flight, which are computed anew:

    loss = part of a device x bytes given up / rate at which bytes are loaded          never above the loss of ending it
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmos_operator.api import vllm
from llmos_operator.api.runtime import memory
from llmos_operator.scheduler.sizing import base_bytes, corrected, fullest, kv_element_bytes
from llmos_operator.state.types import FULL_MILLI, DisruptionStep, Sharing, WorkloadKind

if TYPE_CHECKING:
    from llmos_operator.scheduler.policy import Policy
    from llmos_operator.state.types import Claim, Pod, Profile, Workload

_MILLISECONDS = 1000
_FIXED_CACHE = frozenset({vllm.ENGINE})  # engines whose KV cache is made once, at the start


def may_shrink(pod: Pod, claim: Claim, workload: Workload, policy: Policy, now: float) -> bool:
    """Return whether a replica may be asked for memory at all: it serves, was not asked before, and did not just refuse.

    What it has lent may be taken from it; who borrows has nothing of its own to give.
    """
    return (
        DisruptionStep.SHRINK in workload.disruption_order
        and DisruptionStep.SHRINK in policy.preemption.steps
        and workload.kind is WorkloadKind.INFERENCE
        and workload.engine not in _FIXED_CACHE
        and workload.members == 1
        and claim.sharing is Sharing.SHARED
        and bool(claim.devices)
        and pod.ready
        and (not claim.lowered or (claim.lent and claim.yielded))
        and not claim.lender
        and claim.sleeping is None
        and now >= pod.firm_until
    )


def may_do_with_fewer(workload: Workload, policy: Policy) -> bool:
    """Return whether a workload may be asked to give up replicas: it serves, scales, and its replicas start one by one."""
    return (
        workload.elastic
        and workload.kind is WorkloadKind.INFERENCE
        and workload.members == 1
        and workload.together <= 1
        and not workload.suspended
        and not workload.finished
        and not workload.deleting
        and DisruptionStep.SHRINK in workload.disruption_order
        and DisruptionStep.SHRINK in policy.preemption.steps
    )


def shrunk_bytes(claim: Claim, workload: Workload, profile: Profile | None, policy: Policy) -> int | None:
    """Return what a replica could come down to, in bytes of each device; None if it cannot give up anything."""
    if workload.memory_bytes is not None or profile is None or profile.shape is None:
        return None
    one = memory.sequence_tokens(profile.shape, claim.max_model_len)
    spare = claim.kv_tokens - one
    if not profile.shape.generative or claim.max_model_len <= 0 or spare <= 0:
        return None
    sizes = {
        "max_model_len": claim.max_model_len,
        "max_num_seqs": workload.max_num_seqs,
        "base_bytes": base_bytes(workload, profile, policy),
        "kv_bytes_per_element": kv_element_bytes(workload),
        "adapters": workload.max_adapters,
        "adapter_rank": workload.adapter_rank,
    }
    held = fullest(workload, profile.shape, claim.format, kv_tokens=claim.kv_tokens, **sizes)
    least = fullest(workload, profile.shape, claim.format, kv_tokens=one, **sizes)
    left = claim.bytes_per_device - (held.kv_bytes - least.kv_bytes)
    left = max(left, corrected(least.total_bytes, workload, profile, claim.format))
    return left if left < claim.bytes_per_device else None


def shrink_cost(claim: Claim, left: int, policy: Policy, eviction: int) -> int:
    """Return the expected loss of a shrink in milliseconds of one device; `eviction` is that of ending the replica."""
    given_up = (claim.bytes_per_device - left) * len(claim.devices)
    seconds = given_up / policy.load_bytes_per_second
    parts = claim.gpu_milli or FULL_MILLI
    return min(eviction, max(1, round(seconds * _MILLISECONDS) * parts // FULL_MILLI))
