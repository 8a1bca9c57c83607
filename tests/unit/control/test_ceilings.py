"""Ceilings are told where scaling is explained, and end when fewer are wanted, or the number is somebody else's."""

from __future__ import annotations

from llmos_operator.api.conditions import Reason
from llmos_operator.control import ceilings
from llmos_operator.manifests.observed import Scaling
from llmos_operator.scheduler.explain import explain
from llmos_operator.scheduler.policy import Policy
from tests.support.builders import NOW, ClusterBuilder, a_cluster, a_node, a_workload

KEY = "default/web"
SCALING = Scaling(active=True, reason=Reason.SCALING, message="3 replicas for 9 requests.")


def held() -> ClusterBuilder:
    cluster = a_cluster(a_node("n1").with_gpus(2, "A100-80G"))
    web = a_workload("web").replicas(3).with_(elastic=True)
    cluster.running(web, "n1", (0,), 0)
    cluster.store.allow_replicas(KEY, web.value.uid, 1, NOW, "default/urgent")
    return cluster


def test_the_message_says_how_many_run_and_who_took_the_place() -> None:
    workload = held().store.workload(KEY)
    assert workload is not None
    assert ceilings.told(SCALING, workload).message == (
        "3 replicas for 9 requests. 1 of 3 run until there is room again: default/urgent took a place."
    )


def test_a_ceiling_in_force_stays_and_one_that_limits_nothing_ends() -> None:
    cluster = held()
    ceilings.release(cluster.store, KEY, NOW + 5)
    workload = cluster.store.workload(KEY)
    assert workload is not None
    assert workload.wanted == 3
    cluster.store.set_replicas(KEY, 1)
    ceilings.release(cluster.store, KEY, NOW + 5)
    cluster.store.set_replicas(KEY, 3)
    workload = cluster.store.workload(KEY)
    assert workload is not None
    assert (workload.replicas, workload.wanted) == (3, None)
    assert ceilings.told(SCALING, workload) == SCALING


def test_explain_says_that_it_does_with_fewer_and_for_whom() -> None:
    told = explain(held().snapshot(), Policy(require_queue=False), NOW, KEY)
    assert "it does with 1 replica to make room for default/urgent" in told.message
    assert (told.replicas_wanted, told.replicas_placed) == (1, 1)
