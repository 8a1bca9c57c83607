from __future__ import annotations

from pathlib import Path

import pytest

from llmos_operator.scheduler.cycle import plan
from llmos_operator.scheduler.explain import explain
from llmos_operator.scheduler.policy import Policy
from llmos_operator.sim.whatif import Forecast, forecast
from llmos_operator.state.store import Store
from tests.support import scenario as scenarios
from tests.support.builders import (
    LARGE_MODEL,
    NOW,
    ClusterBuilder,
    WorkloadBuilder,
    a_cluster,
    a_node,
    a_profile,
    a_workload,
)

POLICY = Policy()
SCENARIOS = Path(__file__).parents[2] / "scenarios" / "llmos"


def submitting(cluster: ClusterBuilder, *new: WorkloadBuilder) -> Forecast:
    before = plan(cluster.snapshot(), POLICY, NOW)
    store = Store.of(cluster.snapshot())
    for one in new:
        store.apply_workload(one.created(0).value)
    return forecast(store, POLICY, NOW, [one.value.key for one in new], before)


def test_what_fits_starts_now_where_the_plan_says() -> None:
    told = submitting(a_cluster(a_node("n1").with_gpus(1)), a_workload("chat").needing("20Gi"))
    (answer,) = told.answers
    assert answer.outcome == "Starts"
    assert [(one.node, one.devices, one.after) for one in answer.placed] == [("n1", ("GPU-n1-0",), 0.0)]
    assert told.displaced == told.delayed == ()


def test_prices_choose_as_in_the_operator() -> None:
    scenario = scenarios.load(SCENARIOS / "prices-keep-scarce-kind.yaml")
    snapshot = scenario.cluster.snapshot()
    chosen = {
        prices is not None: forecast(
            Store.of(snapshot), scenario.policy, NOW, sorted(snapshot.workloads), prices=prices
        )
        for prices in (scenario.prices, None)
    }
    assert [one.node for one in chosen[True].answers[0].placed] == ["large"]
    assert [one.node for one in chosen[False].answers[0].placed] == ["small"]
    assert chosen[True].cycles[0] == plan(snapshot, scenario.policy, NOW, prices=scenario.prices)


def test_a_victim_is_named_with_its_cost_and_starts_again_elsewhere() -> None:
    cluster = a_cluster(
        a_node("n1").with_gpus(1, "A100-80G").observed_using(0, "60Gi"), a_node("n2").with_gpus(1, "L4-24G")
    ).with_priorities(low=1, high=9)
    cluster.running(a_workload("old").needing("10Gi").priority("low"), "n1", [0], memory="60Gi")
    told = submitting(cluster, a_workload("new").needing("40Gi").priority("high"))
    (answer,), (victim,) = told.answers, told.displaced
    assert answer.outcome == "StartsAfterEviction"
    assert [(one.node, one.after) for one in answer.placed] == [("n1", 30.0)]  # the grace of its victim
    assert (victim.workload, victim.preemptor) == ("default/old", "default/new")
    assert victim.cost_milliseconds > 0
    assert victim.afterwards == "starts again on node n2 at bf16"


def test_who_would_move_is_named_with_where_it_starts_again() -> None:
    cluster = a_cluster(a_node("n1").with_gpus(2), a_node("n2").with_gpus(2))
    cluster.running(a_workload("old").needing("4Gi"), "n1", [0])
    cluster.running(a_workload("other").needing("40Gi"), "n2", [0])
    cluster.add(a_workload("new").gpus(2).needing("40Gi").created(3600))
    told = forecast(Store.of(cluster.snapshot()), POLICY, NOW, ["default/new"])
    (answer,), (moved,) = told.answers, told.displaced
    assert [(one.node, one.after) for one in answer.placed] == [("n1", 30.0)]  # the grace of who moves
    assert (moved.workload, moved.node, moved.reason) == ("default/old", "n1", "Moved")
    assert moved.afterwards == "starts again on node n2 at bf16"


def test_a_victim_without_another_place_waits_and_says_why() -> None:
    cluster = a_cluster(a_node("n1").with_gpus(1)).with_priorities(low=1, high=9)
    cluster.running(a_workload("old").priority("low"), "n1", [0])
    (victim,) = submitting(cluster, a_workload("new").priority("high")).displaced
    assert victim.afterwards.startswith("waits: NoCapacity: ")


def test_who_would_have_started_and_now_waits_is_delayed() -> None:
    cluster = a_cluster(a_node("n1").with_gpus(1), a_workload("patient")).with_priorities(high=9)
    told = submitting(cluster, a_workload("new").priority("high"))
    (delayed,) = told.delayed
    assert (delayed.workload, delayed.before) == ("default/patient", "starts now")
    assert delayed.after.startswith("position 1 in queue default")


def test_what_does_not_fit_waits_with_a_reason_and_replicas_are_counted() -> None:
    told = submitting(a_cluster(a_node("n1").with_gpus(2)), a_workload("many").replicas(3))
    (answer,) = told.answers
    assert (answer.outcome, len(answer.placed), answer.waiting) == ("StartsInPart", 2, 1)
    assert answer.explanation.reason == "NoCapacity"


def test_workloads_of_one_file_are_planned_together() -> None:
    told = submitting(
        a_cluster(a_node("n1").with_gpus(1)), a_workload("first"), a_workload("second").created(0)
    )
    assert [one.outcome for one in told.answers] == ["Starts", "Waits"]


@pytest.mark.parametrize("heard", [0, 600])
def test_pods_that_a_change_takes_away_leave_their_room(heard: float) -> None:
    cluster = a_cluster(a_node("n1").with_gpus(1).observed_using(0, "9Gi").last_heard(heard))
    pod = cluster.running(a_workload("chat").needing("10Gi"), "n1", [0], memory="10Gi")
    store = Store.of(cluster.snapshot())
    (answer,) = forecast(store, POLICY, NOW, ["default/chat"], None, [pod.key]).answers
    assert (answer.outcome, answer.placed[0].devices) == ("Starts", ("GPU-n1-0",))


def test_a_pod_stuck_beyond_its_grace_is_not_counted_on() -> None:
    cluster = a_cluster(a_node("n1").with_gpus(1))
    pod = cluster.running(a_workload("stuck"), "n1", [0])
    cluster.store.assume_evicted(pod.key, NOW - 600)
    cluster.store.delete_workload("default/stuck")
    told = submitting(cluster, a_workload("new"))
    assert [one.outcome for one in told.answers] == ["Waits"]


def test_a_shrink_is_forecast_with_what_is_left_and_when_the_claimant_starts() -> None:
    model = "hf://org/large"
    cluster = a_cluster(a_profile(model, LARGE_MODEL), a_node("n1").with_gpus(1, "A100-48G", "48Gi"))
    cluster.with_priorities(low=1, high=3)
    chat = a_workload("chat").shared().priority("low").serving(model).at("Fixed", "bf16")
    chat.with_(memory_bytes=None, max_model_len=32768, max_num_seqs=8)
    held = {"format": "bf16", "max_model_len": 32768, "kv_tokens": 65536}
    cluster.running(chat, "n1", (0,), memory="24Gi", **held)
    cluster.running(a_workload("other").shared().priority("low").needing("12Gi"), "n1", (0,))
    cluster.add(a_workload("urgent").shared().priority("high").needing("14Gi"))
    told = forecast(Store.of(cluster.snapshot()), Policy(), NOW, ["default/urgent"])
    asked = explain(cluster.snapshot(), Policy(), NOW, "default/urgent").victims
    assert [one.victim for one in asked] == ["default/chat"]
    (answer,), (lowered,) = told.answers, told.displaced
    assert answer.outcome == "StartsAfterEviction"
    assert answer.placed[0].after > 0
    assert (lowered.workload, lowered.preemptor) == ("default/chat", "default/urgent")
    assert lowered.afterwards.startswith("goes on with ")
    assert len(told.cycles) <= 4


def test_who_does_with_less_is_explained() -> None:
    cluster = scenarios.load(SCENARIOS / "shrink-given-back-not-at-once.yaml").cluster
    message = explain(cluster.snapshot(), POLICY, NOW, "default/a").message
    assert "goes on default/a-" in message
    assert "with 19.4 GiB of 23.4 GiB per device" in message
