"""Replicas of several pods on a real API server: all or none, restarted as a whole, and meeting each other."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from aiohttp import web

from llmos_operator.cluster import port as ports
from llmos_operator.cluster.transport import connect
from llmos_operator.local.hub.server import HubServer
from llmos_operator.local.hub.store import Store as HubStore
from tests.support.crds import CRDS, await_established
from tests.support.fakekubelet import Script
from tests.support.operator_process import SYSTEM, OperatorProcess, collect, condition_of
from tests.support.tinymodels import write_model

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tests.support.cluster import RunningCluster
    from tests.support.operator_process import Bench

pytestmark = [pytest.mark.anyio, pytest.mark.component]

QUICK = {"LLMOS_SCHEDULING__GANG_GRACE": "1"}
CUSTOM = {"name": "custom", "image": "host"}
EXAMPLE = Path(__file__).parents[3] / "examples/08-gang/workload.yaml"


def gang(pods: int, **more: Any) -> dict[str, Any]:
    return {
        "engine": CUSTOM,
        "parallelism": {"data": pods},
        "resources": {"memory": "256Mi"},
        "serving": {"drainTimeout": "1s"},
        **more,
    }


def uids(pods: list[dict[str, Any]]) -> set[str]:
    return {pod["metadata"]["uid"] for pod in pods if not pod["metadata"].get("deletionTimestamp")}


async def test_a_lost_pod_restarts_the_whole_gang_under_the_same_names(bench: Bench) -> None:
    uri = write_model(bench.hub, "acme/tiny")
    await bench.node("n1", devices=1)
    await bench.node("n2", devices=1)
    bench.operator(**QUICK)
    await bench.apply("train", uri, **gang(2))
    workload = await bench.until_phase("train", "Running")
    assert (workload["status"]["replicas"], workload["status"]["readyReplicas"]) == (1, 1)
    before = await bench.pods("train")
    assert {pod["spec"]["nodeName"] for pod in before} == {"n1", "n2"}
    (headless,) = [
        one
        for one in await collect(bench.port, ports.SERVICES, bench.namespace)
        if one["spec"].get("clusterIP") == "None"
    ]
    assert {pod["spec"]["subdomain"] for pod in before} == {headless["metadata"]["name"]}
    lost = before[1]["metadata"]
    await bench.port.delete(
        ports.PODS, lost["name"], namespace=bench.namespace, uid=lost["uid"], grace_seconds=0
    )

    async def anew() -> bool:
        now = await bench.pods("train")
        return len(uids(now)) == 2 and not uids(now) & uids(before)

    await bench.until(anew, "both pods are other pods", 60)
    assert [p["metadata"]["name"] for p in await bench.pods("train")] == [
        p["metadata"]["name"] for p in before
    ]
    await bench.until_phase("train", "Running", 60)
    assert "GangIncomplete" in {event["reason"] for event in await bench.events("train")}


async def test_a_gang_that_does_not_fit_leaves_no_pod_behind(bench: Bench) -> None:
    uri = write_model(bench.hub, "acme/tiny")
    await bench.node("n1", devices=2)
    bench.operator()
    await bench.apply("wide", uri, **gang(3))
    told = await bench.until_condition("wide", "Scheduled", "False", "LargerThanCluster")
    assert "the cluster could hold 2 of them" in told["message"]
    await bench.apply("one", uri, resources={"memory": "256Mi"})
    await bench.until_phase("one", "Running")
    await bench.apply("pair", uri, **gang(2))
    told = await bench.until_condition("pair", "Scheduled", "False", "NoCapacity")
    assert "1 of 2 pods fit at once" in told["message"]
    assert await bench.pods("wide") == await bench.pods("pair") == []
    await bench.delete("one")
    (gone,) = await bench.pods("one")  # nobody collects garbage on this API server
    await bench.port.delete(ports.PODS, gone["metadata"]["name"], namespace=bench.namespace, grace_seconds=0)
    await bench.until_phase("pair", "Running", 60)


async def test_a_gang_that_does_not_come_up_in_time_is_given_back_and_tried_again(bench: Bench) -> None:
    uri = write_model(bench.hub, "acme/tiny")
    await bench.node("n1", devices=2)
    stuck = ("ErrImagePull", "no such image")
    bench.kubelet.script = lambda pod: (
        Script(waiting=stuck) if pod["metadata"]["name"].endswith("-1") else Script()
    )
    bench.operator(LLMOS_SCHEDULING__GANG_START="2")
    await bench.apply("train", uri, **gang(2))
    await bench.until_condition("train", "Progressing", "False", "BackOff")
    workload = await bench.workload("train")
    assert workload["status"]["failure"]["reason"] == "GangIncomplete"
    assert "ErrImagePull" in workload["status"]["failure"]["message"]

    async def nothing() -> bool:
        return not uids(await bench.pods("train"))

    await bench.until(nothing, "all pods are given back")
    bench.kubelet.script = lambda _: Script()
    await bench.until_phase("train", "Running", 60)
    assert condition_of(await bench.workload("train"), "Ready")["status"] == "True"


async def test_processes_of_a_gang_meet_and_meet_again_after_one_was_lost(
    local_cluster: RunningCluster, local_namespace: str, tmp_path: Path
) -> None:
    """The example with real processes: two pods of the process kubelet, on two nodes, find each other through the environment."""
    local_cluster.tools.kubectl("apply", "--server-side", "-f", str(CRDS))
    await_established(local_cluster.tools, "-f", str(CRDS))
    async with _system(local_cluster, tmp_path) as (port, uri, operator):
        for node in ("sim-0", "sim-1"):
            await _devices(port, node)
        spec = yaml.safe_load(EXAMPLE.read_text())["spec"]
        spec["model"]["uri"] = uri
        body = {"metadata": {"name": "meet", "namespace": local_namespace}, "spec": spec}
        await port.apply(ports.MODEL_WORKLOADS, body, manager="test", namespace=local_namespace)

        async def pods() -> list[dict[str, Any]]:
            return await collect(port, ports.PODS, local_namespace)

        async def running() -> bool:
            found = await port.get(ports.MODEL_WORKLOADS, "meet", namespace=local_namespace)
            return bool(uids(await pods())) and condition_of(found, "Ready").get("status") == "True"

        await _until(running, 60, operator)
        before = await pods()
        assert {pod["spec"]["nodeName"] for pod in before} == {"sim-0", "sim-1"}
        assert _log(local_cluster, local_namespace, before[0]) == "ranks ['1.']"
        assert _log(local_cluster, local_namespace, before[1]) == "met"
        lost = before[1]["metadata"]["name"]
        await port.delete(ports.PODS, lost, namespace=local_namespace)

        async def again() -> bool:
            now = uids(await pods())
            return len(now) == 2 and not now & uids(before) and await running()

        await _until(again, 90, operator)
        assert _log(local_cluster, local_namespace, (await pods())[0]) == "ranks ['1.']"
        await port.delete(ports.MODEL_WORKLOADS, "meet", namespace=local_namespace)


def _log(cluster: RunningCluster, namespace: str, pod: dict[str, Any]) -> str:
    return cluster.tools.kubectl("logs", f"--namespace={namespace}", pod["metadata"]["name"]).partition("\n")[
        0
    ]


async def _until(condition: Callable[[], Awaitable[bool]], seconds: float, operator: OperatorProcess) -> None:
    try:
        async with asyncio.timeout(seconds):
            while not await condition():
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise AssertionError(operator.text()[-6000:]) from None


async def _devices(port: Any, node: str) -> None:
    listed = [
        {
            "uuid": f"GPU-sim-{node}-{index}",
            "index": index,
            "product": "SIM-A",
            "memory": "1Gi",
            "computeCapability": "8.0",
            "health": {"verdict": "Healthy", "reason": ""},
        }
        for index in range(2)
    ]
    await port.apply(ports.GPU_NODES, {"metadata": {"name": node}}, manager="test")
    status = {"metadata": {"name": node}, "status": {"mode": "simulated", "devices": listed}}
    await port.patch_status(ports.GPU_NODES, status, manager="test-agent")


@asynccontextmanager
async def _system(cluster: RunningCluster, folder: Path) -> AsyncIterator[tuple[Any, str, OperatorProcess]]:
    """An operator and a hub for a local cluster: (connection, URI of a model, operator)."""
    (folder / "master.key").write_bytes(b"0123456789abcdef0123456789abcdef")
    port = await connect(str(cluster.kubeconfig), process="test")
    await port.apply(ports.NAMESPACES, {"metadata": {"name": SYSTEM}}, manager="test")
    await port.apply(ports.WORKLOAD_QUEUES, {"metadata": {"name": "default"}, "spec": {}}, manager="test")
    hub = folder / "hub"
    hub.mkdir()
    uri = write_model(hub, "acme/tiny")
    runner = web.AppRunner(HubServer(HubStore(hub)).app(), access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    settings = {"LLMOS_SOURCES__HUB_ENDPOINT": f"http://127.0.0.1:{runner.addresses[0][1]}"} | QUICK
    operator = OperatorProcess(cluster.kubeconfig, folder, "operator-gang", settings)
    operator.start()
    try:
        yield port, uri, operator
    finally:
        operator.kill()
        for kind in (ports.GPU_NODES, ports.WORKLOAD_QUEUES):
            for item in await collect(port, kind):
                await port.delete(kind, item["metadata"]["name"])
        await runner.cleanup()
        await port.close()
