"""What the process kubelet does beyond the pod contract: its nodes, its devices, its own end."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from pathlib import Path

import pytest

from llmos_operator.api import names
from llmos_operator.local.kubelet.process import ENV_CONTAINER
from tests.support.cluster import local_cluster as start_cluster
from tests.support.pods import PodClient, condition, container, ended, python, sh, waiting_reason
from tests.support.waiting import eventually

pytestmark = pytest.mark.component


@pytest.fixture
def pods(local_cluster, local_namespace):
    client = PodClient(local_cluster.tools, local_namespace, "sim-0", "host")
    yield client
    client.remove_all()


def _processes(uid: str) -> list[int]:
    """Live processes of a pod."""
    prefix = f"{ENV_CONTAINER}={uid}/".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                entries = (folder / "environ").read_bytes().split(b"\0")
                if any(entry.startswith(prefix) for entry in entries):
                    found.append(int(folder.name))
    return found


def test_nodes_carry_their_devices(local_cluster) -> None:
    node = local_cluster.tools.get("node", "sim-1")
    labels = node["metadata"]["labels"]
    assert labels[names.LABEL_GPU_PRODUCT] == "SIM-A"
    assert labels[names.LABEL_GPU_MEMORY_MIB] == "1024"
    assert labels[names.LABEL_SIMULATED] == "true"
    assert labels["kubernetes.io/hostname"] == "sim-1"
    assert node["status"]["allocatable"]["nvidia.com/gpu"] == "2"
    devices = json.loads(node["metadata"]["annotations"]["llmos.dev/simulated-gpus"])
    assert [device["uuid"] for device in devices] == ["GPU-sim-sim-1-0", "GPU-sim-sim-1-1"]
    assert devices[0] == {
        "uuid": "GPU-sim-sim-1-0",
        "index": 0,
        "product": "SIM-A",
        "memoryBytes": 1 << 30,
        "computeCapability": "8.0",
    }
    assert condition(node, "Ready")["status"] == "True"


def test_nodes_renew_their_lease_and_little_else(local_cluster) -> None:
    def lease() -> dict:
        return local_cluster.tools.get("lease", "sim-0", namespace="kube-node-lease")

    first = eventually(lease, "the lease exists")["spec"]["renewTime"]
    version = local_cluster.tools.get("node", "sim-0")["metadata"]["resourceVersion"]
    eventually(lambda: lease()["spec"]["renewTime"] != first, "the lease was renewed", timeout=60)
    assert local_cluster.tools.get("node", "sim-0")["metadata"]["resourceVersion"] == version


def test_whole_devices_are_handed_out_once(pods) -> None:
    code = "import os, time; print(os.environ['NVIDIA_VISIBLE_DEVICES']); time.sleep(600)"
    limits = {"limits": {"nvidia.com/gpu": "1"}}
    first, second = pods.create(python(code, resources=limits)), pods.create(python(code, resources=limits))
    for name in (first, second):
        pods.wait_ready(name)
        pods.wait(name, lambda _pod, name=name: pods.logs(name))
    assert {pods.logs(first).strip(), pods.logs(second).strip()} == {"GPU-sim-sim-0-0", "GPU-sim-sim-0-1"}
    third = pods.create(python(code, resources=limits))
    status = pods.wait_phase(third, "Failed")["status"]
    assert status["reason"] == "UnexpectedAdmissionError"
    assert "Requested: 1, Available: 0" in status["message"]
    pods.delete(first)
    pods.wait_gone(first)
    fourth = pods.create(python(code, resources=limits))
    pods.wait_ready(fourth)
    for name in (second, fourth):
        pods.delete(name)
        pods.wait_gone(name)


def test_a_pod_gets_the_devices_it_names(pods) -> None:
    env = [{"name": "NVIDIA_VISIBLE_DEVICES", "value": "GPU-sim-sim-0-1"}]
    named = pods.create(sh("sleep 600", resources={"limits": {"nvidia.com/gpu": "1"}}, env=env))
    pods.wait_ready(named)
    code = "import os, time; print(os.environ['NVIDIA_VISIBLE_DEVICES']); time.sleep(600)"
    other = pods.create(python(code, resources={"limits": {"nvidia.com/gpu": "1"}}))
    pods.wait_ready(other)
    pods.wait(other, lambda _pod: pods.logs(other))
    assert pods.logs(other).strip() == "GPU-sim-sim-0-0"
    for name in (named, other):
        pods.delete(name)
        pods.wait_gone(name)


def test_processes_that_leave_their_session_end_with_the_container(pods) -> None:
    script = "(setsid sleep 601 &); (trap '' TERM; sleep 602) & echo up; sleep 600"
    name = pods.create(sh(script))
    uid = pods.wait_ready(name)["metadata"]["uid"]
    eventually(lambda: len(_processes(uid)) >= 3, "all have started")
    pods.delete(name)
    pods.wait_gone(name)
    assert not _processes(uid)


def test_what_a_container_started_ends_when_it_exits_by_itself(pods) -> None:
    name = pods.create(sh("(setsid sleep 601 &); sleep 0.2; exit 0"), restartPolicy="Never")
    pod = pods.wait_phase(name, "Succeeded")
    assert not _processes(pod["metadata"]["uid"])


def test_memory_of_all_processes_counts(pods) -> None:
    code = """
import os, time
for _ in range(3):
    if os.fork() == 0:
        block = bytearray(os.urandom(1 << 20) * 40); time.sleep(600)
time.sleep(600)
"""
    name = pods.create(python(code, resources={"limits": {"memory": "90Mi"}}), restartPolicy="Never")
    pod = pods.wait_phase(name, "Failed")
    assert ended(pod)["reason"] == "OOMKilled"
    assert "90Mi" in pods.wait_event(name, "OOMKilling")
    assert not _processes(pod["metadata"]["uid"])


def test_the_pods_kubeconfig_speaks_for_its_service_account(pods) -> None:
    pods.kubectl("create", "serviceaccount", "reader")
    pods.kubectl("create", "role", "read-pods", "--verb=get,list", "--resource=pods")
    pods.kubectl(
        "create", "rolebinding", "read-pods", "--role=read-pods", f"--serviceaccount={pods.namespace}:reader"
    )
    kubectl = pods.tools.binaries["kubectl"]
    script = f"{kubectl} auth whoami -o json; {kubectl} get pods -o name; {kubectl} get secrets 2>&1"
    name = pods.create(sh(script), serviceAccountName="reader", restartPolicy="Never")
    pods.wait(name, lambda pod: pod["status"]["phase"] in {"Succeeded", "Failed"})
    output = pods.logs(name)
    identity = json.loads(output[: output.index("\n}") + 2])["status"]["userInfo"]
    assert identity["username"] == f"system:serviceaccount:{pods.namespace}:reader"
    assert identity["extra"]["authentication.kubernetes.io/node-name"] == ["sim-0"]
    assert identity["extra"]["authentication.kubernetes.io/pod-name"] == [name]
    assert f"pod/{name}" in output
    assert "forbidden" in output


def test_an_image_can_be_added_while_the_cluster_runs(local_cluster, pods) -> None:
    name = pods.create(
        {"name": "main", "image": "example.org/echo:2", "args": ["hello"]}, restartPolicy="Never"
    )
    pods.wait(name, lambda pod: waiting_reason(pod) == "ErrImagePull")
    local_cluster.paths.images.write_text(
        "images:\n- {repository: example.org/echo, entrypoint: [echo, image says], args: [default]}\n"
    )
    pods.wait_phase(name, "Succeeded")
    assert pods.logs(name) == "image says hello\n"


def test_volumes_that_cannot_be_served_say_so(pods) -> None:
    name = pods.create(
        sh("true", volumeMounts=[{"name": "v", "mountPath": "/v"}]),
        volumes=[{"name": "v", "nfs": {"server": "files.example.org", "path": "/"}}],
    )
    message = pods.wait_event(name, "FailedMount")
    assert "nfs volumes are not supported" in message
    assert "persistentVolumeClaim" in message


def test_a_claim_is_a_folder_that_outlives_its_pods(pods, local_cluster) -> None:
    volumes = [{"name": "v", "persistentVolumeClaim": {"claimName": "kept"}}]
    mounts = [{"name": "v", "mountPath": "/llmos/volumes/kept"}]
    writer = pods.create(
        sh('cd "$ROOT" && echo written > kept/file', volumeMounts=mounts)
        | {"env": [{"name": "ROOT", "value": "/llmos/volumes/kept/.."}]},
        restartPolicy="Never",
        volumes=volumes,
    )
    assert 'persistentvolumeclaim "kept" not found' in pods.wait_event(writer, "FailedMount")
    pods.apply(
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": "kept"},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}},
        }
    )
    pods.wait_phase(writer, "Succeeded", timeout=180)
    reader = pods.create(
        sh("cat /llmos/volumes/kept/file", volumeMounts=mounts), restartPolicy="Never", volumes=volumes
    )
    pods.wait_phase(reader, "Succeeded", timeout=180)
    assert pods.logs(reader) == "written\n"
    (folder,) = local_cluster.paths.claims.glob("*/kept")
    assert (folder / "file").read_text() == "written\n"


@pytest.mark.parametrize("kind", ["local", "hostPath"])
def test_a_claim_that_names_a_volume_is_that_volumes_folder(pods, local_cluster, tmp_path, kind) -> None:
    (tmp_path / "file").write_text("of the volume\n")
    name = f"{pods.namespace}-{kind.lower()}"
    terms = [{"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["sim-0"]}]}]
    size, modes = {"storage": "1Mi"}, ["ReadWriteOnce"]
    volume = {"capacity": size, "accessModes": modes, kind: {"path": str(tmp_path)}}
    volume |= {"nodeAffinity": {"required": {"nodeSelectorTerms": terms}}, "storageClassName": ""}
    pods.apply(
        {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": volume},
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": "of-a-volume"},
            "spec": {
                "accessModes": modes,
                "resources": {"requests": size},
                "storageClassName": "",
                "volumeName": name,
            },
        },
    )
    reader = pods.create(
        sh("cat /v/file", volumeMounts=[{"name": "v", "mountPath": "/v"}]),
        restartPolicy="Never",
        volumes=[{"name": "v", "persistentVolumeClaim": {"claimName": "of-a-volume"}}],
    )
    pods.wait_phase(reader, "Succeeded", timeout=180)
    assert pods.logs(reader) == "of the volume\n"
    local_cluster.tools.kubectl("delete", "pv", name, "--wait=false")


def test_a_quiet_pod_causes_no_writes(pods) -> None:
    name = pods.create(sh("sleep 600", readinessProbe={"exec": {"command": ["true"]}, "periodSeconds": 1}))
    version = pods.wait_ready(name)["metadata"]["resourceVersion"]
    time.sleep(3)  # three probes that change nothing
    assert pods.get(name)["metadata"]["resourceVersion"] == version


def test_a_status_somebody_wiped_is_written_again(pods) -> None:
    name = pods.create(sh("sleep 600"))
    pods.wait_ready(name)
    patch = '{"status":{"phase":"Pending","containerStatuses":null}}'
    pods.kubectl("patch", "pod", name, "--subresource=status", "--type=merge", "-p", patch)
    pod = pods.wait_phase(name, "Running")
    assert container(pod)["ready"] is True


def test_a_restarted_node_process_runs_its_pods_again(tmp_path) -> None:
    with start_cluster(tmp_path) as cluster:
        pods = PodClient(cluster.tools, "default", "sim-0", "host")
        mount = {"volumeMounts": [{"name": "v", "mountPath": "/v"}]}
        always = pods.create(
            sh("echo x >> /v/runs; sleep 600", **mount), volumes=[{"name": "v", "emptyDir": {}}]
        )
        never = pods.create(sh("sleep 600"), restartPolicy="Never")
        finished = pods.create(sh("exit 0"), restartPolicy="Never")
        ending = pods.create(sh("trap '' TERM; sleep 600"), terminationGracePeriodSeconds=600)
        before = pods.wait_ready(always)
        uid = before["metadata"]["uid"]
        pods.wait_ready(never)
        pods.wait_ready(ending)
        pods.wait_phase(finished, "Succeeded")
        pods.delete(ending)
        running = _processes(uid)
        assert running
        cluster.kill("node", signal.SIGKILL)
        eventually(
            lambda: not set(running) & set(_processes(uid)), "the containers ended with the node process"
        )
        pod = pods.wait(
            always,
            lambda pod: container(pod)["restartCount"] == 1 and condition(pod, "Ready")["status"] == "True",
        )
        assert ended(pod)["reason"] == "ContainerStatusUnknown"
        assert pod["status"]["podIP"] == before["status"]["podIP"]
        assert ended(pods.wait_phase(never, "Failed"))["exitCode"] == 137
        assert pods.get(finished)["status"]["phase"] == "Succeeded"
        pods.wait_gone(ending)


def test_pods_run_on_while_the_api_server_is_away(tmp_path) -> None:
    with start_cluster(tmp_path) as cluster:
        pods = PodClient(cluster.tools, "default", "sim-0", "host")
        name = pods.create(sh("while true; do date +%s%N; sleep 0.1; done"))
        restarting = pods.create(sh("sleep 2; exit 1"))
        uid = pods.wait_ready(name)["metadata"]["uid"]
        pods.wait_ready(restarting)
        processes = set(_processes(uid))
        cluster.kill("kube-apiserver", signal.SIGSTOP)
        time.sleep(4)  # the API server does not answer; the second pod ends and starts meanwhile
        assert processes & set(_processes(uid))
        cluster.kill("kube-apiserver", signal.SIGCONT)
        pods.wait(restarting, lambda pod: container(pod)["restartCount"] >= 1, timeout=180)
        assert container(pods.get(name))["restartCount"] == 0
        pods.delete(name)
        pods.wait_gone(name)


def test_a_deleted_node_stays_deleted_and_its_pods_can_still_be_ended(tmp_path) -> None:
    with start_cluster(tmp_path) as cluster:
        pods = PodClient(cluster.tools, "default", "sim-1", "host")
        name = pods.create(sh("sleep 600"))
        uid = pods.wait_ready(name)["metadata"]["uid"]
        cluster.tools.kubectl("delete", "node", "sim-1")
        pods.delete(name)
        pods.wait_gone(name)
        assert not _processes(uid)
        assert not cluster.tools.kubectl("get", "node", "sim-1", "--ignore-not-found", "-o", "name")
