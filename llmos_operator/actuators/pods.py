"""The body of a pod that is about to be created, and whose the one is that was found under its name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmos_operator.api.conditions import Reason
from llmos_operator.errors import Permanent
from llmos_operator.manifests import pod as pod_manifest

if TYPE_CHECKING:
    from llmos_operator.cluster.port import Json
    from llmos_operator.manifests.settings import PodSettings
    from llmos_operator.scheduler.plan import Bind


def body_of(bind: Bind, settings: PodSettings, *, simulated: bool, kept: bool = False) -> Json:
    """Return the pod of a bind. Raises Permanent(InvalidSpec) if none can be built from the spec."""
    try:
        return pod_manifest.build(bind.workload, bind.claim, settings, simulated=simulated, kept=kept)
    except (TypeError, ValueError, AttributeError, LookupError, RecursionError) as error:
        # The parts of a template that no schema describes are the user's; none of them may end this process.
        text = f"no pod can be built from the spec: {type(error).__name__}: {error}"
        raise Permanent(text, reason=Reason.INVALID_SPEC) from error


def owned_by(body: Json, uid: str) -> bool:
    """Return whether the workload of that UID controls an object."""
    return any(
        ref.get("uid") == uid and ref.get("controller")
        for ref in body["metadata"].get("ownerReferences") or ()
    )
