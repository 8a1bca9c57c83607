"""The single-writer store: every fact the operator knows, and the claims it has assumed but not yet seen.

Watch events come in through `apply_…` and `delete_…`, telemetry through `observe`, the executor's own writes through
`assume`, `confirm`, `forget`, `assume_evicted` and `forget_eviction`. All methods return at once; nothing here reads a
clock or does I/O. One task writes; `snapshot` may be taken between any two calls.

Life of a claim::

    assume ──create ok──> confirm ──watch shows the pod──> bound ──DELETE event──> gone
       └────create failed for sure────> forget

An assumed claim counts from the first moment; an ambiguous create is neither confirmed nor forgotten until a quorum
read says what happened (`assumed` lists those that are open).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from llmos_operator.errors import Conflict
from llmos_operator.state import ledger
from llmos_operator.state.ledger import NodeState
from llmos_operator.state.snapshot import Snapshot, assumed_pod
from llmos_operator.state.telemetry import Smoother
from llmos_operator.state.types import Kind, Node, Pod, PodPhase

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from llmos_operator.state.telemetry import Observation, Reading
    from llmos_operator.state.types import (
        Claim,
        DisruptionBudget,
        GpuNode,
        Hold,
        Namespace,
        PodKey,
        PriorityClass,
        Profile,
        Queue,
        Workload,
        WorkloadKey,
    )

_T = TypeVar("_T")

REQUIRED = (
    Kind.NODE,
    Kind.GPU_NODE,
    Kind.POD,
    Kind.WORKLOAD,
    Kind.QUEUE,
    Kind.PROFILE,
    Kind.PRIORITY_CLASS,
    Kind.DISRUPTION_BUDGET,
    Kind.NAMESPACE,
)


@dataclass(frozen=True, slots=True)
class Assumption:
    """A claim that was assumed; `uid` is the created pod's once the write is confirmed, "" before."""

    claim: Claim
    uid: str = ""


class Store:
    """See the module's text. Methods that take a value say by their result whether anything changed."""

    def __init__(self, required: Iterable[Kind] = REQUIRED) -> None:
        self._version = 0
        self._missing = list(required)
        self._nodes: dict[str, NodeState] = {}
        self._pods: dict[PodKey, Pod] = {}
        self._pods_of: dict[str, tuple[Pod, ...]] = {}
        self._assumed: dict[PodKey, Assumption] = {}
        self._evicting: dict[PodKey, float] = {}  # pod -> when its grace ends
        self._workloads: dict[WorkloadKey, Workload] = {}  # as applied
        self._effective: dict[WorkloadKey, Workload] = {}  # with desired replicas put in
        self._replicas: dict[WorkloadKey, int] = {}
        self._holds: dict[WorkloadKey, Hold] = {}
        self._queues: dict[str, Queue] = {}
        self._profiles: dict[str, Profile] = {}
        self._priority_classes: dict[str, PriorityClass] = {}
        self._budgets: dict[str, DisruptionBudget] = {}
        self._namespaces: dict[str, Namespace] = {}
        self._smoothers: dict[str, Smoother] = {}
        self._observed: dict[str, Mapping[str, Observation]] = {}
        self._heard: dict[str, float] = {}

    # -- synchronisation and reading ------------------------------------------------------------------------

    @property
    def version(self) -> int:
        """Grows with every change that a decision could depend on."""
        return self._version

    def mark_synced(self, kind: Kind) -> None:
        """Say that every object of `kind` has been applied."""
        if kind in self._missing:
            self._missing.remove(kind)
            self._version += 1

    def synced(self) -> bool:
        """Return whether all required kinds are complete; no plan may be made before."""
        return not self._missing

    def snapshot(self) -> Snapshot:
        """Return an immutable picture of everything; costs one shallow copy of each dictionary."""
        return Snapshot(
            version=self._version,
            missing=tuple(self._missing),
            nodes=dict(self._nodes),
            workloads=dict(self._effective),
            pods_of=dict(self._pods_of),
            queues=dict(self._queues),
            profiles=dict(self._profiles),
            priority_classes=dict(self._priority_classes),
            budgets=dict(self._budgets),
            namespaces=dict(self._namespaces),
            holds=dict(self._holds),
            heard=dict(self._heard),
        )

    def pod(self, key: PodKey) -> Pod | None:
        """Return a pod by key, assumed ones included."""
        return self._pods.get(key)

    def workload(self, key: WorkloadKey) -> Workload | None:
        """Return a workload with its desired replicas put in."""
        return self._effective.get(key)

    # -- nodes and devices ----------------------------------------------------------------------------------

    def apply_node(self, node: Node) -> bool:
        """Take a node as it is now."""
        old = self._nodes.get(node.name)
        if old is not None and old.node == node:
            return False
        self._set_node(replace(old, node=node) if old else self._build(node.name, node, None))
        return True

    def delete_node(self, name: str) -> bool:
        """Forget a node; pods bound to it stay counted until they are deleted themselves."""
        old = self._nodes.get(name)
        if old is None or old.node is None:
            return False
        self._set_node(replace(old, node=None))
        return True

    def apply_gpu_node(self, gpu: GpuNode) -> bool:
        """Take the devices of a node as they are now."""
        old = self._nodes.get(gpu.name)
        if old is not None and old.gpu == gpu:
            return False
        self._set_node(self._build(gpu.name, old.node if old else None, gpu))
        return True

    def delete_gpu_node(self, name: str) -> bool:
        """Forget the devices of a node, and what was observed on them."""
        old = self._nodes.get(name)
        if old is None or old.gpu is None:
            return False
        self._smoothers.pop(name, None)
        self._observed.pop(name, None)
        self._heard.pop(name, None)
        self._set_node(self._build(name, old.node, None))
        return True

    def observe(self, node: str, readings: Iterable[Reading], received_at: float) -> bool:
        """Take a node's telemetry batch. True when an observation crossed its band or a verdict changed."""
        self._heard[node] = received_at
        folded = self._smoothers.setdefault(node, Smoother()).fold(readings)
        if folded is None:
            return False
        self._observed[node] = folded
        old = self._nodes.get(node)
        if old is not None and old.gpu is not None:
            self._set_node(self._build(node, old.node, old.gpu))
        return True

    # -- pods and claims ------------------------------------------------------------------------------------

    def apply_pod(self, pod: Pod) -> bool:
        """Take a pod of the watch. It replaces an assumption of the same key; a pod without node is not counted."""
        self._assumed.pop(pod.key, None)
        if pod.key in self._evicting and pod.phase is PodPhase.BOUND:
            pod = replace(pod, phase=PodPhase.TERMINATING, deletion_at=self._evicting[pod.key])
        if pod.phase is not PodPhase.BOUND and pod.deletion_at > 0 and pod.key in self._evicting:
            self._evicting[pod.key] = pod.deletion_at
        if self._pods.get(pod.key) == pod:
            return False
        self._put_pod(pod)
        return True

    def delete_pod(self, key: PodKey, uid: str = "") -> bool:
        """Release what a deleted pod held. A late DELETE of a former pod of the same name (other UID) is ignored."""
        known = self._pods.get(key)
        if known is None:
            return False
        assumption = self._assumed.get(key)
        held_uid = assumption.uid if assumption is not None else known.uid
        if uid and held_uid != uid:
            return False
        self._drop_pod(key)
        return True

    def assume(self, claim: Claim) -> None:
        """Count a claim before its pod is created. Conflict: the name, the replica or the capacity is taken."""
        if claim.pod in self._pods:
            raise Conflict(f"pod {claim.pod} exists already; wait for its deletion")
        if any(
            p.claim is not None and p.claim.ordinal == claim.ordinal for p in self.pods_of(claim.workload_uid)
        ):
            raise Conflict(f"replica {claim.ordinal} of {claim.workload} holds a claim already")
        problem = ledger.shortfall(self._state(claim.node), claim)
        if problem:
            raise Conflict(f"claim of {claim.pod} does not fit: {problem}; plan again on a newer snapshot")
        self._assumed[claim.pod] = Assumption(claim)
        self._put_pod(assumed_pod(claim))

    def confirm(self, key: PodKey, uid: str) -> None:
        """Say that the pod of an assumed claim was created as `uid`; the watch will show it."""
        assumption = self._assumed.get(key)
        if assumption is not None:
            self._assumed[key] = replace(assumption, uid=uid)

    def forget(self, key: PodKey) -> bool:
        """Release an assumed claim whose create failed for sure. A pod the watch has shown stays."""
        if self._assumed.pop(key, None) is None:
            return False
        self._drop_pod(key)
        return True

    def assumed(self) -> tuple[Assumption, ...]:
        """Return the claims the watch has not shown yet, for a quorum read of those that are overdue."""
        return tuple(self._assumed.values())

    def assume_evicted(self, key: PodKey, grace_ends: float) -> bool:
        """Count a pod as terminating from the moment its eviction is sent, so that it is sent once."""
        pod = self._pods.get(key)
        if pod is None or pod.phase in {PodPhase.TERMINATING, PodPhase.FINISHED}:
            return False
        self._evicting[key] = grace_ends
        self._put_pod(replace(pod, phase=PodPhase.TERMINATING, deletion_at=grace_ends))
        return True

    def forget_eviction(self, key: PodKey) -> bool:
        """Take back `assume_evicted` because the API refused (for example a disruption budget)."""
        if self._evicting.pop(key, None) is None:
            return False
        pod = self._pods.get(key)
        if pod is None or pod.phase is not PodPhase.TERMINATING:
            return False
        phase = PodPhase.ASSUMED if key in self._assumed else PodPhase.BOUND
        self._put_pod(replace(pod, phase=phase, deletion_at=0.0))
        return True

    def pods_of(self, workload_uid: str) -> tuple[Pod, ...]:
        """Return the pods of a workload by UID, in ordinal order."""
        return self._pods_of.get(workload_uid, ())

    # -- demand ---------------------------------------------------------------------------------------------

    def apply_workload(self, workload: Workload) -> bool:
        """Take a workload. One with another UID under the same name is another workload: nothing is carried over."""
        old = self._workloads.get(workload.key)
        if old is not None and old == workload:
            return False
        if old is not None and old.uid != workload.uid:
            self.delete_workload(old.key)
        self._workloads[workload.key] = workload
        hold = self._holds.get(workload.key)
        if hold is not None and hold.generation != workload.generation:
            del self._holds[workload.key]
        self._refresh_workload(workload.key)
        return True

    def delete_workload(self, key: WorkloadKey, uid: str = "") -> bool:
        """Forget a workload (only that UID, if given). Its pods stay counted until they are gone."""
        old = self._workloads.get(key)
        if old is None or (uid and old.uid != uid):
            return False
        del self._workloads[key], self._effective[key]
        self._replicas.pop(key, None)
        self._holds.pop(key, None)
        self._version += 1
        return True

    def set_replicas(self, key: WorkloadKey, replicas: int | None) -> bool:
        """Set how many replicas scaling wants now; None goes back to the spec."""
        if self._replicas.get(key) == replicas:
            return False
        if replicas is None:
            del self._replicas[key]
        else:
            self._replicas[key] = replicas
        if key in self._workloads:
            self._refresh_workload(key)
        return True

    def set_hold(self, key: WorkloadKey, hold: Hold | None) -> bool:
        """Keep a workload from getting new replicas, or lift that."""
        return self._apply(self._holds, key, hold) if hold else self._delete(self._holds, key)

    def apply_queue(self, queue: Queue) -> bool:
        """Take a queue."""
        return self._apply(self._queues, queue.name, queue)

    def delete_queue(self, name: str) -> bool:
        """Forget a queue."""
        return self._delete(self._queues, name)

    def apply_profile(self, profile: Profile) -> bool:
        """Take what is known of a model."""
        return self._apply(self._profiles, profile.name, profile)

    def delete_profile(self, name: str) -> bool:
        """Forget a model's profile."""
        return self._delete(self._profiles, name)

    def apply_priority_class(self, priority_class: PriorityClass) -> bool:
        """Take a priority class."""
        return self._apply(self._priority_classes, priority_class.name, priority_class)

    def delete_priority_class(self, name: str) -> bool:
        """Forget a priority class; workloads that name it count as priority 0."""
        return self._delete(self._priority_classes, name)

    def apply_budget(self, budget: DisruptionBudget) -> bool:
        """Take a PodDisruptionBudget."""
        return self._apply(self._budgets, budget.key, budget)

    def delete_budget(self, key: str) -> bool:
        """Forget a PodDisruptionBudget."""
        return self._delete(self._budgets, key)

    def apply_namespace(self, namespace: Namespace) -> bool:
        """Take a namespace's labels."""
        return self._apply(self._namespaces, namespace.name, namespace)

    def delete_namespace(self, name: str) -> bool:
        """Forget a namespace."""
        return self._delete(self._namespaces, name)

    # -- inside ---------------------------------------------------------------------------------------------

    def _apply(self, kept: dict[str, _T], key: str, value: _T) -> bool:
        if kept.get(key) == value:
            return False
        kept[key] = value
        self._version += 1
        return True

    def _delete(self, kept: dict[str, _T], key: str) -> bool:
        if kept.pop(key, None) is None:
            return False
        self._version += 1
        return True

    def _refresh_workload(self, key: WorkloadKey) -> None:
        workload, replicas = self._workloads[key], self._replicas.get(key)
        self._effective[key] = workload if replicas is None else replace(workload, replicas=replicas)
        self._version += 1

    def _state(self, name: str) -> NodeState:
        return self._nodes.get(name) or NodeState(name)

    def _build(self, name: str, node: Node | None, gpu: GpuNode | None) -> NodeState:
        pods = self._state(name).pods
        return ledger.build(name, node, gpu, pods, self._observed.get(name, {}))

    def _set_node(self, state: NodeState) -> None:
        if state.node is None and state.gpu is None and not state.pods:
            self._nodes.pop(state.name, None)
        else:
            self._nodes[state.name] = state
        self._version += 1

    def _put_pod(self, pod: Pod) -> None:
        old = self._pods.get(pod.key)
        if old is not None:
            self._unindex(old, moved=old.node != pod.node)
        self._pods[pod.key] = pod
        if pod.claim is not None:
            mates = (*self.pods_of(pod.claim.workload_uid), pod)
            self._pods_of[pod.claim.workload_uid] = tuple(sorted(mates, key=_ordinal_order))
        if pod.node:
            self._set_node(self._state(pod.node).with_pod(pod))
        self._version += 1

    def _drop_pod(self, key: PodKey) -> None:
        self._unindex(self._pods.pop(key), moved=True)
        self._assumed.pop(key, None)
        self._evicting.pop(key, None)
        self._version += 1

    def _unindex(self, pod: Pod, *, moved: bool) -> None:
        if pod.claim is not None:
            uid = pod.claim.workload_uid
            rest = tuple(p for p in self._pods_of.get(uid, ()) if p.key != pod.key)
            if rest:
                self._pods_of[uid] = rest
            else:
                self._pods_of.pop(uid, None)
        if moved and pod.node:
            self._set_node(self._state(pod.node).without_pod(pod.key))


def _ordinal_order(pod: Pod) -> tuple[int, str]:
    return (pod.claim.ordinal if pod.claim is not None else -1, pod.key)
