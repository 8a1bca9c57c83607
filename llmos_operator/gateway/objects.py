"""Workloads and pods as routing needs them, from their JSON.

Tolerant on purpose: the API server has validated the objects, and what the operator may refuse (a bad model) is not
the gateway's to judge. What cannot be read raises Permanent and is left out by the caller.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmos_operator.api import names
from llmos_operator.api.conditions import Condition, Reason
from llmos_operator.api.quantity import parse_seconds
from llmos_operator.clock import parse_rfc3339
from llmos_operator.gateway.catalog import ColdStart, Rate, Replica, Workload, WorkloadKey
from llmos_operator.state.convert.fields import Fields

if TYPE_CHECKING:
    from collections.abc import Mapping

RUNTIME_ROLE = f"{names.LABEL_ROLE}=runtime"
DEFAULT_SEQUENCES = 64

# Reasons for which waiting is useless: only a change of the spec, or of the cluster, brings a replica.
_HOPELESS = frozenset(
    {
        Reason.ACCESS_DENIED,
        Reason.CORRUPTED,
        Reason.FORMAT_NOT_ALLOWED,
        Reason.INVALID_SPEC,
        Reason.LARGER_THAN_ANY_DEVICE,
        Reason.MODEL_NOT_FOUND,
        Reason.NAMESPACE_NOT_ADMITTED,
        Reason.QUEUE_NOT_FOUND,
        Reason.SECRET_NOT_FOUND,
        Reason.SOURCE_NOT_ALLOWED,
        Reason.UNSAFE_CONFIG,
        Reason.UNSAFE_FORMAT,
        Reason.UNSUPPORTED,
        Reason.UNSUPPORTED_SCHEME,
    }
)
# In the order in which a workload passes them: the first that does not hold says what it waits for.
_STAGES = (
    Condition.ACCEPTED,
    Condition.QUOTA_RESERVED,
    Condition.SCHEDULED,
    Condition.MODEL_CACHED,
    Condition.MODEL_LOADED,
    Condition.AVAILABLE,
)


def workload(obj: Mapping[str, Any]) -> Workload | None:
    """Return a workload from its JSON; None for work that serves nothing. Raises Permanent if it cannot be read."""
    root = Fields(obj)
    meta, spec, status = root.child("metadata"), root.child("spec"), root.child("status")
    if spec.text("type") not in {"", "Inference"} or meta.has("deletionTimestamp"):
        return None
    scaling, serving, load = spec.child("scaling"), spec.child("serving"), status.child("load")
    limits, canary = serving.child("rateLimit"), status.child("canary")
    key = WorkloadKey(meta.text("namespace"), meta.required("name"))
    failure, waiting_for = _standing(status)
    return Workload(
        key=key,
        uid=meta.required("uid"),
        served_name=spec.child("model").text("name") or key.name,
        port=serving.number("port") or names.PORT_SERVING,
        cold_start=scaling.choice("coldStart", ColdStart, ColdStart.HOLD),
        suspended=spec.flag("suspend"),
        failure=failure,
        waiting_for=waiting_for,
        eta_seconds=load.parsed("eta", parse_seconds, None) if load.text("eta") else None,
        max_in_flight=spec.child("context").number("maxNumSeqs") or DEFAULT_SEQUENCES,
        rate=Rate(limits.number("requestsPerMinute"), limits.number("tokensPerMinute")),
        adapters=tuple(one.required("name") for one in spec.objects("adapters")),
        canary_hash=canary.text("specHash"),
        canary_percent=canary.number("trafficPercent", 0),
        created=int(meta.parsed("creationTimestamp", parse_rfc3339, 0.0)),
    )


def replica(obj: Mapping[str, Any], port_of: Mapping[str, int]) -> Replica | None:
    """Return a replica from its pod; None while the pod must not get requests.

    ``port_of`` maps workload UIDs to ports, for pods that do not say theirs.
    """
    root = Fields(obj)
    meta, status = root.child("metadata"), root.child("status")
    owner = meta.labels("labels").get(names.LABEL_WORKLOAD_UID, "")
    host = status.text("podIP")
    if not owner or not host or meta.has("deletionTimestamp") or not _is_ready(status):
        return None
    return Replica(
        uid=meta.required("uid"),
        workload_uid=owner,
        name=f"{meta.text('namespace')}/{meta.required('name')}",
        host=host,
        port=_port(root.child("spec")) or port_of.get(owner, names.PORT_SERVING),
        spec_hash=meta.child("annotations").text(names.ANNOTATION_SPEC_HASH),
    )


def _standing(status: Fields) -> tuple[str, str]:
    """Return why the workload cannot come up ("" if it can), and what it waits for."""
    conditions = {c.text("type"): c for c in status.objects("conditions")}
    finished = conditions.get(Condition.FINISHED)
    if finished is not None and finished.text("status") == "True":
        return _words(finished), ""
    asleep = conditions.get(Condition.ASLEEP)
    sleeps = _words(asleep) if asleep is not None and asleep.text("status") == "True" else ""
    for stage in _STAGES:
        found = conditions.get(stage)
        if found is None or found.text("status") != "False":
            continue
        if found.text("reason") in _HOPELESS:
            return _words(found), ""
        return "", sleeps or _words(found)
    return "", sleeps


def _words(condition: Fields) -> str:
    message = condition.text("message")
    return f"{condition.text('reason')}: {message}" if message else condition.text("reason")


def _is_ready(status: Fields) -> bool:
    return any(c.text("type") == "Ready" and c.text("status") == "True" for c in status.objects("conditions"))


def _port(spec: Fields) -> int:
    """Return the serving port the runtime container was started with, 0 if the pod does not say."""
    for group in ("containers", "initContainers"):
        for container in spec.objects(group):
            for variable in container.objects("env"):
                if variable.text("name") == names.ENV_PORT and variable.text("value").isdigit():
                    return int(variable.text("value"))
    return 0
