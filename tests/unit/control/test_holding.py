"""Holder pods made, kept and removed: as many as are needed, whoever leads, whatever others do to them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from llmos_operator.api import names
from llmos_operator.cluster.failures import Ambiguous, Forbidden
from llmos_operator.cluster.port import DEPLOYMENTS, PODS
from llmos_operator.state import plugin
from tests.support.builders import ClusterBuilder, a_cluster, a_node, a_workload, gpu
from tests.support.holdings import REST, SYSTEM, Bench, a_bench

if TYPE_CHECKING:
    from llmos_operator.state.types import Pod

pytestmark = pytest.mark.anyio


def a_plugged(devices: int = 2) -> ClusterBuilder:
    return a_cluster(a_node("n1").with_gpus(devices, "A-24G").plugged())


def key(slot: int) -> str:
    return f"{SYSTEM}/{names.holder_name('n1', slot)}"


def runs_shared(cluster: ClusterBuilder, device: int = 0, name: str = "w") -> Pod:
    return cluster.running(a_workload(name).shared(), "n1", [device], memory="4Gi")


async def test_a_holder_pod_is_made_for_work_that_waits_for_one_and_only_once() -> None:
    async with a_bench(a_plugged().add(a_workload("w").shared().needing("4Gi"))) as bench:
        await bench.turn()
        assert await bench.names() == [key(0)]
        for _ in range(3):
            await bench.turn(5.0)
        assert await bench.names() == [key(0)]
        assert bench.counted("coming") == 1
        bench.give(0, 1)
        assert [bind.claim.devices for bind in bench.plan().binds] == [(gpu("n1", 1),)]


async def test_another_leader_makes_the_same_pod() -> None:
    async with a_bench(a_plugged().add(a_workload("w").shared().needing("4Gi"))) as bench:
        await bench.turn()
        other = Bench(bench.port, a_plugged().add(a_workload("w").shared().needing("4Gi")), "")
        other.queue = bench.queue
        other.restart()
        assert other.holders() == ()
        await other.turn()
        assert await bench.names() == [key(0)]
        assert [pod.key for pod in other.holders()] == [key(0)]


async def test_a_holder_pod_goes_a_rest_after_the_last_work_on_its_device() -> None:
    async with a_bench(a_plugged().add(a_workload("w").shared().needing("4Gi"))) as bench:
        await bench.turn()
        bench.give(0, 0)
        pod = runs_shared(bench.cluster)
        await bench.turn(2 * REST)
        assert bench.counted("used") == 1
        bench.cluster.store.delete_pod(pod.key, pod.uid)
        bench.cluster.store.delete_workload("default/w")
        await bench.turn()
        await bench.turn(REST - 1)
        assert await bench.names() == [key(0)]
        await bench.turn(1.0, planned=False)
        assert await bench.names() == []
        assert bench.holders() == ()


async def test_work_that_comes_back_during_the_rest_finds_its_device_held() -> None:
    async with a_bench(a_plugged().add(a_workload("w").shared().needing("4Gi"))) as bench:
        await bench.turn()
        bench.give(0, 0)
        pod = runs_shared(bench.cluster)
        await bench.turn(REST - 1)
        bench.cluster.store.delete_pod(pod.key, pod.uid)
        bench.cluster.store.delete_workload("default/w")
        await bench.turn(REST - 1)
        assert bench.counted("idle") == 1


async def test_whole_work_that_waits_cuts_the_rest_short() -> None:
    async with a_bench(a_plugged(1).add(a_workload("s").shared().needing("4Gi"))) as bench:
        await bench.turn()
        bench.give(0, 0)
        bench.cluster.store.delete_workload("default/s")
        bench.cluster.add(a_workload("w"))
        await bench.turn()
        assert await bench.names() == []
        bench.cluster.tells("n1", {0: ()})
        assert len(bench.plan().binds) == 1


async def test_a_name_is_not_taken_again_while_the_kubelet_still_tells_of_it() -> None:
    async with a_bench(a_plugged().add(a_workload("w").shared().needing("20Gi"))) as bench:
        bench.cluster.tells("n1", {0: (key(0),)})  # of a pod that is gone
        await bench.turn()
        assert await bench.names() == [key(1)]
        assert not bench.plan().binds


async def test_work_that_lost_its_holder_pod_is_held_again_and_it_is_told() -> None:
    async with a_bench(a_plugged(3)) as bench:
        runs_shared(bench.cluster)
        await bench.turn()
        assert await bench.names() == [key(0)]
        assert [one for one in await bench.events() if "HolderLost" in one and gpu("n1", 0) in one]
        bench.give(0, 2)  # not that one: it is kept, so that the next is given another
        await bench.turn(2 * REST)
        assert await bench.names() == [key(0), key(1)]
        bench.give(1, 0)
        state = bench.cluster.store.node("n1")
        assert state is not None
        assert plugin.bare(state) == ()
        await bench.turn()
        await bench.turn(REST)
        assert await bench.names() == [key(1)]


async def test_a_device_others_were_given_is_told_and_not_taken() -> None:
    async with a_bench(a_plugged()) as bench:
        runs_shared(bench.cluster)
        bench.cluster.store.note_refusal("n1", bench.clock.now() + 60)
        await bench.turn()
        bench.cluster.other("n1", "train", 0)
        await bench.turn()
        await bench.turn(REST)
        assert await bench.names() == []
        first, second = [one for one in await bench.events() if "HolderLost" in one]
        assert "until then another pod may be given the device" in first
        assert "has given it to kube/train" in second
        assert bench.counted("missing") == 1


async def test_a_node_that_takes_no_pods_gets_no_holder_pod() -> None:
    node = a_node("n1").with_gpus(2, "A-24G").plugged().cordoned()
    async with a_bench(a_cluster(node)) as bench:
        runs_shared(bench.cluster)
        await bench.turn()
        assert await bench.names() == []


async def test_a_holder_pod_the_kubelet_refused_goes_and_the_node_is_left_alone_for_a_while() -> None:
    async with a_bench(a_plugged().add(a_workload("w").shared().needing("4Gi"))) as bench:
        await bench.turn()
        bench.fail(bench.holders()[0])
        await bench.turn()
        assert await bench.names() == []
        assert [one for one in await bench.events() if one.startswith("HolderNotMade")]
        await bench.turn(5.0)
        assert await bench.names() == []
        bench.clock.advance(60)
        bench.cluster.store.advance(bench.clock.now())
        await bench.turn()
        assert len(await bench.names()) == 1


async def test_a_create_that_is_refused_is_told_and_tried_again_later() -> None:
    async with a_bench(a_plugged().add(a_workload("w").shared().needing("4Gi"))) as bench:
        bench.port.fail("create", "pods", Forbidden("pods is forbidden"))
        await bench.turn()
        assert await bench.names() == []
        assert [one for one in await bench.events() if "pods is forbidden" in one]
        await bench.turn()
        assert await bench.names() == []
        await bench.turn(60.0)
        assert await bench.names() == [key(0)]


async def test_a_create_whose_answer_was_lost_is_found_by_its_name() -> None:
    async with a_bench(a_plugged().add(a_workload("w").shared().needing("4Gi"))) as bench:
        bench.port.fail("create", "pods", Ambiguous("connection lost"), done=True)
        await bench.turn()
        await bench.turn(60.0)
        assert await bench.names() == [key(0)]
        assert [pod.key for pod in bench.holders()] == [key(0)]


async def test_a_pod_of_somebody_else_with_that_name_is_left_alone() -> None:
    async with a_bench(a_plugged().add(a_workload("w").shared().needing("4Gi"))) as bench:
        body = {"metadata": {"name": names.holder_name("n1", 0), "namespace": SYSTEM}, "spec": {}}
        await bench.port.create(PODS, body, namespace=SYSTEM)
        await bench.turn()
        await bench.turn()
        assert await bench.names() == [key(0), key(1)]
        assert [pod.key for pod in bench.holders()] == [key(1)]


async def test_it_belongs_to_the_operators_deployment_where_there_is_one() -> None:
    async with a_bench(a_plugged().add(a_workload("w").shared().needing("4Gi")), owner="llmos") as bench:
        body = {"metadata": {"name": "llmos", "namespace": SYSTEM}, "spec": {}}
        made = await bench.port.create(DEPLOYMENTS, body, namespace=SYSTEM)
        await bench.turn()
        pod = await bench.port.get(PODS, names.holder_name("n1", 0), namespace=SYSTEM)
        assert [one["uid"] for one in pod["metadata"]["ownerReferences"]] == [made["metadata"]["uid"]]
    async with a_bench(a_plugged().add(a_workload("w").shared().needing("4Gi")), owner="nobody") as bench:
        await bench.turn()
        assert await bench.names() == [key(0)]
