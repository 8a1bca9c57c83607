"""What a node refuses. Held by every kubelet we run on."""

import pytest

from tests.support.pods import sh


@pytest.mark.parametrize("resource", ["cpu", "memory"])
def test_a_pod_bound_to_a_node_without_room_fails_and_says_what_is_missing(pods, resource) -> None:
    amount = {"cpu": "10000", "memory": "1000Ti"}[resource]
    name = pods.create(sh("sleep 600", resources={"requests": {resource: amount}}))
    pod = pods.wait_phase(name, "Failed")
    assert pod["status"]["reason"] == f"OutOf{resource}"
    assert "Node didn't have enough resource" in pod["status"]["message"]
    assert not pod["status"].get("containerStatuses")


def test_a_pod_bound_to_a_node_it_does_not_select_fails(pods) -> None:
    name = pods.create(sh("sleep 600"), nodeSelector={"example.org/absent": "yes"})
    assert pods.wait_phase(name, "Failed")["status"]["reason"] == "NodeAffinity"


def test_a_refused_pod_can_be_deleted(pods) -> None:
    name = pods.create(sh("sleep 600", resources={"requests": {"cpu": "10000"}}))
    pods.wait_phase(name, "Failed")
    pods.delete(name)
    pods.wait_gone(name)
