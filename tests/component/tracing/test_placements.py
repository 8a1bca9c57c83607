"""One trace for each placement, from `kubectl apply` to ready, told by a real operator on a real API server."""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import TYPE_CHECKING, Any

import pytest

from llmos_operator.api.runtime.messages import LoadProgress, RuntimeState
from llmos_operator.clock import parse_rfc3339
from tests.support.fakekubelet import Script
from tests.support.tinymodels import write_model
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from tests.support.operator_process import Bench
    from tests.support.otlp import Receiver, Seen

pytestmark = [pytest.mark.component, pytest.mark.anyio]

PARTS = ("queued", "plan", "bind", "start")


async def the(collector: Receiver, name: str, **attributes: Any) -> Seen:
    """Wait for a span without holding up the servers of the test."""
    return await asyncio.to_thread(collector.one, name, **attributes)


def settings_of(collector: Receiver) -> dict[str, str]:
    return {"LLMOS_TRACING__ENDPOINT": collector.url, "LLMOS_TRACING__SAMPLE_RATIO": "0"}


def expected_trace(pod: dict[str, Any]) -> tuple[str, str]:
    """Trace and first span of a placement, from what stands on its pod."""
    claim = json.loads(pod["metadata"]["annotations"]["llmos.dev/claim"])
    uid = pod["metadata"]["ownerReferences"][0]["uid"]
    seed = f"{uid}/{claim['ordinal']}/{claim['boundAtMilli']}"
    return (
        hashlib.sha256(seed.encode()).hexdigest()[:32],
        hashlib.sha256(f"{seed}/placement".encode()).hexdigest()[:16],
    )


def environment_of(pod: dict[str, Any]) -> dict[str, str]:
    return {one["name"]: one.get("value", "") for one in pod["spec"]["containers"][0]["env"]}


async def test_a_placement_is_one_trace_from_apply_to_ready(bench: Bench, collector: Receiver) -> None:
    uri = write_model(bench.hub, "acme/tiny")
    await bench.node("n1")
    bench.operator(**settings_of(collector))
    await bench.apply("chat", uri)
    workload = await bench.until_phase("chat", "Running")
    whole = await the(collector, "placement")
    parts = {name: await the(collector, name) for name in PARTS}
    (pod,) = await bench.pods("chat")
    assert (whole.trace, whole.id) == expected_trace(pod)
    assert whole.parent == ""
    assert whole.status == "unset"
    assert {(one.trace, one.parent) for one in parts.values()} == {(whole.trace, whole.id)}
    assert whole.start == parse_rfc3339(workload["metadata"]["creationTimestamp"])
    assert (
        whole.start <= parts["queued"].start <= parts["queued"].end <= parts["plan"].end <= parts["bind"].end
    )
    assert parts["bind"].end <= parts["start"].end <= whole.end
    assert whole.attributes["llmos.workload"] == "chat"
    assert whole.attributes["llmos.namespace"] == "team"
    assert whole.attributes["k8s.node.name"] == "n1"
    assert whole.attributes["llmos.devices"] == ["GPU-sim-n1-0"]
    assert whole.attributes["llmos.format"] == "bf16"
    assert whole.attributes["llmos.bytes_per_device"] > 0
    assert parts["plan"].attributes["llmos.reason"] == "Bound"
    assert whole.resource["service.name"] == "llmos-operator"
    env = environment_of(pod)
    assert env["TRACEPARENT"] == f"00-{whole.trace}-{whole.id}-01"
    assert env["LLMOS_TRACING__ENDPOINT"] == collector.url
    assert env["LLMOS_TRACING__SAMPLE_RATIO"] == "0.0"


async def test_the_reasons_of_a_wait_are_told_and_a_replacement_has_a_trace_of_its_own(
    bench: Bench, collector: Receiver
) -> None:
    uri = write_model(bench.hub, "acme/tiny")
    await bench.node("n1")
    bench.operator(**settings_of(collector))
    await bench.apply("one", uri)
    await bench.until_phase("one", "Running")
    await bench.apply("two", uri)
    await bench.until_condition("two", "Scheduled", "False", "NoCapacity")
    await bench.delete("one")
    await bench.until_phase("two", "Running")
    second = await the(collector, "placement", llmos__workload="two")
    queued = await asyncio.to_thread(_in_trace, collector, "queued", second.trace)
    assert [(name, facts["llmos.reason"]) for name, _, facts in queued.events][-1] == (
        "llmos.waits",
        "NoCapacity",
    )
    (pod,) = await bench.pods("two")
    await bench.remove(pod)
    third = await asyncio.to_thread(_other, collector, second)
    assert third.trace != second.trace
    assert third.start >= second.start, "the wait for the replacement, not the first one"


@pytest.mark.timeout(600)
async def test_a_new_leader_goes_on_with_the_trace(bench: Bench, collector: Receiver) -> None:
    uri = write_model(bench.hub, "acme/tiny")
    await bench.node("n1")
    bench.kubelet.script = lambda _: Script(ready_after=float("inf"))
    first = bench.operator(**settings_of(collector))
    await bench.apply("chat", uri)
    started = await the(collector, "start", within=240.0)
    first.kill()
    (pod,) = await bench.pods("chat")
    uid = pod["metadata"]["uid"]
    loading = bench.kubelet.reported(uid)
    bench.operator("operator-b", **settings_of(collector))
    warming = loading.model_copy(
        update={"state": RuntimeState.WARMING, "load": LoadProgress(stage=RuntimeState.WARMING)}
    )
    bench.kubelet.report(uid, warming)
    asked = "the second operator has asked the runtime"
    await bench.until(lambda: _shows(bench, "Warming"), asked, 240.0)  # it starts, and waits for the lease
    trace, root = expected_trace(pod)
    assert started.trace == trace
    assert collector.named("placement") == []
    bench.kubelet.report(uid, loading.model_copy(update={"state": RuntimeState.READY}))
    whole = await the(collector, "placement")
    assert (whole.trace, whole.id) == (trace, root)


async def test_a_placement_that_never_serves_fails_for_its_reason(bench: Bench, collector: Receiver) -> None:
    uri = write_model(bench.hub, "acme/tiny")
    await bench.node("n1")
    bench.kubelet.script = lambda _: Script(ready_after=float("inf"))
    bench.operator(**settings_of(collector))
    await bench.apply("chat", uri)
    await the(collector, "start")
    await bench.apply("chat", uri, suspend=True)
    whole = await the(collector, "placement")
    assert whole.status == "error"
    assert whole.attributes["error.type"] == "Suspended"


async def test_without_a_receiver_pods_know_nothing_of_traces(bench: Bench) -> None:
    uri = write_model(bench.hub, "acme/tiny")
    await bench.node("n1")
    bench.operator()
    await bench.apply("chat", uri)
    await bench.until_phase("chat", "Running")
    (pod,) = await bench.pods("chat")
    assert not [name for name in environment_of(pod) if "TRAC" in name]


async def test_a_receiver_that_is_gone_keeps_no_workload_waiting(bench: Bench, collector: Receiver) -> None:
    collector.gate.clear()
    uri = write_model(bench.hub, "acme/tiny")
    await bench.node("n1")
    operator = bench.operator(**settings_of(collector))
    await bench.apply("chat", uri)
    await bench.until_phase("chat", "Running")
    assert await asyncio.to_thread(operator.stop) == 0
    assert collector.spans == []


async def _shows(bench: Bench, stage: str) -> bool:
    status = (await bench.workload("chat")).get("status") or {}
    return bool(status.get("load", {}).get("stage") == stage)


def _in_trace(collector: Receiver, name: str, trace: str) -> Seen:
    (found,) = eventually(lambda: [one for one in collector.named(name) if one.trace == trace])
    return found


def _other(collector: Receiver, than: Seen) -> Seen:
    (found,) = eventually(
        lambda: [
            one
            for one in collector.named("placement")
            if one.attributes["llmos.workload"] == than.attributes["llmos.workload"] and one.id != than.id
        ]
    )
    return found
