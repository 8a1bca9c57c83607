"""Decision time of the scheduler: how long a plan takes at 500 and 5,000 nodes of 8 GPUs.

    python tests/bench/decisions.py [--nodes 500 5000] [--repeat 5]

Columns: one workload on an idle cluster and on one that is half full (median and worst of the repeats, with a table
kept between cycles as the operator keeps it), 1,000 one-GPU workloads in one plan, workloads until the cluster is full,
and one preemption on a full cluster. CPU time of this process, so a busy machine disturbs it little.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from llmos_operator.scheduler.cycle import plan
from llmos_operator.scheduler.policy import Policy
from llmos_operator.scheduler.table import NodeTable
from llmos_operator.state.types import Pod
from tests.support.builders import LONG_AGO, NOW, ClusterBuilder, a_cluster, a_node, a_workload

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmos_operator.scheduler.plan import Plan

GPUS = 8


def cluster_of(nodes: int) -> ClusterBuilder:
    """Return an idle cluster."""
    cluster = a_cluster().with_priorities(high=1000)
    for i in range(nodes):
        cluster.add(a_node(f"node-{i:05d}").with_gpus(GPUS).with_host(cpu="96", memory="1Ti"))
    return cluster


def carry_out(cluster: ClusterBuilder, made: Plan) -> None:
    """Let the plan's pods run."""
    for i, bind in enumerate(made.binds):
        claim = bind.claim
        cluster.store.apply_pod(
            Pod(
                claim.pod,
                f"pod-{i}-{claim.workload_uid}",
                claim.node,
                claim=claim,
                cpu_milli=claim.cpu_milli,
                memory_bytes=claim.memory_bytes,
                started_at=LONG_AGO,
            )
        )


def timed(call: Callable[[], Plan]) -> tuple[float, Plan]:
    """Return CPU milliseconds and the plan."""
    start = time.process_time()
    made = call()
    return (time.process_time() - start) * 1000, made


def single(cluster: ClusterBuilder, table: NodeTable, repeat: int, label: str) -> list[float]:
    """Time a single one-GPU workload, each one another workload on a synchronised table."""
    times = []
    for i in range(repeat):
        workload = a_workload(f"single-{label}-{i}")
        cluster.add(workload)
        snapshot = cluster.snapshot()
        milliseconds, made = timed(lambda s=snapshot: plan(s, Policy(), NOW, table=table))
        assert len(made.binds) == 1, made.waits
        times.append(milliseconds)
        cluster.store.delete_workload(workload.value.key)
    return times


def many(cluster: ClusterBuilder, table: NodeTable, count: int, label: str) -> tuple[float, Plan]:
    """Time a plan for `count` workloads of one GPU."""
    for i in range(count):
        cluster.add(a_workload(f"{label}-{i:06d}"))
    snapshot = cluster.snapshot()
    return timed(lambda: plan(snapshot, Policy(), NOW, table=table))


def measure(nodes: int, repeat: int) -> list[str]:
    """Return one row of the table."""
    cluster, table = cluster_of(nodes), NodeTable()
    first, _ = timed(lambda: plan(cluster.snapshot(), Policy(), NOW, table=table))
    idle = single(cluster, table, repeat, "idle")
    thousand, made = many(cluster, table, 1000, "thousand")
    assert len(made.binds) == 1000
    rest = nodes * GPUS - 1000
    fill, made = many(cluster, table, rest, "fill")
    assert len(made.binds) == rest + 1000
    carry_out(cluster, made)
    cluster.add(a_workload("urgent").priority("high"))
    snapshot = cluster.snapshot()
    plan(snapshot, Policy(), NOW, table=table)
    preempt, made = timed(lambda: plan(snapshot, Policy(), NOW, table=table))
    assert len(made.evictions) == 1
    cluster.store.delete_workload("default/urgent")
    parked, made = many(cluster, table, 1000, "parked")
    assert len(made.waits) == 1000
    return [
        f"{nodes}",
        f"{first:.0f}",
        f"{statistics.median(idle):.1f} / {max(idle):.1f}",
        f"{thousand:.0f} ({1e6 / thousand:.0f}/s)",
        f"{rest + 1000} in {fill:.0f} ({(rest + 1000) * 1000 / fill:.0f}/s)",
        f"{preempt:.1f}",
        f"{parked:.0f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, nargs="+", default=[500, 5000])
    parser.add_argument("--repeat", type=int, default=20)
    arguments = parser.parse_args()
    head = [
        "nodes x 8",
        "first plan ms",
        "one bind ms (median / worst)",
        "1,000 pending ms",
        "fill ms",
        "preempt 1 of all ms",
        "1,000 that cannot ms",
    ]
    rows = [head, *(measure(nodes, arguments.repeat) for nodes in arguments.nodes)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))


if __name__ == "__main__":
    main()
