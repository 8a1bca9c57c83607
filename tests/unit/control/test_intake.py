"""Objects nobody understands are left out, and everything else goes on."""

from __future__ import annotations

import json
from typing import Any
from unittest.mock import Mock

import pytest

from llmos_operator.api import names
from llmos_operator.api.conditions import Reason
from llmos_operator.cluster import port
from llmos_operator.cluster.mirror import Change
from llmos_operator.control.intake import Intake
from llmos_operator.control.records import Records
from llmos_operator.state import convert
from llmos_operator.state.store import Store
from llmos_operator.state.types import Claim


class Bench:
    def __init__(self) -> None:
        self.store, self.records, self.metrics = Store(), Records(), Mock()
        self.reviewed: list[str] = []
        self.idle: set[str] = set()  # UIDs that this process has seen idle
        self.intake = Intake(
            self.store,
            self.records,
            Mock(),
            self.metrics,
            namespace="llmos-system",
            now=lambda: 1000.0,
            changed=lambda: None,
            review=self.reviewed.append,
            gone=lambda _: None,
            idle=self.idle.__contains__,
        )

    def see(self, kind: port.Kind, body: dict[str, Any]) -> None:
        self.intake.sink(kind)(Change.APPLIED, body)


def a_workload(**spec: Any) -> dict[str, Any]:
    meta = {"name": "chat", "namespace": "team", "uid": "u1", "generation": 1}
    return {"metadata": meta, "spec": {"model": {"uri": "hf://a/b"}, **spec}}


def a_replica(claimed_by: str) -> dict[str, Any]:
    claim = Claim("team/chat", "u1", 0, "team/chat-0", "n1")
    meta = {
        "name": "chat-0",
        "namespace": "team",
        "uid": "p1",
        "labels": {names.LABEL_ROLE: "runtime", names.LABEL_WORKLOAD_UID: "u1"},
        "annotations": {names.ANNOTATION_CLAIM: convert.claim_json(claim)},
        "ownerReferences": [{"kind": "ModelWorkload", "uid": claimed_by, "controller": True}],
    }
    return {"metadata": meta, "spec": {"nodeName": "n1"}, "status": {"phase": "Running"}}


def test_a_converter_that_trips_costs_one_workload_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()

    def trip(_: object) -> object:
        raise ValueError("nobody thought of this")

    monkeypatch.setattr(convert, "workload", trip)
    bench.see(port.MODEL_WORKLOADS, a_workload())
    record = bench.records.get("team/chat")
    assert record is not None
    assert record.invalid is not None
    assert record.invalid.reason is Reason.INVALID_SPEC
    assert bench.reviewed == ["team/chat"]


def test_a_time_nobody_can_read_in_a_former_status_is_no_trouble() -> None:
    body = a_workload() | {"status": {"failure": {"reason": "Failed", "message": "x", "time": "once"}}}
    bench = Bench()
    bench.see(port.MODEL_WORKLOADS, json.loads(json.dumps(body)))
    assert bench.store.workload("team/chat") is not None


@pytest.mark.parametrize(("owner", "believed"), [("u1", True), ("somebody else", False)])
def test_only_a_pod_its_workload_owns_speaks_for_it(owner: str, *, believed: bool) -> None:
    bench = Bench()
    bench.see(port.MODEL_WORKLOADS, a_workload())
    bench.see(port.PODS, a_replica(owner))
    assert bool(bench.records.replicas_of("u1")) is believed


def test_idleness_that_a_former_leader_saw_is_believed_once_this_process_sees_it() -> None:
    bench, body = Bench(), a_workload()
    body["status"] = {"activity": {"state": "Idle", "since": "2026-01-01T00:00:00Z"}}
    bench.see(port.MODEL_WORKLOADS, body)
    before = bench.store.workload("team/chat")
    assert before is not None
    assert before.idle_since is None
    bench.idle.add("u1")
    bench.see(port.MODEL_WORKLOADS, body)
    after = bench.store.workload("team/chat")
    assert after is not None
    assert after.idle_since is not None
