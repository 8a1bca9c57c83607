"""The Job that resets a drained device or reboots a drained node: the administrator's spec with the target filled in."""

from __future__ import annotations

import copy
import hashlib
from typing import TYPE_CHECKING, Any

from llmos_operator.api import names
from llmos_operator.state.care import NODE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmos_operator.state.care import Treatment

ACTIVE_SECONDS = 1800  # after which a Job that says nothing else is ended
KEPT_SECONDS = 86_400  # for which its result and log can be looked at


def reset_job_name(node: str, one: Treatment) -> str:
    """Return the Job's name: the same for one round of a treatment, whoever asks."""
    digest = hashlib.sha256(f"{node}/{one.target}/{one.since:.0f}".encode()).hexdigest()[:12]
    return f"llmos-reset-{digest}"


def reset_job(spec: Mapping[str, Any], node: str, one: Treatment, namespace: str) -> dict[str, Any]:
    """Return the Job. It runs on the node itself, past the scheduler: the node is cordoned or its device is sick."""
    job = copy.deepcopy(dict(spec))
    job.setdefault("backoffLimit", 0)
    job.setdefault("activeDeadlineSeconds", ACTIVE_SECONDS)
    job.setdefault("ttlSecondsAfterFinished", KEPT_SECONDS)
    template = job.setdefault("template", {})
    pod = template.setdefault("spec", {})
    pod["nodeName"] = node
    pod.setdefault("restartPolicy", "Never")
    told = {
        "LLMOS_NODE": node,
        "LLMOS_DEVICE": "" if one.target == NODE else one.target,
        "LLMOS_ACTION": one.action,
        "LLMOS_REASON": one.reason,
    }
    for container in pod.get("containers", ()):
        others = [env for env in container.get("env", ()) if env.get("name") not in told]
        container["env"] = [*others, *({"name": name, "value": value} for name, value in told.items())]
    return {
        "metadata": {
            "name": reset_job_name(node, one),
            "namespace": namespace,
            "labels": {names.LABEL_MANAGED_BY: names.MANAGED_BY},
            "annotations": {"llmos.dev/node": node, "llmos.dev/target": one.target},
        },
        "spec": job,
    }


def ended(job: Mapping[str, Any]) -> bool | None:
    """Return None while a Job runs, then whether it succeeded."""
    for one in (job.get("status") or {}).get("conditions") or ():
        if one.get("status") == "True" and one.get("type") in {"Complete", "Failed"}:
            return bool(one["type"] == "Complete")
    return None
