"""What running a workload teaches of its own memory: that what was asked for is too little, or far too much. Pure.

A model's profile learns for everybody who serves it. What belongs to one workload alone is kept in its own status, for its
spec as it is: `resources.memory`, which replaces every estimate, and the memory of a FineTune, which depends on the run.
The scheduler's sizing reads it; nothing that runs is touched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from llmos_operator.api.quantity import human_bytes
from llmos_operator.state.types import Learned, WorkloadKind

if TYPE_CHECKING:
    from llmos_operator.api.runtime.messages import RuntimeStatus
    from llmos_operator.state.types import Claim, Workload

PROVEN_REQUESTS: Final = 20  # answered by one replica before its use of memory says something
_FAR_TOO_MUCH: Final = 2  # times what is needed
_NEWS_SHARE: Final = 8  # a need that grew by less than an eighth is the same


def learns_alone(workload: Workload) -> bool:
    """Return whether running out of memory teaches of this workload only, and not of its model."""
    return workload.memory_bytes is not None or workload.kind is WorkloadKind.FINE_TUNE


def known(learned: Learned, workload: Workload) -> Learned:
    """Return what is known of a workload with its spec as it is: what this process learned, else what its status says."""
    return (
        learned if learned.spec_hash == workload.template_hash and learned != Learned() else workload.learned
    )


def after_shortage(learned: Learned, workload: Workload, reserved_bytes: int) -> Learned:
    """Return what is known after a replica with so many bytes of each device ran out of memory."""
    worst = max(known(learned, workload).out_of_memory, reserved_bytes)
    return Learned(out_of_memory=worst, spec_hash=workload.template_hash)


def after_service(
    workload: Workload, claim: Claim, report: RuntimeStatus, learned: Learned
) -> tuple[Learned, str] | None:
    """Return what a replica that has served teaches, and what to say of it; None if that is nothing new.

    What it needs is the most it had in use beside its KV cache, and a quarter more than the most of that cache its requests
    ever held, at least one full context. A need never falls again: quiet hours say nothing of busy ones.
    """
    asked, needed = workload.memory_bytes, report.memory.needed_bytes
    before = known(learned, workload)
    if asked is None or not needed or before.out_of_memory:
        return None
    if not before.needed and claim.bytes_per_device <= _FAR_TOO_MUCH * needed:
        return None
    if before.needed and needed <= before.needed + before.needed // _NEWS_SHARE:
        return None
    note = (
        f"resources.memory asks for {human_bytes(asked)} of each device; in {report.requests.finished} requests the replica "
        f"needed {human_bytes(needed)}. Its next start reserves {human_bytes(needed + needed // _NEWS_SHARE)}"
        if asked > _FAR_TOO_MUCH * needed
        else f"The replica now needs {human_bytes(needed)}: its next start reserves the {human_bytes(asked)} of resources.memory"
    )
    return Learned(
        needed=needed, spec_hash=workload.template_hash
    ), f"{note}; lower or remove the field to do so now."
