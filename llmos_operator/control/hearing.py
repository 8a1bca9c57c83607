"""Takes in what runtimes, agents and gateways say, and sweeps up what no event will ever mention."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from llmos_operator.actuators.writequeue import Job, Rank
from llmos_operator.api.conditions import Reason
from llmos_operator.api.runtime.messages import RuntimeState
from llmos_operator.api.v1alpha1.modelprofile import LoadPath, LoadTime
from llmos_operator.api.v1alpha1.workload_model import WeightFormat
from llmos_operator.control import reconcile, rightsizing
from llmos_operator.control.rightsizing import PROVEN_REQUESTS
from llmos_operator.state.types import FULL_MILLI, Busy, WorkloadKind

if TYPE_CHECKING:
    from llmos_operator.api.runtime.messages import RuntimeStatus
    from llmos_operator.api.telemetry import DemandBatch
    from llmos_operator.control.assembly import Assembly
    from llmos_operator.control.records import Record
    from llmos_operator.state.replicas import Replica
    from llmos_operator.state.types import Claim, Workload
    from llmos_operator.telemetry.ingest import Report


def _below(report: RuntimeStatus, claim: Claim) -> bool:
    """Return whether a runtime does with less than its claim: it was told so by a leader that is gone, or told no more."""
    limit = report.memory.limit_bytes
    return report.state is RuntimeState.READY and not claim.lowered and 0 < limit < claim.bytes_per_device


def _as_bound(report: RuntimeStatus, claim: Claim) -> bool:
    """Return whether a runtime serves at the format its claim was bound with: at another one it teaches nothing about that."""
    return report.model.format in {"", claim.format}


def _busy(report: RuntimeStatus) -> Busy | None:
    """Return what a replica would lose if it ended now, None where that is nothing."""
    streams = report.requests.running + report.requests.waiting
    warm = report.memory.kv_bytes * report.requests.kv_usage_milli // FULL_MILLI
    return Busy(streams, warm) if streams or warm else None


class Hearing:
    """Listener to everything that is not the API server."""

    def __init__(self, parts: Assembly) -> None:
        self._parts = parts

    def telemetry(self, report: Report) -> None:
        """Take a node's samples; only a crossing or a change of verdict asks for a cycle."""
        parts = self._parts
        parts.accounts.sampled(report.readings)
        parts.work.sampled(report.readings, parts.clock.monotonic())
        self._drawn(report)
        changed = parts.store.observe(report.node, report.readings, parts.clock.now())
        if report.uses is not None and parts.leadership.may_act():  # before, not every pod is known
            uses = _by_device(report)
            parts.trespass.listed(report.node, uses)
            changed = parts.store.observe_processes(report.node, uses) or changed
        if changed:
            parts.batcher.trigger()

    def _drawn(self, report: Report) -> None:
        """Hand what devices were seen to draw to the profiles of their models."""
        parts = self._parts
        state = parts.store.node(report.node) if parts.leadership.may_act() else None
        for finding in parts.drawing.sampled(report.readings, state, parts.store.workload, parts.clock.now()):
            parts.queue.submit(
                Job(
                    Rank.SUPPORT,
                    f"drew {finding.subject}",
                    functools.partial(parts.profiles.drew, finding),
                )
            )

    def demand(self, batch: DemandBatch) -> None:
        """Take a gateway's report; workloads that scale are looked at."""
        parts = self._parts
        for key in parts.demand.take(batch, parts.clock.now()):
            workload = parts.store.workload(key)
            if workload is not None and workload.spec.get("scaling"):
                parts.review(key)

    def report(self, replica: Replica, report: RuntimeStatus, before: RuntimeStatus | None) -> None:
        """Take a runtime's report that is news."""
        parts = self._parts
        record = parts.records.by_uid(replica.workload_uid)
        if record is None:
            return
        if report.failure is not None:
            parts.loop.review(record.key)
        parts.status.mark(record.key)
        loaded_before = before is not None and before.state is RuntimeState.READY
        workload = parts.store.workload(record.key)
        pod = parts.store.pod(replica.pod)
        parts.store.set_busy(replica.pod, _busy(report) if pod is not None else None)
        if pod is not None and pod.claim is not None and before is None:
            parts.spans.started(pod.key, pod.claim)
        if pod is not None and pod.claim is not None and _below(report, pod.claim):
            parts.executor.lowering.raised.add(pod.key)
        if (
            pod is not None
            and report.state is RuntimeState.ASLEEP
            and pod.claim
            and pod.claim.sleeping is None
        ):
            parts.executor.lowering.waking.add(pod.key)  # put to sleep by a leader that is gone
        if report.state is RuntimeState.READY and workload and pod and pod.claim:
            if not loaded_before:
                parts.spans.ready(pod.key, pod.claim, seen_before=before is not None)
            if not loaded_before and _as_bound(report, pod.claim):
                self._loaded(workload, pod.claim, replica, report)
            self._served(record, workload, pod.claim, replica, report)

    def _served(
        self, record: Record, workload: Workload, claim: Claim, replica: Replica, report: RuntimeStatus
    ) -> None:
        """A replica has answered enough requests for its use of memory to say something."""
        parts = self._parts
        if workload.kind is WorkloadKind.FINE_TUNE or report.requests.finished < PROVEN_REQUESTS:
            return
        found = rightsizing.after_service(workload, claim, report, record.learned)
        if found is not None:
            record.learned, note = found
            parts.feedback.tell(record, "Normal", Reason.RIGHT_SIZED, note)
        if not claim.lowered and _as_bound(
            report, claim
        ):  # with less KV cache than it was bound with it says nothing of its size
            self._measured(workload, claim, replica, report, proven=True)

    def _loaded(self, workload: Workload, claim: Claim, replica: Replica, report: RuntimeStatus) -> None:
        """A model became ready: remember how long it took and what it uses."""
        parts = self._parts
        if workload.kind is WorkloadKind.FINE_TUNE:
            return  # what training takes says nothing about serving, which profiles are about
        path = _load_path(report.load_path)
        if path is not LoadPath.HOT:
            parts.metrics.ready_seconds.observe(max(0.0, parts.clock.now() - claim.bound_at))
        took = sum(report.load_seconds.values())
        load = None
        if took > 0:
            load = LoadTime(
                node_class=self._node_class(claim),
                path=path,
                format=WeightFormat(claim.format),
                milliseconds=round(took * 1000),
                samples=1,
            )
        self._measured(workload, claim, replica, report, load=load)

    def _measured(
        self,
        workload: Workload,
        claim: Claim,
        replica: Replica,
        report: RuntimeStatus,
        *,
        load: LoadTime | None = None,
        proven: bool = False,
    ) -> None:
        """Hand what a runtime measured to the profile of its model: its peak as if its KV budget were full."""
        parts, memory = self._parts, report.memory
        # Less than the setting says nothing: what runtimes of one machine share counts less for each while there are several.
        base = memory.base_bytes if memory.base_bytes > parts.policy.sizing.base_bytes else 0
        parts.queue.submit(
            Job(
                Rank.SUPPORT,
                f"measured {replica.uid}",
                lambda: parts.profiles.measured(
                    workload.model.uri,
                    workload.model.revision,
                    claim.format,
                    predicted=memory.predicted_bytes,
                    peak=max(memory.peak_bytes, memory.full_bytes),
                    weights=memory.weights_bytes,
                    load=load,
                    base=base,
                    proven=proven and memory.full_bytes > 0,
                ),
            )
        )

    def _node_class(self, claim: Claim) -> str:
        state = self._parts.store.node(claim.node)
        if state is None or not claim.devices:
            return "cpu"
        device = state.device(claim.devices[0])
        return device.device.product if device is not None else "unknown"

    def sweep(self) -> None:
        """Look at every workload, and at pods whose workload is gone."""
        parts = self._parts
        for record in parts.records:
            parts.review(record.key)
        snapshot = parts.store.snapshot()
        for uid, pods in snapshot.pods_of.items():
            if parts.records.by_uid(uid) is None:
                for retire in reconcile.orphans(pods):
                    parts.executor.retire(retire)


def _by_device(report: Report) -> dict[str, dict[str, int | None]]:
    """Return the memory of processes by device and pod UID, for each device whose list was told."""
    found: dict[str, dict[str, int | None]] = {uuid: {} for uuid in report.listed}
    for use in report.uses or ():
        found[use.uuid][use.pod_uid] = use.memory_bytes
    return found


def _load_path(text: str) -> LoadPath:
    """Return the load path a runtime names; unknown words count as cold, the most cautious."""
    try:
        return LoadPath(text.capitalize())
    except ValueError:
        return LoadPath.COLD
