"""The chart of this checkout in a local cluster, installed by Helm."""

from __future__ import annotations

import json

import pytest

from llmos_operator.errors import Permanent
from llmos_operator.local import installation
from tests.support.cluster import local_cluster as start_cluster
from tests.support.waiting import eventually

pytestmark = pytest.mark.component


def test_install_upgrade_and_uninstall(tmp_path) -> None:
    with start_cluster(tmp_path) as cluster:
        tools = cluster.tools
        installation.install(cluster)
        installation.install(cluster, overrides={"gateway": {"replicas": 2}})
        release = json.loads(tools.run("helm", "list", "-n", "llmos-system", "-o", "json").stdout)[0]
        assert (release["status"], release["revision"]) == ("deployed", "2")
        deployments = tools.get("deployments", namespace="llmos-system")["items"]
        ready = {item["metadata"]["name"]: item["status"]["readyReplicas"] for item in deployments}
        assert ready == {"llmos-operator": 2, "llmos-gateway": 2}
        agents = tools.get("daemonset", "llmos-agent", namespace="llmos-system")["status"]
        assert agents["numberReady"] == 2
        pods = tools.get("pods", namespace="llmos-system")["items"]
        assert not [pod for pod in pods if pod["status"]["containerStatuses"][0]["restartCount"]]
        eventually(lambda: len(tools.get("gpunodes")["items"]) == 2, "the agents have reported")
        assert tools.run("helm", "uninstall", "llmos", "-n", "llmos-system", "--wait").returncode == 0
        eventually(
            lambda: not tools.get("pods", namespace="llmos-system")["items"], "the pods are gone", timeout=60
        )


def test_a_checkout_without_chart_is_told_apart(local_cluster, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(installation, "CHART", tmp_path)
    with pytest.raises(Permanent, match="no chart"):
        installation.install(local_cluster)


def test_what_helm_says_is_passed_on(local_cluster) -> None:
    with pytest.raises(Permanent, match="replicas"):
        installation.install(local_cluster, overrides={"operator": {"replicas": "many"}})
