"""What goes wrong on a real node: memory, images, stuck programs, a silent kubelet, pods that do not go."""

from __future__ import annotations

import json
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from scripts.realnode import layout
from tests.support.standins import SERVE, stand_in
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.node.conftest import Installed

pytestmark = pytest.mark.node

MIB = 1 << 20


@contextmanager
def applied(installed: Installed, workload: dict[str, Any]) -> Iterator[str]:
    """Apply a workload for a test and leave its room to others afterwards; its name."""
    name = workload["metadata"]["name"]
    installed.tools.apply(workload)
    try:
        yield name
    finally:
        installed.remove(name)


@pytest.fixture(scope="module", autouse=True)
def _room(installed: Installed) -> None:
    """Without the chat model of the files before: some of these tests leave the node no memory."""
    installed.clear()


def limit(pod: dict[str, Any]) -> int:
    return int(pod["spec"]["containers"][0]["resources"]["limits"]["memory"])


def uids(installed: Installed, name: str) -> set[str]:
    """Return the pods of a workload there are."""
    return {one["metadata"]["uid"] for one in installed.pods_of(name)}


def reasons(installed: Installed, name: str) -> set[str]:
    """Return the reasons of the operator's Events on a workload."""
    found = installed.items("events", "default", fieldSelector=f"involvedObject.name={name}")
    return {one["reason"] for one in found if one["involvedObject"]["kind"] == "ModelWorkload"}


def test_a_program_the_kernel_kills_for_memory_gets_more_at_its_next_start(together: Installed) -> None:
    hungry = f"/usr/bin/busybox dd if=/dev/zero of=/dev/null bs=100M count=1; {SERVE}"
    # dd alone would be killed and its shell go on; so the shell becomes dd where there is too little.
    script = f'if [ "$LLMOS_MEMORY_LIMIT_BYTES" -lt {100 * MIB} ]; then exec {hungry.partition(";")[0]}; fi; {SERVE}'
    with applied(together, stand_in("hungry", script)) as name:
        pod = together.ready(name, 180.0)
        assert limit(pod) > 100 * MIB
        sizing = together.workload(name)["status"]["sizing"]
        assert sizing["outOfMemoryBytes"] == 64 * MIB
        assert "64.0 MiB" in sizing["message"]
        assert "EstimateRaised" in reasons(together, name)


def test_a_model_whose_engine_the_kernel_kills_for_memory_is_placed_anew_with_more(
    together: Installed,
) -> None:
    workload = stand_in("starved")
    del workload["spec"]["engine"]
    workload["spec"]["resources"]["memory"] = "200Mi"  # less than the libraries alone
    with applied(together, workload) as name:
        pod = together.ready(name, 240.0)
        assert limit(pod) > 250 * MIB
        assert together.workload(name)["status"]["sizing"]["outOfMemoryBytes"] >= 200 * MIB
        assert "EstimateRaised" in reasons(together, name)


def test_an_image_that_does_not_exist_is_told_and_another_one_is_taken(together: Installed) -> None:
    workload = stand_in("pictured")
    workload["spec"]["engine"]["image"] = f"{layout.REGISTRY}/engine:none"
    with applied(together, workload) as name:

        def told() -> dict[str, Any] | None:
            ready = together.condition(name, "Ready")
            return ready if ready.get("reason") == "ImageMissing" else None

        ready = eventually(told, "the condition names the cause")
        assert f"{layout.REGISTRY}/engine:none" in ready["message"]
        assert "spec.engine.image" in ready["message"]
        workload["spec"]["engine"]["image"] = layout.PAUSE_IMAGE
        together.tools.apply(workload)
        together.ready(name, 180.0)


def processes(installed: Installed, pod: dict[str, Any]) -> list[str]:
    """Return the processes of a pod's only container, as the node counts."""
    (status,) = pod["status"]["containerStatuses"]
    container = status["containerID"].removeprefix("containerd://")
    table = installed.node.inside("ctr", "--namespace=k8s.io", "tasks", "ps", container).stdout.decode()
    return [line.split()[0] for line in table.splitlines()[1:]]


def test_a_server_that_hangs_is_restarted_and_serves_again(together: Installed) -> None:
    with applied(together, stand_in("hangs")) as name:
        pod = together.ready(name)
        together.node.inside("busybox", "kill", f"-{int(signal.SIGSTOP)}", *processes(together, pod))
        # It is not ready within seconds, and it is no server to wait a minute for.
        eventually(lambda: together.condition(name, "Ready").get("status") == "False", "it is not ready")

        def restarted() -> bool:
            (now,) = together.pods_of(name)
            (status,) = now["status"]["containerStatuses"]
            return status["restartCount"] == 1 and status["ready"]

        eventually(restarted, "the kubelet starts it again", 180.0)
        assert together.ready(name)["metadata"]["uid"] == pod["metadata"]["uid"]


def test_a_pod_that_a_finalizer_keeps_holds_its_name_and_no_memory(together: Installed) -> None:
    with applied(together, stand_in("kept")) as workload:
        before = together.ready(workload)
        name = before["metadata"]["name"]

        def finalizers(value: str) -> None:
            patch = f'{{"metadata": {{"finalizers": {value}}}}}'
            words = ("--namespace=default", "--type=merge", "--patch", patch)
            together.tools.kubectl("patch", "pod", name, *words)

        def told() -> dict[str, Any] | None:
            scheduled = together.condition(workload, "Scheduled")
            return scheduled if name in scheduled.get("message", "") else None

        finalizers('["example.com/backup"]')
        together.tools.kubectl("delete", "pod", name, "--namespace=default", "--wait=false")
        try:
            assert eventually(told, "it says which pod it waits for")["status"] == "False"
        finally:
            finalizers("null")
        eventually(lambda: before["metadata"]["uid"] not in uids(together, workload), "it goes")
        assert together.ready(workload)["metadata"]["uid"] != before["metadata"]["uid"]


@pytest.fixture
def frozen_later(installed: Installed) -> Iterator[Installed]:
    """The release, whose kubelet goes on after the test whatever happened to it, without the test's workloads."""
    yield installed
    installed.node.signal("kubelet", signal.SIGCONT)
    installed.node.wait_ready()
    installed.clear()


def test_a_node_whose_kubelet_is_silent_takes_nothing_and_goes_on_when_it_is_back(
    frozen_later: Installed,
) -> None:
    installed = frozen_later
    installed.tools.apply(stand_in("stays", accelerators=1, sharing="Shared"))
    before = installed.ready("stays")
    installed.node.signal("kubelet", signal.SIGSTOP)

    def state() -> str:
        conditions = installed.api.get("nodes", layout.NAME)["status"]["conditions"]
        return str(next(one["status"] for one in conditions if one["type"] == "Ready"))

    eventually(lambda: state() == "Unknown", "the node is Unknown", 180.0)
    eventually(lambda: installed.condition("stays", "Ready").get("status") == "False", "it is not ready")
    installed.tools.apply(stand_in("comes", accelerators=1, sharing="Shared"))

    def rejected() -> dict[str, Any] | None:
        told = installed.condition("comes", "Scheduled")
        return told if "NodeNotReady" in json.dumps(installed.workload("comes").get("status", {})) else None

    assert eventually(rejected, "the new one says why it waits")["status"] == "False"
    assert installed.pods_of("comes") == []
    installed.node.signal("kubelet", signal.SIGCONT)
    after = installed.ready("stays", 180.0)
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert [one["restartCount"] for one in after["status"]["containerStatuses"]] == [0]
    installed.ready("comes")
    installed.remove("stays", "comes")


def test_a_replica_whose_pod_cannot_end_is_told_and_made_anew_when_it_has(frozen_later: Installed) -> None:
    """Nobody ends the pod: its program may still run, so what it holds stays held and its name taken."""
    installed = frozen_later
    installed.tools.apply(stand_in("lingers"))
    before = installed.ready("lingers")
    name = before["metadata"]["name"]
    installed.node.signal("kubelet", signal.SIGSTOP)
    installed.tools.kubectl("delete", "pod", name, "--namespace=default", "--wait=false")

    def told() -> dict[str, Any] | None:
        scheduled = installed.condition("lingers", "Scheduled")
        return scheduled if name in scheduled.get("message", "") else None

    assert eventually(told, "it says which pod it waits for")["status"] == "False"
    (still,) = installed.pods_of("lingers")
    assert still["metadata"]["uid"] == before["metadata"]["uid"]
    installed.node.signal("kubelet", signal.SIGCONT)
    eventually(lambda: before["metadata"]["uid"] not in uids(installed, "lingers"), "the kubelet ends it")
    assert installed.ready("lingers")["metadata"]["uid"] != before["metadata"]["uid"]
