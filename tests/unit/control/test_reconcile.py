from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from llmos_operator.api.conditions import Reason
from llmos_operator.api.runtime.messages import Failure as RuntimeFailure
from llmos_operator.api.runtime.messages import RuntimeState, RuntimeStatus
from llmos_operator.control import engines, reconcile
from llmos_operator.control.reconcile import Situation
from llmos_operator.manifests.observed import Failure, Refusal
from llmos_operator.state.replicas import Exit, Replica
from llmos_operator.state.types import PodPhase, Workload
from tests.support.replicas import NOW, a_pod_of, a_work


def situation(workload: Workload, *pods: Any, **more: Any) -> Situation:
    return Situation(workload, NOW, pods=pods, **more)


def replica(workload: Workload, ordinal: int = 0, **changes: Any) -> dict[str, Replica]:
    pod = a_pod_of(workload, ordinal)
    return {pod.key: Replica(pod.key, pod.uid, workload.uid, **changes)}


def retired(seen: Situation) -> list[str]:
    return [one.pod_uid for one in reconcile.rule(seen).retire]


def test_what_is_as_wanted_is_left_alone() -> None:
    work = a_work(replicas=2)
    ruling = reconcile.rule(situation(work, a_pod_of(work, 0, ready=True), a_pod_of(work, 1, ready=True)))
    assert ruling.retire == ()
    assert ruling.recovered


def test_replicas_above_the_wanted_number_go() -> None:
    work = a_work(replicas=1)
    assert retired(situation(work, a_pod_of(work, 0), a_pod_of(work, 1), a_pod_of(work, 2))) == [
        "pod-1",
        "pod-2",
    ]


def test_a_suspended_workload_gives_everything_back() -> None:
    work = a_work(replicas=2, suspend=True)
    assert retired(situation(work, a_pod_of(work, 0), a_pod_of(work, 1))) == ["pod-0", "pod-1"]


def test_pods_already_on_their_way_out_are_not_told_again() -> None:
    work = a_work(replicas=0)
    assert retired(situation(work, a_pod_of(work, phase=PodPhase.TERMINATING, deletion_at=NOW))) == []


def old(work: Workload, ordinal: int, *, ready: bool) -> Any:
    return a_pod_of(work, ordinal, ready=ready, spec_hash="older")


def test_a_rolling_update_replaces_one_serving_replica_at_a_time() -> None:
    work = a_work(replicas=3)
    assert retired(situation(work, *(old(work, i, ready=True) for i in range(3)))) == ["pod-0"]
    assert (
        retired(situation(work, a_pod_of(work, 0), old(work, 1, ready=True), old(work, 2, ready=True))) == []
    )


def test_a_rolling_update_may_replace_as_many_as_the_spec_allows() -> None:
    work = a_work(replicas=3, rollout={"maxUnavailable": 2})
    assert retired(situation(work, *(old(work, i, ready=True) for i in range(3)))) == ["pod-0", "pod-1"]


def test_old_replicas_that_do_not_serve_anyway_are_replaced_at_once() -> None:
    work = a_work(replicas=3)
    pods = (old(work, 0, ready=False), old(work, 1, ready=True), old(work, 2, ready=True))
    assert retired(situation(work, *pods)) == ["pod-0"]


def test_a_bad_new_spec_leaves_the_old_replicas_that_still_serve() -> None:
    work = a_work(replicas=2)
    assert retired(situation(work, a_pod_of(work, 0, ready=False), old(work, 1, ready=True))) == []


def test_recreate_ends_all_old_replicas_together() -> None:
    work = a_work(replicas=2, rollout={"strategy": "Recreate"})
    assert len(retired(situation(work, old(work, 0, ready=True), old(work, 1, ready=True)))) == 2


def failed_report(reason: str, *, permanent: bool = True) -> dict[str, RuntimeStatus]:
    failure = RuntimeFailure(reason=reason, message="because", permanent=permanent)
    return {"pod-0": RuntimeStatus(state=RuntimeState.FAILED, failure=failure)}


def test_a_runtime_that_cannot_load_is_stopped_and_its_reason_kept() -> None:
    work = a_work()
    ruling = reconcile.rule(situation(work, a_pod_of(work), reports=failed_report("Corrupted")))
    (failed,) = ruling.failed
    assert (failed.failure.reason, failed.permanent, failed.retired) == ("Corrupted", True, True)
    assert [one.pod_uid for one in ruling.retire] == ["pod-0"]


def test_out_of_memory_is_never_permanent_and_names_what_was_too_little() -> None:
    work = a_work()
    (failed,) = reconcile.rule(situation(work, a_pod_of(work), reports=failed_report("OutOfMemory"))).failed
    assert not failed.permanent
    assert failed.shortage is not None
    assert (failed.shortage.format, failed.shortage.reserved_bytes) == ("bf16", 1 << 30)


def test_a_kill_by_the_kernel_counts_as_out_of_memory() -> None:
    work = a_work()
    killed = replica(work, last=Exit("OOMKilled", 137), waiting="CrashLoopBackOff")
    (failed,) = reconcile.rule(situation(work, a_pod_of(work), replicas=killed)).failed
    assert failed.failure.reason == Reason.OUT_OF_MEMORY
    assert failed.failure.exit_code == 137
    assert failed.shortage is not None


@pytest.mark.parametrize("failed", [False, True])
def test_a_pod_that_was_deleted_and_ends_before_it_is_gone_has_not_failed(failed: bool) -> None:
    work = a_work()
    pod = a_pod_of(work, phase=PodPhase.FINISHED, failed=failed, deletion_at=NOW)
    end = Exit("Error" if failed else "Completed", 137 if failed else 0)
    ruling = reconcile.rule(situation(work, pod, replicas=replica(work, ended=end, deleting=True)))
    assert (ruling.failed, ruling.retire) == ((), ())


def test_a_failed_pod_is_removed_and_tells_the_kubelets_reason() -> None:
    work = a_work()
    pod = a_pod_of(work, phase=PodPhase.FINISHED, failed=True)
    gone = replica(work, failure="UnexpectedAdmissionError", failure_message="no such device")
    ruling = reconcile.rule(situation(work, pod, replicas=gone))
    assert ruling.failed[0].failure.reason == "UnexpectedAdmissionError"
    assert len(ruling.retire) == 1


@pytest.mark.parametrize("word", ["UnexpectedAdmissionError", "OutOfnvidia.com/gpu"])
def test_a_kubelet_without_devices_is_named_and_one_without_memory_is_not(word: str) -> None:
    work = a_work()
    pod = a_pod_of(work, phase=PodPhase.FINISHED, failed=True)
    refused = reconcile.rule(situation(work, pod, replicas=replica(work, failure=word)))
    assert refused.refused == ((pod.uid, pod.node),)
    full = reconcile.rule(situation(work, pod, replicas=replica(work, failure="OutOfmemory")))
    assert full.refused == ()


def test_a_crashing_container_is_left_to_the_kubelet_and_told_once_a_restart() -> None:
    work = a_work()
    crashing = replica(work, restarts=4, last=Exit("Error", 1))
    first = reconcile.rule(situation(work, a_pod_of(work), replicas=crashing))
    assert first.retire == ()
    assert first.failed[0].failure.reason == Reason.BACK_OFF
    again = reconcile.rule(
        situation(work, a_pod_of(work), replicas=replica(work, restarts=5, last=Exit("Error", 1)))
    )
    assert first.failed[0].event != again.failed[0].event


def test_a_vllm_that_keeps_ending_is_told_with_its_last_words() -> None:
    work = a_work(engine={"name": "vllm", "image": "v"})
    end = Exit("Error", 1, "Traceback\nValueError: too long\n")
    seen = situation(work, a_pod_of(work), replicas=replica(work, restarts=3, last=end))
    (failed,) = reconcile.rule(seen).failed
    assert failed.failure.reason == Reason.BACK_OFF
    assert "vLLM ended 3 times, last with exit code 1" in failed.failure.message
    assert failed.failure.message.endswith("Its last words: ValueError: too long")


def test_a_missing_secret_is_read_off_the_kubelets_complaint() -> None:
    work = a_work()
    waiting = replica(work, waiting="CreateContainerConfigError", waiting_message='secret "hf" not found')
    trouble = reconcile.rule(situation(work, a_pod_of(work), replicas=waiting)).trouble
    assert trouble is not None
    assert trouble.reason is Reason.SECRET_NOT_FOUND
    assert '"hf"' in trouble.message
    assert "namespace team" in trouble.message


def test_a_hold_lasts_as_long_as_its_cause() -> None:
    work = a_work()
    failure = Failure("Corrupted", "digest", NOW, generation=1)
    assert reconcile.hold(work, None, None, permanent=False, backing_off=False) is None
    assert reconcile.hold(work, None, failure, permanent=True, backing_off=False).until == math.inf
    assert reconcile.hold(work, None, failure, permanent=False, backing_off=True).until == math.inf
    assert reconcile.hold(work, None, failure, permanent=False, backing_off=False) is None


def test_a_new_spec_lifts_the_hold_of_the_old_one() -> None:
    failure = Failure("Corrupted", "digest", NOW, generation=1)
    changed = replace(a_work(), generation=2)
    assert reconcile.hold(changed, None, failure, permanent=True, backing_off=False) is None


def test_a_refusal_comes_before_everything() -> None:
    refusal = Refusal(Reason.MODEL_NOT_FOUND, "no such model")
    assert (
        reconcile.hold(a_work(), refusal, None, permanent=False, backing_off=False).reason
        is Reason.MODEL_NOT_FOUND
    )


def test_sources_are_accepted_as_the_administrator_allows() -> None:
    def reason(uri: str, *, files: bool = False, hosts: tuple[str, ...] = ()) -> str:
        found = reconcile.refusal(a_work(model={"uri": uri}), allow_file=files, allowed_hosts=hosts)
        return found.reason.value if found is not None else ""

    assert reason("hf://a/b") == ""
    assert reason("s3://a/b") == ""
    assert reason("pvc://a/b") == ""
    assert reason("pvc://a") == "InvalidSpec"
    assert reason("ftp://a/b") == "UnsupportedScheme"
    assert reason("file:///m") == "SourceNotAllowed"
    assert reason("file:///m", files=True) == ""
    assert reason("https://evil.example/m") == "SourceNotAllowed"
    assert reason("https://Good.example:443/m", hosts=("good.example",)) == ""


VLLM = {"name": "vllm", "image": "vllm:1"}


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"engine": {"name": "vllm"}}, "spec.engine.image: engine vllm needs an image"),
        ({"engine": {**VLLM, "args": ["--enforce-eager", "-tp=2"]}}, "spec.engine.args[1]: -tp is set by"),
        ({"engine": VLLM, "quantization": {"kvCacheDtype": "int8"}}, "spec.quantization.kvCacheDtype"),
        (
            {
                "engine": VLLM,
                "adapters": [{"name": "a", "uri": "hf://a/b"}],
                "adapterLimits": {"maxAdapters": 1, "maxRank": 1024},
            },
            "spec.adapterLimits.maxRank",
        ),
    ],
)
def test_what_a_vllm_cannot_be_told_is_refused_and_the_field_named(spec: dict[str, Any], words: str) -> None:
    found = reconcile.refusal(a_work(**spec), allow_file=False, allowed_hosts=())
    assert found is not None
    assert found.reason is Reason.INVALID_SPEC
    assert words in found.message


def test_a_vllm_as_it_should_be_is_accepted_and_can_be_run() -> None:
    work = a_work(engine={**VLLM, "args": ["--enforce-eager"]})
    assert reconcile.refusal(work, allow_file=False, allowed_hosts=()) is None
    assert engines.unsupported(work) == ""


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"parallelism": {"data": 2}}, "one pod"),
        (
            {"type": "Batch", "batch": {"input": {"uri": "pvc://c/i"}, "output": {"uri": "pvc://c/o"}}},
            "Batch",
        ),
    ],
)
def test_what_this_release_does_not_run_on_a_vllm_is_said(spec: dict[str, Any], words: str) -> None:
    assert words in engines.unsupported(a_work(engine=VLLM, **spec))


def test_a_uri_with_credentials_is_refused_without_showing_them() -> None:
    work = a_work(model={"uri": "https://me:hunter2@good.example/m"})
    found = reconcile.refusal(work, allow_file=False, allowed_hosts=("good.example", "me"))
    assert found is not None
    assert found.message.startswith("spec.model.uri")
    assert "spec.model.secretRef" in found.message
    assert "hunter2" not in found.message
    assert "me:" not in found.message


def test_pods_without_a_workload_are_orphans_until_proven_otherwise() -> None:
    work = a_work()
    found = reconcile.orphans((a_pod_of(work), a_pod_of(work, 1, phase=PodPhase.TERMINATING)))
    assert [(one.pod_uid, one.orphan) for one in found] == [("pod-0", True)]


@pytest.mark.parametrize(
    ("adapter", "words"),
    [
        ({"name": "tone", "uri": "file:///etc"}, "spec.adapters[tone].uri: file://"),
        ({"name": "tone", "uri": "https://bad.example/x"}, "host bad.example is not an allowed"),
        (
            {"name": "tone", "uri": "ftp://b/x"},
            "ftp:// cannot be loaded by this release; use hf://, https://, s3://, gs://, oci:// or pvc://",
        ),
        ({"name": "tone", "uri": "pvc://out"}, "not of the form pvc://claim/path"),
        ({"name": "chat", "uri": "hf://org/x"}, "the name of the model itself"),
    ],
)
def test_adapters_come_only_from_where_they_may_come_from(adapter: dict[str, str], words: str) -> None:
    work = a_work(adapters=[adapter])
    found = reconcile.refusal(work, allow_file=False, allowed_hosts=("good.example",))
    assert found is not None
    assert words in found.message
    for uri in ("hf://org/tone", "pvc://training/tone"):
        fine = a_work(adapters=[{"name": "tone", "uri": uri}])
        assert reconcile.refusal(fine, allow_file=False, allowed_hosts=()) is None


def surging(replicas: int = 2, surge: int = 1, unavailable: int = 0) -> Workload:
    return a_work(replicas=replicas, rollout={"maxSurge": surge, "maxUnavailable": unavailable})


def test_with_a_surge_nothing_goes_before_a_new_replica_serves() -> None:
    work = surging()
    before = (old(work, 0, ready=True), old(work, 1, ready=True))
    assert retired(situation(work, *before, a_pod_of(work, 2))) == []
    assert retired(situation(work, *before, a_pod_of(work, 2, ready=True))) == ["pod-0"]


def test_without_room_for_a_surge_one_replica_is_replaced_in_place() -> None:
    work = surging()
    before = (old(work, 0, ready=True), old(work, 1, ready=True))
    assert retired(situation(work, *before, instead=before[1].key)) == ["pod-1"]
    one = old(work, 1, ready=True)
    assert retired(situation(work, a_pod_of(work, 0), one, instead=one.key)) == [], "one at a time"
    assert retired(situation(work, *before, instead="team/gone")) == []


def test_replicas_of_several_pods_are_replaced_in_place_whatever_their_surge() -> None:
    work = replace(surging(replicas=1), stages=2)
    pods = [old(work, 0, ready=True) for _ in range(2)]
    pods = [replace(pod, uid=f"m{i}", claim=replace(pod.claim, member=i)) for i, pod in enumerate(pods)]
    assert retired(situation(work, *pods)) == ["m0", "m1"]


def test_failures_of_new_replicas_are_not_over_because_the_old_ones_serve() -> None:
    work = surging()
    before = (old(work, 0, ready=True), old(work, 1, ready=True))
    assert not reconcile.rule(situation(work, *before, a_pod_of(work, 2))).recovered


def trying(replicas: int = 3, percent: int = 10, **rollout: int) -> Workload:
    return a_work(replicas=replicas, rollout={"canaryTrafficPercent": percent, **rollout})


def test_a_canary_ends_no_replica_of_the_older_spec_whatever_serves_or_fits() -> None:
    work = trying()
    before = [old(work, i, ready=i > 0) for i in range(3)]
    assert retired(situation(work, *before)) == []
    assert retired(situation(work, *before, instead=before[1].key)) == []
    assert retired(situation(work, *before, a_pod_of(work, 3, ready=True))) == []


@pytest.mark.parametrize("percent", [0, 100])
def test_a_promoted_canary_goes_on_as_an_update(percent: int) -> None:
    work = trying(percent=percent, maxSurge=1, maxUnavailable=0)
    before = [old(work, i, ready=True) for i in range(3)]
    assert retired(situation(work, *before, a_pod_of(work, 3, ready=True))) == ["pod-0"]


def test_a_canary_that_is_taken_back_goes() -> None:
    work = trying()
    there = [a_pod_of(work, i, ready=True) for i in range(3)]
    canary = old(work, 3, ready=True)
    canary = replace(canary, claim=replace(canary.claim, bound_at=NOW + 60))
    assert retired(situation(work, *there, canary)) == ["pod-3"]


def test_failures_of_a_canary_are_over_when_it_serves() -> None:
    work = trying()
    before = [old(work, i, ready=True) for i in range(3)]
    assert not reconcile.rule(situation(work, *before, a_pod_of(work, 3))).recovered
    assert reconcile.rule(situation(work, *before, a_pod_of(work, 3, ready=True))).recovered


def test_replicas_of_several_pods_have_no_canary() -> None:
    work = replace(trying(replicas=1), stages=2)
    pods = [old(work, 0, ready=True) for _ in range(2)]
    pods = [replace(pod, uid=f"m{i}", claim=replace(pod.claim, member=i)) for i, pod in enumerate(pods)]
    assert retired(situation(work, *pods)) == ["m0", "m1"]
