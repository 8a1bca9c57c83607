"""Install, upgrade, uninstall and install again with real Helm: nothing a user has is lost or replaced."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.chart import CHART, HelmError, helm
from tests.support.cluster import api_only

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llmos_operator.local.controlplane import ControlPlane

pytestmark = pytest.mark.component
RELEASE = ("llmos-operator", str(CHART), "--namespace", "llmos-system")


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """An API server of its own: other tests need the CRDs this one takes away."""
    with api_only(tmp_path_factory.mktemp("release")) as plane:
        yield plane


def run(plane: ControlPlane, *arguments: str) -> str:
    return helm(*arguments, kubeconfig=plane.kubeconfig)


def get(plane: ControlPlane, *what: str) -> dict[str, Any]:
    return json.loads(plane.kubectl("get", *what, "-o", "json"))


def test_a_release_through_its_life(plane: ControlPlane):
    run(plane, "install", *RELEASE, "--create-namespace", "--timeout=180s")
    key = get(plane, "secret", "llmos-control", "-n", "llmos-system")["data"]["master.key"]
    queue = get(plane, "workloadqueue", "default")
    assert queue["spec"]["weight"] == 1
    assert queue["spec"].get("nominal") is None  # everything that is free
    assert get(plane, "deployment", "llmos-operator", "-n", "llmos-system")["spec"]["replicas"] == 2

    # The user makes the queue and a workload his own.
    plane.kubectl("patch", "workloadqueue", "default", "--type=merge", "-p", '{"spec": {"weight": 7}}')
    workload = {
        "apiVersion": "llmos.dev/v1alpha1",
        "kind": "ModelWorkload",
        "metadata": {"name": "chat"},
        "spec": {"model": {"uri": "hf://a/b"}},
    }
    plane.kubectl("apply", "-f", "-", stdin=json.dumps(workload))

    run(plane, "upgrade", *RELEASE, "--set", "operator.replicas=3", "--timeout=180s")
    assert get(plane, "deployment", "llmos-operator", "-n", "llmos-system")["spec"]["replicas"] == 3
    assert get(plane, "secret", "llmos-control", "-n", "llmos-system")["data"]["master.key"] == key
    assert get(plane, "workloadqueue", "default")["spec"]["weight"] == 7

    run(plane, "uninstall", "llmos-operator", "--namespace", "llmos-system", "--timeout=180s")
    with pytest.raises(Exception, match=r"not found|NotFound") as gone:
        get(plane, "deployment", "llmos-operator", "-n", "llmos-system")
    assert "llmos-operator" in str(gone.value)
    assert get(plane, "modelworkload", "chat")["spec"]["model"]["uri"] == "hf://a/b"

    run(plane, "install", *RELEASE, "--timeout=180s")
    assert get(plane, "secret", "llmos-control", "-n", "llmos-system")["data"]["master.key"] == key
    assert get(plane, "workloadqueue", "default")["spec"]["weight"] == 7
    run(plane, "uninstall", "llmos-operator", "--namespace", "llmos-system", "--timeout=180s")


def test_an_upgrade_may_reuse_the_values_of_the_local_cluster(plane: ControlPlane):
    run(plane, "install", *RELEASE, "--values", str(CHART / "ci" / "local-values.yaml"), "--timeout=180s")
    run(
        plane,
        "upgrade",
        *RELEASE,
        "--reuse-values",
        "--set",
        "operator.config.scheduling.writes=8",
        "--timeout=180s",
    )
    agents = get(plane, "daemonset", "llmos-agent", "-n", "llmos-system")["spec"]["template"]["spec"]
    assert agents["nodeSelector"] == {"llmos.dev/simulated": "true"}
    run(plane, "uninstall", "llmos-operator", "--namespace", "llmos-system", "--timeout=180s")


def test_without_keep_the_kinds_leave_with_the_release(plane: ControlPlane):
    release = ("install", *RELEASE, "--create-namespace", "--set", "crds.keep=false", "--timeout=180s")
    try:
        run(plane, *release)
    except HelmError as error:
        pytest.fail(f"kept objects of an earlier release are in the way: {error}")
    run(plane, "uninstall", "llmos-operator", "--namespace", "llmos-system", "--timeout=180s")
    deadline = time.monotonic() + 240  # the API server tries again ever more rarely
    while any(item["spec"]["group"] == "llmos.dev" for item in get(plane, "crd")["items"]):
        assert time.monotonic() < deadline, "CRDs are still there"
        time.sleep(0.2)


def test_an_old_cluster_is_refused(plane: ControlPlane):
    with pytest.raises(HelmError, match=r"chart requires kubeVersion: >=1\.30\.0-0"):
        helm("template", "llmos", str(CHART), "--kube-version", "1.29.9")
    assert run(plane, "list", "--all-namespaces", "--short").strip() == ""
