"""The life of a local cluster: nothing is left behind, however it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llmos_operator.errors import Permanent
from llmos_operator.local.cluster import LocalCluster, Request
from llmos_operator.local.layout import ENV_CLUSTER
from llmos_operator.local.processes import marked_processes, start_ticks
from llmos_operator.local.spec import ClusterSpec, GpuModel, uniform_nodes
from llmos_operator.local.state import ClusterState, RecordedProcess
from tests.support.cluster import local_cluster
from tests.support.pods import PodClient, http_server, sh
from tests.support.waiting import eventually

pytestmark = pytest.mark.component

STUBBORN = "trap '' TERM HUP; (setsid sh -c 'trap \"\" TERM HUP; sleep 600' &) ; sleep 600"


def _pods(cluster) -> PodClient:
    return PodClient(cluster.tools, "default", "sim-0", "host")


def _left(root: Path) -> list[int]:
    return [record.pid for record in marked_processes(f"{ENV_CLUSTER}={root}")]


def _all_pids(cluster: LocalCluster) -> list[int]:
    state = cluster.state()
    assert state is not None
    return [process.pid for process in (state.supervisor, *state.processes)]


def test_down_ends_every_process_and_removes_every_file(tmp_path) -> None:
    with local_cluster(tmp_path) as cluster:
        pods = _pods(cluster)
        pods.wait_ready(pods.create(sh(STUBBORN), terminationGracePeriodSeconds=600))
        pids = _all_pids(cluster)
        assert len(pids) == 6
        began = time.monotonic()
        assert cluster.down() == []
        assert time.monotonic() - began < 300, "the pod's ten minutes of grace were waited for"
        assert not [pid for pid in pids if start_ticks(pid)]
        assert not _left(cluster.paths.root)
        assert not cluster.paths.root.exists()


def test_a_killed_supervisor_takes_everything_along_and_the_next_up_begins_afresh(tmp_path) -> None:
    with local_cluster(tmp_path) as cluster:
        pods = _pods(cluster)
        pods.wait_ready(pods.create(sh(STUBBORN)))
        pids = _all_pids(cluster)
        cluster.kill("supervisor")
        eventually(lambda: not [pid for pid in pids if start_ticks(pid)], "all parts have ended")
        eventually(lambda: not _left(cluster.paths.root), "the pod's processes have ended")
        assert not cluster.running()
        cluster.up(Request(cluster.spec()), attached=True)
        assert not cluster.tools.get("pods", namespace="default")["items"]


def test_leftovers_nobody_ended_are_ended_by_down(tmp_path) -> None:
    root = tmp_path / "local"
    command = ["sh", "-c", "trap '' TERM; sleep 600"]
    process = subprocess.Popen(command, env={**os.environ, ENV_CLUSTER: str(root)}, start_new_session=True)
    cluster = LocalCluster(root)
    assert process.pid in {record.pid for record in cluster.down()}
    assert process.wait(5) == -signal.SIGKILL


def test_a_state_file_of_a_process_that_ended_long_ago_harms_nobody(tmp_path) -> None:
    cluster = LocalCluster(tmp_path / "local")
    cluster.paths.prepare()
    me = RecordedProcess(name="supervisor", pid=os.getpid(), started=1)
    ClusterState(stage="ready", supervisor=me).write(cluster.paths.state)
    assert not cluster.running()
    cluster.down()  # would end this very test if it trusted the pid


def test_one_directory_holds_one_cluster(local_cluster) -> None:
    second = LocalCluster(local_cluster.paths.root)
    with pytest.raises(Permanent, match="llmos local down"):
        second.up(Request(local_cluster.spec()), attached=True)
    assert local_cluster.running()


def test_clusters_run_side_by_side_with_addresses_of_their_own(local_cluster, tmp_path) -> None:
    from tests.support.cluster import local_cluster as start  # noqa: PLC0415 - the fixture hides the name

    with start(tmp_path, nodes=1) as other:
        assert other.state().api_url != local_cluster.state().api_url
        here, there = _pods(local_cluster), _pods(other)
        first, second = here.create(http_server()), there.create(http_server())
        addresses = {here.wait_ready(first)["status"]["podIP"], there.wait_ready(second)["status"]["podIP"]}
        assert len(addresses) == 2
        here.remove_all()


def test_a_part_that_ends_is_started_again(tmp_path) -> None:
    with local_cluster(tmp_path) as cluster:
        for part in ("kube-scheduler", "kube-apiserver", "etcd"):
            before = cluster.pid(part)
            cluster.kill(part)
            eventually(lambda part=part, before=before: cluster.pid(part) != before, f"{part} is back")
        eventually(
            lambda: cluster.tools.run("kubectl", "get", "--raw=/readyz").returncode == 0, "ready again"
        )
        assert cluster.state().restarts.keys() >= {"kube-scheduler", "kube-apiserver", "etcd"}
        pods = _pods(cluster)
        pods.wait_ready(pods.create(sh("sleep 600")), timeout=180)


def test_the_files_of_a_cluster_are_its_owners_alone(local_cluster) -> None:
    assert local_cluster.paths.root.stat().st_mode & 0o077 == 0
    for key in local_cluster.paths.pki.glob("*.key"):
        assert key.stat().st_mode & 0o077 == 0, key


def test_a_failed_start_says_why_and_leaves_nothing(tmp_path, monkeypatch) -> None:
    binaries = tmp_path / "bin"
    binaries.mkdir()
    etcd = binaries / "etcd"
    etcd.write_text("#!/bin/sh\necho 'the disk is made of cheese' >&2\nexit 1\n")
    etcd.chmod(0o755)
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(binaries))
    cluster = LocalCluster(tmp_path / "local")
    nodes = uniform_nodes(1, 1, (GpuModel.parse("SIM-A:1Gi"),))
    with pytest.raises(Permanent, match="made of cheese"):
        cluster.up(Request(ClusterSpec(index=0, nodes=nodes)), attached=True)
    assert not _left(cluster.paths.root)
    cluster.down()


def _cli(*arguments: str, root: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "llmos_operator", "local", *arguments, "--dir", str(root)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        # As from a terminal: a shell that runs the tests in the background hands SIGINT down as ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509 - no threads yet
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name)
def test_an_attached_cluster_ends_with_its_command(tmp_path, number) -> None:
    root = tmp_path / "local"
    command = _cli("up", "--nodes=1", root=root)
    try:
        cluster = LocalCluster(root)
        assert any("Ctrl-C" in line for line in command.stderr)
        assert cluster.running()
        command.send_signal(number)
        command.wait(30)
        eventually(lambda: not _left(root), "everything has ended", timeout=180)
        assert command.returncode == (-9 if number is signal.SIGKILL else 0)
    finally:
        command.kill()
        command.communicate()
        LocalCluster(root).down()


def test_the_command_line_from_up_to_down(tmp_path) -> None:
    root, copy = tmp_path / "local", tmp_path / "kubeconfig"
    output, errors = _cli(
        "up",
        "--detach",
        "--nodes=3",
        "--gpus-per-node=4",
        "--gpu=SIM-A:1Gi",
        "--gpu=SIM-B:2Gi",
        f"--kubeconfig={copy}",
        root=root,
    ).communicate(timeout=180)
    try:
        assert f"export KUBECONFIG={copy}" in output, errors
        output, _ = _cli("status", "--json", root=root).communicate(timeout=180)
        status = json.loads(output)
        assert (status["stage"], status["nodes"], status["gpus"]) == ("ready", 3, 12)
        assert all(part["running"] for part in status["parts"])
        nodes = LocalCluster(root).tools.get("nodes")["items"]
        products = {
            node["metadata"]["name"]: node["metadata"]["labels"]["nvidia.com/gpu.product"] for node in nodes
        }
        assert products == {"sim-0": "SIM-A", "sim-1": "SIM-B", "sim-2": "SIM-A"}
        again = _cli("up", "--detach", root=root)
        _, errors = again.communicate(timeout=180)
        assert (again.returncode, "is running" in errors) == (1, True)
    finally:
        down = _cli("down", root=root)
        down.communicate(timeout=180)
    assert down.returncode == 0
    assert not copy.exists()
    absent = _cli("status", root=root)
    _, errors = absent.communicate(timeout=180)
    assert (absent.returncode, "no cluster is running" in errors) == (3, True)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--gpu=SIM-A", "PRODUCT:MEMORY"),
        ("--gpu=A:lots", "lots"),
        ("--cpu=many", "--cpu"),
        ("--image=x", "REPOSITORY=COMMAND"),
    ],
)
def test_bad_options_are_refused_before_anything_starts(tmp_path, option, words) -> None:
    command = _cli("up", option, root=tmp_path / "local")
    _, errors = command.communicate(timeout=180)
    assert command.returncode in {1, 2}
    assert words in errors
    assert not (tmp_path / "local").exists()
