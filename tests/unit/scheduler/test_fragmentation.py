from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from llmos_operator.api.telemetry import Verdict
from llmos_operator.scheduler.cycle import plan
from llmos_operator.scheduler.fragmentation.demand import frequent
from llmos_operator.scheduler.fragmentation.pricer import Pricer
from llmos_operator.scheduler.fragmentation.shapes import FULL, Shape
from llmos_operator.scheduler.outlook import mix_of
from llmos_operator.scheduler.policy import Policy, ScoreKind
from llmos_operator.scheduler.scores.fragmentation import Fragmentation
from llmos_operator.scheduler.shares import kinds_of, shares, stock_of
from llmos_operator.scheduler.table import ALL, NodeTable
from tests.support.builders import NOW, ClusterBuilder, a_cluster, a_node, a_workload

if TYPE_CHECKING:
    from llmos_operator.scheduler.fragmentation.prices import Prices
    from llmos_operator.scheduler.request import Request
    from llmos_operator.scheduler.scene import Candidates, Scene
    from llmos_operator.scheduler.table import Ints

POLICY = Policy(require_queue=False)


def table_of(cluster: ClusterBuilder) -> NodeTable:
    table = NodeTable()
    table.sync(cluster.snapshot().nodes)
    return table


def prices_for(cluster: ClusterBuilder, mix: dict[Shape, float]) -> Prices:
    table = table_of(cluster)
    kinds = kinds_of(table)
    found = Pricer().price(stock_of(table, kinds), mix, kinds, NOW)
    assert found is not None
    return found


def two_kinds() -> ClusterBuilder:
    """Return a cluster where best fit prefers "a" (smaller devices) and where only "a" serves what is expected."""
    return a_cluster(a_node("a").with_gpus(2, "A10-24G"), a_node("b").with_gpus(2, "A100-80G"))


def bound_to(cluster: ClusterBuilder, policy: Policy, prices: Prices | None, now: float = NOW) -> str:
    (bind,) = plan(cluster.snapshot(), policy, now, prices=prices).binds
    return bind.claim.node


def test_what_only_one_kind_can_serve_is_kept_for_it() -> None:
    cluster = two_kinds()
    cluster.add(a_workload("any").needing("10Gi"))
    number = [product for product, _ in kinds_of(table_of(cluster))].index("A10-24G")
    prices = prices_for(cluster, {Shape(1, FULL, 1000, 1 << number): 10.0})
    assert bound_to(cluster, POLICY, prices) == "b"


def test_without_prices_with_old_ones_or_by_policy_best_fit_decides() -> None:
    cluster = two_kinds()
    cluster.add(a_workload("any").needing("10Gi"))
    table = table_of(cluster)
    number = [product for product, _ in kinds_of(table)].index("A10-24G")
    prices = prices_for(cluster, {Shape(1, FULL, 1000, 1 << number): 10.0})
    assert bound_to(cluster, POLICY, prices) == "b"
    assert bound_to(cluster, POLICY, None) == "a"
    assert bound_to(cluster, replace(POLICY, score=ScoreKind.BEST_FIT), prices) == "a"
    old = replace(prices, at=NOW - POLICY.price_seconds - 1)
    assert bound_to(cluster, POLICY, old) == "a"


def test_a_gang_that_is_expected_keeps_its_node_whole() -> None:
    cluster = a_cluster(a_node("a").with_gpus(4), a_node("b").with_gpus(2), a_node("c").with_gpus(4))
    cluster.add(a_workload("one").needing("10Gi"))
    prices = prices_for(cluster, {Shape(4, FULL, 1000): 5.0, Shape(1, FULL, 1000): 1.0})
    assert bound_to(cluster, POLICY, prices) == "b"


def test_nothing_that_fits_is_declined_when_it_has_no_price() -> None:
    cluster = a_cluster(a_node("a").with_gpus(1))
    cluster.add(a_workload("odd").needing("10Gi").shared(337))
    prices = prices_for(cluster, {Shape(1, FULL, 1000): 5.0})
    assert bound_to(cluster, POLICY, prices) == "a"


def test_a_degraded_device_is_the_last_choice() -> None:
    cluster = a_cluster(
        a_node("a").with_gpus(1).with_device(0, verdict=Verdict.DEGRADED), a_node("b").with_gpus(4)
    )
    cluster.add(a_workload("one").needing("10Gi"))
    prices = prices_for(cluster, {Shape(4, FULL, 1000): 5.0})
    assert bound_to(cluster, POLICY, prices) == "b"


def test_shares_are_what_both_memory_and_compute_leave() -> None:
    cluster = a_cluster(a_node("a").with_gpus(3, "A100-80G"))
    cluster.add(a_workload("t").needing("40Gi").shared(100))
    table = table_of(cluster)
    (bind,) = plan(cluster.snapshot(), POLICY, NOW, table=table).binds
    assert bind.claim.node == "a"
    assert sorted(shares(table, ALL)[0]) == [500, FULL, FULL]


def test_the_mix_is_what_the_workloads_ask_for() -> None:
    cluster = a_cluster(a_node("a").with_gpus(2, "A100-80G"))
    cluster.add(a_workload("x").needing("10Gi").gpus(2).replicas(3))
    cluster.add(a_workload("y").needing("40Gi").shared(100))
    mix = mix_of(cluster.snapshot(), POLICY, kinds_of(table_of(cluster)))
    assert {(shape.devices, shape.share): count for shape, count in mix.items()} == {
        (2, FULL): 3,
        (1, 500): 1,
    }


def test_a_gang_is_asked_for_pod_by_pod() -> None:
    cluster = a_cluster(a_node("a").with_gpus(2, "A100-80G"))
    cluster.add(a_workload("x").needing("10Gi").gpus(2).replicas(3).of_pods(copies=4))
    mix = mix_of(cluster.snapshot(), POLICY, kinds_of(table_of(cluster)))
    assert [(shape.devices, count) for shape, count in mix.items()] == [(2, 12)]


def test_the_rarest_shapes_are_not_planned_for() -> None:
    common, rare = Shape(1, FULL, 1000), Shape(8, FULL, 1000)
    assert frequent({common: 99.0, rare: 1.0}) == {common: 99.0}


def test_draws_made_in_ignorance_are_made_again() -> None:
    cluster = two_kinds()
    table = table_of(cluster)
    kinds, pricer = kinds_of(table), Pricer(draws=4)
    stock, shape = stock_of(table, kinds), Shape(1, FULL, 1000)
    pricer.price(stock, {shape: 10.0}, kinds, NOW)
    pricer.price(stock, {shape: 11.0}, kinds, NOW)
    assert pricer.solved == 5
    pricer.price(stock, {shape: 40.0}, kinds, NOW)
    assert pricer.solved == 9


def test_the_pods_of_a_gang_take_the_devices_that_prices_choose() -> None:
    cluster = a_cluster(a_node("a").with_gpus(2))
    cluster.running(a_workload("half").shared(), "a", [0], memory="40Gi")
    cluster.running(a_workload("fifth").shared(), "a", [1], memory="16Gi")
    cluster.add(a_workload("gang").needing("24Gi").shared(300).of_pods(2))
    prices = prices_for(cluster, {Shape(1, 500, 1000): 10.0})

    def devices(made: Prices | None) -> list[str]:
        binds = plan(cluster.snapshot(), POLICY, NOW, prices=made).binds
        return [uuid[-1] for bind in binds for uuid in bind.claim.devices]

    # The first pod leaves a half on the device with 800 free, as the device with 500 free is one.
    assert devices(prices)[0] == "1"
    assert devices(None)[0] == "0"


@pytest.mark.parametrize("milli", [FULL, 300])
def test_of_many_nodes_that_are_alike_one_is_looked_at_closely(
    monkeypatch: pytest.MonkeyPatch, milli: int
) -> None:
    cluster = a_cluster(*(a_node(f"n{number:03d}").with_gpus(8) for number in range(100)))
    workload = a_workload("w").needing("10Gi")
    cluster.add(workload if milli == FULL else workload.shared(milli))
    prices = prices_for(
        cluster, {Shape(1, FULL, 1000): 5.0, Shape(1, 300, 1000): 9.0, Shape(4, FULL, 9000): 1.0}
    )
    looked: list[int] = []
    judge_one, judge = Fragmentation.judge_one, Fragmentation.judge

    def one(self: Fragmentation, *args: Any) -> tuple[int, int] | None:
        looked.append(1)
        return judge_one(self, *args)

    def several(
        self: Fragmentation, scene: Scene, request: Request, candidates: Candidates
    ) -> tuple[Ints, Ints]:
        looked.append(len(candidates.devices))
        return judge(self, scene, request, candidates)

    monkeypatch.setattr(Fragmentation, "judge_one", one)
    monkeypatch.setattr(Fragmentation, "judge", several)
    assert bound_to(cluster, POLICY, prices) == "n000"
    assert sum(looked) == 1
