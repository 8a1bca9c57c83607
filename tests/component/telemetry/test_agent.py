"""The agent as a process of its own, with a node's rights on a real API server."""

from __future__ import annotations

import asyncio
import compileall
import importlib
import itertools
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from llmos_operator.api import names
from llmos_operator.api.telemetry import Verdict
from llmos_operator.cluster.port import GPU_NODES, NODES
from tests.support.agent_process import AgentBench, AgentProcess, agent_bench, prepare
from tests.support.deviceplugin import RESOURCE, KubeletDouble, NoGoError, build
from tests.support.nvml import GIB, UNINITIALIZED, Double

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from llmos_operator.local.controlplane import ControlPlane

pytestmark = [pytest.mark.anyio, pytest.mark.component]

A, B = "GPU-sim-a", "GPU-sim-b"


_COUNTER = itertools.count()


@pytest.fixture(scope="module")
def prepared(api_server: ControlPlane) -> ControlPlane:
    prepare(api_server)
    return api_server


@pytest.fixture
async def bench(prepared: ControlPlane, tmp_path: Path) -> AsyncIterator[AgentBench]:
    async with agent_bench(prepared, tmp_path, f"gpu-node-{next(_COUNTER)}") as made:
        yield made


async def measuring(bench: AgentBench, **environment: str) -> AgentProcess:
    """Start an agent and wait until it told about both devices."""
    await bench.announce(A, B)
    agent = bench.agent(**environment)
    await bench.until(lambda: bench.endpoint.reports, "a first batch")
    await bench.until(lambda: healthy(bench, A), "the GPUNode")
    return agent


async def healthy(bench: AgentBench, uuid: str) -> bool:
    return (await bench.verdict(uuid))[0] == "Healthy"


async def test_a_node_is_told_to_everybody_who_has_to_know(bench: AgentBench) -> None:
    agent = await measuring(bench)
    gpunode = await bench.gpunode()
    node = await bench.port.get(NODES, bench.node)
    (owner,) = gpunode["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"], owner["uid"]) == ("Node", bench.node, node["metadata"]["uid"])
    assert gpunode["status"]["mode"] == "simulated"
    devices = await bench.devices()
    assert (devices[A]["product"], devices[A]["memory"], devices[A]["mig"]) == ("SIM-A", "1Gi", False)
    assert {"memory", "utilization", "events"} <= set(devices[A]["capabilities"])
    assert devices[A]["powerLimitMilliwatts"] == 300_000
    assert {c["type"]: c["status"] for c in gpunode["status"]["conditions"]} == {
        "Ready": "True",
        "DevicesHealthy": "True",
    }
    managers = {entry["manager"] for entry in gpunode["metadata"]["managedFields"]}
    assert managers == {names.MANAGER_AGENT}
    report = bench.endpoint.reports[-1]
    assert [reading.uuid for reading in report.readings] == [A, B]
    assert report.readings[0].total_bytes == GIB
    token = (bench.folder / "token").read_text()
    assert bench.endpoint.tokens[-1] == f"Bearer {token}"
    assert agent.get("/livez")[0] == agent.get("/readyz")[0] == 200
    assert agent.metric("llmos_gpu_memory_total_bytes", uuid=A) == GIB
    assert agent.metric("llmos_gpu_verdict", uuid=A, verdict="Healthy") == 1
    assert agent.stop() == 0
    assert token not in agent.text()


async def test_memory_of_a_real_process_arrives_with_its_pod(bench: AgentBench) -> None:
    await measuring(bench)
    code = "import sys; block = b'x' * (80 << 20); print('ready', flush=True); sys.stdin.read()"
    environment = {"NVIDIA_VISIBLE_DEVICES": B, "NODE_NAME": bench.node, "POD_UID": "uid-1"}
    tenant = subprocess.Popen(  # noqa: ASYNC220 - starting takes a moment, and nothing else runs in this test
        [sys.executable, "-c", code], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        await bench.until(
            lambda: (bench.endpoint.reports[-1].readings[1].used_bytes or 0) > 80 << 20, "the memory is seen"
        )
        assert bench.endpoint.reports[-1].readings[0].used_bytes == 0
        await bench.until(
            lambda: any(use.pod_uid == "uid-1" for r in bench.endpoint.reports for use in r.uses or ()),
            "the pod",
        )
    finally:
        tenant.communicate(timeout=90)
    await bench.until(
        lambda: bench.endpoint.reports[-1].readings[1].used_bytes == 0, "the memory is free again"
    )


async def test_how_much_a_device_is_held_down_is_told_with_its_samples(bench: AgentBench) -> None:
    await measuring(bench)
    assert bench.endpoint.reports[-1].readings[1].throttled_milli == 0
    await bench.announce(A, B, faults=[{"uuid": B, "clocks": "hw-thermal"}])
    await bench.until(
        lambda: (bench.endpoint.reports[-1].readings[1].throttled_milli or 0) > 0, "heat counts"
    )
    cool = bench.endpoint.reports[-1].readings[0]
    assert (cool.throttled_milli, cool.risk_milli) == (0, None), "no counter of errors is no risk of zero"


async def test_samples_never_reach_etcd(bench: AgentBench) -> None:
    await measuring(bench, LLMOS_STATUS_INTERVAL="600")
    await bench.until(lambda: bench.endpoint.reports[-1].uses is not None, "process lists settled")
    await asyncio.sleep(1.5)
    before = (await bench.gpunode())["metadata"]["resourceVersion"]
    count = len(bench.endpoint.reports)
    await bench.until(lambda: len(bench.endpoint.reports) > count + 15, "samples go on")
    assert (await bench.gpunode())["metadata"]["resourceVersion"] == before


async def test_a_fault_is_everywhere_within_two_seconds_and_outlives_the_agent(bench: AgentBench) -> None:
    agent = await measuring(bench, LLMOS_SAMPLE_INTERVAL="1")
    await bench.announce(A, B, faults=[{"uuid": B, "xid": 79}])

    async def told() -> bool:
        readings = {r.uuid: r for r in bench.endpoint.reports[-1].readings}
        return readings[B].verdict is Verdict.UNHEALTHY and await bench.verdict(B) == (
            "Unhealthy",
            "FallenOffBus",
        )

    assert await bench.until(told, "the fault") < 2.0
    assert await healthy(bench, A)
    condition = next(
        c for c in (await bench.gpunode())["status"]["conditions"] if c["type"] == "DevicesHealthy"
    )
    assert condition["reason"] == "FallenOffBus"
    assert "XID 79: GPU has fallen off the bus; action: RebootNode" in condition["message"]
    assert agent.metric("llmos_gpu_xid_errors_total", uuid=B, xid="79") == 1
    since = (await bench.devices())[B]["health"]
    agent.kill()
    await bench.announce(A, B)
    count = len(bench.endpoint.reports)
    bench.agent(LLMOS_STATUS_INTERVAL="1")
    await bench.until(lambda: len(bench.endpoint.reports) > count + 5, "the next agent")
    assert await bench.verdict(B) == ("Unhealthy", "FallenOffBus"), "a restart does not heal"
    assert (await bench.devices())[B]["health"]["reason"] == since["reason"]
    await bench.port.merge_patch(
        GPU_NODES, bench.node, {"metadata": {"annotations": {names.ANNOTATION_HEALTH_CLEAR: B}}}
    )
    await bench.until(lambda: healthy(bench, B), "a person's word heals")


async def test_application_xids_stay_out_of_the_verdict(bench: AgentBench) -> None:
    agent = await measuring(bench)
    faults = [{"uuid": A, "xid": code} for code in (13, 31, 43, 45, 68, 109)]
    await bench.announce(A, B, faults=faults)
    await bench.until(lambda: agent.metric("llmos_gpu_xid_errors_total", uuid=A, xid="109") == 1, "the XIDs")
    count = len(bench.endpoint.reports)
    await bench.until(lambda: len(bench.endpoint.reports) > count + 3, "rounds after them")
    assert bench.endpoint.reports[-1].readings[0].verdict is Verdict.HEALTHY
    assert await healthy(bench, A)


async def test_a_device_that_is_pulled_leaves_the_gpunode_and_the_batches(bench: AgentBench) -> None:
    await measuring(bench)
    await bench.announce(A)

    async def gone() -> bool:
        return list(await bench.devices()) == [A]

    await bench.until(gone, "the device is gone")
    await bench.until(lambda: len(bench.endpoint.reports[-1].readings) == 1, "the batches follow")


async def test_a_bad_announcement_leaves_the_devices_as_they_are(bench: AgentBench) -> None:
    agent = await measuring(bench)
    annotations = {names.ANNOTATION_SIMULATED_GPUS: '[{"uuid": "x"}]'}
    await bench.port.merge_patch(NODES, bench.node, {"metadata": {"annotations": annotations}})
    await bench.until(lambda: "memoryBytes = None" in agent.text(), "the complaint")
    count = len(bench.endpoint.reports)
    await bench.until(lambda: len(bench.endpoint.reports) > count + 3, "samples go on")
    assert len(bench.endpoint.reports[-1].readings) == 2


async def test_the_agent_waits_for_a_node_that_is_not_registered_yet(bench: AgentBench) -> None:
    await bench.port.delete(NODES, bench.node)
    agent = bench.agent()
    await bench.until(lambda: "waiting for the Node" in agent.text(), "it says that it waits")
    assert agent.get("/livez")[0] == 200
    assert agent.get("/readyz")[0] == 503
    bench.plane.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": bench.node}})
    await bench.announce(A)
    # The announcement may come a moment after the Node; without devices the agent ends, as it would on a real node.
    if await _ended(agent):
        agent = bench.agent()
    await bench.until(lambda: agent.get("/readyz")[0] == 200, "ready")


async def _ended(agent: AgentProcess) -> bool:
    await asyncio.sleep(1.0)
    return agent.process is not None and agent.process.poll() is not None


async def test_a_gpunode_deleted_by_hand_comes_back(bench: AgentBench) -> None:
    await measuring(bench, LLMOS_STATUS_INTERVAL="1")
    await bench.port.delete(GPU_NODES, bench.node)
    await bench.until(lambda: healthy(bench, A), "the GPUNode is back")


async def test_the_operator_is_told_while_the_api_server_stands(bench: AgentBench) -> None:
    await measuring(bench)
    with bench.plane.frozen("kube-apiserver"):
        count = len(bench.endpoint.reports)
        await bench.until(lambda: len(bench.endpoint.reports) > count + 10, "batches go on")
    await bench.announce(A, B, faults=[{"uuid": A, "xid": 48}])

    async def told() -> bool:
        return await bench.verdict(A) == ("Unhealthy", "DoubleBitEcc")

    await bench.until(told, "the GPUNode follows again")


async def test_an_operator_that_restarts_is_told_again(bench: AgentBench) -> None:
    agent = await measuring(bench)
    port = int(bench.endpoint.url.rsplit(":", 1)[1])
    await bench.endpoint.stop()
    await bench.until(
        lambda: (agent.metric("llmos_agent_publish_total", result="error") or 0) >= 2, "failures"
    )
    assert agent.get("/readyz")[0] == 200, "measuring does not depend on the operator"
    count = len(bench.endpoint.reports)
    await bench.endpoint.start(port)
    assert await bench.until(lambda: len(bench.endpoint.reports) > count + 2, "batches again") < 12


# -- real driver calls, through the double


async def test_real_driver_calls_end_in_the_gpunode(bench: AgentBench, double: Double) -> None:
    double.with_gpu(0, ancestor__1=10).with_gpu(1).with_instance(1, 0, "MIG-a", gib=20).write()
    agent = bench.agent(**double.environment())
    await bench.until(lambda: healthy(bench, "MIG-a"), "the GPUNode")
    status = (await bench.gpunode())["status"]
    assert (status["mode"], status["driver"]) == ("nvml", "570.86.15")
    devices = await bench.devices()
    assert set(devices) == {double.uuid(0), "MIG-a"}, "the GPU that is cut into instances is not offered"
    assert devices[double.uuid(0)]["links"] == [{"uuid": double.uuid(1), "type": "PCIeSwitch", "lanes": 0}]
    assert devices["MIG-a"]["mig"] is True
    assert (devices["MIG-a"]["parent"], devices["MIG-a"]["migProfile"]) == (double.uuid(1), "1g.10gb")
    assert devices["MIG-a"]["partMilli"] == 251, (
        "20 of 80 GiB less what the driver keeps, though one slice of seven"
    )
    assert {"ecc", "nvlink", "gpm", "recovery-action"} <= set(devices[double.uuid(0)]["capabilities"])
    assert agent.metric("llmos_gpu_nvlinks", uuid=double.uuid(0), state="active") == 4
    double.event(double.uuid(0), 119).write()

    async def sick() -> bool:
        return await bench.verdict(double.uuid(0)) == ("Unhealthy", "GspError")

    await bench.until(sick, "the XID")
    assert agent.stop() == 0


def compiled(*packages: str) -> None:
    """Compile packages, as images bring them: an agent that compiles what it loads while it runs keeps 15 MiB more."""
    for name in packages:
        for folder in importlib.import_module(name).__path__:
            assert compileall.compile_dir(folder, quiet=2)


async def test_the_gpunode_says_which_pod_the_kubelet_gave_a_device_to(
    bench: AgentBench, double: Double
) -> None:
    try:
        build()
    except NoGoError as error:
        pytest.skip(str(error))
    double.with_gpu(0).with_gpu(1).write()
    first, second = double.uuid(0), double.uuid(1)
    compiled("llmos_operator.telemetry.kubelet", "h2", "hpack", "hyperframe")
    with tempfile.TemporaryDirectory(prefix="llmos-") as folder:  # a socket's path is short
        kubelet = KubeletDouble(Path(folder), double.path)
        try:
            agent = bench.agent(**double.environment(), LLMOS_POD_RESOURCES_SOCKET=str(kubelet.socket))
            await bench.until(lambda: condition_is(bench, "AllocationsKnown", "False"), "nobody tells yet")
            kubelet.start_kubelet()
            kubelet.start_plugin()
            kubelet.run("others/train", 1)
            await bench.until(lambda: holders(bench, second), "the device the plugin prefers is held")
            devices = await bench.devices()
            holder = {"pod": "others/train", "container": "main", "resource": RESOURCE}
            assert devices[second]["holders"] == [holder]
            assert (devices[first]["resource"], "holders" in devices[first]) == (RESOURCE, False)
            assert await condition(bench, "AllocationsKnown") == "True"
            kubelet.stop("kubelet")
            await bench.until(lambda: condition_is(bench, "AllocationsKnown", "False"), "it is said")
            assert (await bench.devices())[second]["holders"] == [holder], "its containers go on"
            kubelet.remove("others/train")
            kubelet.start_kubelet()
            await bench.until(lambda: free(bench, second), "it is free again")
            assert (agent.metric("llmos_agent_kubelet_reads_total", result="error") or 0) >= 1
            # 57 MiB alone; the budget itself is measured by `python -m tests.bench agent`, where nothing else runs.
            assert agent.usage()[1] < 66 << 20
            assert agent.stop() == 0
        finally:
            kubelet.close()


async def condition(bench: AgentBench, kind: str) -> str:
    status = (await bench.gpunode()).get("status") or {}
    found: dict[str, str] = {one["type"]: one["status"] for one in status.get("conditions") or []}
    return found.get(kind, "")


async def condition_is(bench: AgentBench, kind: str, state: str) -> bool:
    return await condition(bench, kind) == state


async def holders(bench: AgentBench, uuid: str) -> bool:
    return bool((await bench.devices()).get(uuid, {}).get("holders"))


async def free(bench: AgentBench, uuid: str) -> bool:
    return not await holders(bench, uuid) and await condition_is(bench, "AllocationsKnown", "True")


async def test_a_hanging_driver_is_reported_and_the_agent_lives(bench: AgentBench, double: Double) -> None:
    double.with_gpu(0).with_gpu(1).write()
    agent = bench.agent(**double.environment())
    await bench.until(lambda: healthy(bench, double.uuid(0)), "the GPUNode")
    double.hang("nvmlDeviceGetPowerUsage", double.uuid(0)).write()

    def told() -> bool:
        last = bench.endpoint.reports[-1:]  # the GPUNode may be written before a first batch arrives
        return any(
            r.uuid == double.uuid(0) and r.reason == "DriverHang" for one in last for r in one.readings
        )

    took = await bench.until(told, "the hang is told")
    assert took < 3 * 0.2 + 1.0, "three intervals, and a second for a busy machine"
    assert agent.get("/livez")[0] == 200
    status, text = agent.get("/readyz")
    assert status == 503
    assert "nvmlDeviceGetPowerUsage does not return" in text
    count = len(bench.endpoint.reports)
    await bench.until(lambda: len(bench.endpoint.reports) > count + 3, "batches go on")
    assert bench.endpoint.reports[-1].readings[1].verdict is Verdict.HEALTHY
    assert agent.stop() == 0, "a stuck thread does not hold the process"


async def test_a_lost_driver_is_said_and_ends_the_agent(bench: AgentBench, double: Double) -> None:
    double.with_gpu(0).write()
    agent = bench.agent(**double.environment())
    await bench.until(lambda: healthy(bench, double.uuid(0)), "the GPUNode")
    double.error("nvmlDeviceGetMemoryInfo_v2", UNINITIALIZED).write()
    assert agent.process is not None
    await bench.until(lambda: agent.process.poll() is not None, "the agent ends")
    assert agent.process.returncode == 1
    assert await bench.verdict(double.uuid(0)) == ("Unhealthy", "DriverLost")
    double.heal().write()
    bench.agent(**double.environment())
    await bench.until(lambda: healthy(bench, double.uuid(0)), "a new agent finds it well")


async def test_without_a_driver_the_agent_says_so_and_ends(bench: AgentBench, double: Double) -> None:
    double.set(system__loaded=0).write()
    agent = bench.agent(**double.environment())
    assert agent.process is not None
    await bench.until(lambda: agent.process.poll() is not None, "the agent ends")
    assert agent.process.returncode == 1
    assert "NVML does not start (error 9)" in agent.text()
    assert await bench.gpunode() == {}, "nothing is known about this node, so nothing is said"


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("LLMOS_NODE", "", "node is empty; set NODE_NAME"),
        ("LLMOS_SAMPLE_INTERVAL", "0", "sampleInterval"),
        ("LLMOS_MODE", "magic", "mode"),
        ("KUBECONFIG", "/nowhere/kubeconfig", "cannot read kubeconfig"),
    ],
)
async def test_a_bad_setting_ends_the_agent_with_its_name(
    bench: AgentBench, variable: str, value: str, message: str
) -> None:
    agent = bench.agent(**{variable: value, "NODE_NAME": ""})
    assert agent.process is not None
    await bench.until(lambda: agent.process.poll() is not None, "the agent ends")
    assert agent.process.returncode == 1
    assert message in agent.text()
