"""What stays when the release is gone: the kinds, and what the chart says it keeps."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.support.waiting import eventually

if TYPE_CHECKING:
    from tests.node.conftest import Installed

pytestmark = pytest.mark.node

_LABEL = "--selector=app.kubernetes.io/instance=llmos-operator"
_CLUSTER = "clusterroles,clusterrolebindings,validatingadmissionpolicies,validatingadmissionpolicybindings,priorityclasses"
_NAMESPACED = (
    "deployments,daemonsets,pods,services,configmaps,serviceaccounts,roles,rolebindings,poddisruptionbudgets"
)


def test_an_uninstalled_release_leaves_the_kinds_and_nothing_that_runs(installed: Installed) -> None:
    installed.helm("uninstall", "llmos-operator", "--wait", "--timeout=120s")

    def left() -> list[str]:
        found = installed.tools.kubectl(
            "get", f"{_CLUSTER},{_NAMESPACED}", "--all-namespaces", _LABEL, "-o", "json"
        )
        return [f"{one['kind']}/{one['metadata']['name']}" for one in json.loads(found)["items"]]

    eventually(lambda: not left(), "all objects of the release to go")
    kept = installed.tools.kubectl("get", "crd", _LABEL, "-o", "name").split()
    assert len(kept) == 5
