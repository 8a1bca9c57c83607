"""What `llmos simulate -f` says before, and what a real operator does after the same file is applied."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from aiohttp import web

from llmos_operator.api import names
from llmos_operator.cluster import port as ports
from tests.support.operator_process import REPOSITORY, SYSTEM, collect
from tests.support.tinymodels import write_model

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.operator_process import Bench

pytestmark = [pytest.mark.anyio, pytest.mark.component]

WATCHED = (
    ports.MODEL_WORKLOADS, ports.WORKLOAD_QUEUES, ports.MODEL_PROFILES, ports.GPU_NODES, ports.NODES, ports.PODS,
    ports.PRIORITY_CLASSES, ports.NAMESPACES, ports.SERVICES, ports.SECRETS, ports.POD_DISRUPTION_BUDGETS,
)  # fmt: skip


def a_workload(name: str, uri: str, **spec: Any) -> dict[str, Any]:
    resources = {"memory": "600Mi"}
    return {
        "apiVersion": names.API_VERSION,
        "kind": "ModelWorkload",
        "metadata": {"name": name},
        "spec": {"model": {"uri": uri}, "resources": resources, **spec},
    }


def priority(name: str, value: int) -> dict[str, Any]:
    return {
        "apiVersion": "scheduling.k8s.io/v1",
        "kind": "PriorityClass",
        "metadata": {"name": name},
        "value": value,
    }


def a_file(folder: Path, *documents: dict[str, Any]) -> Path:
    path = folder / "new.yaml"
    path.write_text(yaml.safe_dump_all(documents))
    return path


async def simulate(bench: Bench, *arguments: str, stdin: str = "", expect: int = 0) -> str:
    """Run the command through the proxy, which sees every request."""
    config = bench.proxy.write_kubeconfig(bench.folder / "cli.kubeconfig")
    done = await llmos(
        "simulate", "-n", bench.namespace, "--kubeconfig", str(config), *arguments, stdin=stdin
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout if expect == 0 else done.stderr


async def llmos(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "llmos_operator", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        cwd=REPOSITORY,
        env={**os.environ, "LLMOS_LOCAL_DIR": "/nonexistent"},
        timeout=180,
    )


async def versions(bench: Bench) -> dict[tuple[str, str, str], str]:
    """Return the resource version of every object that a plan is about."""
    return {
        (kind.kind, item["metadata"].get("namespace", ""), item["metadata"]["name"]): item["metadata"][
            "resourceVersion"
        ]
        for kind in WATCHED
        for item in await collect(bench.port, kind)
    }


@asynccontextmanager
async def untouched(bench: Bench) -> AsyncIterator[None]:
    """Stop the operators meanwhile, and see that nobody else writes anything: no object's version may change."""
    for one in bench.operators:
        one.freeze()
    try:
        before = await versions(bench)
        yield
        assert await versions(bench) == before
        assert wrote(bench) == []
    finally:
        for one in bench.operators:
            one.thaw()


async def measured(bench: Bench, *nodes: str) -> web.AppRunner:
    """Let an agent's metrics say that nothing is in use on the devices of `nodes`, where the command looks for them."""
    found = [await bench.port.get(ports.GPU_NODES, node) for node in nodes]
    uuids = [device["uuid"] for node in found for device in node["status"]["devices"]]
    text = "".join(f'llmos_gpu_memory_used_bytes{{uuid="{uuid}"}} 0\n' for uuid in uuids)

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(text=text)

    address = f"127.11.{os.getpid() % 250}.{os.getpid() // 250 % 250 + 1}"
    app = web.Application()
    app.router.add_get("/metrics", metrics)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, address, names.PORT_HEALTH).start()
    meta = {"name": "agent-metrics", "labels": {"app.kubernetes.io/component": "agent"}}
    spec = {"containers": [{"name": "agent", "image": "i"}]}
    await bench.port.create(ports.PODS, {"metadata": meta, "spec": spec}, namespace=SYSTEM)
    status = {"status": {"podIP": address, "podIPs": [{"ip": address}]}}
    await bench.port.merge_patch(ports.PODS, "agent-metrics", status, namespace=SYSTEM, subresource="status")
    return runner


async def inspected(bench: Bench) -> bool:
    """Return whether the size of every model is known: without it a workload waits."""
    profiles = await collect(bench.port, ports.MODEL_PROFILES)
    return bool(profiles) and all((one.get("status") or {}).get("shape") for one in profiles)


def wrote(bench: Bench) -> list[str]:
    """Return the command's requests that were not reads; dry runs are not writes."""
    return [
        f"{one.method} {one.path}?{one.query}"
        for one in bench.proxy.requests
        if one.agent.startswith("llmos-cli") and one.write and "dryRun=All" not in one.query
    ]


async def placements(bench: Bench, name: str) -> list[tuple[str, tuple[str, ...], str]]:
    """Return (node, devices, format) of a workload's pods, from the claims that they carry."""
    found = []
    for pod in await bench.pods(name):
        claim = json.loads(pod["metadata"]["annotations"]["llmos.dev/claim"])
        found.append((pod["spec"]["nodeName"], tuple(claim["devices"]), claim["format"]))
    return sorted(found)


def told(answer: dict[str, Any]) -> list[tuple[str, tuple[str, ...], str]]:
    return sorted((one["node"], tuple(one["devices"]), one["format"]) for one in answer["placed"])


async def test_what_was_simulated_is_what_happens_and_nothing_was_written(bench: Bench) -> None:
    uri = write_model(bench.hub, "acme/tiny")
    await bench.node("n1", devices=2)
    await bench.node("n2", devices=3)
    bench.operator()
    await bench.apply("first", uri, resources={"memory": "600Mi"})
    await bench.until_phase("first", "Running")
    await bench.until(lambda: inspected(bench), "the model's size is known")
    file = a_file(
        bench.folder,
        a_workload("one", uri, replicas=2),
        a_workload("two", uri, resources={"accelerators": 0}),
        a_workload("three", uri, resources={"accelerators": 3, "memory": "600Mi"}),
    )
    async with untouched(bench):
        found = json.loads(await simulate(bench, "-f", str(file), "--json"))
    assert [one["outcome"] for one in found["workloads"]][:2] == ["Starts", "Starts"]
    bench.plane.kubectl("apply", "-n", bench.namespace, "-f", str(file))
    for answer in found["workloads"]:
        name = answer["explanation"]["workload"].partition("/")[2]
        if answer["outcome"] == "Starts":
            await bench.until_phase(name, "Running")
        else:
            await bench.until_condition(name, "Scheduled", "False", answer["explanation"]["reason"])
        assert await placements(bench, name) == told(answer)


async def test_victims_and_the_place_they_leave_are_foretold(bench: Bench) -> None:
    uri = write_model(bench.hub, "acme/tiny")
    for node in ("n1", "n2"):
        await bench.node(node, devices=1)
    operator = bench.operator()
    await bench.until(lambda: operator.probe("/readyz"), "operator is ready")
    for node in ("n1", "n2"):
        await bench.telemetry(operator, node)
    runner = await measured(bench, "n1", "n2")
    try:
        bench.plane.kubectl(
            "apply", "-f", "-", stdin=yaml.safe_dump_all([priority("low", 1), priority("high", 9)])
        )
        gives_way = {"priorityClassName": "low", "disruption": {"minRuntime": "0s"}}
        await bench.apply("background", uri, replicas=2, scheduling=gives_way, resources={"memory": "600Mi"})
        await bench.until_phase("background", "Running")
        held = {pod["metadata"]["name"] for pod in await bench.pods("background")}
        file = a_file(bench.folder, a_workload("urgent", uri, scheduling={"priorityClassName": "high"}))
        async with untouched(bench):
            found = json.loads(await simulate(bench, "-f", "-", "--json", stdin=file.read_text()))
            text = await simulate(bench, "-f", str(file))
    finally:
        await runner.cleanup()
    (answer,) = found["workloads"]
    (victim,) = found["displaced"]
    assert answer["outcome"] == "StartsAfterEviction"
    assert victim["afterwards"].startswith("waits: NoCapacity")
    assert "team/background" in text
    assert "would start once others have made room" in text
    bench.plane.kubectl("apply", "-n", bench.namespace, "-f", str(file))
    await bench.until_phase("urgent", "Running")
    assert await placements(bench, "urgent") == told(answer)
    left = {pod["metadata"]["name"] for pod in await bench.pods("background")}
    assert held - left == {victim["pod"].partition("/")[2]}


async def test_what_the_api_server_would_refuse_is_refused_with_document_and_field(bench: Bench) -> None:
    await bench.node("n1")
    both = a_workload("both", "hf://a/b", replicas=1, scaling={"maxReplicas": 2})
    typo = a_workload("typo", "hf://a/b", quantisation={"mode": "None"})
    message = await simulate(bench, "-f", str(a_file(bench.folder, both)), expect=1)
    assert "document 1 (ModelWorkload both)" in message
    assert "replicas and scaling exclude each other" in message
    message = await simulate(bench, "-f", str(a_file(bench.folder, both, typo)), expect=1)
    assert (
        "document 2 (ModelWorkload typo): spec.quantisation: is not a field; did you mean quantization?"
        in message
    )
    assert await collect(bench.port, ports.MODEL_WORKLOADS, bench.namespace) == []


async def test_a_queue_and_a_namespace_of_the_same_file_are_counted_on(bench: Bench) -> None:
    await bench.node("n1", devices=2)
    queue = {
        "apiVersion": names.API_VERSION,
        "kind": "WorkloadQueue",
        "metadata": {"name": "small"},
        "spec": {"nominal": {"gpus": 1}},
    }
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "laboratory"}}
    first = a_workload("first", "hf://a/b", queueName="small")
    second = a_workload("second", "hf://a/b", queueName="small")
    for one in (first, second):
        one["metadata"]["namespace"] = "laboratory"
    file = a_file(bench.folder, namespace, queue, first, second)
    async with untouched(bench):
        found = json.loads(await simulate(bench, "-f", str(file), "--json"))
    assert [one["outcome"] for one in found["workloads"]] == ["Starts", "Waits"]
    assert found["workloads"][1]["explanation"]["reason"] == "ExceedsQuota"
    assert any("its namespace is in the file" in note for note in found["notes"])


async def test_who_may_only_read_is_answered_with_a_note(bench: Bench) -> None:
    await bench.node("n1")
    bench.proxy.fail = lambda method, _: 0 if method == "GET" else 403
    file = a_file(bench.folder, a_workload("chat", "hf://a/b"))
    text = await simulate(bench, "-f", str(file))
    assert "would start now" in text
    assert "you may not write it: rules between its fields were not checked" in text


async def test_work_that_has_to_wait_is_told_why_and_what_would_help(bench: Bench) -> None:
    uri = write_model(bench.hub, "acme/tiny")
    await bench.node("n1")
    bench.operator()
    await bench.apply("first", uri)
    await bench.until_phase("first", "Running")
    file = a_file(
        bench.folder, a_workload("second", uri), a_workload("huge", uri, resources={"memory": "5Gi"})
    )
    found = json.loads(await simulate(bench, "-f", str(file), "--json"))
    second, huge = (one["explanation"] for one in found["workloads"])
    assert (second["reason"], huge["reason"]) == ("NoCapacity", "LargerThanAnyDevice")
    assert second["queuePosition"] == 1
    text = await simulate(bench, "-f", str(file))
    assert "1 of 1 replicas wait" in text
    assert "Would fit: resources.memory up to 1.0 GiB" in text


async def test_a_change_of_a_running_workload_is_simulated_as_its_replacement(bench: Bench) -> None:
    uri = write_model(bench.hub, "acme/tiny")
    await bench.node("n1", devices=1)
    await bench.node("n2", devices=2)
    bench.operator()
    await bench.apply("chat", uri, resources={"memory": "600Mi"})
    await bench.until_phase("chat", "Running")
    file = a_file(bench.folder, a_workload("chat", uri, resources={"accelerators": 2, "memory": "600Mi"}))
    async with untouched(bench):
        (answer,) = json.loads(await simulate(bench, "-f", str(file), "--json"))["workloads"]
    assert told(answer)[0][:2] == ("n2", ("GPU-sim-n2-0", "GPU-sim-n2-1"))
    bench.plane.kubectl("apply", "-n", bench.namespace, "-f", str(file), "--server-side", "--force-conflicts")

    async def replaced() -> bool:
        return await placements(bench, "chat") == told(answer)

    await bench.until(replaced, "the replacement runs where it was foretold")


async def test_a_cycle_that_the_operator_recorded_is_replayed_to_the_same_bytes(bench: Bench) -> None:
    uri = write_model(bench.hub, "acme/tiny")
    await bench.node("n1", devices=2)
    cycles = bench.folder / "cycles"
    bench.operator(LLMOS_SCHEDULING__RECORD_FOLDER=str(cycles))
    await bench.apply("chat", uri)
    await bench.until_phase("chat", "Running")
    await bench.apply("wide", uri, resources={"accelerators": 2})
    await bench.until_condition("wide", "Scheduled", "False")
    files = await asyncio.to_thread(lambda: sorted(cycles.glob("*.json")))
    actions: list[str] = []
    for file in files:
        done = await llmos("simulate", "--snapshot", str(file), "--json")
        assert done.returncode == 0, done.stderr
        plan = json.loads(file.read_text())["plan"]
        assert done.stdout == json.dumps(plan, indent=2, ensure_ascii=False) + "\n"
        actions += [one["action"] for one in plan["actions"]]
    assert actions == ["Bind"]
    new = a_file(bench.folder, a_workload("new", uri))
    done = await llmos("simulate", "--snapshot", str(files[-1]), "-f", str(new), "-n", "team", "--json")
    (answer,) = json.loads(done.stdout)["workloads"]
    assert told(answer)[0][1] == ("GPU-sim-n1-1",)


async def test_a_snapshot_of_the_live_cluster_is_written_by_reading_only_and_replayed(bench: Bench) -> None:
    uri = write_model(bench.hub, "acme/tiny")
    await bench.node("n1", devices=1)
    bench.operator()
    await bench.apply("chat", uri, podTemplate={"spec": {"containers": [{"name": "a", "image": "hunter2"}]}})
    await bench.until_phase("chat", "Running")
    config = bench.proxy.write_kubeconfig(bench.folder / "cli.kubeconfig")
    async with untouched(bench):
        done = await llmos("snapshot", "--kubeconfig", str(config))
    assert done.returncode == 0, done.stderr
    assert "hunter2" not in done.stdout
    again = await llmos("simulate", "--snapshot", "-", stdin=done.stdout)
    assert (again.returncode, again.stdout) == (0, "nothing to decide: everything that is wanted runs\n")
    old = await llmos(
        "simulate", "--snapshot", "-", stdin=done.stdout.replace('"version":1', '"version":0', 1)
    )
    assert old.returncode == 1
    assert "this program reads version 1" in old.stderr
