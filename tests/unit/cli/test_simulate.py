"""What `llmos simulate` prints of a forecast."""

from __future__ import annotations

import io

from rich.console import Console

from llmos_operator.cli import simulate
from llmos_operator.scheduler.policy import Policy
from llmos_operator.sim.whatif import forecast
from llmos_operator.state.store import Store
from tests.support.builders import NOW, WorkloadBuilder, a_cluster, a_node, a_workload


def rows_of(work: WorkloadBuilder) -> list[list[str]]:
    """Return replica and node of the rows that are printed for a workload on two nodes of two devices each."""
    cluster = a_cluster(a_node("n1").with_gpus(2), a_node("n2").with_gpus(2))
    store = Store.of(cluster.snapshot())
    store.apply_workload(work.value)
    out = io.StringIO()
    told = forecast(store, Policy(), NOW, [work.value.key])
    simulate.show(Console(file=out, width=200), simulate.Simulated(told, ()))
    lines = out.getvalue().splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("REPLICA"))
    return [
        [cell.strip() for cell in line.split("  ") if cell.strip()][:2] for line in lines[first + 1 :] if line
    ]


def test_a_replica_of_one_pod_is_one_row() -> None:
    assert rows_of(a_workload("chat").needing("20Gi").replicas(2)) == [["0", "n1"], ["1", "n1"]]


def test_the_pods_of_a_replica_are_told_apart() -> None:
    work = a_workload("train").needing("20Gi").gpus(2).of_pods(2).replicas(1)
    assert rows_of(work) == [["0, pod 0", "n1"], ["0, pod 1", "n2"]]
