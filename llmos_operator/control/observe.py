"""Gathers everything known of one workload into the value its status is made from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmos_operator.api import names
from llmos_operator.api.conditions import Reason
from llmos_operator.api.telemetry import Verdict
from llmos_operator.api.v1alpha1.modelprofile import profile_name
from llmos_operator.control import rightsizing
from llmos_operator.manifests.observed import Observed, Refusal
from llmos_operator.manifests.pod import selector

if TYPE_CHECKING:
    from llmos_operator.clock import Clock
    from llmos_operator.control.accounting import Accounts
    from llmos_operator.control.activity import Activities
    from llmos_operator.control.records import Record, Records
    from llmos_operator.scheduler.policy import Policy
    from llmos_operator.state.snapshot import Snapshot
    from llmos_operator.state.store import Store
    from llmos_operator.state.types import Hold, Pod, Workload


class Observer:
    """Builds :class:`Observed` from the store and the records."""

    def __init__(
        self,
        store: Store,
        records: Records,
        accounts: Accounts,
        activities: Activities,
        policy: Policy,
        clock: Clock,
        url_template: str,
    ) -> None:
        self._store = store
        self._records = records
        self._accounts = accounts
        self._activities = activities
        self._policy = policy
        self._clock = clock
        self._url_template = url_template
        self._snapshot: Snapshot | None = None

    def observe(self, key: str) -> Observed | None:
        """Return what is known of a workload, None if it is gone."""
        record = self._records.get(key)
        if record is None:
            return None
        snapshot = self._snapshot_now()
        workload = self._store.workload(key) or record.stub
        pods = self._store.pods_of(record.uid)
        return Observed(
            workload=workload,
            now=self._clock.now(),
            previous=record.status,
            pods=pods,
            replicas=self._records.replicas_of(record.uid),
            reports=self._records.reports_of(record.uid),
            decision=record.decision,
            refusal=record.invalid or record.uninspectable or record.trouble,
            hold=self._hold(snapshot, workload),
            failure=record.failure,
            preemption=record.preemption,
            ended=record.ended,
            tries=record.tries,
            scaling=record.scaling,
            degraded=self._degraded(snapshot, pods),
            scores=record.scores,
            products=_products(snapshot, pods),
            usage=self._accounts.usage(record.uid, pods, self._clock.now()),
            activity=self._activities.news(record, self._clock.now()),
            learned=rightsizing.known(record.learned, workload),
            estimated_bytes=record.estimated_bytes,
            profile=profile_name(workload.model.uri, workload.model.revision) if workload.model.uri else "",
            priority=snapshot.priority_of(workload),
            queue=workload.queue or names.DEFAULT_QUEUE,
            url=self._url_template.format(name=workload.name, namespace=workload.namespace),
            selector=selector(workload),
        )

    def _snapshot_now(self) -> Snapshot:
        """Return a snapshot of the store as it is; many statuses of one moment share it."""
        if self._snapshot is None or self._snapshot.version != self._store.version:
            self._snapshot = self._store.snapshot()
        return self._snapshot

    def _hold(self, snapshot: Snapshot, workload: Workload) -> Hold | None:
        hold = snapshot.holds.get(workload.key)
        return hold if hold is not None and hold.until > self._clock.now() else None

    def _degraded(self, snapshot: Snapshot, pods: tuple[Pod, ...]) -> Refusal | None:
        """Return what is wrong with the devices under the replicas."""
        for pod in pods:
            state = snapshot.nodes.get(pod.node)
            if state is None or pod.claim is None:
                continue
            for uuid in pod.claim.devices:
                device = state.device(uuid)
                if device is not None and device.verdict in {Verdict.UNHEALTHY, Verdict.DEGRADED}:
                    text = f"Device {uuid} of node {pod.node} is {device.verdict}: {device.reason or 'no reason given'}."
                    return Refusal(Reason.GPU_UNHEALTHY, text)
        return None


def _products(snapshot: Snapshot, pods: tuple[Pod, ...]) -> dict[str, str]:
    found = {}
    for pod in pods:
        state = snapshot.nodes.get(pod.node)
        if state is None or pod.claim is None:
            continue
        for uuid in pod.claim.devices:
            device = state.device(uuid)
            if device is not None:
                found[uuid] = device.device.product
    return found


def phase_of(record: Record) -> str:
    """Return the phase of a workload as last written."""
    return str(record.status.get("phase", ""))
