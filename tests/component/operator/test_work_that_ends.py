"""Work that ends, on a real API server: well, badly, pushed away, suspended, and while no operator looks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from llmos_operator.api.runtime.messages import WorkProgress
from llmos_operator.cluster import port as ports
from tests.support.fakekubelet import Script
from tests.support.operator_process import collect, condition_of
from tests.support.tinymodels import write_model

if TYPE_CHECKING:
    from tests.support.operator_process import Bench

pytestmark = [pytest.mark.anyio, pytest.mark.component]

LAST_WORDS = 'Succeeded: All is answered.\n{"unit":"requests","done":20,"total":20,"failed":1}'
HALF_WAY = WorkProgress(unit="requests", done=7, total=20)


@pytest.fixture(name="bench")
async def _bench(bench: Bench) -> Bench:
    """Give every run the claims its data is on."""
    for name in ("questions", "answers"):
        await bench.claim(name)
    return bench


def a_batch(**more: Any) -> dict[str, Any]:
    limits = {name: more.pop(name) for name in ("backoffLimit",) if name in more}
    data = {"input": {"uri": "pvc://questions/in.jsonl"}, "output": {"uri": "pvc://answers/out.jsonl"}}
    return {"type": "Batch", "batch": {**data, **limits}, "resources": {"memory": "512Mi"}, **more}


def run_of(workload: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = workload["status"]["run"]
    return found


async def test_a_batch_runs_to_its_end_and_gives_its_device_back(bench: Bench) -> None:
    uri = write_model(bench.hub, "acme/tiny")
    await bench.node("n1", devices=1)
    bench.kubelet.script = lambda pod: (
        Script(progress=HALF_WAY) if pod["spec"]["restartPolicy"] == "Never" else Script()
    )
    bench.operator()
    await bench.apply("answers", uri, **a_batch())

    async def half_way() -> bool:
        status = (await bench.workload("answers")).get("status") or {}
        return (status.get("summary") or {}).get("ready") == "7/20"

    await bench.until(half_way, "the progress is shown")
    (pod,) = await bench.pods("answers")
    await bench.kubelet.exit(pod["metadata"]["uid"], 0, LAST_WORDS)
    done = await bench.until_phase("answers", "Succeeded")
    finished = condition_of(done, "Finished")
    assert (finished["status"], finished["reason"], finished["message"]) == (
        "True",
        "Succeeded",
        "All is answered.",
    )
    assert done["status"]["summary"]["ready"] == "20/20"
    assert {"startTime", "completionTime"} <= run_of(done).keys()
    assert "Ready" not in {one["type"] for one in done["status"]["conditions"]}
    assert not [
        one
        for one in await collect(bench.port, ports.SERVICES, bench.namespace)
        if one["metadata"]["name"] == "answers"
    ]
    await bench.apply("next", uri, resources={"memory": "512Mi"})
    await bench.until_phase("next", "Running")
    (kept,) = await bench.pods("answers")
    assert kept["status"]["phase"] == "Succeeded"


async def test_failures_of_the_program_are_tried_again_until_the_limit(bench: Bench) -> None:
    uri = write_model(bench.hub, "acme/tiny")
    await bench.node("n1", devices=2)
    tried: dict[str, int] = {}

    def script(pod: dict[str, Any]) -> Script:
        name = pod["metadata"]["labels"]["llmos.dev/workload"]
        tried[name] = tried.get(name, 0) + 1
        good = name == "heals" and tried[name] == 2
        return Script(exit=(0, LAST_WORDS) if good else (1, "DownloadFailed: no network; look at the node"))

    bench.kubelet.script = script
    bench.operator()
    await bench.apply("heals", uri, **a_batch(backoffLimit=3))
    await bench.apply("stays-ill", uri, **a_batch(backoffLimit=1))
    healed = await bench.until_phase("heals", "Succeeded")
    assert run_of(healed)["failures"] == 1
    ill = await bench.until_phase("stays-ill", "Failed")
    finished = condition_of(ill, "Finished")
    assert (finished["status"], finished["reason"]) == ("True", "Failed")
    assert "failed 2 times" in finished["message"]
    assert "no network; look at the node" in finished["message"]
    assert (ill["status"]["failure"]["reason"], ill["status"]["failure"]["exitCode"]) == ("DownloadFailed", 1)
    assert tried == {"heals": 2, "stays-ill": 2}
    (kept,) = await bench.pods("stays-ill")
    assert kept["status"]["phase"] == "Failed"


async def test_a_batch_that_is_pushed_away_or_suspended_waits_and_goes_on(bench: Bench) -> None:
    uri = write_model(bench.hub, "acme/tiny")
    await bench.node("n1", devices=1)
    await bench.priorities(low=10, high=1000)
    await bench.telemetry(bench.operator(), "n1")
    work = a_batch(
        backoffLimit=0, scheduling={"priorityClassName": "low", "disruption": {"minRuntime": "0s"}}
    )
    await bench.apply("answers", uri, **work)
    await bench.until_phase("answers", "Running")
    (first,) = await bench.pods("answers")
    await bench.apply("urgent", uri, resources={"memory": "512Mi"}, scheduling={"priorityClassName": "high"})
    await bench.until_phase("urgent", "Running")
    await bench.until_condition("answers", "Preempted", "True")
    waiting = await bench.until_phase("answers", "Pending")
    assert run_of(waiting).get("failures", 0) == 0
    await bench.delete("urgent")
    for pod in await bench.pods("urgent"):  # nobody collects garbage on this API server
        await bench.remove(pod)
    await bench.until_phase("answers", "Running")
    await bench.until_condition("answers", "Preempted", "False")
    (second,) = await bench.pods("answers")
    assert second["metadata"]["uid"] != first["metadata"]["uid"]

    await bench.apply("answers", uri, **work, suspend=True)
    await bench.until_phase("answers", "Suspended")

    async def gone() -> bool:
        return not await bench.pods("answers")

    await bench.until(gone, "a suspended batch has no pod")
    bench.kubelet.script = lambda _: Script(exit=(0, LAST_WORDS))
    await bench.apply("answers", uri, **work, suspend=False)
    done = await bench.until_phase("answers", "Succeeded")
    assert run_of(done).get("failures", 0) == 0


async def test_what_ends_while_no_operator_looks_is_seen_once_and_not_run_again(bench: Bench) -> None:
    uri = write_model(bench.hub, "acme/tiny")
    await bench.node("n1", devices=2)
    first = bench.operator()
    await bench.apply("good", uri, **a_batch())
    await bench.apply("bad", uri, **a_batch())

    await bench.until_phase("good", "Running")
    await bench.until_phase("bad", "Running")
    (good,), (bad,) = await bench.pods("good"), await bench.pods("bad")
    first.kill()
    await bench.kubelet.exit(good["metadata"]["uid"], 0, LAST_WORDS)
    await bench.kubelet.exit(bad["metadata"]["uid"], 65, "InvalidData: batch.input.uri: it has no lines")
    bench.operator("operator-b")
    good = await bench.until_phase("good", "Succeeded")
    bad = await bench.until_phase("bad", "Failed")
    assert condition_of(good, "Finished")["reason"] == "Succeeded"
    assert "has no lines" in condition_of(bad, "Finished")["message"]
    assert run_of(bad)["failures"] == 1
    assert len(bench.kubelet.started) == len(await bench.pods()) == 2


async def test_what_has_finished_goes_when_its_time_is_over(bench: Bench) -> None:
    uri = write_model(bench.hub, "acme/tiny")
    await bench.node("n1", devices=1)
    bench.kubelet.script = lambda _: Script(exit=(0, LAST_WORDS))
    first = bench.operator()
    await bench.apply("kept", uri, **a_batch(ttlSecondsAfterFinished=3600))
    await bench.until_phase("kept", "Succeeded")
    await bench.apply("brief", uri, **a_batch(ttlSecondsAfterFinished=3600))
    await bench.until_phase("brief", "Succeeded")
    first.kill()
    await bench.apply("brief", uri, **a_batch(ttlSecondsAfterFinished=1))
    bench.operator("operator-b")

    async def left() -> bool:
        found = await collect(bench.port, ports.MODEL_WORKLOADS, bench.namespace)
        return [one["metadata"]["name"] for one in found] == ["kept"]

    await bench.until(left, "the one whose time is over is gone")
