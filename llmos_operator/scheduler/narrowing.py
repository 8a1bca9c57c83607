"""How far a running replica can come down by serving at a narrower format: the widest below its own that its workload allows.

    left = what a fresh start at that format with one full context would reserve

Only where the runtime can change it (the built-in engine), the workload leaves the choice to us and lets it be changed
(`quantization.mode: Auto`, `allowDowngradeOnPressure`), and as for a smaller KV cache (`shrinking`). Nobody is ended, and
where both fit nobody waits; what is counted is the load, and what the answers lose until it has its own format again:

    loss = part of a device x (load seconds + seconds a percent x growth of perplexity)     never above the loss of ending it
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from llmos_operator.api.runtime import memory
from llmos_operator.api.runtime.abilities import formats_of
from llmos_operator.scheduler.precision import BUILT_IN, formats, loss_milli
from llmos_operator.scheduler.shrinking import may_shrink
from llmos_operator.scheduler.sizing import base_bytes, corrected, fullest, kv_element_bytes
from llmos_operator.state.types import FULL_MILLI, QuantizationMode

if TYPE_CHECKING:
    from llmos_operator.scheduler.policy import Policy
    from llmos_operator.state.types import Claim, Pod, Profile, Workload

_MILLISECONDS: Final = 1000
_PERCENT_MILLI: Final = 1000
PERCENT_SECONDS: Final = 60  # what answers with a percent more perplexity count as: as an outage of so long


def may_narrow(pod: Pod, claim: Claim, workload: Workload, policy: Policy, now: float) -> bool:
    """Return whether a replica may be asked to serve at a narrower format at all. What it has lent comes back first."""
    asked = workload.quantization
    return (
        workload.engine == BUILT_IN
        and asked.mode is QuantizationMode.AUTO
        and asked.allow_downgrade
        and not claim.lowered
        and may_shrink(pod, claim, workload, policy, now)
    )


def narrowed(
    claim: Claim, workload: Workload, profile: Profile | None, policy: Policy
) -> tuple[str, int] | None:
    """Return the format and what a replica would keep at it, in bytes of each device; None if nothing would be won."""
    if (
        workload.memory_bytes is not None
        or profile is None
        or profile.shape is None
        or claim.max_model_len <= 0
    ):
        return None
    own = memory.FORMAT_BITS.get(claim.format, 0)
    allowed = formats_of(profile.shape, formats(workload, profile, policy).allowed)
    name = next((one for one in allowed if memory.FORMAT_BITS[one] < own), None)
    if name is None:
        return None
    estimate = fullest(
        workload,
        profile.shape,
        name,
        kv_tokens=memory.sequence_tokens(profile.shape, claim.max_model_len),
        max_model_len=claim.max_model_len,
        max_num_seqs=workload.max_num_seqs,
        base_bytes=base_bytes(workload, profile, policy),
        kv_bytes_per_element=kv_element_bytes(workload),
        adapters=workload.max_adapters,
        adapter_rank=workload.adapter_rank,
    )
    left = corrected(estimate.total_bytes, workload, profile, name)
    return (name, left) if left < claim.bytes_per_device else None


def narrow_cost(claim: Claim, name: str, load_seconds: float, profile: Profile | None, eviction: int) -> int:
    """Return the expected loss in milliseconds of one device; `eviction` is that of ending the replica."""
    worse = max(0, loss_milli(name, profile) - loss_milli(claim.format, profile))
    seconds = load_seconds + PERCENT_SECONDS * worse / _PERCENT_MILLI
    parts = claim.gpu_milli or FULL_MILLI
    return min(eviction, max(1, round(seconds * _MILLISECONDS) * parts // FULL_MILLI))
