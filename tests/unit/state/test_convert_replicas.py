"""Replicas as the kubelet reports them, where an engine of its own stands beside the runtime."""

from __future__ import annotations

from typing import Any

from llmos_operator.manifests import pod as manifest
from llmos_operator.state.convert.replicas import replica
from tests.support.replicas import SETTINGS, a_claim_of, a_work

RUNNING = {"name": "runtime", "state": {"running": {}}, "restartCount": 1}


def seen(told: dict[str, Any], **spec: Any) -> Any:
    workload = a_work(**{"engine": {"name": "vllm", "image": "v"}, **spec})
    pod = manifest.build(workload, a_claim_of(workload), SETTINGS)
    pod["metadata"]["uid"] = "p"
    pod["status"] = {"containerStatuses": [RUNNING], "initContainerStatuses": [{"name": "engine", **told}]}
    found = replica(pod)
    assert found is not None
    return found


def ended(code: int, at: str, **more: Any) -> dict[str, Any]:
    return {"terminated": {"exitCode": code, "reason": "Error", "finishedAt": at, **more}}


def test_an_engine_that_crashes_counts_as_the_replica_crashing() -> None:
    last = ended(1, "2026-11-29T10:00:00Z", message="no memory")
    found = seen({"restartCount": 3, "state": {"running": {}}, "lastState": last})
    assert found.restarts == 4
    assert (found.latest_exit.exit_code, found.latest_exit.message) == (1, "no memory")
    assert found.running, "the runtime goes on"


def test_an_engine_that_has_just_ended_is_told_before_it_starts_again() -> None:
    killed = ended(137, "2026-11-29T11:00:00Z")
    killed["terminated"]["reason"] = "OOMKilled"
    found = seen({"restartCount": 1, "state": killed, "lastState": ended(1, "2026-11-29T10:00:00Z")})
    assert found.latest_exit.reason == "OOMKilled"
    assert found.ended is None, "the pod has not ended"


def test_an_image_that_cannot_be_had_is_what_the_replica_waits_for() -> None:
    waiting = {"waiting": {"reason": "ErrImagePull", "message": "no such image"}}
    found = seen({"state": waiting})
    assert (found.waiting, found.waiting_message) == ("ErrImagePull", "no such image")


def test_a_users_container_of_that_name_beside_our_own_engine_is_none_of_ours() -> None:
    found = seen({"restartCount": 9, "state": {"running": {}}}, engine={"name": "builtin"})
    assert found.restarts == 1
