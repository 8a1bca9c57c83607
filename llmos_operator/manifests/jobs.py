"""What the pod of a FineTune or Batch has beside that of a served model: its program and its block of the spec.

And for every kind the volumes of the claims that its model, its adapters or its data are on.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from llmos_operator.api import names
from llmos_operator.api.runtime import data
from llmos_operator.state.convert.workloads import OPERATORS_OWN
from llmos_operator.state.types import WorkloadKind

if TYPE_CHECKING:
    from llmos_operator.state.types import Workload

Json = dict[str, Any]
TERMINATION_LOG = "/dev/termination-log"  # the default of terminationMessagePath

PROGRAMS = {WorkloadKind.INFERENCE: "runtime", WorkloadKind.BATCH: "batch", WorkloadKind.FINE_TUNE: "tune"}
_BLOCKS = {WorkloadKind.BATCH: "batch", WorkloadKind.FINE_TUNE: "fineTune"}


def block(workload: Workload) -> Json:
    """Return what the program is told of its run: the block of the spec, without what is the operator's business."""
    given = workload.spec.get(_BLOCKS.get(workload.kind, "")) or {}
    return {name: value for name, value in given.items() if name not in OPERATORS_OWN and name != "secretRef"}


def block_json(workload: Workload) -> str:
    """Return :func:`block` as the program reads it from its environment."""
    return json.dumps(block(workload), sort_keys=True, separators=(",", ":"))


def uris(workload: Workload) -> tuple[tuple[str, str, bool], ...]:
    """Return (path of the field, URI, whether it is written) of all data the workload names."""
    name = _BLOCKS.get(workload.kind, "")
    found, given = [], block(workload)
    for field in data.FIELDS:
        one = given.get(field)
        if isinstance(one, dict) and one.get("uri"):
            found.append((f"spec.{name}.{field}.uri", str(one["uri"]), field in data.WRITTEN_FIELDS))
    return tuple(found)


def secrets(workload: Workload) -> tuple[tuple[str, str, str, bool], ...]:
    """Return (variable, Secret, key, whether it must be there) of what proves who reads and writes data in buckets."""
    given = workload.spec.get(_BLOCKS.get(workload.kind, "")) or {}
    secret = (given.get("secretRef") or {}).get("name")
    if not secret or not any(uri.partition("://")[0] in data.BUCKETS for _, uri, _ in uris(workload)):
        return ()
    return tuple((data.variable(key), str(secret), key, key in data.PAIR) for key in data.SECRET_KEYS)


def environment(workload: Workload) -> dict[str, str]:
    """Return what the program of a run is told beside what every runtime is, and where any program finds its claims."""
    told = {}
    if workload.kind is not WorkloadKind.INFERENCE:
        told = {names.ENV_JOB: block_json(workload), names.ENV_TERMINATION_LOG: TERMINATION_LOG}
    for claim in _claims(workload)[:1]:
        # The folder all claims are in, told by way of a mount: a kubelet that runs processes rewrites paths of mounts.
        told[names.ENV_VOLUMES_ROOT] = f"{data.VOLUMES_ROOT}/{claim}/.."
    return told


def volumes(workload: Workload) -> list[Json]:
    """Return the volumes of the claims the workload's model, adapters and data are on."""
    return [
        {"name": _name(index), "persistentVolumeClaim": {"claimName": claim}}
        for index, claim in enumerate(_claims(workload))
    ]


def mounts(workload: Workload) -> list[Json]:
    """Return where those claims are mounted; read-only where nothing is written to them."""
    written = set(_named(workload, writes_only=True))
    return [
        {
            "name": _name(index),
            "mountPath": f"{data.VOLUMES_ROOT}/{claim}",
            **({} if claim in written else {"readOnly": True}),
        }
        for index, claim in enumerate(_claims(workload))
    ]


def _name(index: int) -> str:
    return f"llmos-data-{index}"


def _claims(workload: Workload) -> tuple[str, ...]:
    sources = (workload.model.uri, *(one.uri for one in workload.adapters))
    read = data.claims(tuple(uri for uri in sources if uri.startswith("pvc://")))
    return tuple(dict.fromkeys((*_named(workload, writes_only=False), *read)))


def _named(workload: Workload, *, writes_only: bool) -> tuple[str, ...]:
    return data.claims(tuple(uri for _, uri, write in uris(workload) if write or not writes_only))
