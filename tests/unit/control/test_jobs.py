from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos_operator.api.conditions import Reason
from llmos_operator.control import jobs, lifetime, reconcile
from llmos_operator.control.reconcile import Ruling, Situation
from llmos_operator.manifests.observed import Tries
from llmos_operator.state.replicas import Exit, Replica
from llmos_operator.state.types import Pod, PodPhase, Workload
from tests.support.replicas import NOW, a_pod_of, a_work

DATA = {"input": {"uri": "pvc://data/in.jsonl"}, "output": {"uri": "pvc://data/out.jsonl"}}


def a_batch(**changes: Any) -> Workload:
    return a_work(type="Batch", batch={**DATA, **changes})


WORK = a_batch()
NONE = Tries()


def ended(work: Workload, code: int, *, uid: str = "pod-0", said: str = "", **of: Any) -> tuple[Pod, Replica]:
    pod = replace(a_pod_of(work), uid=uid, phase=PodPhase.FINISHED, failed=code != 0)
    reason = of.pop("reason", "Completed" if code == 0 else "Error")
    exit_ = Exit(reason, code, said, NOW)
    return pod, Replica(pod.key, uid, work.uid, phase="Failed" if code else "Succeeded", ended=exit_, **of)


def ruled(
    work: Workload, pod: Pod, replica: Replica | None = None, tries: Tries = NONE, **more: Any
) -> Ruling:
    replicas = {pod.key: replica} if replica is not None else {}
    seen = Situation(work, NOW, (pod,), replicas=replicas, tries=tries, **{"written": tries, **more})
    return reconcile.rule(seen)


def test_a_run_that_ended_well_has_succeeded_and_its_pod_stays() -> None:
    ruling = ruled(WORK, *ended(WORK, 0, said="Succeeded: 20 of 20 requests are answered."))
    assert ruling.ended is not None
    assert (ruling.ended.reason, ruling.ended.message) == (
        Reason.SUCCEEDED,
        "20 of 20 requests are answered.",
    )
    assert (ruling.retire, ruling.failed, ruling.tries.failures) == ((), (), 0)


def test_a_pod_that_ended_well_while_it_was_to_go_counts_as_a_success() -> None:
    pod, replica = ended(WORK, 0, deleting=True)
    ruling = ruled(WORK, replace(pod, deletion_at=NOW), replica)
    assert ruling.ended is not None
    assert ruling.ended.reason is Reason.SUCCEEDED


def test_a_failure_is_counted_before_its_pod_goes() -> None:
    pod, replica = ended(WORK, 1, said="LoadFailed: the engine ended; look at its log")
    first = ruled(WORK, pod, replica)
    assert (first.tries, first.retire, first.ended) == (Tries(1, "pod-0"), (), None)
    (failed,) = first.failed
    assert (failed.failure.reason, failed.failure.exit_code) == ("LoadFailed", 1)
    not_yet = ruled(WORK, pod, replica, first.tries, written=Tries())
    assert (not_yet.tries, not_yet.retire) == (first.tries, ())
    then = ruled(WORK, pod, replica, first.tries)
    assert (then.tries, [one.pod_uid for one in then.retire]) == (first.tries, ["pod-0"])


def test_one_failure_more_than_the_limit_ends_the_run_and_keeps_its_pod() -> None:
    work = a_batch(backoffLimit=1)
    tries = Tries(1, "former")
    pod, replica = ended(work, 1)
    ruling = ruled(work, pod, replica, tries)
    assert ruling.ended is not None
    assert ruling.ended.reason is Reason.FAILED
    assert "failed 2 times" in ruling.ended.message
    assert "with exit code 1" in ruling.ended.message
    assert ruling.retire == ()
    assert ruled(replace(work, finished=True), pod, replica, ruling.tries).retire == ()


def test_what_no_new_try_can_heal_ends_the_run_at_once() -> None:
    ruling = ruled(
        WORK, *ended(WORK, 65, said="DataNotFound: batch.input.uri: pvc://data/in.jsonl: no such file")
    )
    assert ruling.ended is not None
    assert ruling.ended.reason is Reason.FAILED
    assert "no such file" in ruling.ended.message
    assert ruling.failed[0].failure.reason == "DataNotFound"


@pytest.mark.parametrize(
    "how",
    [
        {"deleting": True},
        {"disrupted": True},
        {"failure": "Evicted", "failure_message": "The node was low on memory."},
        {"failure": "UnexpectedAdmissionError"},
        {"failure": "OutOfnvidia.com/gpu"},
    ],
)
def test_what_was_done_to_a_pod_from_outside_is_not_its_programs_failure(how: dict[str, Any]) -> None:
    work = a_batch(backoffLimit=0)
    ruling = ruled(work, *ended(work, 143, **how))
    assert (ruling.tries, ruling.failed, ruling.ended) == (Tries(), (), None)
    assert [one.pod_uid for one in ruling.retire] == ["pod-0"]


def test_a_program_killed_for_memory_counts_and_raises_the_estimate() -> None:
    ruling = ruled(WORK, *ended(WORK, 137, reason="OOMKilled"))
    (failed,) = ruling.failed
    assert failed.failure.reason == Reason.OUT_OF_MEMORY
    assert failed.shortage is not None
    assert ruling.tries.failures == 1


def test_a_failed_pod_of_which_nothing_is_known_yet_waits() -> None:
    pod, _ = ended(WORK, 1)
    assert ruled(WORK, pod) == Ruling()


def test_an_unknown_reason_and_a_log_are_told_as_a_failure_with_the_last_line() -> None:
    _, replica = ended(WORK, 1, said='{"event": "start"}\nTraceback\nValueError: no')
    assert jobs.told(replica) == ("Failed", "ValueError: no")
    _, replica = ended(WORK, 1, said="ValueError: no")
    assert jobs.told(replica) == ("Failed", "no")


def test_suspension_and_the_end_take_the_running_pod() -> None:
    for work, why in (
        (a_work(type="Batch", batch=DATA, suspend=True), Reason.SUSPENDED),
        (replace(WORK, finished=True), Reason.COMPLETE),
    ):
        (retire,) = ruled(work, a_pod_of(work, ready=True)).retire
        assert retire.reason == why


def test_a_run_at_work_has_recovered_from_its_preemption_and_not_from_its_failures() -> None:
    ruling = ruled(WORK, a_pod_of(WORK, ready=True))
    assert (ruling.running, ruling.recovered, ruling.retire) == (True, False, ())


STEPS = st.sampled_from(["failed", "preempted", "looked at", "written", "restarted"])


@given(st.lists(STEPS, max_size=40), st.integers(0, 4))
def test_every_failure_counts_once_whatever_happens_in_between(steps: list[str], limit: int) -> None:
    """A pod is followed by another one only after a ruling took it; a restart forgets what the API was not told."""
    work = a_batch(backoffLimit=limit)
    written, memory, failures, number = Tries(), Tries(), 0, 0
    pod, replica = ended(work, 143, uid="none", deleting=True)
    for step in steps:
        ruling = ruled(work, pod, replica, memory, written=written)
        if step in {"failed", "preempted"} and ruling.retire:
            number += 1
            failures += step == "failed"
            how: dict[str, Any] = {} if step == "failed" else {"deleting": True}
            pod, replica = ended(work, 1 if step == "failed" else 143, uid=f"pod-{number}", **how)
            ruling = ruled(work, pod, replica, memory, written=written)
        memory = ruling.tries
        assert memory.failures == failures
        assert (ruling.ended is not None) == (failures > limit)
        if step == "written":
            written = memory
        elif step == "restarted":
            memory = written


def test_the_completion_window_counts_from_the_creation_and_without_a_place() -> None:
    work = replace(a_batch(completionWindow="1h"), created_at=NOW - 3000)
    assert lifetime.over_at(work, ()) == NOW + 600
    told = lifetime.verdict(work, NOW + 600)
    assert told.reason is Reason.DEADLINE_EXCEEDED
    assert "spec.batch.completionWindow" in told.message


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        (
            {"batch": {**DATA, "input": {"uri": "hf://b/x"}}},
            "spec.batch.input.uri: hf://b/x: data cannot be read from hf:// by this release; use pvc://claim/path, s3://",
        ),
        (
            {"batch": {**DATA, "output": {"uri": "gs://b"}}},
            "spec.batch.output.uri: 'gs://b' is not of the form gs://bucket/key",
        ),
        ({"batch": {**DATA, "input": {"uri": "file:///x"}}}, "sources.allowFile"),
        ({"batch": {**DATA, "input": {"uri": "https://h.example/x"}}}, "sources.allowedHosts"),
        (
            {"batch": {**DATA, "output": DATA["input"]}},
            "spec.batch.output.uri: pvc://data/in.jsonl is the input",
        ),
        ({"batch": DATA, "replicas": 2}, "spec.replicas: 2"),
        ({"batch": DATA, "parallelism": {"data": 2}}, "spec.parallelism"),
        (
            {"batch": DATA, "podTemplate": {"spec": {"containers": [{"name": "a", "image": "b"}]}}},
            "spec.podTemplate.spec.containers",
        ),
    ],
)
def test_what_cannot_run_is_refused_with_field_value_and_fix(spec: dict[str, Any], named: str) -> None:
    refused = reconcile.refusal(a_work(type="Batch", **spec), allow_file=False, allowed_hosts=())
    assert refused is not None
    assert named in refused.message


def test_an_end_loses_what_is_under_way_and_not_what_is_saved() -> None:
    assert WORK.checkpoint_seconds == 30.0
    data = {"dataset": {"uri": "pvc://d/x"}, "output": {"uri": "pvc://d/y"}}
    tune = a_work(type="FineTune", fineTune={**data, "checkpoint": {"every": "10m"}, "backoffLimit": 7})
    assert (tune.checkpoint_seconds, tune.backoff_limit) == (600.0, 7)
    assert a_work(type="FineTune", fineTune=data).checkpoint_seconds is None


def test_what_can_run_is_accepted() -> None:
    assert reconcile.refusal(WORK, allow_file=False, allowed_hosts=()) is None
    web = a_batch(input={"uri": "https://files.example:8443/in.jsonl"})
    assert reconcile.refusal(web, allow_file=False, allowed_hosts=("files.example",)) is None


def test_a_change_that_concerns_the_operator_alone_keeps_the_pod() -> None:
    assert a_batch(backoffLimit=9, completionWindow="9h").template_hash == WORK.template_hash
    assert a_batch(output={"uri": "pvc://data/other"}).template_hash != WORK.template_hash
