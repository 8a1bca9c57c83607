"""Runtime pods as replicas: container states, exits, addresses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmos_operator.api import names
from llmos_operator.clock import parse_rfc3339
from llmos_operator.state.convert.fields import Fields
from llmos_operator.state.convert.nodes import condition_true
from llmos_operator.state.convert.pods import environment
from llmos_operator.state.replicas import Exit, Replica

if TYPE_CHECKING:
    from collections.abc import Mapping

_CONTAINER = "runtime"
_ENGINE = "engine"  # beside the runtime where it fronts another engine; its troubles are the replica's


def replica(obj: Mapping[str, Any]) -> Replica | None:
    """Return the replica a pod is, None for any other pod."""
    root = Fields(obj)
    meta, spec, status = root.child("metadata"), root.child("spec"), root.child("status")
    labels = meta.labels("labels")
    role = labels.get(names.LABEL_ROLE)
    if role not in {"runtime", "worker"} or names.LABEL_WORKLOAD_UID not in labels:
        return None
    runtime = _container(status, _CONTAINER)
    engine = _container(status, _ENGINE) if environment(spec).get(names.ENV_ENGINE) else Fields(None)
    state, lasts = runtime.child("state"), [_last(runtime), _last(engine)]
    waiting = _waiting(runtime) or _waiting(engine)
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
        restarts=runtime.number("restartCount") + engine.number("restartCount"),
        waiting=waiting.text("reason"),
        waiting_message=waiting.text("message"),
        ended=_exit(state.child("terminated")),
        last=max((one for one in lasts if one is not None), key=lambda one: one.finished_at, default=None),
        failure=status.text("reason"),
        failure_message=status.text("message"),
        disrupted=condition_true(status, "DisruptionTarget"),
    )


def _container(status: Fields, name: str) -> Fields:
    """Return the status of a container of ours: a main container, or a sidecar among the init containers."""
    for section in ("containerStatuses", "initContainerStatuses"):
        for one in status.objects(section):
            if one.data.get("name") == name:
                return one
    return Fields(None)


def _waiting(container: Fields) -> Fields:
    return container.child("state").child("waiting")


def _last(container: Fields) -> Exit | None:
    """Return how a container ended before its last start. A sidecar that just ended counts: it is started again."""
    now = container.child("state").child("terminated")
    ended = (
        now
        if now and container.data.get("name") == _ENGINE
        else container.child("lastState").child("terminated")
    )
    return _exit(ended)


def _exit(terminated: Fields) -> Exit | None:
    if not terminated:
        return None
    return Exit(
        reason=terminated.text("reason"),
        exit_code=terminated.number("exitCode", least=-(1 << 31)),
        message=terminated.text("message"),
        finished_at=terminated.parsed("finishedAt", parse_rfc3339, 0.0),
    )
