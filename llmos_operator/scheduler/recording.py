"""A cycle as a file: everything a plan depends on, and the plan that was made of it.

`dump` writes one JSON document, `load` reads it back, and `replay` makes the plan again: the same bytes. The cluster is
kept as what was listed and observed; ledgers are built anew from that, as after a restart (I11). Pods stand once and
are named elsewhere. Specs of workloads are left out, because a plan reads nothing of them and they may hold what must
not leave the cluster; so are credentials and query strings in URIs (`redaction`).

The version grows whenever a reader of the former one could misread a file.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from llmos_operator.api.conditions import Reason
from llmos_operator.api.mig import MigProfile
from llmos_operator.api.runtime.memory import ModelShape
from llmos_operator.errors import Permanent
from llmos_operator.scheduler.cycle import plan as make_plan
from llmos_operator.scheduler.fragmentation.prices import Prices
from llmos_operator.scheduler.fragmentation.shapes import Shape
from llmos_operator.scheduler.fragmentation.worth import Worth
from llmos_operator.scheduler.geometry.layouts import Layout
from llmos_operator.scheduler.plan import Bind, Plan
from llmos_operator.scheduler.policy import Policy
from llmos_operator.scheduler.redaction import redact
from llmos_operator.state import ledger
from llmos_operator.state.finished import Finished
from llmos_operator.state.snapshot import Snapshot
from llmos_operator.state.telemetry import Observation
from llmos_operator.state.types import (
    Busy,
    DisruptionBudget,
    GpuNode,
    Hold,
    Kind,
    Namespace,
    Node,
    Pod,
    PodPhase,
    PriorityClass,
    Profile,
    Queue,
    Target,
    Workload,
)

FORMAT: Final = "llmos-cycle"
VERSION: Final = 1


class BadRecording(Permanent):
    """A file is no recording, or one that this version cannot read. The message says which, and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reason="BadRecording")


@dataclass(frozen=True, slots=True)
class Recording:
    """What a plan was made of, and the plan as JSON (see `plan_document`), None if none was made."""

    snapshot: Snapshot
    policy: Policy
    now: float
    prices: Prices | None = None
    plan: Mapping[str, Any] | None = None


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True, ser_json_inf_nan="constants")


class _NodeRecord(_Part):
    name: str
    node: Node | None
    gpu: GpuNode | None
    observed: dict[str, Observation]
    pods: tuple[str, ...]
    refusing: bool = False


class _PricesRecord(_Part):
    of: tuple[tuple[Shape, float], ...]
    kinds: tuple[tuple[str, int], ...]
    width: int
    at: float


class _ClusterRecord(_Part):
    version: int
    missing: tuple[Kind, ...]
    nodes: tuple[_NodeRecord, ...]
    pods: tuple[Pod, ...]
    pods_of: dict[str, tuple[str, ...]]
    workloads: tuple[Workload, ...]
    queues: tuple[Queue, ...]
    profiles: tuple[Profile, ...]
    priority_classes: tuple[PriorityClass, ...]
    budgets: tuple[DisruptionBudget, ...]
    namespaces: tuple[Namespace, ...]
    holds: dict[str, Hold]
    finished: tuple[Finished, ...]
    heard: dict[str, float]
    unsettled: tuple[str, ...]
    nominated: dict[str, float]
    charged: dict[str, tuple[int, int]]
    averages: dict[str, tuple[int, int]]
    standing: tuple[tuple[str, int, int], ...]  # queue, priority, claims
    terminating: tuple[str, ...]
    busy: dict[str, Busy] = {}
    idle: tuple[str, ...] = ()
    lending: dict[str, bool] = {}
    targets: tuple[tuple[str, int, Target], ...] = ()  # workload UID, ordinal, place
    disturbed: dict[str, float] = {}
    interference: tuple[tuple[str, str, int], ...] = ()  # work like this, beside work like that, thousandths


class _File(_Part):
    format: Literal["llmos-cycle"]
    version: Literal[1]
    llmos: str  # version of the program that wrote it
    now: float
    policy: Policy
    prices: _PricesRecord | None
    cluster: _ClusterRecord
    plan: dict[str, Any] | None


@cache
def _file_type() -> type[_File]:
    """Return the file's type with everything known that domain modules import for their types only."""
    known = {
        "Mapping": Mapping,
        "Any": Any,
        "Reason": Reason,
        "ModelShape": ModelShape,
        "MigProfile": MigProfile,
        "Layout": Layout,
    }
    for part in (_NodeRecord, _PricesRecord, _ClusterRecord, _File):
        part.model_rebuild(force=True, _types_namespace={**globals(), **known})
    return _File


def dump(recording: Recording, llmos: str) -> str:
    """Return the file of a cycle; `llmos` is the version of the program that writes it."""
    file = _file_type()(
        format="llmos-cycle",
        version=1,
        llmos=llmos,
        now=recording.now,
        policy=recording.policy,
        prices=_prices_record(recording.prices),
        cluster=_cluster_record(recording.snapshot),
        plan=dict(recording.plan) if recording.plan is not None else None,
    )
    snapshot = recording.snapshot
    models = [(one.model.uri, one.model.revision) for one in snapshot.workloads.values()]
    models += [(one.uri, one.revision) for one in snapshot.profiles.values()]
    return redact(file.model_dump_json(), models) + "\n"


def load(text: str | bytes) -> Recording:
    """Return the cycle of a file. Raises `BadRecording`."""
    try:
        head = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRecording(f"it is not JSON ({error}): was it cut off while it was copied?") from error
    if not isinstance(head, dict) or head.get("format") != FORMAT:
        raise BadRecording("it is not a recorded cycle: `llmos snapshot > FILE` writes one")
    if head.get("version") != VERSION:
        raise BadRecording(
            f"it has version {head.get('version')!r} of the format, this program reads version {VERSION}; it was "
            f"written by llmos {head.get('llmos')}: use that version, or take a new snapshot"
        )
    try:
        file = _file_type().model_validate_json(text)
        return Recording(_snapshot(file.cluster), file.policy, file.now, _prices(file.prices), file.plan)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadRecording(
            f"{where}: {first['msg']}; the file was changed, or is of another release"
        ) from error
    except KeyError as error:
        raise BadRecording(f"cluster: pod {error} is named but not in the file") from error


def replay(recording: Recording) -> Plan:
    """Make the plan of a recorded cycle again, without a time budget."""
    return make_plan(recording.snapshot, recording.policy, recording.now, prices=recording.prices)


def plan_document(made: Plan) -> dict[str, Any]:
    """Return a plan as JSON values: what is done, who waits, what is said of each. Equal plans give equal documents."""
    return {
        "version": made.version,
        "now": float(made.now),
        "actions": [{"action": type(one).__name__, **_plain(_bare(one))} for one in made.actions],
        "waits": [_plain(one) for one in made.waits],
        "decisions": {key: _plain(one) for key, one in made.decisions.items()},
        "reservations": [_plain(one) for one in made.reservations],
        "interrupted": made.interrupted,
        **({"holders": {name: _plain(one) for name, one in made.holders.items()}} if made.holders else {}),
    }


def plan_text(document: Mapping[str, Any]) -> str:
    """Return a plan's document as text."""
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _bare(action: Any) -> Any:
    if isinstance(action, Bind):
        return dataclasses.asdict(action) | {"workload": action.workload.key}
    return dataclasses.asdict(action)


def _plain(value: Any) -> Any:
    """Return JSON values: tuples as lists, enumerations as their words, so that a loaded document is equal."""
    fields = (
        dataclasses.asdict(value)
        if dataclasses.is_dataclass(value) and not isinstance(value, type)
        else value
    )
    return json.loads(json.dumps(fields))


def _cluster_record(snapshot: Snapshot) -> _ClusterRecord:
    pods = {key: pod for state in snapshot.nodes.values() for key, pod in state.pods.items()}
    pods |= {pod.key: pod for found in snapshot.pods_of.values() for pod in found}
    return _ClusterRecord(
        version=snapshot.version,
        missing=snapshot.missing,
        nodes=tuple(
            _NodeRecord(
                name=one.name,
                node=one.node,
                gpu=one.gpu,
                observed=dict(one.observed),
                pods=tuple(one.pods),
                refusing=one.refusing,
            )
            for one in snapshot.nodes.values()
        ),
        pods=tuple(pods.values()),
        pods_of={uid: tuple(pod.key for pod in found) for uid, found in snapshot.pods_of.items()},
        workloads=tuple(replace(one, spec={}) for one in snapshot.workloads.values()),
        queues=tuple(snapshot.queues.values()),
        profiles=tuple(snapshot.profiles.values()),
        priority_classes=tuple(snapshot.priority_classes.values()),
        budgets=tuple(snapshot.budgets.values()),
        namespaces=tuple(snapshot.namespaces.values()),
        holds=dict(snapshot.holds),
        finished=snapshot.finished,
        heard=dict(snapshot.heard),
        unsettled=snapshot.unsettled,
        nominated=dict(snapshot.nominated),
        charged=dict(snapshot.charged),
        averages=dict(snapshot.averages),
        standing=tuple((queue, priority, count) for (queue, priority), count in snapshot.standing.items()),
        terminating=tuple(pod.key for pod in snapshot.terminating),
        busy=dict(snapshot.busy),
        idle=tuple(sorted(snapshot.idle)),
        lending=dict(snapshot.lending),
        targets=tuple((uid, ordinal, one) for (uid, ordinal), one in snapshot.targets.items()),
        disturbed=dict(snapshot.disturbed),
        interference=tuple((*pair, milli) for pair, milli in sorted(snapshot.interference.items())),
    )


def _snapshot(record: _ClusterRecord) -> Snapshot:
    pods = {pod.key: pod for pod in record.pods}
    return Snapshot(
        version=record.version,
        missing=record.missing,
        nodes={
            one.name: ledger.build(
                one.name,
                one.node,
                one.gpu,
                {key: pods[key] for key in one.pods},
                one.observed,
                refusing=one.refusing,
            )
            for one in record.nodes
        },
        workloads={one.key: one for one in record.workloads},
        pods_of={uid: tuple(pods[key] for key in keys) for uid, keys in record.pods_of.items()},
        queues={one.name: one for one in record.queues},
        profiles={one.name: one for one in record.profiles},
        priority_classes={one.name: one for one in record.priority_classes},
        budgets={one.key: one for one in record.budgets},
        namespaces={one.name: one for one in record.namespaces},
        holds=record.holds,
        finished=record.finished,
        heard=record.heard,
        unsettled=record.unsettled,
        nominated=record.nominated,
        charged=record.charged,
        averages=record.averages,
        standing={(queue, priority): count for queue, priority, count in record.standing},
        terminating=tuple(pods[key] for key in record.terminating),
        lowered=tuple(
            pods[key]
            for key in sorted(pods)
            if (claim := pods[key].claim) is not None and claim.lowered and pods[key].phase is PodPhase.BOUND
        ),
        sleeping=tuple(
            pods[key]
            for key in sorted(pods)
            if (claim := pods[key].claim) is not None
            and claim.sleeping is not None
            and pods[key].phase is PodPhase.BOUND
        ),
        held=tuple(sorted(one.key for one in record.workloads if one.wanted is not None)),
        busy=record.busy,
        idle=frozenset(record.idle),
        lending=record.lending,
        moved=tuple(
            pods[key] for key in sorted(pods) if (claim := pods[key].claim) is not None and claim.moved_at
        ),
        targets={(uid, ordinal): one for uid, ordinal, one in record.targets},
        disturbed=record.disturbed,
        interference={(subject, beside): milli for subject, beside, milli in record.interference},
    )


def _prices_record(prices: Prices | None) -> _PricesRecord | None:
    if prices is None:
        return None
    return _PricesRecord(
        of=tuple(prices.of.items()), kinds=prices.kinds, width=prices.worth.width, at=prices.at
    )


def _prices(record: _PricesRecord | None) -> Prices | None:
    """Return prices with their tables made anew: those follow from the prices alone."""
    if record is None:
        return None
    of = dict(record.of)
    return Prices(of, record.kinds, Worth(of, len(record.kinds) + 1, record.width), record.at)
