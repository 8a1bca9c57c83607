"""The operator's placement behind the interface of a placement benchmark.

    factory(cluster, types, mix, seed) -> object with place(state, task) -> (node, devices) | None

Nodes become ledger states in a `NodeTable`, tasks become requests, and each decision is `Placer.best`, `pick` and
`NodeTable.write`: what a cycle of the operator does. Prices are made in a worker process, as in the operator: they are
asked for whenever a hundredth of the devices has been given away and used from the next such time on, so that a replay
does not depend on how fast the worker is. Only the first are waited for. The benchmark's arrays are read for nothing
but the cluster's size.
"""

from __future__ import annotations

from collections import Counter
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any, Final

from llmos_operator.api.runtime.memory import MIB
from llmos_operator.scheduler.feasibility import Feasibility
from llmos_operator.scheduler.fragmentation.pricer import Pricer, priced
from llmos_operator.scheduler.outlook import shape_of
from llmos_operator.scheduler.placement import Placer, pick
from llmos_operator.scheduler.policy import Policy
from llmos_operator.scheduler.request import Constraints, Request
from llmos_operator.scheduler.scene import Scene
from llmos_operator.scheduler.shares import kinds_of, stock_of
from llmos_operator.scheduler.table import NodeTable
from llmos_operator.state.ledger import build
from llmos_operator.state.snapshot import assumed_pod
from llmos_operator.state.types import FULL_MILLI, Claim, Device, DeviceSelector, GpuNode, Node, Sharing

if TYPE_CHECKING:
    from llmos_operator.scheduler.fragmentation.prices import Prices
    from llmos_operator.scheduler.fragmentation.shapes import Shape
    from llmos_operator.state.ledger import NodeState

_DOMAIN: Final = "replay"
_PODS: Final = 1 << 20  # the traces know no limit of pods on a node
_EVERY: Final = 100  # prices are made once every so-manieth part of the devices has been given away
_SOONER: Final = 16  # at first prices are made more often: each time as much again has been given away
_KNOWN: Final = 2000  # requests that a known mix counts for, beside those that arrive

Place = tuple[int, tuple[int, ...]]


def placement(cluster: Any, types: Any, mix: Any, seed: int) -> Replay:
    """Return the operator's placement where the mix of requests is known."""
    return Replay(cluster, types, mix, seed)


def placement_online(cluster: Any, types: Any, mix: Any, seed: int) -> Replay:  # noqa: ARG001 - the interface
    """Return the operator's placement that knows nothing but what has arrived so far."""
    return Replay(cluster, types, None, seed)


class Replay:
    """A cluster of ledger states that fills up. The seed is not used: decisions are deterministic."""

    def __init__(self, cluster: Any, types: Any, mix: Any, seed: int) -> None:  # noqa: ARG002
        nodes = {f"node-{i:06d}": _node(cluster, i) for i in range(len(cluster.cpu))}
        self._table = NodeTable()
        self._table.sync(nodes)
        self._policy = Policy()
        self._scene = Scene.of(self._table, self._policy, 0.0, dict.fromkeys(nodes, 0.0))
        self._feasibility = Feasibility(self._scene)
        self._kinds = kinds_of(self._table)
        self._requests = [_request(cluster, task) for task in types]
        self._shapes = [shape_of(request, self._kinds) for request in self._requests]
        self._mix: Counter[Shape] = Counter()
        if mix is not None:
            self._learn(cluster, mix)
        self._pricer = Pricer()
        self._solver = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        self._asked: Future[tuple[Pricer, Prices | None]] | None = None
        self._placer = Placer(self._scene, self._feasibility)
        self._step = max(1, int(cluster.ngpu.sum()) * FULL_MILLI // _EVERY)
        self._given = self._due = 0  # thousandths of devices
        if mix is None:
            self._due = self._step // _SOONER  # until then best fit decides
        self._count = 0

    def place(self, state: Any, task: Any) -> Place | None:  # noqa: ARG002 - the ledger has the same amounts
        """Return the node and the devices for a task, None if it fits nowhere."""
        shape = self._shapes[task.index]
        if shape is not None:
            self._mix[shape] += 1
        if self._given >= self._due:
            self._reprice()
        request = self._requests[task.index]
        best = self._placer.best(request)
        if best is None:
            return None
        row, node = best[0], self._table.states[best[0]]
        acceptable = self._feasibility.acceptable(request).devices[row]
        prefer = self._placer.column(request, row)
        devices = pick(node, request, acceptable, self._policy.overuse_percent, prefer)
        if devices is None:
            raise RuntimeError(f"the table says that {request} fits on {node.name}, the ledger does not")
        self._table.write(
            row, node.with_pod(assumed_pod(self._claim(request, node, tuple(d.uuid for d in devices))))
        )
        self._given += task.num * task.milli
        return row, tuple(d.device.index for d in devices)

    def _reprice(self) -> None:
        """Use the prices that were asked for last time, and ask for the next."""
        self._due = self._given + min(self._step, max(self._step // _SOONER, self._given))
        asked = self._asked or self._ask()
        self._pricer, prices = asked.result()
        self._placer = Placer(self._scene, self._feasibility, prices)
        self._asked = self._ask() if prices is not None else None

    def _ask(self) -> Future[tuple[Pricer, Prices | None]]:
        stock = stock_of(self._table, self._kinds)
        return self._solver.submit(priced, self._pricer, stock, dict(self._mix), self._kinds, 0.0)

    def _claim(self, request: Request, node: NodeState, devices: tuple[str, ...]) -> Claim:
        self._count += 1
        name = f"{_DOMAIN}/{self._count}"
        return Claim(
            workload=name,
            workload_uid=name,
            ordinal=0,
            pod=name,
            node=node.name,
            devices=devices,
            bytes_per_device=request.bytes_per_device,
            compute_milli=request.compute_milli,
            sharing=request.constraints.sharing,
            domain=request.domain,
            cpu_milli=request.cpu_milli,
            memory_bytes=request.memory_bytes,
        )

    def _learn(self, cluster: Any, mix: Any) -> None:
        rows = zip(mix.cpu, mix.num, mix.milli, mix.models, mix.p, strict=True)
        for cpu, count, milli, models, part in rows:
            request = _asking(cluster, int(count), int(milli), int(models), int(cpu), 0)
            shape = shape_of(request, self._kinds)
            if shape is not None:
                self._mix[shape] += round(float(part) * _KNOWN)


def _node(cluster: Any, number: int) -> NodeState:
    name, count = f"node-{number:06d}", int(cluster.ngpu[number])
    product = cluster.models[int(cluster.model[number])]
    # A device of the traces has no memory, only thousandths: here each is a mebibyte, too.
    devices = tuple(Device(f"{name}-{i}", i, product, FULL_MILLI * MIB) for i in range(count))
    node = Node(
        name,
        name,
        cpu_milli=int(cluster.cpu[number]),
        memory_bytes=int(cluster.mem[number]) * MIB,
        pods=_PODS,
        gpus=count,
    )
    return build(name, node, GpuNode(name, devices), {}, {})


def _request(cluster: Any, task: Any) -> Request:
    return _asking(cluster, task.num, task.milli, task.models, task.cpu, task.mem)


def _asking(cluster: Any, count: int, milli: int, models: int, cpu: int, memory: int) -> Request:
    whole = milli >= FULL_MILLI
    wanted = tuple(model for bit, model in enumerate(cluster.models) if models >> bit & 1)
    if models and not wanted:
        wanted = ("none of the cluster",)
    sharing = Sharing.EXCLUSIVE if whole or not count else Sharing.SHARED
    return Request(
        Constraints(count, sharing, DeviceSelector(products=wanted)),
        bytes_per_device=milli * MIB,
        compute_milli=milli,
        domain="" if sharing is Sharing.EXCLUSIVE else _DOMAIN,
        cpu_milli=cpu,
        memory_bytes=memory * MIB,
    )
