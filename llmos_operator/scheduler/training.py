"""Turns of FineTune and Batch work that waits: the attained-service index, learned from what its queue has finished.

What a workload received before it was stopped is `status.run.deviceSeconds`; the rest of its time since creation it
has waited. Overdue work goes first, oldest first; other work by the index (`service_index`, `thrift`).
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from llmos_operator.scheduler.service_index import Service, ServiceIndex
from llmos_operator.scheduler.thrift import Standing, places
from llmos_operator.state.finished import devices_of
from llmos_operator.state.types import WorkloadKind

if TYPE_CHECKING:
    from llmos_operator.scheduler.policy import Policy
    from llmos_operator.scheduler.queueing import Pending
    from llmos_operator.state.snapshot import Snapshot


def in_turn(lines: dict[str, list[Pending]], snapshot: Snapshot, policy: Policy, now: float) -> None:
    """Share out, in every sorted line, the places of training work of one standing among it by its turns."""
    index: ServiceIndex | None = None
    for line in lines.values():
        for places_of in _places(line):
            index = index if index is not None else learned(snapshot, policy)
            members = [line[place] for place in places_of]
            for place, one in zip(places_of, _by_turn(members, index, policy, now), strict=True):
                line[place] = one


def learned(snapshot: Snapshot, policy: Policy) -> ServiceIndex:
    """Return the index as the snapshot's finished and unfinished work teaches it."""
    finished = (Service(f.queue or policy.default_queue, f.devices, f.seconds) for f in snapshot.finished)
    unfinished = (
        Service(w.queue or policy.default_queue, devices_of(w), w.gpu_seconds / devices_of(w))
        for w in snapshot.workloads.values()
        if w.kind is not WorkloadKind.INFERENCE and w.gpu_seconds and not w.finished
    )
    return ServiceIndex(finished, unfinished)


def _places(line: list[Pending]) -> list[list[int]]:
    """Return the places in a line of training work, by nomination and priority, where there is more than one."""
    found = []
    numbered = groupby(enumerate(line), lambda one: (one[1].nominated, one[1].priority))
    for _, group in numbered:
        own = [place for place, one in group if one.workload.kind is not WorkloadKind.INFERENCE]
        if len(own) > 1:
            found.append(own)
    return found


def _by_turn(members: list[Pending], index: ServiceIndex, policy: Policy, now: float) -> list[Pending]:
    members = sorted(members, key=lambda p: p.workload.key)  # equals in one fixed order
    devices = [devices_of(p.workload) for p in members]
    attained = np.array([p.workload.gpu_seconds / n for p, n in zip(members, devices, strict=True)])
    submitted = np.array([p.workload.created_at for p in members])
    waited = np.maximum(0.0, now - submitted - attained)
    standing = Standing(
        index=np.array(
            [index.seconds(p.queue, n, a) for p, n, a in zip(members, devices, attained, strict=True)]
        ),
        devices=np.array(devices, np.int64),
        submitted=submitted,
        attained=attained,
        waited=waited,
        running=np.zeros(len(members), np.bool_),
        since=np.full(
            len(members), np.inf
        ),  # none of them displaces an equal, so patience makes no difference
    )
    place = places(standing, policy.thrift)
    return [members[i] for i in np.argsort(place)]
