"""From a process to its pod."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from llmos_operator.telemetry.attribution import (
    NOBODY,
    Attribution,
    Owner,
    environment,
    owner_in,
    owner_of,
    pod_uid_of_cgroup,
    sees_host_processes,
    start_time,
)

if TYPE_CHECKING:
    from pathlib import Path

UID = "3f0a9c1e-5b7d-4e2a-9c11-0d6f2b8a7e55"
UNDER = UID.replace("-", "_")
STATIC = "0123456789abcdef0123456789abcdef"

CGROUPS = {
    "cgroupfs v1": f"12:memory:/kubepods/burstable/pod{UID}/0a1b2c\n1:cpu:/kubepods/burstable/pod{UID}/0a1b2c\n",
    "cgroupfs v1 guaranteed": f"4:devices:/kubepods/pod{UID}/0a1b2c\n",
    "cgroupfs v2": f"0::/kubepods/besteffort/pod{UID}/0a1b2c\n",
    "systemd v2": f"0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UNDER}.slice/cri-containerd-0a.scope\n",
    "systemd guaranteed": f"0::/kubepods.slice/kubepods-pod{UNDER}.slice/crio-0a.scope\n",
    "kind": (
        "0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/"
        f"kubelet-kubepods-besteffort-pod{UNDER}.slice/cri-containerd-0a.scope\n"
    ),
    "nested container": f"0::/system.slice/docker-77.scope/kubepods/burstable/pod{UID}/0a1b2c/inner\n",
    "seen from a private namespace, systemd": (
        f"0::/../../../kubepods-burstable.slice/kubepods-burstable-pod{UNDER}.slice/cri-containerd-0a.scope\n"
    ),
    "seen from a private namespace, cgroupfs": f"0::/../../pod{UID}/0a1b2c\n",
}


@pytest.mark.parametrize("name", CGROUPS)
def test_every_form_of_a_pods_cgroup_is_known(name: str) -> None:
    assert pod_uid_of_cgroup(CGROUPS[name].encode()) == UID


def test_a_static_pod_has_a_hash_for_a_uid() -> None:
    assert pod_uid_of_cgroup(f"0::/kubepods/burstable/pod{STATIC}/0a1b2c\n".encode()) == STATIC


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0::/\n",
        "0::/user.slice/user-1000.slice/session-3.scope\n",
        f"0::/machine.slice/pod{UID}/container\n",  # podman, not the kubelet
        "0::/kubepods/burstable/podnotauid/0a\n",
        f"0::/kubepods/burstable/pod{UID}ff/0a\n",
        "0::/kubepods.slice/kubepods-besteffort.slice\n",
    ],
)
def test_what_is_no_pod_is_nobody(text: str) -> None:
    assert pod_uid_of_cgroup(text.encode()) == ""


def a_process(proc: Path, pid: int, cgroup: str = "0::/\n", start: int = 100, **variables: str) -> None:
    folder = proc / str(pid)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cgroup").write_text(cgroup)
    (folder / "environ").write_bytes(b"".join(f"{k}={v}".encode() + b"\0" for k, v in variables.items()))
    after_name = " ".join(["S", "1", *["0"] * 17, str(start), *["0"] * 30])
    (folder / "stat").write_text(f"{pid} (py (th) on) {after_name}\n")


def test_the_cgroup_wins_over_the_environment(tmp_path: Path) -> None:
    a_process(tmp_path, 7, CGROUPS["systemd v2"], POD_UID="forged", POD_NAME="p", POD_NAMESPACE="ns")
    assert owner_of(7, tmp_path) == Owner(UID, "ns/p")


def test_without_a_pods_cgroup_the_environment_tells(tmp_path: Path) -> None:
    a_process(tmp_path, 7, POD_UID="abc-1", POD_NAME="p", POD_NAMESPACE="ns", HOME="/root")
    assert owner_of(7, tmp_path) == Owner("abc-1", "ns/p")
    assert environment(7, tmp_path) == {"POD_UID": "abc-1", "POD_NAME": "p", "POD_NAMESPACE": "ns"}


@pytest.mark.parametrize("uid", ["", " ", "a b", "../x", "-x", "x" * 200, "a\nb"])
def test_an_environment_that_names_no_uid_is_nobody(uid: str) -> None:
    assert owner_in({"POD_UID": uid}) == NOBODY


def test_a_process_that_is_gone_is_nobody(tmp_path: Path) -> None:
    assert owner_of(7, tmp_path) == NOBODY
    assert environment(7, tmp_path) == {}
    assert start_time(7, tmp_path) == -1


def test_a_process_that_is_gone_is_not_looked_up(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "environ").write_bytes(b"POD_UID=left\0")
    assert Attribution(tmp_path).owners([7]) == {7: NOBODY}


def test_a_pid_that_is_used_again_is_not_its_predecessor(tmp_path: Path) -> None:
    attribution = Attribution(tmp_path)
    a_process(tmp_path, 7, start=100, POD_UID="first")
    assert attribution.owners([7]) == {7: Owner("first")}
    a_process(tmp_path, 7, start=200, POD_UID="second")
    assert attribution.owners([7]) == {7: Owner("second")}


def test_a_known_process_is_not_read_again_and_forgotten_with_its_end(tmp_path: Path) -> None:
    attribution = Attribution(tmp_path)
    a_process(tmp_path, 7, POD_UID="one")
    attribution.owners([7])
    (tmp_path / "7" / "environ").unlink()
    assert attribution.owners([7]) == {7: Owner("one")}
    attribution.owners([])
    assert attribution.owners([7]) == {7: NOBODY}


def test_the_hosts_processes_are_told_by_the_kernels_thread_parent(tmp_path: Path) -> None:
    assert not sees_host_processes(tmp_path)
    (tmp_path / "2").mkdir()
    (tmp_path / "2" / "comm").write_text("bash\n")
    assert not sees_host_processes(tmp_path)
    (tmp_path / "2" / "comm").write_text("kthreadd\n")
    assert sees_host_processes(tmp_path)
