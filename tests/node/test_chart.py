"""The chart on a real node: install, who may do what, failover, upgrade."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from scripts.realnode import layout
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from tests.node.conftest import Installed

pytestmark = pytest.mark.node


def test_everything_runs_under_restricted_pod_security(installed: Installed) -> None:
    assert len(installed.pods("operator")) == 2
    for component in ("operator", "gateway", "agent"):
        for pod in installed.pods(component).values():
            assert all(one["ready"] for one in pod["status"]["containerStatuses"]), component
            assert [one["restartCount"] for one in pod["status"]["containerStatuses"]] == [0]


def test_the_agent_announces_the_nodes_devices(installed: Installed) -> None:
    def announced() -> list[Any]:
        status = installed.api.find("gpunodes", layout.NAME).get("status") or {}
        return list(status.get("devices") or [])

    assert len(eventually(announced, "the GPUNode has devices")) == 2


def test_helms_own_test_passes(installed: Installed) -> None:
    installed.helm("test", "llmos-operator", "--timeout=90s")


def test_another_operator_leads_when_the_leader_is_killed(installed: Installed) -> None:
    first = eventually(installed.leader, "a leader")
    holder = next(name for name in installed.pods("operator") if name in first)
    installed.tools.kubectl(
        "delete", "pod", holder, "--namespace=llmos-system", "--grace-period=0", "--force"
    )
    second = eventually(lambda: (now := installed.leader()) != first and now, "another leader")
    assert holder not in second
    eventually(lambda: len(installed.pods("operator")) == 2, "a second replica again")
