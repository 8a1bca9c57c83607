from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from llmos_operator.api.conditions import Reason
from llmos_operator.api.runtime.messages import Failure as RuntimeFailure
from llmos_operator.api.runtime.messages import (
    LoadProgress,
    MemoryReport,
    ModelInfo,
    RuntimeState,
    RuntimeStatus,
    WorkProgress,
)
from llmos_operator.manifests import status as manifest
from llmos_operator.manifests.observed import (
    Activity,
    Failure,
    Observed,
    Preemption,
    Refusal,
    Score,
    Tries,
    Usage,
)
from llmos_operator.manifests.status import Urgency
from llmos_operator.scheduler.plan import Decision
from llmos_operator.state import convert
from llmos_operator.state.replicas import Exit, Replica
from llmos_operator.state.types import Ceiling, Hold, PodPhase
from tests.support.replicas import NOW, a_manifest, a_pod_of, a_work

WORK = a_work()
READY = RuntimeStatus(state=RuntimeState.READY, model=ModelInfo(digest="sha256:1", revision="abc"))


def loading(done: int) -> RuntimeStatus:
    return RuntimeStatus(
        state=RuntimeState.LOADING,
        load=LoadProgress(stage=RuntimeState.LOADING, bytes_done=done, bytes_total=100, eta_seconds=5),
    )


def decision(**changes: Any) -> Decision:
    base = Decision(
        WORK.key, WORK.uid, 1, Reason.NO_CAPACITY, "0 of 3 nodes fit", pending=1, queue_position=4
    )
    return replace(base, **changes)


def seen(**changes: Any) -> Observed:
    return Observed(workload=WORK, now=NOW, **changes)


def written(observed: Observed) -> dict[str, Any]:
    return manifest.to_json(manifest.build(observed))


def condition(status: dict[str, Any], kind: str) -> dict[str, Any]:
    return next(one for one in status["conditions"] if one["type"] == kind)


def test_a_quiet_state_is_written_once() -> None:
    observed = seen(pods=(a_pod_of(WORK, ready=True),), reports={"pod-0": READY})
    first = written(observed)
    again = replace(observed, previous=first, now=NOW + 500)
    assert manifest.urgency(first, manifest.build(again)) is Urgency.NONE
    assert written(again) == first


def test_defaults_the_server_fills_in_are_no_change() -> None:
    observed = seen(pods=(a_pod_of(WORK, ready=True),), reports={"pod-0": READY})
    stored = written(observed)
    stored["placements"][0].setdefault("score", 0)
    stored["model"].setdefault("observedMemory", "")
    assert manifest.urgency(stored, manifest.build(replace(observed, previous=stored))) is Urgency.NONE


def test_times_move_only_with_the_status_of_a_condition() -> None:
    first = written(seen(decision=decision()))
    later = written(
        replace(seen(decision=decision(message="0 of 4 nodes fit")), previous=first, now=NOW + 60)
    )
    assert (
        condition(later, "Scheduled")["lastTransitionTime"]
        == condition(first, "Scheduled")["lastTransitionTime"]
    )
    assert condition(later, "Scheduled")["message"] == "0 of 4 nodes fit"
    placed = written(replace(seen(pods=(a_pod_of(WORK),)), previous=later, now=NOW + 90))
    assert (
        condition(placed, "Scheduled")["lastTransitionTime"]
        != condition(first, "Scheduled")["lastTransitionTime"]
    )


def test_replicas_that_were_not_looked_at_yet_are_not_told_by_the_decision_on_former_ones() -> None:
    bound = decision(reason=Reason.BOUND, message="bf16 on node n1", pending=0)
    more = replace(WORK, replicas=WORK.replicas + 1)
    status = written(Observed(workload=more, now=NOW, pods=(a_pod_of(WORK),), decision=bound))
    told = condition(status, "Scheduled")
    assert (told["status"], told["reason"]) == ("False", "Pending")
    assert told["message"] == f"1 of {more.replicas} replicas have a place; the rest is next."


def test_progress_of_a_load_is_soon_and_being_ready_is_now() -> None:
    observed = seen(pods=(a_pod_of(WORK),), reports={"pod-0": loading(10)})
    first = written(observed)
    further = replace(observed, previous=first, reports={"pod-0": loading(60)})
    assert manifest.urgency(first, manifest.build(further)) is Urgency.SOON
    done = replace(observed, previous=first, pods=(a_pod_of(WORK, ready=True),), reports={"pod-0": READY})
    assert manifest.urgency(first, manifest.build(done)) is Urgency.NOW


def test_the_first_report_of_a_starting_runtime_can_wait() -> None:
    first = written(seen(pods=(a_pod_of(WORK),)))
    reported = seen(pods=(a_pod_of(WORK),), reports={"pod-0": loading(1)}, previous=first)
    assert manifest.urgency(first, manifest.build(reported)) is Urgency.SOON


def test_a_place_in_the_queue_can_wait_longest() -> None:
    first = written(seen(decision=decision()))
    moved = seen(decision=decision(queue_position=3), previous=first)
    assert manifest.urgency(first, manifest.build(moved)) is Urgency.LATER


def test_a_start_at_the_head_of_a_long_line_is_worth_few_writes_behind_it() -> None:
    told = {place: manifest.build(seen(decision=decision(queue_position=place))) for place in range(1, 301)}
    stood = {place: manifest.to_json(status) for place, status in told.items()}
    moves = [manifest.urgency(stood[place], told[place - 1]) for place in range(2, 301)]
    assert set(moves) == {Urgency.NONE, Urgency.LATER}
    assert (
        sum(one is Urgency.LATER for one in moves) == 15 + 8 * 4 + 1
    )  # of 299: 8 from 17 on to each power of two


def test_a_decision_tells_the_same_while_its_place_is_told_as_the_same() -> None:
    far = decision(queue_position=1000)
    assert far.tells(decision(queue_position=1001))
    assert not far.tells(decision(queue_position=900))
    assert not far.tells(decision(queue_position=1001, message="1 of 3 nodes fits"))
    assert not decision(queue_position=None).tells(decision(queue_position=1))


def test_containers_that_keep_ending_are_told_over_the_progress_of_the_latest_try() -> None:
    crash = Failure(Reason.BACK_OFF, "vLLM ended 3 times", NOW, 1, WORK.generation)
    trying = {"pods": (a_pod_of(WORK),), "reports": {"pod-0": loading(10)}}
    told = condition(written(seen(**trying, failure=crash)), "ModelLoaded")
    assert (told["reason"], told["message"]) == ("BackOff", "vLLM ended 3 times")
    for other in (replace(crash, generation=WORK.generation - 1), replace(crash, reason=Reason.LOAD_FAILED)):
        assert condition(written(seen(**trying, failure=other)), "ModelLoaded")["reason"] == "Loading"


def test_a_failed_load_is_told_at_once_with_its_reason() -> None:
    first = written(seen(pods=(a_pod_of(WORK),), reports={"pod-0": loading(1)}))
    failure = RuntimeFailure(reason="Corrupted", message="digest mismatch")
    failed = seen(
        pods=(a_pod_of(WORK),),
        reports={"pod-0": RuntimeStatus(state=RuntimeState.FAILED, failure=failure)},
        previous=first,
    )
    assert manifest.urgency(first, manifest.build(failed)) is Urgency.NOW
    assert condition(written(failed), "ModelLoaded")["reason"] == "Corrupted"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("ErrImagePull", 'failed to resolve "acme/engine:9": not found'),
        (
            "ImagePullBackOff",
            'Back-off pulling image "acme/engine:9": ErrImagePull: failed to resolve "acme/engine:9": not found',
        ),
    ],
)
def test_an_image_that_cannot_be_pulled_is_told_in_the_same_words_at_every_try(
    word: str, message: str
) -> None:
    pod = a_pod_of(WORK)
    replica = Replica(pod.key, pod.uid, WORK.uid, waiting=word, waiting_message=message)
    status = written(seen(pods=(pod,), replicas={pod.key: replica}))
    for kind in ("ModelLoaded", "Ready"):
        told = condition(status, kind)
        assert (told["status"], told["reason"]) == ("False", "ImageMissing")
        assert told["message"].startswith(
            f'{pod.name}: failed to resolve "acme/engine:9": not found. Correct'
        )


def test_a_failure_of_an_older_spec_does_not_stain_the_new_one() -> None:
    failure = Failure("Corrupted", "digest mismatch", NOW, generation=0)
    assert condition(written(seen(failure=failure)), "ModelLoaded")["reason"] == "Pending"


def test_pods_on_their_way_out_do_not_count() -> None:
    going = a_pod_of(WORK, ready=True, phase=PodPhase.TERMINATING, deletion_at=NOW)
    status = written(seen(pods=(going,), decision=decision()))
    assert (status["replicas"], status["readyReplicas"]) == (0, 0)
    assert condition(status, "Ready")["status"] == "False"


def test_a_refused_spec_does_not_make_a_running_replica_failed() -> None:
    refusal = Refusal(Reason.INVALID_SPEC, "spec.x: is wrong")
    status = written(seen(pods=(a_pod_of(WORK, ready=True),), refusal=refusal))
    assert status["phase"] == "Running"
    assert condition(status, "Accepted")["reason"] == "InvalidSpec"
    assert condition(status, "Ready")["status"] == "True"


def test_phases_say_what_a_person_would() -> None:
    hold = Hold(Reason.BACK_OFF, "waiting", math.inf, 1)
    failure = Failure("LoadFailed", "x", NOW, generation=1)
    cases = {
        "Pending": seen(decision=decision()),
        "Loading": seen(pods=(a_pod_of(WORK),)),
        "Running": seen(pods=(a_pod_of(WORK, ready=True),)),
        "Failed": seen(failure=failure, hold=hold),
        "Degraded": seen(pods=(a_pod_of(WORK, ready=True),), degraded=Refusal(Reason.GPU_UNHEALTHY, "hot")),
        "Asleep": seen(pods=(a_pod_of(WORK),), reports={"pod-0": RuntimeStatus(state=RuntimeState.ASLEEP)}),
        "Suspended": replace(seen(), workload=a_work(suspend=True)),
    }
    for phase, observed in cases.items():
        assert written(observed)["phase"] == phase


BATCH = a_work(type="Batch", batch={"input": {"uri": "pvc://p/i"}, "output": {"uri": "pvc://p/o"}})
RUNNING = RuntimeStatus(
    state=RuntimeState.READY, progress=WorkProgress(unit="requests", done=120, total=500, failed=2)
)


def running(**changes: Any) -> Observed:
    pod = a_pod_of(BATCH, ready=True)
    return replace(Observed(BATCH, NOW, pods=(pod,), reports={pod.uid: RUNNING}), **changes)


def test_work_that_ends_shows_its_progress_and_is_never_ready() -> None:
    status = written(running())
    assert status["summary"]["ready"] == "120/500"
    assert status["run"] == {
        "startTime": "2023-11-14T22:13:20Z",
        "unit": "requests",
        "done": 120,
        "total": 500,
        "failed": 2,
    }
    assert (status["phase"], status["readyReplicas"], status.get("url")) == ("Running", 0, None)
    assert not {"Ready", "Available", "ScalingActive", "Asleep", "Finished"} & {
        one["type"] for one in status["conditions"]
    }
    assert condition(status, "Progressing")["status"] == "True"


def test_progress_is_kept_while_the_pod_has_not_been_asked_anew() -> None:
    first = written(running())
    assert written(running(previous=first, reports={}))["run"] == first["run"]
    begun = RuntimeStatus(state=RuntimeState.STARTING, progress=WorkProgress(unit="requests"))
    again = written(running(previous=first, reports={"pod-0": begun}))
    assert again["summary"]["ready"] == "120/500"


@pytest.mark.parametrize(
    ("reason", "phase"),
    [(Reason.SUCCEEDED, "Succeeded"), (Reason.FAILED, "Failed"), (Reason.DEADLINE_EXCEEDED, "Failed")],
)
def test_how_work_ended_is_told_for_good(reason: Reason, phase: str) -> None:
    pod = replace(a_pod_of(BATCH), phase=PodPhase.FINISHED)
    said = 'Succeeded: All done.\n{"unit":"requests","done":500,"total":500,"failed":3}'
    replica = Replica(pod.key, pod.uid, BATCH.uid, ended=Exit("Completed", 0, said, NOW + 40))
    over = Refusal(reason, "It is over.")
    first = written(
        running(
            pods=(pod,),
            replicas={pod.key: replica},
            reports={},
            ended=over,
            now=NOW + 60,
            tries=Tries(2, "x"),
        )
    )
    assert (first["phase"], first["summary"]["ready"]) == (phase, "500/500")
    assert (condition(first, "Finished")["status"], condition(first, "Finished")["reason"]) == (
        "True",
        reason,
    )
    assert first["run"]["completionTime"] == "2023-11-14T22:14:00Z"
    assert (first["run"]["failures"], first["run"]["failed"]) == (2, 3)
    later = Observed(replace(BATCH, finished=True), NOW + 900, previous=first, tries=Tries(2, "x"))
    then = written(later)
    assert (then["phase"], then["run"], condition(then, "Finished")) == (
        phase,
        first["run"],
        condition(first, "Finished"),
    )


def test_work_that_failed_and_is_tried_again_has_not_failed() -> None:
    failure = Failure("Failed", "The program ended.", NOW, 1, 1)
    hold = Hold(Reason.BACK_OFF, "Waiting after a failure.", NOW + 60, 1)
    waiting = written(running(pods=(), reports={}, failure=failure, hold=hold, tries=Tries(1, "x")))
    assert (waiting["phase"], waiting["run"]["failures"]) == ("Pending", 1)
    assert condition(waiting, "Scheduled")["reason"] == "BackOff"


def test_a_run_received_what_the_books_say_and_both_are_written_at_once() -> None:
    status = written(running(usage=Usage(40, 0, 0, NOW - 10, NOW, 40)))
    for at, count in ((10, 50), (59, 99)):  # alone it is no reason to write
        status = written(
            running(now=NOW + at, previous=status, usage=Usage(count, 0, 0, NOW, NOW + at, count))
        )
        assert (status["run"]["deviceSeconds"], status["usage"]["gpuSeconds"]) == (40, 40)
    status = written(running(now=NOW + 61, previous=status, usage=Usage(101, 0, 0, NOW, NOW + 61, 101)))
    assert (status["run"]["deviceSeconds"], status["usage"]["gpuSeconds"]) == (101, 101)
    assert status["usage"]["time"] == "2023-11-14T22:14:21Z"
    unknown = written(running(now=NOW + 300, previous=status, usage=None))  # a new leader has not counted yet
    assert unknown["run"]["deviceSeconds"] == 101
    over = Refusal(Reason.SUCCEEDED, "It is over.")
    done = written(
        running(now=NOW + 302, previous=status, usage=Usage(120, 0, 0, NOW, NOW + 302, 120), ended=over)
    )
    assert done["run"]["deviceSeconds"] == 120  # at the end at once


def test_preempted_holds_until_it_serves_again() -> None:
    event = Preemption("team/vip", "Evict", Reason.PREEMPTED, "made room for team/vip", NOW)
    assert condition(written(seen(preemption=event)), "Preempted")["status"] == "True"
    back = seen(preemption=event, pods=(a_pod_of(WORK, ready=True),))
    assert condition(written(back), "Preempted")["status"] == "False"
    assert written(back)["lastPreemption"]["by"] == "team/vip"


def test_what_only_runtimes_know_survives_until_they_are_asked_again() -> None:
    report = RuntimeStatus(
        state=RuntimeState.READY,
        model=ModelInfo(digest="sha256:1", revision="abc"),
        memory=MemoryReport(peak_bytes=1 << 30),
    )
    before = written(
        seen(pods=(a_pod_of(WORK, ready=True),), reports={"pod-0": report}, estimated_bytes=2 << 30)
    )
    after = seen(pods=(a_pod_of(WORK, ready=True),), previous=before)
    assert written(after)["model"] == before["model"]
    assert manifest.urgency(before, manifest.build(after)) is Urgency.NONE


def test_what_was_known_of_another_format_is_not_kept() -> None:
    before = written(
        seen(pods=(a_pod_of(WORK, ready=True),), reports={"pod-0": READY}, estimated_bytes=2 << 30)
    )
    pod = a_pod_of(WORK)
    narrower = replace(pod, claim=replace(pod.claim, format="int8"))
    model = written(seen(pods=(narrower,), previous=before))["model"]
    assert model["quantization"] == "int8"
    assert "digest" not in model


def test_memory_that_jitters_is_not_written() -> None:
    def report(peak: int) -> RuntimeStatus:
        return RuntimeStatus(state=RuntimeState.READY, memory=MemoryReport(peak_bytes=peak))

    base = seen(pods=(a_pod_of(WORK, ready=True),), reports={"pod-0": report(1 << 30)})
    first = written(base)
    wobbled = replace(base, previous=first, reports={"pod-0": report((1 << 30) + 5000)})
    assert manifest.urgency(first, manifest.build(wobbled)) is Urgency.NONE


def test_a_place_keeps_what_chose_it_when_another_process_writes_the_status() -> None:
    pod = a_pod_of(WORK)
    first = written(seen(pods=(pod,), scores={pod.key: Score(-7, "Fragmentation")}))
    place = first["placements"][0]
    assert (place["score"], place["scoredBy"]) == (-7, "Fragmentation")
    assert written(seen(pods=(pod,), previous=first))["placements"] == first["placements"]


def test_a_decision_says_what_chose_the_node() -> None:
    assert written(seen(decision=decision(scored_by="BestFit")))["decision"]["scoredBy"] == "BestFit"


def test_a_kept_place_and_its_time_are_shown() -> None:
    known = written(seen(decision=decision(reserved=("n1", "n2"), expected_start=NOW + 600)))["decision"]
    assert known["reservedNodes"] == ["n1", "n2"]
    assert known["expectedStart"] == "2023-11-14T22:23:20Z"
    unknown = written(seen(decision=decision(reserved=("n1",))))["decision"]
    assert "expectedStart" not in unknown


def test_what_has_ended_for_good_stays_so_in_the_same_words() -> None:
    over = Refusal(Reason.DEADLINE_EXCEEDED, "It has run for 1h.")
    first = written(seen(ended=over, pods=(a_pod_of(WORK, ready=True),)))
    assert (first["phase"], condition(first, "Finished")["reason"]) == ("Succeeded", "DeadlineExceeded")
    again = Observed(workload=replace(WORK, finished=True), now=NOW + 500, previous=first)
    then = written(again)
    assert condition(then, "Finished") == condition(first, "Finished")
    assert (then["phase"], condition(then, "Scheduled")["reason"]) == ("Succeeded", "Complete")
    assert "Finished" not in {one["type"] for one in written(seen())["conditions"]}


def test_idleness_stays_as_it_was_said_until_there_is_news_and_goes_with_the_replicas() -> None:
    idle = seen(pods=(a_pod_of(WORK, ready=True),), activity=Activity("Idle", NOW - 300, "no request"))
    first = written(idle)
    assert first["activity"] == {"state": "Idle", "since": "2023-11-14T22:08:20Z", "message": "no request"}
    later = replace(idle, previous=first, activity=None, now=NOW + 60)
    assert manifest.urgency(first, manifest.build(later)) is Urgency.NONE
    busy = replace(later, activity=Activity("Busy", NOW + 60, "1 requests in progress or waiting"))
    assert manifest.urgency(first, manifest.build(busy)) is Urgency.LATER
    assert "activity" not in written(replace(later, pods=()))


def test_usage_goes_along_with_what_is_written_anyway_and_never_back() -> None:
    running = seen(pods=(a_pod_of(WORK, ready=True),), usage=Usage(120, 5, 7, NOW - 120, NOW))
    first = written(running)
    assert first["usage"] == {
        "gpuSeconds": 120,
        "energyJoules": 5,
        "tokens": 7,
        "time": "2023-11-14T22:13:20Z",
    }
    less = replace(running, previous=first, usage=Usage(3, 0, 0, NOW, NOW + 9), pods=(), now=NOW + 9)
    assert written(less)["usage"] == first["usage"]


def test_usage_alone_is_written_every_ten_minutes_only() -> None:
    running = seen(pods=(a_pod_of(WORK, ready=True),), usage=Usage(120, 5, 7, NOW - 120, NOW))
    first = written(running)
    for seconds, urgency in ((60, Urgency.NONE), (manifest.USAGE_SECONDS, Urgency.LATER)):
        grown = Usage(200, 5, 7, NOW - 120, NOW + seconds)
        later = replace(running, previous=first, usage=grown, now=NOW + seconds)
        assert manifest.urgency(first, manifest.build(later)) is urgency


@pytest.mark.parametrize(
    "ceiling", [Ceiling(2, 1_700_000_000.0, "team/urgent"), Ceiling(None, 1_700_000_060.0)]
)
def test_another_process_reads_the_ceiling_as_it_was_written(ceiling: Ceiling) -> None:
    observed = replace(seen(), workload=replace(WORK, ceiling=ceiling))
    status = written(observed)
    assert convert.workload({**a_manifest("chat", "uid-1"), "status": status}).ceiling == ceiling
    before = manifest.to_json(manifest.build(seen()))
    assert manifest.urgency(before, manifest.build(observed)) is Urgency.NOW


def test_without_a_word_there_is_no_ceiling() -> None:
    assert "ceiling" not in written(seen())
    assert a_work().ceiling is None


@pytest.mark.parametrize(
    ("scaling", "elastic"),
    [
        ({"minReplicas": 1, "maxReplicas": 3}, True),
        ({"minReplicas": 0, "maxReplicas": 1}, False),
        ({"minReplicas": 2, "maxReplicas": 2}, False),
    ],
)
def test_only_what_may_scale_above_its_minimum_is_elastic(scaling: dict[str, int], elastic: bool) -> None:
    assert a_work(scaling=scaling).elastic is elastic


def trying(**more: Any) -> Observed:
    work = a_work(replicas=3, rollout={"canaryTrafficPercent": 10})
    before = [a_pod_of(work, i, ready=True, spec_hash="older") for i in range(3)]
    return Observed(workload=work, now=NOW, pods=(*before, *more.pop("pods", ())), **more)


def test_a_canary_is_told_to_people_and_to_gateways() -> None:
    work = trying().workload
    status = written(trying(pods=(a_pod_of(work, 3, ready=True),)))
    assert status["canary"] == {"specHash": work.template_hash, "trafficPercent": 10}
    progressing = next(one for one in status["conditions"] if one["type"] == "Progressing")
    assert (progressing["status"], progressing["reason"]) == ("True", "Progressing")
    assert progressing["message"].startswith("Canary: 1 of 4 replicas, 10 % of requests.")
    again = replace(trying(), workload=replace(work, canary_percent=20), previous=status)
    assert manifest.urgency(status, manifest.build(again)) is Urgency.NOW


def test_replicas_of_a_canary_that_was_taken_back_keep_their_share_until_they_have_gone() -> None:
    work = a_work(replicas=1, rollout={"canaryTrafficPercent": 10})
    before = a_pod_of(work, 0, ready=True)
    claim = replace(before.claim, ordinal=1, bound_at=NOW + 60)
    tried = replace(a_pod_of(work, 1, ready=True, spec_hash="tried"), claim=claim)
    status = written(Observed(workload=work, now=NOW, pods=(before, tried)))
    assert status["canary"] == {"specHash": work.template_hash, "trafficPercent": 90}
    assert "canary" not in written(Observed(workload=work, now=NOW, pods=(before,)))


def test_a_canary_without_room_says_so() -> None:
    message = {one["type"]: one.get("message") for one in written(trying(decision=decision()))["conditions"]}
    assert "There is no room for it (NoCapacity)." in message["Progressing"]
    assert "in place" not in message["Progressing"]


def test_without_replicas_of_an_older_spec_there_is_no_canary() -> None:
    work = trying().workload
    assert "canary" not in written(Observed(workload=work, now=NOW, pods=(a_pod_of(work, 0, ready=True),)))
