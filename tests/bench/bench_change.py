"""One change: a plan for it where 8,000 workloads run and 2,000 wait.

1,000 nodes of 8 GPUs, each held by a workload of one; every workload has a model of its own. What happens is one change
in the store; the plan for it is made once with what plans remember of each other, as the operator makes it, and once
without, from the same snapshot and for the same decisions.
"""

from __future__ import annotations

import gc
import statistics
from typing import TYPE_CHECKING

from llmos_operator.scheduler.cycle import plan
from llmos_operator.scheduler.policy import Policy
from llmos_operator.scheduler.recall import Recall
from llmos_operator.scheduler.table import NodeTable
from llmos_operator.state.telemetry import Reading
from tests.bench.decisions import GPUS, carry_out, cluster_of, timed
from tests.bench.report import Table
from tests.support.builders import NOW, a_workload

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmos_operator.scheduler.plan import Plan

NODES, WAITING, REPEATS = 1000, 2000, 15
POLICY = Policy()


class Crowd:
    """The cluster, and the tables of one operator that remembers and of one that does not."""

    def __init__(self) -> None:
        self.cluster = cluster_of(NODES)
        self.table, self.recall, self.other = NodeTable(), Recall(), NodeTable()
        for number in range(NODES * GPUS):
            self.cluster.add(a_workload(f"run-{number:06d}"))
        carry_out(self.cluster, plan(self.cluster.snapshot(), POLICY, NOW, table=self.table))
        for number in range(WAITING):
            self.cluster.add(a_workload(f"wait-{number:06d}"))
        self.count = 0
        for _ in range(2):
            self.planned()
        gc.collect()
        gc.freeze()  # what stands here for the whole run is no work of a plan

    def planned(self) -> tuple[float, float, Plan]:
        """Return CPU milliseconds with memory and without, and the plan."""
        snapshot = self.cluster.snapshot()
        known, made = timed(lambda: plan(snapshot, POLICY, NOW, table=self.table, recall=self.recall))
        anew, other = timed(lambda: plan(snapshot, POLICY, NOW, table=self.other))
        if made != other:
            raise RuntimeError("memory changed a decision: run tests/property/test_recall_properties.py")
        return known, anew, made

    def nothing(self) -> None:
        """Let nothing happen: waiting work is looked at again every few seconds."""

    def another(self) -> None:
        """Let one more workload come that has to wait."""
        self.count += 1
        self.cluster.add(a_workload(f"more-{self.count:06d}"))

    def end(self) -> None:
        """Let a workload that runs be deleted: the first that waits takes its place."""
        self.count += 1
        gone = self.cluster.store.workload(f"default/run-{self.count:06d}")
        if gone is None:
            raise RuntimeError("more repeats than workloads")
        for pod in self.cluster.store.pods_of(gone.uid):
            self.cluster.store.delete_pod(pod.key, pod.uid)
        self.cluster.store.delete_workload(gone.key)

    def report(self) -> None:
        """Let a node's agent report other readings."""
        self.count += 1
        state = self.cluster.store.node(f"node-{self.count % NODES:05d}")
        if state is None or state.gpu is None:
            raise RuntimeError("a node without GPUs")
        readings = [Reading(one.uuid, self.count << 20, one.memory_bytes) for one in state.gpu.devices]
        self.cluster.store.observe(state.name, readings, NOW)

    def urgent(self) -> None:
        """Let a workload come for which another is displaced; the one before has been taken back."""
        self.cluster.store.delete_workload(f"default/urgent-{self.count:06d}")
        self.count += 1
        self.cluster.add(a_workload(f"urgent-{self.count:06d}").priority("high"))


def run() -> list[Table]:
    """Measure every kind of change."""
    crowd = Crowd()
    kinds: list[tuple[str, Callable[[], None]]] = [
        ("nothing", crowd.nothing),
        ("a node's telemetry", crowd.report),
        ("one more that has to wait", crowd.another),
        ("one that runs is deleted, one starts", crowd.end),
        ("one that displaces another", crowd.urgent),
    ]
    columns = ["change", "median / worst, ms", "without memory, ms", "ratio", "goal, ms"]
    rows = [_measure(crowd, title, happen) for title, happen in kinds]
    gc.unfreeze()
    note = (
        f"CPU milliseconds of `plan()` in this process, {REPEATS} of each kind, interleaved with the same plan without memory. "
        f"{NODES * GPUS:,} run, {WAITING:,} wait at first."
    )
    return [Table("Plans for one change", columns, rows, note)]


def _measure(crowd: Crowd, title: str, happen: Callable[[], None]) -> list[str]:
    known, anew = [], []
    for _ in range(REPEATS):
        happen()
        with_memory, without, made = crowd.planned()
        carry_out(crowd.cluster, made)
        known.append(with_memory)
        anew.append(without)
    median, other = statistics.median(known), statistics.median(anew)
    return [title, f"{median:.0f} / {max(known):.0f}", f"{other:.0f}", f"{median / other:.2f}", "50"]
