"""The holder pod: one GPU of one node, nothing else, and no rights."""

from __future__ import annotations

import re

import pytest

from llmos_operator.api import names
from llmos_operator.manifests import holder
from llmos_operator.manifests.holder import HolderPodSettings

SETTINGS = HolderPodSettings("llmos-system", "reg/llmos-operator:1", priority_class_name="urgent")
OWNER = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "llmos-operator", "uid": "u1"}}


def test_it_asks_for_one_gpu_of_its_node_and_hardly_anything_else() -> None:
    pod = holder.build("n1", 0, SETTINGS)
    (container,) = pod["spec"]["containers"]
    assert pod["spec"]["nodeName"] == "n1"
    assert container["resources"]["limits"] == {"memory": "64Mi", "nvidia.com/gpu": "1"}
    assert container["image"] == "reg/llmos-operator:1"
    assert pod["spec"]["priorityClassName"] == "urgent"
    assert pod["metadata"]["labels"][names.LABEL_ROLE] == names.ROLE_HOLDER
    assert "ownerReferences" not in pod["metadata"]


def test_it_is_allowed_nothing() -> None:
    spec = holder.build("n1", 0, SETTINGS)["spec"]
    (container,) = spec["containers"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_it_goes_with_the_operators_deployment_which_controls_it() -> None:
    (reference,) = holder.build("n1", 0, SETTINGS, OWNER)["metadata"]["ownerReferences"]
    assert (reference["kind"], reference["uid"], reference["controller"]) == ("Deployment", "u1", True)


def test_an_image_that_waits_by_itself_is_given_no_command() -> None:
    settings = HolderPodSettings("llmos-system", "own", "pause:3", pull_secrets=("pull",))
    spec = holder.build("n1", 0, settings)["spec"]
    assert spec["containers"][0]["image"] == "pause:3"
    assert "command" not in spec["containers"][0]
    assert spec["imagePullSecrets"] == [{"name": "pull"}]


@pytest.mark.parametrize("node", ["n1", "gpu-7.rack-2.example.com", "x" * 253])
def test_its_name_is_that_of_its_node_and_slot(node: str) -> None:
    made = {names.holder_name(node, slot) for slot in range(12)}
    assert len(made) == 12
    assert made == {names.holder_name(node, slot) for slot in range(12)}
    assert not made & {names.holder_name(f"{node}y", slot) for slot in range(12)}
    for name in made:
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", name)
