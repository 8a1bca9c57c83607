"""Which nodes can mount the claims that workloads name, and what keeps a claim from being mounted at all.

PersistentVolumeClaims and PersistentVolumes as the API has them, and the pods that mount claims. What follows for a
workload is worked out anew whenever one of its claims, their volumes or those pods change.
https://kubernetes.io/docs/concepts/storage/persistent-volumes/#access-modes
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from llmos_operator.api.conditions import Reason
from llmos_operator.state.labels import NODE_NAME_FIELD
from llmos_operator.state.types import PodPhase
from llmos_operator.state.work import MountLimit, Requirement, Selector

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from llmos_operator.state.types import Pod, PodKey
    from llmos_operator.state.work import ClaimUse, Workload, WorkloadKey

_ONE_POD: Final = "ReadWriteOncePod"
_ONE_NODE: Final = frozenset({"ReadWriteOnce", _ONE_POD})
BOUND: Final = "Bound"
_WITHIN_A_NODE: Final = frozenset({"nvlink", "pcie", "numa", "node"})  # of spec.scheduling.topology.required
_OF_ONE_NODE: Final = frozenset({NODE_NAME_FIELD, "kubernetes.io/hostname"})


@dataclass(frozen=True, slots=True)
class VolumeClaim:
    """A PersistentVolumeClaim."""

    key: str
    phase: str = "Pending"  # Pending | Bound | Lost
    volume: str = ""  # it is bound to, or asks for
    modes: frozenset[str] = frozenset()
    storage_class: str = ""

    @property
    def one_node(self) -> bool:
        """Whether only one node may have it mounted at a time."""
        return bool(self.modes) and self.modes <= _ONE_NODE

    @property
    def one_pod(self) -> bool:
        """Whether only one pod may have it mounted at a time."""
        return self.modes == {_ONE_POD}


@dataclass(frozen=True, slots=True)
class Volume:
    """A PersistentVolume."""

    name: str
    places: tuple[
        Selector, ...
    ] = ()  # terms of its node affinity, any of them; empty: it can be on every node


class VolumeBook:
    """Claims by key, volumes by name, and who uses them. Methods that take a value return the workloads it concerns."""

    def __init__(self) -> None:
        self._claims: dict[str, VolumeClaim] = {}
        self._volumes: dict[str, Volume] = {}
        self._users: defaultdict[str, set[WorkloadKey]] = defaultdict(set)  # by claim
        self._mounted: defaultdict[str, dict[PodKey, str]] = defaultdict(dict)  # claim -> pod -> node
        self._on_volume: defaultdict[str, set[str]] = defaultdict(set)  # volume -> claims
        self._of_pod: dict[PodKey, tuple[str, ...]] = {}

    def note_workload(self, former: Workload | None, workload: Workload | None) -> None:
        """Take which claims a workload names."""
        for key in _claim_keys(former):
            self._users[key].discard(former.key if former is not None else "")
            if not self._users[key]:
                del self._users[key]
        for key in _claim_keys(workload):
            self._users[key].add(workload.key if workload is not None else "")

    def apply_claim(self, one: VolumeClaim) -> set[WorkloadKey]:
        """Take a claim."""
        if self._claims.get(one.key) == one:
            return set()
        self._unindex(self._claims.get(one.key))
        self._claims[one.key] = one
        if one.volume:
            self._on_volume[one.volume].add(one.key)
        return self._using(one.key)

    def delete_claim(self, key: str) -> set[WorkloadKey]:
        """Forget a claim."""
        former = self._claims.pop(key, None)
        self._unindex(former)
        return self._using(key) if former is not None else set()

    def _unindex(self, former: VolumeClaim | None) -> None:
        if former is not None and former.volume:
            self._on_volume[former.volume].discard(former.key)
            if not self._on_volume[former.volume]:
                del self._on_volume[former.volume]

    def apply_volume(self, one: Volume) -> set[WorkloadKey]:
        """Take a volume."""
        if self._volumes.get(one.name) == one:
            return set()
        self._volumes[one.name] = one
        return self._reading(one.name)

    def delete_volume(self, name: str) -> set[WorkloadKey]:
        """Forget a volume."""
        return self._reading(name) if self._volumes.pop(name, None) is not None else set()

    def note_pod(self, key: PodKey, node: str, claims: Iterable[str]) -> set[WorkloadKey]:
        """Take which claims a pod has mounted on its node; none of a pod that is gone or has ended."""
        former, now = self._of_pod.pop(key, ()), tuple(dict.fromkeys(claims))
        before = {claim: self._mounted[claim].pop(key, "") for claim in former}
        if now:
            self._of_pod[key] = now
        for claim in now:
            self._mounted[claim][key] = node
        for claim in former:
            if not self._mounted[claim]:
                del self._mounted[claim]
        after = dict.fromkeys(now, node)
        changed = [claim for claim in {*former, *now} if before.get(claim) != after.get(claim)]
        return {user for claim in changed if self._counts(claim) for user in self._using(claim)}

    def _counts(self, claim: str) -> bool:
        """Return whether it matters where a claim is mounted."""
        known = self._claims.get(claim)
        return known is not None and known.one_node

    def _using(self, claim: str) -> set[WorkloadKey]:
        return set(self._users.get(claim, ()))

    def _reading(self, volume: str) -> set[WorkloadKey]:
        return {user for claim in self._on_volume.get(volume, ()) for user in self._using(claim)}

    def limits(self, workload: Workload) -> tuple[MountLimit, ...]:
        """Return where a workload's claims can be mounted, without those that any node can mount at any time."""
        return tuple(
            limit for use in workload.claims for limit in self._limits(workload.namespace, use.claim)
        )

    def _limits(self, namespace: str, name: str) -> Iterator[MountLimit]:
        claim = self._claims.get(f"{namespace}/{name}")
        if claim is None:
            return
        volume = self._volumes.get(claim.volume)
        if volume is not None and volume.places:
            yield MountLimit(name, volume.places, f"its volume {volume.name} is elsewhere (nodeAffinity)")
        if claim.one_node:
            nodes = tuple(sorted(set(self._mounted.get(claim.key, {}).values())))
            here = (Selector((Requirement(NODE_NAME_FIELD, "In", nodes),)),) if nodes else ()
            yield MountLimit(
                name,
                here,
                f"it is in use on {', '.join(nodes)} (ReadWriteOnce)" if nodes else "",
                one_node=True,
            )

    def trouble(self, workload: Workload) -> tuple[Reason, str] | None:
        """Return why no new replica of a workload could mount its claims anywhere, None if one could."""
        found = (self._trouble(workload, use) for use in workload.claims)
        return next((one for one in found if one is not None), None)

    def _trouble(self, workload: Workload, use: ClaimUse) -> tuple[Reason, str] | None:
        claim = self._claims.get(f"{workload.namespace}/{use.claim}")
        if claim is None:
            return Reason.CLAIM_NOT_FOUND, (
                f"{use.field}: there is no PersistentVolumeClaim {use.claim} in namespace {workload.namespace}; create "
                "it, or name one that exists."
            )
        if claim.phase != BOUND:
            return Reason.CLAIM_PENDING, f"{use.field}: {_unbound(claim, use.claim)}"
        why = self._taken(workload, claim)
        if not why:
            return None
        text = f"PersistentVolumeClaim {use.claim} is {why} use a claim with ReadOnlyMany or ReadWriteMany."
        return Reason.CLAIM_IN_USE, f"{use.field}: {text}"

    def _taken(self, workload: Workload, claim: VolumeClaim) -> str:
        """Return why a claim of one node or one pod is not for a workload now, and what may be done beside using another."""
        users, together = sorted(self._mounted.get(claim.key, ())), workload.together * workload.members
        if claim.one_pod and together > 1:
            return f"ReadWriteOncePod, and {together} pods start together;"
        if claim.one_pod and users:
            return f"ReadWriteOncePod, and pod {users[0]} uses it; wait for that pod to end, or"
        if not claim.one_node or users or _on_one_node(self._volumes.get(claim.volume)):
            return ""  # whoever comes goes to that node
        if workload.together > 1:
            return (
                f"ReadWriteOnce, and {workload.together} replicas start together, on any nodes; set "
                "spec.scheduling.minReplicas to 1, or"
            )
        if workload.members > 1 and workload.topology.required not in _WITHIN_A_NODE:
            return (
                f"ReadWriteOnce, and nothing keeps the {workload.members} pods of a replica on one node; set "
                "spec.scheduling.topology.required to node, or"
            )
        return ""


def _on_one_node(volume: Volume | None) -> bool:
    """Return whether a volume names the one node it can be on, as local volumes do."""
    if volume is None or len(volume.places) != 1:
        return False
    return any(
        one.key in _OF_ONE_NODE and one.operator == "In" and len(one.values) == 1
        for one in volume.places[0].requirements
    )


def _unbound(claim: VolumeClaim, name: str) -> str:
    if claim.phase == "Lost":
        return f"PersistentVolumeClaim {name} has lost its volume {claim.volume}; create the claim anew on a volume that exists."
    of = f" of StorageClass {claim.storage_class}" if claim.storage_class else ""
    return (
        f"PersistentVolumeClaim {name}{of} is not bound to a volume; kubectl describe pvc {name} tells why. "
        "If it waits for its first consumer (WaitForFirstConsumer), fill it with a Job, which binds it: pods of "
        "workloads do not."
    )


def _claim_keys(workload: Workload | None) -> tuple[str, ...]:
    return claim_keys(workload) if workload is not None else ()


def claim_keys(workload: Workload) -> tuple[str, ...]:
    """Return the keys of the claims a workload names."""
    return tuple(dict.fromkeys(f"{workload.namespace}/{use.claim}" for use in workload.claims))


def mounted_by(pod: Pod, workload: Workload | None) -> tuple[str, ...]:
    """Return the keys of the claims a pod has mounted: those of its spec, and before it exists those its workload names now."""
    if pod.phase is PodPhase.ASSUMED and workload is not None:
        return claim_keys(workload)
    return tuple(f"{pod.namespace}/{name}" for name in pod.mounts)
