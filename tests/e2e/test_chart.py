"""The chart as it runs: its Deployments are up, `helm test` passes, an upgrade rolls, and no permission is missing."""

from __future__ import annotations

import re
import urllib.request
from typing import TYPE_CHECKING

import pytest

from llmos_operator.api import names
from tests.support.chart import CHART, helm

if TYPE_CHECKING:
    from tests.support.installed import Workspace

pytestmark = pytest.mark.e2e

COMPONENTS = {"operator", "agent", "gateway"}
RELEASE = ("llmos", "--namespace", names.SYSTEM_NAMESPACE)


def own_pods(workspace: Workspace) -> dict[str, dict]:
    """Return the chart's running pods by name."""
    pods = workspace.items("pods", namespace=names.SYSTEM_NAMESPACE)
    return {
        pod["metadata"]["name"]: pod
        for pod in pods
        if pod["metadata"]["labels"].get("app.kubernetes.io/component") in COMPONENTS
        and "deletionTimestamp" not in pod["metadata"]
    }


def test_helm_test_passes(workspace: Workspace) -> None:
    output = helm("test", *RELEASE, "--timeout", "120s", kubeconfig=workspace.cluster.paths.kubeconfig)
    assert re.search(r"Phase:\s+Succeeded", output)


def test_an_upgrade_rolls_out_and_leaves_the_old_pods_behind(workspace: Workspace) -> None:
    before = own_pods(workspace)
    changed = ("--set", "operator.config.scheduling.writes=8", "--set", "gateway.config.holdLimit=128")
    kubeconfig = workspace.cluster.paths.kubeconfig
    helm(
        "upgrade",
        *RELEASE[:1],
        str(CHART),
        *RELEASE[1:],
        "--reuse-values",
        *changed,
        "--wait",
        "--timeout",
        "120s",
        kubeconfig=kubeconfig,
    )
    after = own_pods(workspace)
    for component, replaced in (("operator", True), ("gateway", True), ("agent", False)):
        old, new = (
            {
                name
                for name, pod in pods.items()
                if pod["metadata"]["labels"]["app.kubernetes.io/component"] == component
            }
            for pods in (before, after)
        )
        assert new, component
        assert (old & new == set()) is replaced, component


def test_no_process_lacks_a_permission(workspace: Workspace) -> None:
    workspace.wait("the operator to be ready", lambda: len(own_pods(workspace)) >= 4, 30)
    for name in own_pods(workspace):
        log = workspace.kubectl("logs", name, f"--namespace={names.SYSTEM_NAMESPACE}")
        refused = [line for line in log.splitlines() if "forbidden" in line.lower()]
        assert not refused, f"{name}: {refused[:3]}"


def test_every_process_exposes_its_metrics_where_the_monitors_look(workspace: Workspace) -> None:
    wanted = {
        "operator": "llmos_operator_leader",
        "gateway": "llmos_gateway_requests_total",
        "agent": "llmos_gpu_memory_total_bytes",
    }
    for pod in own_pods(workspace).values():
        component = pod["metadata"]["labels"]["app.kubernetes.io/component"]
        with urllib.request.urlopen(f"http://{pod['status']['podIP']}:8080/metrics", timeout=5) as reply:
            text = reply.read().decode()
        assert f"# HELP {wanted[component].removesuffix('_total')}" in text, component
        assert f'llmos_build_info{{process="{component}"' in text
