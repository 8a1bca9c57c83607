"""The body of a pod that is about to be created, and whose the one is that was found under its name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmos_operator.api.conditions import Reason
from llmos_operator.errors import Permanent
from llmos_operator.manifests import pod as pod_manifest
from llmos_operator.manifests.vllm import memory_share

if TYPE_CHECKING:
    from llmos_operator.cluster.port import Json
    from llmos_operator.manifests.settings import PodSettings
    from llmos_operator.scheduler.plan import Bind
    from llmos_operator.state.types import Claim, GpuNode


def body_of(
    bind: Bind, settings: PodSettings, *, simulated: bool, kept: bool = False, share: str = ""
) -> Json:
    """Return the pod of a bind. Raises Permanent(InvalidSpec) if none can be built from the spec."""
    try:
        return pod_manifest.build(
            bind.workload, bind.claim, settings, simulated=simulated, kept=kept, share=share
        )
    except (TypeError, ValueError, AttributeError, LookupError, RecursionError) as error:
        # The parts of a template that no schema describes are the user's; none of them may end this process.
        text = f"no pod can be built from the spec: {type(error).__name__}: {error}"
        raise Permanent(text, reason=Reason.INVALID_SPEC) from error


def claimed_share(claim: Claim, node: GpuNode | None) -> str:
    """Return the part of each device's memory that is claimed, as a decimal fraction; "" where no device has any real memory."""
    if node is None or node.mode == "simulated":
        return ""
    sizes = {one.uuid: one.memory_bytes for one in node.devices}
    held = [sizes[uuid] for uuid in claim.devices if sizes.get(uuid)]
    return memory_share(claim.bytes_per_device, max(held)) if held else ""


def owned_by(body: Json, uid: str) -> bool:
    """Return whether the workload of that UID controls an object."""
    return any(
        ref.get("uid") == uid and ref.get("controller")
        for ref in body["metadata"].get("ownerReferences") or ()
    )
