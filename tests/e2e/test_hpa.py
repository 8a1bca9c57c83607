"""Somebody else may own the number of replicas: an HPA on the gateway's figures, through the real controller."""

from __future__ import annotations

import json
import threading
import urllib.error
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from llmos_operator.api import names
from tests.support.metricsapi import external_metrics

if TYPE_CHECKING:
    from tests.support.installed import Workspace

pytestmark = pytest.mark.e2e

EXAMPLE = Path(__file__).parents[2] / "examples/02-embeddings/workload.yaml"
CLIENTS = 4
TEXTS = 2  # of a request: enough that clients wait for replicas and not replicas for clients


def autoscaler() -> dict[str, object]:
    """Return an HPA that wants at most two requests of each replica, and comes down at once."""
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "embeddings"},
        "spec": {
            "scaleTargetRef": {
                "apiVersion": names.API_VERSION,
                "kind": "ModelWorkload",
                "name": "embeddings",
            },
            "minReplicas": 1,
            "maxReplicas": 2,
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}},
            "metrics": [
                {
                    "type": "External",
                    "external": {
                        "metric": {"name": "llmos_gateway_in_flight"},
                        "target": {"type": "AverageValue", "averageValue": "2"},
                    },
                }
            ],
        },
    }


def in_flight(workspace: Workspace, namespace: str, metric: str) -> float:
    """Return the requests for `embeddings` that are at replicas, as the gateways tell."""
    gateways = [
        pod
        for pod in workspace.items("pod", namespace=names.SYSTEM_NAMESPACE)
        if pod["metadata"]["labels"].get("app.kubernetes.io/component") == "gateway"
    ]
    return sum(
        sample.value
        for family in text_string_to_metric_families(workspace.metrics(gateways, names.PORT_HEALTH))
        for sample in family.samples
        if sample.name == metric
        and (sample.labels["namespace"], sample.labels["workload"]) == (namespace, "embeddings")
    )


def ask_until(workspace: Workspace, done: threading.Event) -> int:
    """Ask one thing after the other, later where the replicas have too much to do; return how often it was answered."""
    url = workspace.service_url("llmos-gateway")
    body = {"model": "minilm", "input": ["The quick brown fox jumps over the lazy dog. " * 10] * TEXTS}
    answered = 0
    while not done.is_set():
        try:
            assert len(workspace.post(f"{url}/v1/embeddings", body)["data"]) == TEXTS
        except urllib.error.HTTPError as refused:
            if refused.code != HTTPStatus.TOO_MANY_REQUESTS:
                raise
            done.wait(float(refused.headers["Retry-After"]))
        else:
            answered += 1
    return answered


def test_an_hpa_scales_a_workload_up_and_down_by_requests_in_flight(
    workspace: Workspace, tmp_path: Path
) -> None:
    (manifest,) = yaml.safe_load_all(EXAMPLE.read_text())
    manifest["spec"]["replicas"] = 1
    workspace.apply(manifest)
    workspace.ready("embeddings")
    done = threading.Event()

    def replicas() -> int:
        return int(workspace.get("modelworkload", "embeddings")["status"].get("readyReplicas", 0))

    with (
        external_metrics(tmp_path, lambda *asked: in_flight(workspace, *asked)) as objects,
        ThreadPoolExecutor(CLIENTS) as clients,
    ):
        workspace.cluster.tools.apply(*objects)
        workspace.apply(autoscaler())
        try:
            asking = [clients.submit(ask_until, workspace, done) for _ in range(CLIENTS)]
            workspace.wait("a second replica to be ready", lambda: replicas() == 2, 120)
            done.set()
            assert all(one.result(timeout=120) for one in asking), "every client was answered"
            workspace.wait("one replica to go", lambda: len(workspace.pods_of("embeddings")) == 1, 120)
            spec = workspace.get("modelworkload", "embeddings")["spec"]
            assert (spec["replicas"], workspace.condition("embeddings", "ScalingActive")) == (1, "False")
        finally:
            done.set()
            workspace.kubectl("delete", "hpa/embeddings", "--ignore-not-found")
            workspace.kubectl(
                "delete",
                "-f",
                "-",
                "--ignore-not-found",
                stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}),
            )
