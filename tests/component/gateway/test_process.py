"""The gateway as a process, against a real API server and replicas that are real HTTP servers."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from llmos_operator.api import names
from tests.support.cluster import api_only
from tests.support.crds import install_crds
from tests.support.gateway import ScriptedReplica, condition, pod_json

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from llmos_operator.local.controlplane import ControlPlane

pytestmark = [pytest.mark.component, pytest.mark.anyio]

NAMESPACE = "team"
HOST = "127.99.7.1"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module", name="plane")
def _plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with api_only(tmp_path_factory.mktemp("gateway")) as plane:
        install_crds(plane)
        plane.kubectl("create", "namespace", NAMESPACE)
        yield plane


class Running:
    """A gateway process and its client."""

    def __init__(
        self, process: subprocess.Popen[bytes], http: aiohttp.ClientSession, port: int, health: int
    ) -> None:
        self.process = process
        self.http = http
        self.url = f"http://{HOST}:{port}"
        self.health = f"http://{HOST}:{health}"

    async def chat(self, model: str, *texts: str) -> tuple[int, Any]:
        messages = [{"role": "user", "content": text} for text in texts]
        async with self.http.post(
            f"{self.url}/v1/chat/completions", json={"model": model, "messages": messages}
        ) as answer:
            return answer.status, await answer.json(content_type=None)

    async def ready(self) -> bool:
        try:
            async with self.http.get(f"{self.health}/readyz") as answer:
                return answer.status == 200
        except aiohttp.ClientError:
            return False

    async def shows(self, sample: str) -> bool:
        """Whether its metrics have this line."""
        async with self.http.get(f"{self.health}/metrics") as answer:
            return sample in (await answer.text()).splitlines()

    async def knows(self, model: str, state: str) -> bool:
        async with self.http.get(f"{self.url}/v1/models") as answer:
            listed = (await answer.json())["data"]
        return any(one["id"] == model and one["llmos"]["state"] == state for one in listed)


@asynccontextmanager
async def _gateway(
    plane: ControlPlane, tmp_path: Path, ports: tuple[int, int], **settings: Any
) -> AsyncIterator[Running]:
    config = tmp_path / "gateway.yaml"
    values = {
        "host": HOST,
        "servingPort": ports[0],
        "healthPort": ports[1],
        "operatorUrl": "",
        "drainDelay": 4.0,
    }
    config.write_text(json.dumps({**values, **settings}))
    process = _start(plane, config)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        running = Running(process, http, *ports)
        try:
            await _eventually(running.ready, 60.0)
            yield running
        finally:
            if process.poll() is None:
                process.kill()
            await asyncio.to_thread(process.wait)


def _start(plane: ControlPlane, config: Path) -> subprocess.Popen[bytes]:
    with config.with_suffix(".log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "llmos_operator", "gateway", "--config", str(config)],
            env={**os.environ, "KUBECONFIG": str(plane.kubeconfig)},
            stderr=log,
        )


async def _eventually(holds: Callable[[], Any], seconds: float = 90.0) -> None:
    async with asyncio.timeout(seconds):
        while not await holds():
            await asyncio.sleep(0.05)


def _workload(plane: ControlPlane, name: str, served: str = "") -> str:
    model = {"uri": "hf://org/model"} | ({"name": served} if served else {})
    plane.apply(
        {
            "apiVersion": names.API_VERSION,
            "kind": "ModelWorkload",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {"model": model},
        }
    )
    found = plane.kubectl("get", "mw", name, "-n", NAMESPACE, "-o", "jsonpath={.metadata.uid}")
    return found.strip()


def _pod(
    plane: ControlPlane, name: str, uid: str, replica: ScriptedReplica, *, ready: bool = True, spec: str = ""
) -> None:
    body = pod_json(name, uid, replica.host, replica.port, namespace=NAMESPACE, spec_hash=spec)
    body["spec"]["containers"][0]["image"] = "none"
    status = body.pop("status")
    plane.apply(body)
    status["podIPs"] = [{"ip": replica.host}]
    if not ready:
        status["conditions"] = [{"type": "Ready", "status": "False"}]
    patch = json.dumps({"status": status})
    plane.kubectl("patch", "pod", name, "-n", NAMESPACE, "--subresource=status", "--type=merge", "-p", patch)


async def test_workloads_and_pods_of_the_api_server_are_routed_and_followed(
    plane: ControlPlane, tmp_path: Path
) -> None:
    async with _gateway(plane, tmp_path, (18701, 18702)) as gateway:
        uid = _workload(plane, "chat", "org/chat")
        replica = await ScriptedReplica(host="127.99.7.2", name="r1").start()
        try:
            await _eventually(lambda: gateway.knows("org/chat", "NotReady"))
            held = asyncio.create_task(gateway.chat("org/chat"))
            _pod(plane, "r1", uid, replica, ready=False)
            assert not held.done()
            _pod(plane, "r1", uid, replica)
            assert (await held)[0] == 200
            await _eventually(lambda: gateway.knows("org/chat", "Ready"))
            assert (await gateway.chat("team/chat"))[0] == 200
            assert replica.requests[-1][3]["model"] == "org/chat"
            status_patch = {"status": {"conditions": [{**condition("ModelLoaded", "False", "UnsafeFormat", "pickle"),
                            "lastTransitionTime": "2026-01-01T00:00:00Z"}]}}  # fmt: skip
            plane.kubectl("patch", "mw", "chat", "-n", NAMESPACE, "--subresource=status", "--type=merge",
                          "-p", json.dumps(status_patch))  # fmt: skip
            plane.kubectl("delete", "pod", "r1", "-n", NAMESPACE, "--grace-period=0", "--force")
            await _eventually(lambda: gateway.knows("org/chat", "Failed"))
            status, body = await gateway.chat("org/chat")
            assert (status, body["error"]["code"]) == (503, "workload_failed")
            plane.kubectl("delete", "mw", "chat", "-n", NAMESPACE)

            async def unknown() -> bool:
                return (await gateway.chat("org/chat"))[0] == 404

            await _eventually(unknown)
        finally:
            await replica.stop()


async def test_conversations_stay_with_the_replica_that_has_their_beginning(
    plane: ControlPlane, tmp_path: Path
) -> None:
    async with _gateway(plane, tmp_path, (18707, 18708)) as gateway:
        uid = _workload(plane, "talk")
        replicas = [await ScriptedReplica(host=f"127.99.7.{5 + i}", name=f"t{i}").start() for i in range(2)]
        try:
            for replica in replicas:
                _pod(plane, replica.name, uid, replica)

            async def all_known() -> bool:
                return await gateway.shows("llmos_gateway_replicas 2.0")

            await _eventually(all_known)
            said, homes = ["a" * 900], []
            for turn in range(4):
                said.append(f"{turn}")
                homes.append((await gateway.chat("talk", *said))[1]["replica"])
            assert homes == [homes[0]] * 4
            kept = 'llmos_gateway_prompts_total{namespace="team",result="kept",workload="talk"} 3.0'
            assert await gateway.shows(kept)
        finally:
            for replica in replicas:
                await replica.stop()
                plane.kubectl("delete", "pod", replica.name, "-n", NAMESPACE, "--grace-period=0", "--force")


async def test_a_canary_gets_its_share_and_the_rest_goes_to_the_older_spec(
    plane: ControlPlane, tmp_path: Path
) -> None:
    async with _gateway(plane, tmp_path, (18709, 18710)) as gateway:
        uid = _workload(plane, "trial")
        specs = ("old", "old", "new")
        replicas = [await ScriptedReplica(host=f"127.99.7.{7 + i}", name=f"c{i}").start() for i in range(3)]

        async def divided(percent: int) -> None:
            status = {"status": {"canary": {"specHash": "new", "trafficPercent": percent}}}
            plane.kubectl("patch", "mw", "trial", "-n", NAMESPACE, "--subresource=status", "--type=merge",
                          "-p", json.dumps(status))  # fmt: skip

            async def seen() -> bool:
                """Whether the gateway knows: a hundred requests that go as they should."""
                before = len(replicas[2].requests)
                statuses = {(await gateway.chat("trial", "hi"))[0] for _ in range(100)}
                return statuses == {200} and len(replicas[2].requests) - before == percent

            await _eventually(seen)

        async def all_known() -> bool:
            return await gateway.shows("llmos_gateway_replicas 3.0")

        try:
            for replica, spec in zip(replicas, specs, strict=True):
                _pod(plane, replica.name, uid, replica, spec=spec)
            await _eventually(all_known)
            await divided(20)
            await divided(5)
            assert all(replica.requests for replica in replicas)
        finally:
            for replica in replicas:
                await replica.stop()
                plane.kubectl("delete", "pod", replica.name, "-n", NAMESPACE, "--grace-period=0", "--force")


async def test_requests_go_on_while_the_api_server_is_away(plane: ControlPlane, tmp_path: Path) -> None:
    async with _gateway(plane, tmp_path, (18703, 18704)) as gateway:
        uid = _workload(plane, "steady")
        replica = await ScriptedReplica(host="127.99.7.3", name="r2").start()
        try:
            _pod(plane, "r2", uid, replica)
            await _eventually(lambda: gateway.knows("steady", "Ready"))
            plane.halt("kube-apiserver")
            try:
                for _ in range(20):
                    assert (await gateway.chat("steady"))[0] == 200
                assert await gateway.ready()
            finally:
                plane.launch("kube-apiserver")
                await asyncio.to_thread(plane.wait_ready)
            plane.kubectl("delete", "pod", "r2", "-n", NAMESPACE, "--grace-period=0", "--force")
            await _eventually(lambda: gateway.knows("steady", "NotReady"), 60.0)
        finally:
            await replica.stop()


async def test_a_stop_under_load_drops_no_request(plane: ControlPlane, tmp_path: Path) -> None:
    async with _gateway(plane, tmp_path, (18705, 18706)) as gateway:
        uid = _workload(plane, "busy")
        replica = await ScriptedReplica(host="127.99.7.4", name="r3").start()
        outcomes: list[int] = []
        stopped = asyncio.Event()

        async def client() -> None:
            """Ask again and again, as a load balancer does until it has seen that the gateway is not ready."""
            while not stopped.is_set():
                outcomes.append((await gateway.chat("busy"))[0])

        async def not_ready() -> bool:
            return not await gateway.ready()

        try:
            _pod(plane, "r3", uid, replica)
            await _eventually(lambda: gateway.knows("busy", "Ready"))
            clients = [asyncio.create_task(client()) for _ in range(8)]
            while len(outcomes) < 50:
                await asyncio.sleep(0.01)
            gateway.process.send_signal(signal.SIGTERM)
            await _eventually(not_ready)
            before = len(outcomes)
            async with asyncio.timeout(60):
                while len(outcomes) < before + 8:
                    await asyncio.sleep(0.01)
            stopped.set()
            await asyncio.gather(*clients)
            assert await asyncio.to_thread(gateway.process.wait, 30) == 0
            assert len(outcomes) > before, "what came while it drained was answered too"
            assert set(outcomes) == {200}
        finally:
            stopped.set()
            await replica.stop()


def test_a_gateway_that_cannot_start_says_why(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("servingPort: high\n")
    for arguments, environment, words in (
        (["--config", str(bad)], {}, "servingPort"),
        ([], {"KUBECONFIG": str(tmp_path / "none")}, "KUBECONFIG"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "llmos_operator", "gateway", *arguments],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert done.returncode == 1
        assert words in done.stderr
        assert "Traceback" not in done.stderr
