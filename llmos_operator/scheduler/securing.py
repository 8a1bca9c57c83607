"""Keeps back what has a place but must not start yet: the device plugin thinks otherwise of who has its devices.

Placement counts a device the plugin offers as one that can be shared or given whole, whatever a holder pod has at the
moment. Before a shared replica starts there a holder pod must have the device; before a pod asks the kubelet for whole
devices, holder pods without any work must have given back as many as are missing. Until then the replica waits, its place
counts in the plan, and the plan says what has to become of the holder pods. Which device a new holder pod gets, the kubelet
decides: the next plan prefers devices that are held.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from llmos_operator.api.conditions import Reason
from llmos_operator.scheduler.failure import Failure
from llmos_operator.scheduler.plan import HolderNeed
from llmos_operator.scheduler.sizing import Size
from llmos_operator.state import plugin
from llmos_operator.state.types import Sharing

if TYPE_CHECKING:
    from llmos_operator.scheduler.attempt import Result
    from llmos_operator.scheduler.plan import Bind
    from llmos_operator.state.ledger import NodeState
    from llmos_operator.state.snapshot import Snapshot


class Securing:
    """What one plan needs of holder pods, in the order in which it places replicas."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._granted: dict[str, int] = {}  # units the kubelet would grant beyond what the plan uses, by node
        self._coming: dict[str, int] = {}  # holder pods that nobody has told the device of, by node
        self._take: defaultdict[str, set[str]] = defaultdict(set)  # UUIDs by node
        self._give: defaultdict[str, int] = defaultdict(int)

    def admit(self, result: Result) -> list[Bind]:
        """Return the binds that can be carried out now; for the others the result says that they wait. A gang is not split."""
        late: dict[str, list[Bind]] = {}
        for bind in result.binds:
            if not self._ready(bind):
                late.setdefault(bind.gang or bind.claim.pod, []).append(bind)
        if not late:
            return result.binds
        held = [bind for bind in result.binds if (bind.gang or bind.claim.pod) in late]
        result.waiting += len({bind.claim.ordinal for bind in held})
        result.failure = result.failure or _waits([bind for binds in late.values() for bind in binds])
        return [bind for bind in result.binds if bind not in held]

    def needs(self) -> dict[str, HolderNeed]:
        """Return what is needed of the holder pods of each node."""
        return {
            name: HolderNeed(len(self._take.get(name, ())), self._give.get(name, 0))
            for name in sorted({*self._take, *self._give})
        }

    def _ready(self, bind: Bind) -> bool:
        """Return whether a bind can be carried out, and count what it needs."""
        claim, state = bind.claim, self._snapshot.nodes[bind.claim.node]
        if not claim.devices or not (state.plugged or state.holder_gpus):
            return True
        if claim.sharing is Sharing.EXCLUSIVE:
            return self._use(state, len(claim.devices))
        missing = [uuid for uuid in claim.devices if (one := state.device(uuid)) is not None and not one.open]
        for uuid in missing:
            if claim.sharing is Sharing.SHARED and uuid not in self._take[state.name]:
                self._take[state.name].add(uuid)
                self._expect(state)
        return claim.sharing is not Sharing.SHARED or not missing

    def _expect(self, state: NodeState) -> None:
        """Count one more device that a holder pod gets: one that is on its way, else a new one."""
        coming = self._coming.setdefault(
            state.name, sum(not one.device and not one.leaving for one in plugin.holders(state))
        )
        if coming:
            self._coming[state.name] -= 1
        else:
            self._use(state, 1)

    def _use(self, state: NodeState, units: int) -> bool:
        """Take units of the device plugin; return whether there were enough, else count those that have to be given back."""
        granted = self._granted.setdefault(state.name, state.granted_gpus())
        self._granted[state.name] = max(0, granted - units)
        if units > granted:
            self._give[state.name] += units - granted
        return units <= granted


def _waits(late: list[Bind]) -> Failure:
    """Return the wait of binds for holder pods."""
    nodes = ", ".join(sorted({bind.claim.node for bind in late}))
    if late[0].claim.sharing is Sharing.EXCLUSIVE:
        text = f"starts on node {nodes} as soon as holder pods without work have given back devices there"
    else:
        text = (
            f"starts on node {nodes} as soon as a holder pod has taken a device from the device plugin there"
        )
    claim = late[-1].claim
    size = Size(claim.format, claim.bytes_per_device, claim.max_model_len, claim.kv_tokens)
    return Failure(Reason.WAITING_FOR_HOLDER, text, size=size)
