"""The reset Job: the administrator's spec, on the node, with the target told."""

from __future__ import annotations

from typing import Any

import pytest

from llmos_operator.manifests.reset_job import ended, reset_job, reset_job_name
from llmos_operator.state.care import NODE, Phase, Treatment

ONE = Treatment("GPU-1", "EvictAndReset", "GspError", Phase.RESETTING, 1000.0)
SPEC: dict[str, Any] = {
    "template": {
        "spec": {"containers": [{"name": "reset", "image": "x", "env": [{"name": "A", "value": "b"}]}]}
    }
}


def test_it_runs_once_on_the_node_and_knows_its_target() -> None:
    job = reset_job(SPEC, "n1", ONE, "llmos-system")
    pod = job["spec"]["template"]["spec"]
    env = {one["name"]: one["value"] for one in pod["containers"][0]["env"]}
    assert (pod["nodeName"], pod["restartPolicy"], job["spec"]["backoffLimit"]) == ("n1", "Never", 0)
    assert env == {
        "A": "b",
        "LLMOS_NODE": "n1",
        "LLMOS_DEVICE": "GPU-1",
        "LLMOS_ACTION": "EvictAndReset",
        "LLMOS_REASON": "GspError",
    }
    assert "nodeName" not in SPEC["template"]["spec"], "the settings stay as they are"


def test_for_a_node_no_device_is_named() -> None:
    one = Treatment(NODE, "RebootNode", "FallenOffBus", Phase.RESETTING, 1000.0)
    (container,) = reset_job(SPEC, "n1", one, "x")["spec"]["template"]["spec"]["containers"]
    assert {"name": "LLMOS_DEVICE", "value": ""} in container["env"]


def test_one_round_has_one_name() -> None:
    later = Treatment("GPU-1", "EvictAndReset", "GspError", Phase.RESETTING, 2000.0)
    assert reset_job_name("n1", ONE) == reset_job_name("n1", ONE)
    assert len({reset_job_name("n1", ONE), reset_job_name("n2", ONE), reset_job_name("n1", later)}) == 3


@pytest.mark.parametrize(("kind", "answer"), [("Complete", True), ("Failed", False), ("Suspended", None)])
def test_its_end_is_read_from_its_conditions(kind: str, answer: bool | None) -> None:
    assert ended({"status": {"conditions": [{"type": kind, "status": "True"}]}}) is answer
    assert ended({}) is None
