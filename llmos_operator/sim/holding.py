"""Holder pods in virtual time: those that are needed come, those that are in the way go, and the kubelet tells at once."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from llmos_operator.state import plugin
from llmos_operator.state.types import Pod

if TYPE_CHECKING:
    from llmos_operator.scheduler.plan import HolderNeed, Plan
    from llmos_operator.state.ledger import NodeState
    from llmos_operator.state.store import Store

SECONDS = (
    7.0  # until the agent has told the device of a new holder pod: its start, and two looks at the kubelet
)


def exchange(store: Store, made: Plan) -> None:
    """Let holder pods become what a plan needs."""
    for name, need in made.holders.items():
        state = store.node(name)
        if state is None:
            continue
        _give(store, state, need)
        _take(store, store.node(name) or state, need)


def _give(store: Store, state: NodeState, need: HolderNeed) -> None:
    held = [one for one in plugin.holders(state) if not one.leaving]
    coming = [one for one in held if not one.device][need.take :]
    idle = [one for one in held if one.device and not one.used]
    for one in (*idle, *coming)[: need.give]:
        store.delete_pod(one.pod.key)


def _take(store: Store, state: NodeState, need: HolderNeed) -> None:
    """Give devices to the holder pods that wait for one, and to as many new ones as are missing."""
    if state.gpu is None:
        return
    free = [one for one in state.devices if one.device.offered and one.idle and not one.secured]
    keys = [one.pod.key for one in plugin.holders(state) if not one.device and not one.leaving][: need.take]
    keys += [
        f"simulated/holder-{state.name}-{free[number].uuid}"
        for number in range(len(keys), min(need.take, len(free)))
    ]
    given = {device.uuid: key for device, key in zip(free, keys, strict=False)}
    for key in given.values():
        if store.pod(key) is None:
            store.apply_pod(Pod(key, f"simulated {key}", state.name, gpus=1, holder=True))
    devices = (
        replace(one, holders=(*one.holders, given[one.uuid])) if one.uuid in given else one
        for one in state.gpu.devices
    )
    store.apply_gpu_node(replace(state.gpu, devices=tuple(devices)))
