"""What stays when the release is gone: the kinds, and what the chart says it keeps."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.support.nodegpus import free, held_by_holders, holders, serves, shared
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.node.conftest import Installed
    from tests.support.nodedevices import Devices

pytestmark = pytest.mark.node

_LABEL = "--selector=app.kubernetes.io/instance=llmos-operator"
_CLUSTER = "clusterroles,clusterrolebindings,validatingadmissionpolicies,validatingadmissionpolicybindings,priorityclasses"
_NAMESPACED = (
    "deployments,daemonsets,pods,services,configmaps,serviceaccounts,roles,rolebindings,poddisruptionbudgets"
)


@pytest.fixture(scope="module")
def uninstalled(plugin: tuple[Installed, Devices]) -> Iterator[Installed]:
    """The release, uninstalled while a workload shares a device that a holder pod has."""
    installed, devices = free(plugin)
    installed.tools.apply(shared("tenant"))
    serves(installed, "tenant")
    assert len(held_by_holders(installed, devices)) == 1
    installed.helm("uninstall", "llmos-operator", "--wait", "--timeout=120s")
    yield installed
    installed.clear()
    devices.end()


def test_an_uninstalled_release_leaves_the_kinds_and_nothing_that_runs(uninstalled: Installed) -> None:
    def left() -> list[str]:
        found = uninstalled.tools.kubectl(
            "get", f"{_CLUSTER},{_NAMESPACED}", "--all-namespaces", _LABEL, "-o", "json"
        )
        return [f"{one['kind']}/{one['metadata']['name']}" for one in json.loads(found)["items"]]

    eventually(lambda: not left(), "all objects of the release to go")
    kept = uninstalled.tools.kubectl("get", "crd", _LABEL, "-o", "name").split()
    assert len(kept) == 5


def test_an_uninstall_leaves_no_holder_pod_and_the_workload_itself(uninstalled: Installed) -> None:
    eventually(lambda: holders(uninstalled) == {}, "holder pods go with the operator's Deployment")
    assert uninstalled.workload("tenant")["metadata"]["name"] == "tenant"
