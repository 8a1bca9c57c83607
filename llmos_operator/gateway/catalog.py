"""What can be served: workloads and their replicas, and the way from a model's name to them.

Pure: fed with values by `watch`, asked by `dispatch` and `models`. A name resolves inside one namespace only, so that a
workload of one team can never draw another team's requests by taking its served name.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    Allowed = Callable[["WorkloadKey"], bool]

KNOWN_NAMES_SHOWN = 20


class WorkloadKey(NamedTuple):
    """Identity of a ModelWorkload."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class ColdStart(StrEnum):
    """What happens to a request while no replica is ready."""

    HOLD = "Hold"
    REJECT = "Reject"


@dataclass(frozen=True, slots=True)
class Rate:
    """Limits per minute; 0 is no limit."""

    requests: int = 0
    tokens: int = 0


NO_LIMIT = Rate()


@dataclass(frozen=True, slots=True)
class Workload:
    """One inference workload as far as routing needs it."""

    key: WorkloadKey
    uid: str
    served_name: str
    port: int = 8000
    cold_start: ColdStart = ColdStart.HOLD
    suspended: bool = False
    failure: str = ""  # why it cannot come up without a change of its spec; "" while it can
    waiting_for: str = ""  # what it waits for, in words
    eta_seconds: int | None = None  # until it serves, where the runtime knows
    max_in_flight: int = 64  # requests one replica works on at once
    rate: Rate = NO_LIMIT
    created: int = 0  # epoch seconds
    adapters: tuple[str, ...] = ()  # names of LoRA adapters its replicas serve
    canary_hash: str = ""  # `Replica.spec_hash` of its canary, if one is under way
    canary_percent: int = 0  # of requests that go there; 0: requests go to all replicas alike

    @property
    def can_start(self) -> bool:
        """Whether waiting for a replica makes sense."""
        return not self.suspended and not self.failure


@dataclass(frozen=True, slots=True)
class Replica:
    """A pod that answers its readiness probe."""

    uid: str
    workload_uid: str
    name: str
    host: str
    port: int
    spec_hash: str = ""  # what the pod was made from, "" where it does not say


class Unknown(NamedTuple):
    """No workload of that name; `known` are names that would work."""

    known: tuple[str, ...]
    more: int


class Ambiguous(NamedTuple):
    """Several namespaces serve that name; `choices` are the forms that tell them apart."""

    choices: tuple[str, ...]


class Route(NamedTuple):
    """The workloads that serve a name, all of one namespace; more than one only if they share a served name."""

    workloads: tuple[Workload, ...]
    adapter: str = ""  # the adapter that was asked for; "": the model itself

    def model_of(self, workload: Workload) -> str:
        """Return the name by which the replicas of ``workload`` know what was asked for."""
        return self.adapter or workload.served_name

    @property
    def lead(self) -> Workload:
        """The workload whose limits and cold start hold for the route."""
        return self.workloads[0]


@dataclass(slots=True)
class Catalog:
    """Workloads by name and ready replicas by workload, kept current by the watches."""

    _workloads: dict[WorkloadKey, Workload] = field(default_factory=dict)
    _by_served: dict[str, dict[WorkloadKey, Workload]] = field(default_factory=dict)
    _replicas: dict[str, Replica] = field(default_factory=dict)  # by pod UID
    _by_workload: dict[str, dict[str, Replica]] = field(
        default_factory=dict
    )  # workload UID -> pod UID -> replica
    _listeners: list[Callable[[str], None]] = field(default_factory=list)

    def subscribe(self, listener: Callable[[str], None]) -> None:
        """Call ``listener(workload uid)`` after each change that can alter where its requests go."""
        self._listeners.append(listener)

    def put_workload(self, workload: Workload) -> None:
        """Add or replace a workload."""
        before = self._workloads.get(workload.key)
        if before == workload:
            return
        if before is not None:
            self._forget_name(before)
        self._workloads[workload.key] = workload
        self._by_served.setdefault(workload.served_name, {})[workload.key] = workload
        if before is not None and before.uid != workload.uid:
            self._tell(before.uid)
        self._tell(workload.uid)

    def remove_workload(self, key: WorkloadKey) -> None:
        """Forget a workload; its requests that wait learn of it."""
        workload = self._workloads.pop(key, None)
        if workload is not None:
            self._forget_name(workload)
            self._tell(workload.uid)

    def put_replica(self, replica: Replica) -> None:
        """Add a replica that became ready, or take over its new address."""
        before = self._replicas.get(replica.uid)
        if before == replica:
            return
        if before is not None:
            self._by_workload.get(before.workload_uid, {}).pop(before.uid, None)
        self._replicas[replica.uid] = replica
        self._by_workload.setdefault(replica.workload_uid, {})[replica.uid] = replica
        self._tell(replica.workload_uid)

    def remove_replica(self, uid: str) -> None:
        """Forget a replica that is gone, not ready or ending."""
        replica = self._replicas.pop(uid, None)
        if replica is None:
            return
        siblings = self._by_workload.get(replica.workload_uid, {})
        siblings.pop(uid, None)
        if not siblings:
            self._by_workload.pop(replica.workload_uid, None)
        self._tell(replica.workload_uid)

    def workloads(self) -> Iterable[Workload]:
        """All workloads."""
        return self._workloads.values()

    def find(self, key: WorkloadKey) -> Workload | None:
        """Return a workload by its identity."""
        return self._workloads.get(key)

    def current(self, workload: Workload) -> Workload | None:
        """Return the newest form of ``workload``, None if it was deleted (or deleted and made anew)."""
        now = self._workloads.get(workload.key)
        return now if now is not None and now.uid == workload.uid else None

    def replicas(self, workload_uid: str) -> Collection[Replica]:
        """Ready replicas of a workload."""
        return self._by_workload.get(workload_uid, {}).values()

    def replica_count(self) -> int:
        """Ready replicas of all workloads."""
        return len(self._replicas)

    def replica_uids(self) -> Collection[str]:
        """Pod UIDs of all ready replicas."""
        return self._replicas.keys()

    def resolve(
        self, model: str, *, namespace: str = "", allowed: Callable[[WorkloadKey], bool] | None = None
    ) -> Route | Ambiguous | Unknown:
        """Return where requests for ``model`` go.

        ``model`` is `namespace/workload`, `namespace/served-name`, a served name or a workload name, tried in this
        order; then an adapter's name, with or without `namespace/`: it can never hide a model. ``namespace`` breaks ties of the short forms. Workloads that ``allowed`` refuses do not exist.
        """
        candidates, adapter = [w for w in self._candidates(model) if allowed is None or allowed(w.key)], ""
        if not candidates:
            adapter = model.rpartition("/")[2]
            candidates = [w for w in self._with_adapter(model) if allowed is None or allowed(w.key)]
        if namespace:
            candidates = [w for w in candidates if w.key.namespace == namespace] or candidates
        if not candidates:
            return self._unknown(allowed)
        spaces = {w.key.namespace for w in candidates}
        if len(spaces) > 1:
            if adapter:
                return Ambiguous(tuple(sorted(f"{space}/{adapter}" for space in spaces)))
            return Ambiguous(tuple(sorted(str(w.key) for w in candidates)))
        return Route(tuple(sorted(candidates, key=lambda w: w.key)), adapter)

    def public_name(self, workload: Workload, allowed: Callable[[WorkloadKey], bool] | None = None) -> str:
        """Return the shortest name that resolves to ``workload`` alone."""
        same = [k for k in self._by_served.get(workload.served_name, {}) if allowed is None or allowed(k)]
        return workload.served_name if same == [workload.key] else str(workload.key)

    def _candidates(self, model: str) -> list[Workload]:
        namespace, slash, rest = model.partition("/")
        if slash:
            exact = self._workloads.get(WorkloadKey(namespace, rest))
            if exact is not None:
                return [exact]
            inside = [w for k, w in self._by_served.get(rest, {}).items() if k.namespace == namespace]
            if inside:
                return inside
        served = list(self._by_served.get(model, {}).values())
        if served:
            return served
        return [w for w in self._workloads.values() if w.key.name == model] if not slash else []

    def adapter_name(self, workload: Workload, adapter: str, allowed: Allowed | None = None) -> str:
        """Return the shortest name that asks for an adapter of ``workload``, "" if a model of that name hides it."""
        for name in (adapter, f"{workload.key.namespace}/{adapter}"):
            found = self.resolve(name, allowed=allowed)
            if isinstance(found, Route) and found.adapter and workload in found.workloads:
                return name
        return ""

    def _with_adapter(self, model: str) -> list[Workload]:
        namespace, slash, name = model.rpartition("/")
        return [
            w
            for k, w in self._workloads.items()
            if name in w.adapters and (not slash or k.namespace == namespace)
        ]

    def _unknown(self, allowed: Callable[[WorkloadKey], bool] | None) -> Unknown:
        visible = [w for w in self._workloads.values() if allowed is None or allowed(w.key)]
        known = sorted({self.public_name(w, allowed) for w in visible})
        return Unknown(tuple(known[:KNOWN_NAMES_SHOWN]), max(0, len(known) - KNOWN_NAMES_SHOWN))

    def _forget_name(self, workload: Workload) -> None:
        named = self._by_served.get(workload.served_name, {})
        named.pop(workload.key, None)
        if not named:
            self._by_served.pop(workload.served_name, None)

    def _tell(self, workload_uid: str) -> None:
        for listener in self._listeners:
            listener(workload_uid)
