"""Runtime pods as replicas: container states, exits, addresses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmos_operator.api import names
from llmos_operator.clock import parse_rfc3339
from llmos_operator.state.convert.fields import Fields
from llmos_operator.state.convert.nodes import condition_true
from llmos_operator.state.replicas import Exit, Replica

if TYPE_CHECKING:
    from collections.abc import Mapping

_CONTAINER = "runtime"


def replica(obj: Mapping[str, Any]) -> Replica | None:
    """Return the replica a pod is, None for any other pod."""
    root = Fields(obj)
    meta, spec, status = root.child("metadata"), root.child("spec"), root.child("status")
    labels = meta.labels("labels")
    role = labels.get(names.LABEL_ROLE)
    if role not in {"runtime", "worker"} or names.LABEL_WORKLOAD_UID not in labels:
        return None
    container = _container(status)
    state = container.child("state")
    waiting = state.child("waiting")
    return Replica(
        pod=f"{meta.text('namespace')}/{meta.required('name')}",
        uid=meta.text("uid"),
        workload_uid=labels[names.LABEL_WORKLOAD_UID],
        serves=role == "runtime",
        node=spec.text("nodeName"),
        ip=status.text("podIP"),
        phase=status.text("phase", "Pending"),
        running=state.has("running"),
        ready=condition_true(status, "Ready"),
        deleting=meta.has("deletionTimestamp"),
        restarts=container.number("restartCount"),
        waiting=waiting.text("reason"),
        waiting_message=waiting.text("message"),
        ended=_exit(state.child("terminated")),
        last=_exit(container.child("lastState").child("terminated")),
        failure=status.text("reason"),
        failure_message=status.text("message"),
        disrupted=condition_true(status, "DisruptionTarget"),
    )


def _container(status: Fields) -> Fields:
    """Return the status of the runtime container: a main container, or a sidecar among the init containers."""
    for section in ("containerStatuses", "initContainerStatuses"):
        for one in status.objects(section):
            if one.data.get("name") == _CONTAINER:
                return one
    return Fields(None)


def _exit(terminated: Fields) -> Exit | None:
    if not terminated:
        return None
    return Exit(
        reason=terminated.text("reason"),
        exit_code=terminated.number("exitCode", least=-(1 << 31)),
        message=terminated.text("message"),
        finished_at=terminated.parsed("finishedAt", parse_rfc3339, 0.0),
    )
