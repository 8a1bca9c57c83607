"""Keeps as many holder pods on each node as shared work needs, and says where a device was lost.

Every look compares what the last plan needs with the pods there are, so that an operator that was restarted goes on. Shared
work whose holder pod has gone is held anew: the kubelet chooses the device, so holder pods are made, and kept, until one
has got it or the device plugin has none left. Holder pods without any work go after a rest, and at once where work waits
for whole devices.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from llmos_operator.api import names
from llmos_operator.api.conditions import Reason
from llmos_operator.cluster.events import Subject
from llmos_operator.scheduler.plan import HolderNeed
from llmos_operator.state import plugin
from llmos_operator.state.types import PodPhase

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from llmos_operator.actuators.holders import HolderWriter
    from llmos_operator.clock import Clock
    from llmos_operator.cluster.events import EventRecorder
    from llmos_operator.control.metrics import OperatorMetrics
    from llmos_operator.scheduler.plan import Plan
    from llmos_operator.state.ledger import NodeState
    from llmos_operator.state.plugin import Holder
    from llmos_operator.state.store import Store
    from llmos_operator.state.types import PodKey

REFUSED_SECONDS = 60.0  # for which a node is left alone whose kubelet had no device for a holder pod
_NOTHING = HolderNeed()
_HELD_AGAIN = "Holder pods are made until one has it; until then another pod may be given the device."


class Holding:
    """Looks at all nodes with a device plugin. Call `turn` from the loop's thread, only while this process may act."""

    def __init__(
        self,
        store: Store,
        writer: HolderWriter,
        recorder: EventRecorder,
        metrics: OperatorMetrics,
        clock: Clock,
        *,
        rest: float,
        gpu_node_uid: Callable[[str], str],
    ) -> None:
        """`rest` is in seconds; `gpu_node_uid` gives the UID of a node's GPUNode, "" if there is none."""
        self._store = store
        self._writer = writer
        self._recorder = recorder
        self._metrics = metrics
        self._clock = clock
        self._rest = rest
        self._uid = gpu_node_uid
        self._needs: Mapping[str, HolderNeed] = {}
        self._idle: dict[PodKey, float] = {}  # holder pods without work -> since when, monotonic seconds
        self._told: set[tuple[str, str, str]] = set()  # node, device, what was said of it
        self._counted: set[str] = set()  # UIDs of holder pods that failed and are still there

    def turn(self, plan: Plan | None = None) -> None:
        """Take a plan, where a new one was made, and put the holder pods of all nodes right."""
        if plan is not None:
            self._needs = plan.holders
        states = {state.name: state for state in self._store.plugged()}
        ended = []
        for pod in self._store.holders():
            if pod.phase is PodPhase.FINISHED:
                ended.append(pod)
            elif (state := self._store.node(pod.node)) is not None:
                states.setdefault(pod.node, state)
        self._counted &= {pod.uid for pod in ended}
        for pod in ended:
            self._clear_away(pod.key, pod.node, failed=pod.failed)
        idle, self._idle = self._idle, {}
        counts: Counter[str] = Counter()
        lost: set[tuple[str, str, str]] = set()
        for name in sorted(states):
            state = self._store.node(name) or states[name]  # as it is after what was cleared away
            held = plugin.holders(state)
            self._make(state, held)
            self._release(state, held, idle)
            counts.update(_word(one) for one in held)
            lost |= self._tell(state)
        self._told = lost
        counts["missing"] = len(lost)
        for word in ("used", "idle", "coming", "leaving", "missing"):
            self._metrics.holders.labels(word).set(counts[word])

    def _clear_away(self, key: PodKey, node: str, *, failed: bool) -> None:
        """Delete a holder pod that has ended: the kubelet did not take it, or evicted it."""
        pod = self._store.pod(key)
        if pod is None:
            return
        if failed and pod.uid not in self._counted:
            self._counted.add(pod.uid)
            self._store.note_refusal(node, self._clock.now() + REFUSED_SECONDS)
            self.refused(node, f"the kubelet had no device for holder pod {key}, or evicted it", key=pod.uid)
        self._writer.remove(pod)

    def refused(self, node: str, why: str, key: str = "") -> None:
        """Say that a holder pod could not be made on a node."""
        self._metrics.holder_pods.labels("refused").inc()
        note = f"No device of {node} can be taken for shared work: {why}. It is tried again."
        self._recorder.record(self._subject(node), "Warning", Reason.HOLDER_NOT_MADE, note, key=key)

    def done(self, result: str) -> None:
        """Count a holder pod that was made or removed."""
        self._metrics.holder_pods.labels(result).inc()

    def _wanted(self, state: NodeState) -> int:
        """Return how many devices of a node have still to be taken."""
        return self._needs.get(state.name, _NOTHING).take + len(plugin.bare(state))

    def _make(self, state: NodeState, held: list[Holder]) -> None:
        making = self._writer.making(state.name)
        coming = sum(not one.device and not one.leaving for one in held) + making
        room = min(state.granted_gpus() - making, _pods_left(state) - making)
        for _ in range(min(self._wanted(state) - coming, room)):
            if not self._writer.make(state):
                return

    def _release(self, state: NodeState, held: list[Holder], idle: dict[PodKey, float]) -> None:
        """Let holder pods go that nobody needs. While a device is still to be taken they keep the others from being given again."""
        now, wanted = self._clock.monotonic(), self._wanted(state)
        free = [one for one in held if one.device and not one.used and not one.leaving]
        free += [one for one in held if not one.device and not one.leaving][wanted:]
        at_once = self._needs.get(state.name, _NOTHING).give
        for number, one in enumerate(free):
            since = idle.get(one.pod.key, now)
            if number >= at_once and wanted and state.granted_gpus() > 0:
                since = now
            if number < at_once or now - since >= self._rest:
                self._writer.remove(one.pod)
            else:
                self._idle[one.pod.key] = since

    def _tell(self, state: NodeState) -> set[tuple[str, str, str]]:
        """Say which devices with shared work nobody holds for it any more; return what stands of them."""
        notes = dict.fromkeys(plugin.bare(state), _HELD_AGAIN)
        for uuid in plugin.lost(state):
            device = state.device(uuid)
            others = ", ".join(device.device.holders) if device is not None else ""
            notes[uuid] = f"The kubelet has given it to {others}: both use it until one of them ends."
        for uuid, note in notes.items():
            if (state.name, uuid, note) not in self._told:
                text = f"Device {uuid} has shared work and no holder pod. {note} Nothing new is placed there."
                self._recorder.record(
                    self._subject(state.name), "Warning", Reason.HOLDER_LOST, text, key=f"{uuid} {note[:20]}"
                )
        return {(state.name, uuid, note) for uuid, note in notes.items()}

    def _subject(self, node: str) -> Subject:
        return Subject(names.API_VERSION, "GPUNode", node, uid=self._uid(node))


def _pods_left(state: NodeState) -> int:
    """Return how many more pods a node takes; none where new ones are not to come."""
    node = state.node
    if node is None or not node.ready or node.unschedulable:
        return 0
    return node.pods - state.pod_count


def _word(one: Holder) -> str:
    if one.leaving:
        return "leaving"
    if not one.device:
        return "coming"
    return "used" if one.used else "idle"
