"""One start at a time on a shared device: what a replica needs at most is seen once it has loaded, not before.

Two that load beside each other can both be within their reservations and still run the device out of memory: a load
takes more than serving does, and an estimate may be wrong. So whoever would start on a device where another one loads
waits for it, and what was seen of the first counts when the second starts. Nobody is displaced instead: the room is
there.

A replica loads from its bind until its pod is ready, for `Policy.startup_seconds` at most, so that a load that hangs
keeps nobody waiting for ever. It does not count where its size comes from its model and that was loaded at that precision
before: what it then took more than it was expected to is in its profile. Of vLLM nothing is known: it sizes itself by what
it finds free at its start, so two at once would count each other's load.

Another device is taken instead if it is in use already. An idle one is not broken up to save the wait: that would
outlast the load by far.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from llmos_operator.api import vllm
from llmos_operator.scheduler import failure
from llmos_operator.scheduler.claims import profile_of
from llmos_operator.scheduler.placement import pick
from llmos_operator.scheduler.sleeping import HOT
from llmos_operator.state.types import PodPhase, Sharing, WorkloadKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from llmos_operator.scheduler.attempt import Attempts
    from llmos_operator.scheduler.failure import Failure
    from llmos_operator.scheduler.queueing import Pending
    from llmos_operator.scheduler.recall import Shape
    from llmos_operator.scheduler.request import Request
    from llmos_operator.scheduler.room import Room
    from llmos_operator.scheduler.table import Bools
    from llmos_operator.state.ledger import DeviceState, NodeState
    from llmos_operator.state.types import Claim, Pod

_TRIES: Final = 16  # nodes beyond the first on which somebody loads that are looked at before a start waits
_CPU: Final = "cpu"  # node class of loads into host memory
_COMING: Final = frozenset({PodPhase.ASSUMED, PodPhase.BOUND})


@dataclass(frozen=True, slots=True)
class Awaited:
    """The place where a replica would start if nobody loaded there."""

    node: str
    index: int  # of the device
    pod: str  # key of the one that loads


class Startups:
    """Who loads where, in one plan, and for whom the bind that is being tried would have to wait."""

    def __init__(self, attempts: Attempts) -> None:
        self._attempts = attempts
        self._known: dict[str, tuple[NodeState, Mapping[str, tuple[Pod, ...]]]] = {}
        self._tries = 0
        self.awaited: Awaited | None = None

    def begin(self) -> None:
        """Forget whom the last bind would have had to wait for."""
        self.awaited, self._tries = None, 0

    def enough(self) -> bool:
        """Return whether so many nodes were looked at beyond one to wait for that it is better to wait."""
        self._tries += self.awaited is not None
        return self._tries > _TRIES

    def devices(
        self, pending: Pending, request: Request, row: int, columns: Bools, *, patient: bool
    ) -> tuple[DeviceState, ...] | None:
        """Return the devices of a row for a replica, `columns` being acceptable; None where there are none now.

        Who would have to be waited for is `awaited` then. `patient`: once there is somebody, no idle device is taken.
        """
        attempts = self._attempts
        state = attempts.worlds.now.node(attempts.scene.table.names[row])
        prefer, overuse = attempts.placer.column(request, row), attempts.policy.overuse_percent
        quiet = self._quiet(pending, request, state, columns)
        found = pick(state, request, quiet, overuse, prefer)
        breaks_up = bool(found) and any(one.idle for one in found or ())
        if quiet is not columns and self.awaited is None and (found is None or breaks_up):
            wanted = pick(state, request, columns, overuse, prefer)
            self.awaited = self.on(pending, state, [one.uuid for one in wanted or ()])
        return None if patient and breaks_up and self.awaited is not None else found

    def narrow(self, pending: Pending, room: Room) -> Room:
        """Return the room without the devices on which somebody loads. The room is changed."""
        attempts = self._attempts
        if room.request.whole or not room.request.devices:
            return room
        for row in np.flatnonzero(room.slots.any(axis=1)):
            state = attempts.worlds.now.node(attempts.scene.table.names[int(row)])
            columns = room.slots[row] > 0
            quiet = self._quiet(pending, room.request, state, columns)
            if quiet is not columns:
                lost = [d.uuid for column, d in enumerate(state.devices) if columns[column] & ~quiet[column]]
                self.awaited = self.awaited or self.on(pending, state, lost)
                room.slots[row] = np.where(quiet, room.slots[row], 0)
        return room

    def usable(self, pending: Pending, request: Request, row: int, columns: Bools) -> Bools:
        """Return which of the acceptable devices of a row nobody loads on."""
        attempts = self._attempts
        state = attempts.worlds.now.node(attempts.scene.table.names[row])
        return self._quiet(pending, request, state, columns)

    def wait(self, pending: Pending, shape: Shape, place: int, ordinal: int) -> Failure | None:
        """Hold the room where a replica would have started at a size; None: there is nobody to wait for, or no such room."""
        size, request = shape.options[place]
        if self.awaited is None or not self._attempts.hold(
            pending, ordinal, size, request, self.awaited.node
        ):
            return None
        return failure.loading(self.awaited, self._attempts.policy.startup_seconds, size)

    def on(self, pending: Pending, state: NodeState, uuids: Iterable[str]) -> Awaited | None:
        """Return who loads on one of these devices of a node; None: nobody does."""
        loading = self._loading(state)
        for uuid in uuids if loading else ():
            found, device = _in_the_way(pending, loading.get(uuid, ())), state.device(uuid)
            if found is not None and device is not None:
                return Awaited(state.name, device.device.index, found.key)
        return None

    def _quiet(self, pending: Pending, request: Request, state: NodeState, columns: Bools) -> Bools:
        """Return which of a node's acceptable devices nobody loads on; `columns` itself where that is all of them."""
        loading = self._loading(state) if request.devices and not request.whole else {}
        busy = [
            column
            for column, device in enumerate(state.devices if loading else ())
            if columns[column] and _in_the_way(pending, loading.get(device.uuid, ())) is not None
        ]
        if not busy:
            return columns
        quiet = columns.copy()
        quiet[busy] = False
        return quiet

    def _loading(self, state: NodeState) -> Mapping[str, tuple[Pod, ...]]:
        """Return the pods that load on a node, by device."""
        known = self._known.get(state.name)
        if known is None or known[0] is not state:
            found: dict[str, tuple[Pod, ...]] = {}
            for pod in state.pods.values():
                if pod.claim is not None and self._loads(pod, pod.claim):
                    for uuid in pod.claim.devices:
                        found[uuid] = (*found.get(uuid, ()), pod)
            known = self._known[state.name] = (state, found)
        return known[1]

    def _loads(self, pod: Pod, claim: Claim) -> bool:
        return (
            claim.sharing is Sharing.SHARED
            and not pod.ready
            and pod.phase in _COMING
            and claim.sleeping is None
            and self._attempts.now < claim.bound_at + self._attempts.policy.startup_seconds
            and not self._peak_known(claim)
        )

    def _peak_known(self, claim: Claim) -> bool:
        """Return whether what a claim holds comes from a model that was seen to load at its precision."""
        snapshot = self._attempts.snapshot
        workload = snapshot.workloads.get(claim.workload)
        if workload is None or workload.kind is not WorkloadKind.INFERENCE or workload.engine == vllm.ENGINE:
            return False
        profile = profile_of(snapshot, workload)
        if profile is None or workload.memory_bytes is not None:
            return False
        known = profile.formats.get(claim.format)
        return (known is not None and known.measured_peak_bytes is not None) or any(
            one.format == claim.format and one.path != HOT and one.node_class != _CPU
            for one in profile.load_times
        )


def _in_the_way(pending: Pending, pods: Iterable[Pod]) -> Pod | None:
    """Return the pod a replica has to wait for. What starts together does not wait for its own."""
    workload = pending.workload
    own = workload.uid if workload.together > 1 or workload.members > 1 else ""
    return next((pod for pod in pods if pod.claim is not None and pod.claim.workload_uid != own), None)
