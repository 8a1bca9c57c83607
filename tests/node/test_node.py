"""The node itself: what the chart's tests stand on."""

from __future__ import annotations

import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from scripts.realnode import layout
from scripts.realnode.host import GROUPS
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from scripts.realnode.node import Node

pytestmark = pytest.mark.node


def in_pod(node: Node, name: str, command: str) -> str:
    """Run a shell command in a pod of its own and return what it printed."""
    words = ["run", name, f"--image={layout.PAUSE_IMAGE}", "--restart=Never", "--attach", "--rm", "--quiet", "--namespace=llmos-hub"]
    return node.tools().kubectl(*words, "--command", "--", "/usr/bin/sh", "-c", command)


def test_names_and_services_resolve_in_a_pod(node: Node) -> None:
    said = in_pod(
        node,
        "resolves",
        "nslookup kubernetes.default.svc.cluster.local && nc -w 5 kubernetes.default 443 </dev/null && echo open",
    )
    assert layout.API_SERVICE in said
    assert said.strip().endswith("open")


def test_nothing_leaves_the_machine(node: Node) -> None:
    said = in_pod(
        node,
        "stays",
        "nc -w 2 192.0.2.77 80 </dev/null || echo closed; nc -w 2 1.1.1.1 53 </dev/null || echo closed",
    )
    assert said.split() == ["closed", "closed"]


def test_the_machine_keeps_its_own_settings(node: Node) -> None:
    inside = node.inside(
        "busybox", "cat", "/proc/sys/kernel/panic", "/proc/sys/vm/overcommit_memory"
    ).stdout.split()
    assert inside == [b"10", b"1"]
    mounts = subprocess.run(["mount"], capture_output=True, text=True, check=True).stdout
    assert str(node.paths.root) not in mounts
    assert not (GROUPS / "memory" / "kubepods").exists()


def test_a_component_that_ends_is_started_again(node: Node) -> None:
    before = node.inside("busybox", "cat", "/run/llmos/kube-scheduler").stdout
    node.signal("kube-scheduler", signal.SIGKILL)
    eventually(
        lambda: node.inside("busybox", "cat", "/run/llmos/kube-scheduler").stdout != before, "a new process"
    )
