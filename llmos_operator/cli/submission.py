"""Documents of a file put into a picture of the cluster as the API server and the operator would take them.

The API server is asked first, as a dry run with the person's own credentials: it checks the rules that need it (CEL,
quotas, admission), fills in defaults and writes nothing. Where it may not be asked the documents are taken as they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from llmos_operator.cli.failures import CommandFailed
from llmos_operator.cli.render import dig
from llmos_operator.clock import rfc3339
from llmos_operator.cluster import port
from llmos_operator.cluster.failures import Forbidden, NotFound
from llmos_operator.control import reconcile
from llmos_operator.control.gangs import GangLimits
from llmos_operator.errors import Conflict, LlmosError, Permanent
from llmos_operator.state import convert

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from llmos_operator.cli.manifests import Document
    from llmos_operator.cli.session import Session
    from llmos_operator.cluster.port import Json
    from llmos_operator.settings import SourceSettings
    from llmos_operator.state.store import Store
    from llmos_operator.state.types import PodKey, Workload, WorkloadKey

_STEP: Final = 1e-3  # seconds between documents of a file: the earlier goes first among equals


@dataclass(frozen=True, slots=True)
class Submitted:
    """The workloads that are asked about, and the pods their changes take away."""

    asked: tuple[WorkloadKey, ...]
    leaving: tuple[PodKey, ...] = ()


async def rehearse(
    connected: Session, documents: Iterable[Document], current: Callable[[Document], Json | None]
) -> tuple[list[Json], list[str]]:
    """Return the documents as the API server would store them, and notes on what it could not be asked.

    Raises `CommandFailed` with everything it refuses.
    """
    bodies, notes, refused = [], [], []
    created = set[str]()
    for one in documents:
        if one.kind is port.NAMESPACES:
            created.add(one.name)
        if one.namespace in created and current(one) is None:
            bodies.append(one.body)
            notes.append(
                f"{one.where}: its namespace is in the file: rules between its fields were not checked"
            )
            continue
        try:
            bodies.append(await _dry_run(connected, one, current(one)))
        except Forbidden:
            bodies.append(one.body)
            notes.append(f"{one.where}: you may not write it: rules between its fields were not checked")
        except NotFound:
            refused.append(
                f"{one.where}: there is no namespace {one.namespace}: create it, or choose another with -n"
            )
        except (Permanent, Conflict) as error:
            refused.append(f"{one.where}: {str(error).partition(': ')[2] or error}")
    if refused:
        raise CommandFailed("\n".join(refused))
    return bodies, notes


async def _dry_run(connected: Session, one: Document, current: Json | None) -> Json:
    query = {"dryRun": "All", "fieldValidation": "Strict"}
    kind, request = one.kind, connected.transport.request
    if current is None:
        return await request(
            "POST", kind.path(one.namespace), query=query, body=one.body, verb="create", plural=kind.plural
        )
    kept = {key: value for key, value in current.items() if key not in one.body}
    own = {key: value for key, value in one.body["metadata"].items() if key in {"labels", "annotations"}}
    body = {**kept, **one.body, "metadata": {**current["metadata"], **own}}
    path = kind.path(one.namespace, one.name)
    return await request("PUT", path, query=query, body=body, verb="update", plural=kind.plural)


def submit(
    store: Store, documents: Iterable[tuple[Document, Json]], sources: SourceSettings | None, now: float
) -> Submitted:
    """Apply documents to a store in their order, and what the operator would hold back or take away for them.

    Raises `CommandFailed` naming the field of a document that cannot be read.
    """
    asked: list[Workload] = []
    for number, (one, body) in enumerate(documents):
        try:
            found = _apply(store, one, body, now + number * _STEP)
        except LlmosError as error:
            raise CommandFailed(f"{one.where}: {error}") from error
        if found is not None:
            asked.append(found)
    for workload in asked:
        hold_back(store, workload, sources)
    leaving = [key for workload in asked for key in _replaced(store, workload, now)]
    return Submitted(tuple(one.key for one in asked), tuple(leaving))


def hold_back(store: Store, workload: Workload, sources: SourceSettings | None) -> None:
    """Keep the operator's hold on a workload that it cannot accept or run; without `sources` all are allowed."""
    refused = None
    if sources is not None:
        hosts = sources.allowed_hosts
        refused = reconcile.refusal(workload, allow_file=sources.allow_file, allowed_hosts=hosts)
    held = reconcile.hold(workload, refused, None, permanent=False, backing_off=False)
    if held is not None:
        store.set_hold(workload.key, held)


def _apply(store: Store, one: Document, body: Json, created: float) -> Workload | None:
    if one.kind is port.WORKLOAD_QUEUES:
        store.apply_queue(convert.queue(body))
    elif one.kind is port.MODEL_PROFILES:
        store.apply_profile(convert.profile(body))
    elif one.kind is port.PRIORITY_CLASSES:
        store.apply_priority_class(convert.priority_class(body))
    elif one.kind is port.NAMESPACES:
        store.apply_namespace(convert.namespace(body))
    else:
        return _apply_workload(store, one.key, body, created)
    return None


def _apply_workload(store: Store, key: WorkloadKey, body: Json, created: float) -> Workload:
    """Take a workload: a new one is the youngest of all, a known one keeps its UID, age and past use."""
    known = store.workload(key)
    meta: dict[str, Any] = {**body["metadata"], "uid": f"simulated-{key}", "generation": 1}
    meta["creationTimestamp"] = rfc3339(created)
    found = replace(convert.workload({**body, "metadata": meta}), created_at=created)
    if known is not None:
        same = known.spec == found.spec
        found = replace(
            found,
            uid=known.uid,
            generation=known.generation + (not same),
            created_at=known.created_at,
            gpu_seconds=known.gpu_seconds,
            finished=known.finished,
            deleting=known.deleting,
            replicas=known.replicas if dig(body, "spec", "scaling") else found.replicas,
        )
    store.apply_workload(found)
    return found


def _replaced(store: Store, workload: Workload, now: float) -> list[PodKey]:
    """Return the pods of a changed workload that the operator would take away; all at once, whatever its rollout."""
    at_once = replace(workload, spec={**workload.spec, "rollout": {"strategy": "Recreate"}})
    # What is not ready may be loading: nobody here knows that a gang is late.
    patient = GangLimits(start=math.inf)
    seen = reconcile.Situation(at_once, now, store.pods_of(workload.uid), limits=patient)
    return [retire.pod for retire in reconcile.rule(seen).retire]
