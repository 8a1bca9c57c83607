"""What replicas are expected to lose to each other on a shared device, by what was learned of their like.

    harm = weight x sum over the tenants of the device of  slow(new | tenant) x part of the new one
                                                         + slow(tenant | new) x part of the tenant

in thousandths of a device. `slow(a | b)` is the part of its speed that work like `a` was seen to lose beside work like `b`
(`Snapshot.interference`, at most `MOST`); a part is the dominant share of the device. Work is alike when it runs the same
model and is of the same kind. Tenants that sleep, and pairs of which nothing was learned, do no harm.

Harm is a term of the scores and of nothing else: what fits without it fits with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from llmos_operator.api.v1alpha1.modelprofile import profile_name
from llmos_operator.state.types import FULL_MILLI, PodPhase, Sharing, WorkloadKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from llmos_operator.scheduler.request import Request
    from llmos_operator.scheduler.table import Ints, NodeTable, Rows
    from llmos_operator.state.ledger import DeviceState, NodeState
    from llmos_operator.state.snapshot import Snapshot
    from llmos_operator.state.types import Claim, Workload

MOST: Final = 900  # thousandths of its speed that anything is believed to lose
_MOST_WEIGHT: Final = 100
_KINDS: Final = {WorkloadKind.INFERENCE: "", WorkloadKind.FINE_TUNE: "/tune", WorkloadKind.BATCH: "/batch"}


def subject_of(workload: Workload) -> str:
    """Return what work is alike with a workload: its model's profile and its kind; "" without a model."""
    if not workload.model.uri:
        return ""
    return profile_name(workload.model.uri, workload.model.revision) + _KINDS[workload.kind]


class Harm:
    """What was learned, over the nodes of one plan."""

    def __init__(self, snapshot: Snapshot, weight: float, table: NodeTable) -> None:
        self._snapshot = snapshot
        self._weight = min(max(weight, 0.0), float(_MOST_WEIGHT))
        self._table = table
        self._slow = {
            pair: min(max(milli, 0), MOST) for pair, milli in snapshot.interference.items() if milli > 0
        }
        self._subjects = {subject for pair in self._slow for subject in pair}
        self._known: dict[str, tuple[NodeState, Mapping[str, tuple[Claim, ...]]]] = {}

    def concerns(self, request: Request) -> bool:
        """Return whether anything was learned of a request's like."""
        return bool(self._weight) and not request.whole and request.subject in self._subjects

    def of(self, request: Request, rows: Rows) -> Ints | None:
        """Return the harm of placing a request on each device of rows; None where nothing was learned of its like."""
        if not self.concerns(request):
            return None
        numbers = np.arange(len(self._table))[rows]
        found = np.zeros((len(numbers), self._table.width), np.int64)
        for place, row in enumerate(numbers):
            state = self._table.states[int(row)]
            tenants = self._tenants(state)
            for column, device in enumerate(state.devices if tenants else ()):
                found[place, column] = self._on(request, device, tenants.get(device.uuid, ()))
        return found

    def told(self, claim: Claim, state: NodeState) -> list[tuple[str, int, int]]:
        """Return (workload, what the claim is expected to lose to it, what that loses) of tenants beside a claim, in thousandths."""
        workload = self._snapshot.workloads.get(claim.workload)
        subject = subject_of(workload) if workload is not None and claim.sharing is Sharing.SHARED else ""
        found = []
        for uuid in claim.devices if subject in self._subjects and self._weight else ():
            for tenant in self._tenants(state).get(uuid, ()):
                other = self._subject(tenant)
                loses, takes = self._slow.get((subject, other), 0), self._slow.get((other, subject), 0)
                if tenant.pod != claim.pod and (loses or takes):
                    found.append((tenant.workload, loses, takes))
        return found

    def _on(self, request: Request, device: DeviceState, tenants: Iterable[Claim]) -> int:
        capacity = max(1, device.device.memory_bytes)
        own = max(request.compute_milli, -(-request.bytes_per_device * FULL_MILLI // capacity))
        harm = 0
        for tenant in tenants:
            other = self._subject(tenant)
            harm += self._slow.get((request.subject, other), 0) * min(own, FULL_MILLI)
            harm += self._slow.get((other, request.subject), 0) * min(tenant.gpu_milli, FULL_MILLI)
        return round(harm * self._weight / FULL_MILLI)

    def _tenants(self, state: NodeState) -> Mapping[str, tuple[Claim, ...]]:
        """Return the claims of which something was learned, by device."""
        known = self._known.get(state.name)
        if known is None or known[0] is not state:
            found: dict[str, tuple[Claim, ...]] = {}
            for pod in state.pods.values():
                claim = pod.claim
                if claim is None or pod.phase is PodPhase.FINISHED or claim.asleep:
                    continue
                if claim.sharing is Sharing.SHARED and self._subject(claim) in self._subjects:
                    for uuid in claim.devices:
                        found[uuid] = (*found.get(uuid, ()), claim)
            known = self._known[state.name] = (state, found)
        return known[1]

    def _subject(self, claim: Claim) -> str:
        workload = self._snapshot.workloads.get(claim.workload)
        return subject_of(workload) if workload is not None else ""
