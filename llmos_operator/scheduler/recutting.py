"""Cuts GPUs that nobody uses into the MIG instances that work waits for.

NVIDIA's mig-manager cuts all GPUs of a node at once, so a node is cut only if nothing of anybody is on any of them; one node at a
time, not again within a rest, and only if that serves more of those who wait than its instances would as they are.
Nodes it never has cut, and those on which it failed, are left to people.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from llmos_operator.api.conditions import Reason
from llmos_operator.scheduler.filters.device_kind import product_matches
from llmos_operator.scheduler.geometry.layouts import Need, best, layouts_of
from llmos_operator.scheduler.geometry.products import product_of
from llmos_operator.scheduler.placement import host_fits
from llmos_operator.scheduler.plan import Cut
from llmos_operator.state.cutting import SUCCESS, asked, being_cut, state_of
from llmos_operator.state.ledger import observation_margin
from llmos_operator.state.types import DeviceSelector, Sharing

if TYPE_CHECKING:
    from llmos_operator.scheduler.attempt import Attempts, Result
    from llmos_operator.scheduler.geometry.layouts import Verdict
    from llmos_operator.scheduler.queueing import Pending
    from llmos_operator.scheduler.request import Request
    from llmos_operator.state.ledger import DeviceState, NodeState
    from llmos_operator.state.types import WorkloadKey

_LACKING: Final = frozenset({Reason.NO_CAPACITY, Reason.NO_MATCHING_DEVICE, Reason.LARGER_THAN_ANY_DEVICE})
_LONGEST: Final = 64  # replicas of the line that are looked at
_SHOWN: Final = 3


@dataclass(frozen=True, slots=True)
class _Waiting:
    """One replica that no instance was found for, at the smallest size it may have."""

    workload: WorkloadKey
    request: Request

    @property
    def need(self) -> Need:
        constraints = self.request.constraints
        least = max(self.request.bytes_per_device, constraints.selector.min_memory_bytes)
        return Need(least, constraints.mig_profile)


class Recutting:
    """Who waits for an instance in one plan, and what is cut for them."""

    def __init__(self, attempts: Attempts) -> None:
        self._attempts = attempts
        self._line: list[_Waiting] = []

    def note(self, pending: Pending, result: Result) -> None:
        """Take what became of a workload, in queue order."""
        failure, workload = result.failure, pending.workload
        if workload.sharing is not Sharing.MIG or failure is None or failure.reason not in _LACKING:
            return
        options = self._attempts.shape(workload).options
        _, request = min(options, key=lambda option: option[0].bytes_per_device)
        self._line += [_Waiting(workload.key, request)] * min(result.waiting, _LONGEST - len(self._line))

    def decide(self) -> list[Cut]:
        """Return which node is cut into what, or which one that was asked is not waited for any more; most often nothing."""
        nodes = self._attempts.worlds.now.view.nodes
        if not self._attempts.policy.partitioning.enabled:
            return []
        under_way = [one for one in nodes.values() if _is_being_cut(one)]
        if under_way:
            return [cut for one in under_way for cut in self._overdue(one)]
        found = [(one, name) for name in sorted(nodes) if (one := self._judge(name)) is not None]
        if not found:
            return []
        (verdict, workloads), name = min(found, key=lambda one: (one[0][0].order, one[1]))
        return [_cut(name, verdict, workloads)]

    def _overdue(self, state: NodeState) -> list[Cut]:
        node, patience = state.node, self._attempts.policy.partitioning.patience
        if node is None or node.recut is None or not asked(node.labels, node.recut):
            return []
        if self._attempts.now - node.recut.at < patience:
            return []
        text = (
            f"mig-manager has not begun to cut the GPUs of node {state.name} into {node.recut.layout} within "
            f"{patience:.0f} s: does it run there, and does it know a configuration of that name?"
        )
        return [Cut(state.name, node.recut.layout, (), (), Reason.NOT_PARTITIONED, text, abandoned=True)]

    def _judge(self, name: str) -> tuple[Verdict, tuple[WorkloadKey, ...]] | None:
        """Return the best layout for a node and whom it serves, None if it must not or need not be cut."""
        attempts, state = self._attempts, self._attempts.worlds.now.node(name)
        if not self._line or not self._may_be_cut(state) or _held(attempts.worlds.later.node(name)):
            return None
        devices = [one.device for one in state.devices]
        product = product_of(devices[0].product)
        line = [one for one in self._line if self._acceptable(state, one.request)]
        if product is None or not line:
            return None
        verdict = best(
            product,
            layouts_of(product, attempts.policy.partitioning.layouts),
            len({one.parent for one in devices}),
            Counter(one.profile for one in devices if one.profile is not None),
            [one.need for one in line],
        )
        if verdict is None:
            return None
        return verdict, tuple(dict.fromkeys(line[place].workload for place in verdict.served))

    def _may_be_cut(self, state: NodeState) -> bool:
        """Return whether mig-manager works there, nobody uses any GPU, and the node has rested."""
        node, attempts = state.node, self._attempts
        if node is None or state_of(node.labels) != SUCCESS or not state.devices or state.refusing:
            return False
        policy, heard = attempts.policy, attempts.snapshot.heard.get(state.name, float("-inf"))
        rested = node.recut is None or attempts.now - node.recut.at >= policy.partitioning.rest
        fresh = attempts.now - heard <= policy.stale_seconds
        return rested and fresh and not _held(state) and all(_is_spare(one) for one in state.devices)

    def _acceptable(self, state: NodeState, request: Request) -> bool:
        """Return whether a node would do for a request if its instances were as large as asked for."""
        constraints, device = request.constraints, state.devices[0].device
        loose = replace(
            request, constraints=replace(constraints, mig_profile=None, selector=DeviceSelector())
        )
        row = self._attempts.scene.table.row_of[state.name]
        selector, product = constraints.selector, device.product.partition(" MIG ")[0]
        return (
            bool(self._attempts.feasibility.acceptable(loose).nodes[row])
            and host_fits(state, request)
            and (not selector.products or product_matches(product, selector.products))
            and device.compute_capability >= selector.min_compute_capability
        )


def _is_being_cut(state: NodeState) -> bool:
    return state.node is not None and being_cut(state.node.labels, state.node.recut)


def _held(state: NodeState) -> bool:
    return state.foreign_gpus > 0 or any(True for _ in state.claims())


def _is_spare(one: DeviceState) -> bool:
    """Return whether a device is an instance that nobody uses, as far as anybody can tell."""
    device = one.device
    known = device.mig and bool(device.parent) and device.profile is not None
    quiet = (one.observed_bytes or 0) <= observation_margin(device.memory_bytes) and not one.strange_bytes
    return known and quiet and one.usable and not one.foreign


def _cut(name: str, verdict: Verdict, workloads: tuple[WorkloadKey, ...]) -> Cut:
    layout = verdict.layout
    into = ", ".join(f"{count} {profile}" for profile, count in layout.counts)
    more = f" and {len(workloads) - _SHOWN} more" if len(workloads) > _SHOWN else ""
    whom = ", ".join(workloads[:_SHOWN])
    text = f"each GPU of node {name} is to be cut into {into} ({layout.name}) for {whom}{more}"
    return Cut(name, layout.name, layout.counts, workloads, Reason.PARTITIONING, text)
