"""The node side of the store: nodes, their devices and what telemetry says of them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from llmos_operator.api import names
from llmos_operator.state import ledger
from llmos_operator.state.care import NO_CARE
from llmos_operator.state.ledger import NodeState
from llmos_operator.state.slicebook import SliceBook
from llmos_operator.state.strangers import Strangers
from llmos_operator.state.telemetry import Observation, Smoother

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from llmos_operator.state.breaker import Breaker
    from llmos_operator.state.care import Care
    from llmos_operator.state.snapshot import Snapshot
    from llmos_operator.state.strangers import Uses
    from llmos_operator.state.telemetry import Reading
    from llmos_operator.state.types import GpuNode, Node, Recut


def _asked_to_cut(node: Node, recut: Recut) -> Node:
    """Return a node as it will be seen once it has been asked to cut its GPUs."""
    kept = {key: value for key, value in node.labels.items() if key != names.LABEL_MIG_STATE}
    return replace(node, labels={**kept, names.LABEL_MIG_CONFIG: recut.layout}, recut=recut)


OFFER_SECONDS = 600.0  # longer than a kubelet or an agent is expected to be away


class NodeBook(SliceBook):
    """Nodes by name. Methods that take a value say by their result whether anything changed."""

    def __init__(self) -> None:
        super().__init__()
        self._version = 0
        self._nodes: dict[str, NodeState] = {}
        self._smoothers: dict[str, Smoother] = {}
        self._observed: dict[str, Mapping[str, Observation]] = {}
        self._heard: dict[str, float] = {}
        self._care: dict[
            str, Care
        ] = {}  # of nodes with devices, as decided; known from the API only at first
        self._disturbed: dict[str, float] = {}  # node -> epoch seconds; outlives a GPUNode that is deleted
        self._refusing: dict[str, float] = {}  # nodes whose kubelet refused devices -> until when that counts
        self._strangers: dict[str, Strangers] = {}
        self._offered: dict[str, set[str]] = {}  # node -> devices that its plugin offers, or has
        self._untold: dict[str, float | None] = {}  # of these, where nobody tells now -> since when
        self._told: dict[str, GpuNode] = {}  # as agents tell, without what slices and claims say
        self._cuts: dict[str, Recut] = {}  # asked for, not yet seen in the watch

    def restore_nodes(self, snapshot: Snapshot) -> None:
        """Take nodes as a snapshot has them, and believe what was observed on them."""
        self._version = snapshot.version
        self._nodes, self._heard = dict(snapshot.nodes), dict(snapshot.heard)
        self._disturbed = dict(snapshot.disturbed)
        self._care = {name: state.gpu.care for name, state in snapshot.nodes.items() if state.gpu is not None}
        self._refusing = {name: math.inf for name, state in snapshot.nodes.items() if state.refusing}
        for name, state in snapshot.nodes.items():
            self._observed[name] = state.observed
            self._strangers[name] = Strangers(
                {uuid: seen.strange_bytes for uuid, seen in state.observed.items()}
            )
            self._smoothers[name] = Smoother()
            self._smoothers[name].believe(state.observed)
            self._offered[name] = {one.device.uuid for one in state.devices if one.device.offered}

    @property
    def version(self) -> int:
        """Grows with every change that a decision could depend on."""
        return self._version

    def node(self, name: str) -> NodeState | None:
        """Return a node's state, None if nothing is known of it."""
        return self._nodes.get(name)

    def apply_node(self, node: Node) -> bool:
        """Take a node as it is now; what it was asked to be cut into counts before the watch shows it."""
        asked = self._cuts.get(node.name)
        if asked is not None and node.recut == asked:
            del self._cuts[node.name]
        elif asked is not None:
            node = _asked_to_cut(node, asked)
        old = self._nodes.get(node.name)
        if old is not None and old.node == node:
            return False
        self._set_node(replace(old, node=node).settled() if old else self._build(node.name, node, None))
        return True

    def assume_cut(self, name: str, recut: Recut) -> bool:
        """Give nothing of a node from the moment its GPUs are to be cut. False: somebody holds some of it by now."""
        old = self._nodes.get(name)
        if old is None or old.node is None or old.foreign_gpus or any(True for _ in old.claims()):
            return False
        self._cuts[name] = recut
        return self.apply_node(old.node)

    def forget_cut(self, node: Node) -> None:
        """Take a node as it was before it was asked to be cut: it was not."""
        if self._cuts.pop(node.name, None) is not None:
            self.apply_node(node)

    def delete_node(self, name: str) -> bool:
        """Forget a node; pods bound to it stay counted until they are deleted themselves."""
        old = self._nodes.get(name)
        if old is None or old.node is None:
            return False
        self._cuts.pop(name, None)
        self._set_node(replace(old, node=None).settled())
        return True

    def apply_gpu_node(self, gpu: GpuNode) -> bool:
        """Take the devices of a node as they are now.

        What is done about sick ones is read once: from then on this process decides it, and an event may be older.
        """
        old = self._nodes.get(gpu.name)
        care = self._care.setdefault(gpu.name, gpu.care)
        if care.disturbed_at > self._disturbed.get(gpu.name, 0.0):
            self._disturbed[gpu.name] = care.disturbed_at
        gpu = gpu if gpu.care == care else replace(gpu, care=care)
        self._told[gpu.name] = gpu
        gpu = self._with_claims(self._with_withdrawn(gpu))
        if old is not None and old.gpu == gpu:
            return False
        self._set_node(self._build(gpu.name, old.node if old else None, gpu))
        self._devices_told(gpu.name)
        return True

    def delete_gpu_node(self, name: str) -> bool:
        """Forget the devices of a node, and what was observed on them."""
        old = self._nodes.get(name)
        if old is None or old.gpu is None:
            return False
        self._smoothers.pop(name, None)
        self._observed.pop(name, None)
        self._heard.pop(name, None)
        self._care.pop(name, None)
        self._strangers.pop(name, None)
        self._offered.pop(name, None)
        self._untold.pop(name, None)
        self._told.pop(name, None)
        self._set_node(self._build(name, old.node, None))
        return True

    def _claims_told(self, node: str) -> bool:
        told = self._told.get(node)
        return told is not None and self.apply_gpu_node(told)

    def _with_withdrawn(self, gpu: GpuNode) -> GpuNode:
        """Return a node on which what its device plugin has once offered stays the plugin's.

        A plugin, kubelet or agent that starts again, or a device thought sick, comes back; shared work must not take it
        meanwhile. Where nobody tells any more, that is forgotten by :meth:`expire_offers`.
        """
        known = self._offered.setdefault(gpu.name, set())
        if gpu.told or not known:
            self._untold.pop(gpu.name, None)
        else:
            self._untold.setdefault(gpu.name, None)
        known.update(one.uuid for one in gpu.devices if one.offered)
        if all(one.offered or one.uuid not in known for one in gpu.devices):
            return gpu
        devices = (
            replace(one, offered=True, withdrawn=True) if one.uuid in known and not one.offered else one
            for one in gpu.devices
        )
        return replace(gpu, devices=tuple(devices))

    def care(self, node: str) -> Care | None:
        """Return what is done about sick devices of a node; None for a node without devices."""
        return self._care.get(node)

    def cares(self) -> list[tuple[str, Care]]:
        """Return what is done on each node with devices, by name."""
        return sorted(self._care.items())

    def set_care(self, node: str, care: Care) -> bool:
        """Take what is decided to be done on a node with devices."""
        old = self._nodes.get(node)
        if old is None or old.gpu is None or old.gpu.care == care:
            return False
        self._care[node] = care
        self._set_node(self._build(node, old.node, replace(old.gpu, care=care)))
        return True

    def disturb(self, node: str, now: float, breaker: Breaker) -> bool:
        """Count a node as acted on at `now`. False, and nothing changes, when the circuit breaker does not admit it.

        This is the one gate for everybody who acts: plans and remedies are made from older snapshots side by side.
        """
        recent = breaker.recent(self._disturbed, now)
        nodes = sum(state.gpu is not None for state in self._nodes.values())
        if not breaker.admits(node, recent, nodes):
            return False
        now = float(int(now))  # as the API keeps it
        if abs(now - self._disturbed.get(node, 0.0)) >= breaker.renew:
            self._disturbed = {name: self._disturbed[name] for name in recent} | {node: now}
            self.set_care(node, replace(self._care.get(node, NO_CARE), disturbed_at=now))
        return True

    def observe(self, node: str, readings: Iterable[Reading], received_at: float) -> bool:
        """Take a node's telemetry batch. True when an observation crossed its band or a verdict changed."""
        self._heard[node] = received_at
        folded = self._smoothers.setdefault(node, Smoother()).fold(readings)
        if folded is None:
            return False
        self._believe(node, folded)
        return True

    def observe_processes(self, node: str, uses: Uses) -> bool:
        """Take process lists of a node's devices. True when strangers came or went; call it when all pods are known."""
        state = self._nodes.get(node)
        if state is None or not self._strangers.setdefault(node, Strangers()).fold(state, uses):
            return False
        self._believe(node, {uuid: self._observed.get(node, {}).get(uuid, Observation()) for uuid in uses})
        return True

    def _believe(self, node: str, changed: Mapping[str, Observation]) -> None:
        """Keep what is observed of devices, strangers included."""
        strangers = self._strangers.get(node)
        if strangers is not None:
            changed = {
                uuid: replace(seen, strange_bytes=strangers.on(uuid)) for uuid, seen in changed.items()
            }
        self._observed[node] = {**self._observed.get(node, {}), **changed}
        old = self._nodes.get(node)
        if old is not None:
            self._set_node(self._build(node, old.node, old.gpu))

    def note_refusal(self, name: str, until: float) -> None:
        """Plan no pod that asks for whole devices on a node until `until` (epoch seconds): its kubelet refused one."""
        self._refusing[name] = until
        old = self._nodes.get(name)
        if old is not None and not old.refusing:
            self._set_node(replace(old, refusing=True).settled())

    def expire_refusals(self, now: float) -> None:
        """Let nodes take such pods again."""
        for name in [name for name, until in self._refusing.items() if until <= now]:
            del self._refusing[name]
            old = self._nodes.get(name)
            if old is not None:
                self._set_node(replace(old, refusing=False).settled())

    def _devices_told(self, name: str) -> None:
        """Take note that a node's devices, or who holds them, are others now."""

    def expire_offers(self, now: float) -> None:
        """Let devices of a plugin be nobody's where the kubelet has told nothing for `OFFER_SECONDS` before `now`."""
        for name, since in list(self._untold.items()):
            if since is None:
                self._untold[name] = now
            elif now - since > OFFER_SECONDS:
                del self._untold[name]
                self._offered[name].clear()
                old = self._nodes.get(name)
                if old is not None and old.gpu is not None:
                    self._set_node(self._build(name, old.node, _without_withdrawn(old.gpu)))

    def plugged(self) -> list[NodeState]:
        """Return the nodes on which a device plugin offers devices, or has."""
        found = (self._nodes.get(name) for name, offered in self._offered.items() if offered)
        return [state for state in found if state is not None]

    def _state(self, name: str) -> NodeState:
        return self._nodes.get(name) or NodeState(name, observed=self._observed.get(name, {}))

    def _build(self, name: str, node: Node | None, gpu: GpuNode | None) -> NodeState:
        pods = self._state(name).pods
        observed = self._observed.get(name, {})
        return ledger.build(name, node, gpu, pods, observed, refusing=name in self._refusing)

    def _set_node(self, state: NodeState) -> None:
        if state.node is None and state.gpu is None and not state.pods:
            self._nodes.pop(state.name, None)
        else:
            self._nodes[state.name] = state
        self._version += 1


def _without_withdrawn(gpu: GpuNode) -> GpuNode:
    devices = (replace(one, offered=False, withdrawn=False) if one.withdrawn else one for one in gpu.devices)
    return replace(gpu, devices=tuple(devices))
