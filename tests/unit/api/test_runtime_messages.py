"""What runtimes say is put into the range of the API's types: they run what tenants bring."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from llmos_operator.api.runtime.messages import RuntimeStatus
from llmos_operator.manifests.observed import Observed
from llmos_operator.manifests.status import build, to_json
from llmos_operator.state.types import Claim, Model, Pod, Workload

HOSTILE: list[dict[str, Any]] = [
    {"state": "Loading", "load": {"bytesDone": -1, "bytesTotal": 10**40, "etaSeconds": -4}},
    {"state": "Failed", "failure": {"reason": "x y" * 999, "message": "y" * 90_000}},
    {
        "state": "Ready",
        "memory": {"peakBytes": 10**60},
        "model": {"digest": "d" * 900, "revision": "r" * 900},
    },
    {"state": "Ready", "requests": {"waiting": -5, "lastRequestAgeSeconds": 10**400}},
]


@pytest.mark.parametrize("said", HOSTILE, ids=str)
def test_a_status_can_be_built_from_whatever_a_runtime_says(said: dict[str, Any]) -> None:
    workload = Workload("team/chat", "u1", Model("hf://a/b"))
    pod = Pod("team/chat-0", "p1", "n1", claim=Claim("team/chat", "u1", 0, "team/chat-0", "n1"))
    report = RuntimeStatus.model_validate(said)
    seen = Observed(workload, 1000.0, pods=(pod,), reports={"p1": report})
    assert to_json(build(seen))["replicas"] == 1


@pytest.mark.parametrize("value", [float("inf"), float("nan"), -1.0])
def test_times_nobody_can_count_with_are_refused(value: float) -> None:
    with pytest.raises(ValidationError):
        RuntimeStatus.model_validate({"loadSeconds": {"Loading": value}})
