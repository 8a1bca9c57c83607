"""Each known cause, told from what a cluster says when it is so; and what must not be shown with it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import llmos_operator
from llmos_operator.api.conditions import Reason
from llmos_operator.cli import diagnose
from llmos_operator.cli.diagnosis.causes import CAUSES
from llmos_operator.cli.diagnosis.clues import Facts, clues
from llmos_operator.cli.diagnosis.verdict import judge
from llmos_operator.clock import rfc3339
from llmos_operator.observability.masking import mask

NOW = 1_700_000_000.0
LEASE = {"spec": {"holderIdentity": "op-0", "renewTime": rfc3339(NOW - 2)}}


def a_condition(kind: str, reason: str, message: str = "", *, value: str = "False") -> dict[str, Any]:
    return {"type": kind, "status": value, "reason": reason, "message": message}


def the_facts(*conditions: dict[str, Any], spec: dict[str, Any] | None = None, **status: Any) -> Facts:
    meta = {"name": "chat", "namespace": "team", "uid": "u", "generation": 1}
    known = {"observedGeneration": 1, "conditions": list(conditions), **status}
    return Facts({"metadata": meta, "spec": spec or {}, "status": known}, NOW, lease=LEASE)


def a_pod(
    state: dict[str, Any], last: dict[str, Any] | None = None, restarts: int = 0, **status: Any
) -> dict[str, Any]:
    container = {"name": "runtime", "state": state, "lastState": last or {}, "restartCount": restarts}
    return {
        "metadata": {"name": "chat-0", "namespace": "team", "uid": "p"},
        "spec": {"nodeName": "n1"},
        "status": {"phase": "Pending", "initContainerStatuses": [container], **status},
    }


def waiting(reason: str, message: str = "") -> Facts:
    pods = [a_pod({"waiting": {"reason": reason, "message": message}})]
    return replace(the_facts(a_condition("ModelLoaded", "Starting")), pods=pods)


def an_event(reason: str, note: str, seconds_ago: float = 60) -> dict[str, Any]:
    return {
        "type": "Warning",
        "reason": reason,
        "note": note,
        "regarding": {"kind": "Pod", "name": "chat-0", "uid": "p"},
        "deprecatedLastTimestamp": rfc3339(NOW - seconds_ago),
    }


def with_events(*events: dict[str, Any]) -> Facts:
    return replace(the_facts(a_condition("ModelLoaded", "Starting")), events=events)


def accepted(reason: str, message: str = "") -> Facts:
    return the_facts(a_condition("Accepted", reason, message), a_condition("Ready", reason, message))


def undecided(reason: str, message: str = "", rejected: list[dict[str, Any]] | None = None) -> Facts:
    decision = {"reason": reason, "message": message, "rejected": rejected or []}
    return the_facts(a_condition("Scheduled", reason, message), decision=decision)


def ready(**more: Any) -> Facts:
    facts = the_facts(
        a_condition("Ready", "Ready", "1 of 1 replicas serve.", value="True"),
        placements=[{"pod": "chat-0", "node": "n1", "deviceUUIDs": ["GPU-1"]}],
    )
    return replace(facts, **more)


def idle() -> Facts:
    facts = ready()
    facts.workload["status"]["activity"] = {
        "state": "Idle",
        "since": "2023-11-14T22:00:00Z",
        "message": "no request",
    }
    return facts


def on_a_device(verdict: str) -> dict[str, Any]:
    device = {"uuid": "GPU-1", "product": "A100", "health": {"verdict": verdict, "reason": "FallenOffBus"}}
    return {"n1": {"status": {"devices": [device]}}}


def crashing() -> Facts:
    pods = [
        a_pod(
            {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s"}},
            {"terminated": {"reason": "Error", "exitCode": 1}},
            restarts=4,
        )
    ]
    events = [an_event("BackOff", "Back-off restarting failed container")]
    return replace(
        the_facts(a_condition("ModelLoaded", "BackOff", "ended 4 times")), pods=pods, events=events
    )


EXAMPLES: dict[str, Facts] = {
    "NoLeader": replace(
        undecided("NoCapacity"), lease={"spec": {"holderIdentity": "op-0", "renewTime": rfc3339(NOW - 900)}}
    ),
    "Deleting": Facts(
        {"metadata": {"name": "chat", "namespace": "team", "deletionTimestamp": "2023-11-14T22:00:00Z"}}, NOW
    ),
    "Paused": the_facts(a_condition("Suspended", "Suspended", value="True"), spec={"suspend": True}),
    "WaitingForKueue": the_facts(
        a_condition("Scheduled", "WaitingForKueue", "waits for quota"),
        a_condition("Suspended", "WaitingForKueue", value="True"),
    ),
    "Finished": the_facts(
        a_condition("Scheduled", "Complete"), a_condition("Finished", "DeadlineExceeded", value="True")
    ),
    "InvalidSpec": accepted("InvalidSpec", "spec.context.maxModelLen: 'many' is no number"),
    "SourceNotAllowed": accepted("SourceNotAllowed", "host models.example is not an allowed model source"),
    "QueueUnusable": undecided("QueueNotFound", "queue 'reserch' does not exist"),
    "NamespaceNotAdmitted": undecided("NamespaceNotAdmitted"),
    "NameTaken": accepted("NameTaken"),
    "SecretMissing": waiting("CreateContainerConfigError", 'secret "hf-token" not found'),
    "ClaimUnusable": undecided("ClaimNotFound", "spec.model.uri: there is no PersistentVolumeClaim models"),
    "AccessDenied": accepted("AccessDenied", "the hub denies acme/private: 401"),
    "ModelNotFound": accepted("ModelNotFound", "the hub has no acme/typo at revision main"),
    "UnsafeModel": accepted("UnsafeFormat"),
    "CorruptedModel": accepted("Corrupted", "the weights have digest x, the workload demands y"),
    "Unsupported": undecided("Unsupported"),
    "FormatNotAllowed": undecided("FormatNotAllowed"),
    "DownloadFailed": accepted("DownloadFailed", "status 502"),
    "AdmissionRejected": the_facts(
        a_condition("Scheduled", "BackOff"),
        failure={"reason": "PodNotCreated", "message": "pods is forbidden: exceeded quota: small"},
    ),
    "NodeGone": replace(the_facts(a_condition("ModelLoaded", "Starting")), nodes={"n1": None}),
    "ImageMissing": waiting("ImagePullBackOff", 'Back-off pulling image "acme/engine:9"'),
    "VolumeMissing": with_events(an_event("FailedMount", 'configmap "prompts" not found')),
    "OutOfMemory": the_facts(
        a_condition("ModelLoaded", "OutOfMemory"),
        failure={"reason": "OutOfMemory", "message": "killed", "exitCode": 137},
    ),
    "DeviceUnhealthy": ready(gpu_nodes=on_a_device("Unhealthy")),
    "KubeletEvicted": replace(
        the_facts(a_condition("Scheduled", "BackOff")),
        pods=[a_pod({}, phase="Failed", reason="Evicted", message="low on resource: ephemeral-storage")],
    ),
    "CrashLoop": crashing(),
    "GangIncomplete": undecided("GangIncomplete"),
    "ProbeFailing": with_events(an_event("Unhealthy", "Readiness probe failed: HTTP 503")),
    "TooLarge": undecided("LargerThanAnyDevice", "needs 140 GiB, the largest device has 80 GiB"),
    "NoMatchingDevice": undecided("NoMatchingDevice"),
    "ExceedsQuota": undecided("ExceedsQuota"),
    "Displaced": the_facts(
        a_condition("Scheduled", "NoCapacity"),
        a_condition("Preempted", "Preempted", "by prod/x", value="True"),
    ),
    "TelemetryStale": undecided(
        "NoCapacity", rejected=[{"reason": "TelemetryUnavailable", "count": 3, "message": "n1 is silent"}]
    ),
    "StrangersOnDevices": undecided(
        "NoCapacity", rejected=[{"reason": "StrangerOnDevice", "count": 1, "message": "1.0 GiB of GPU-n1-0"}]
    ),
    "NodesNotUsable": undecided("NoCapacity", rejected=[{"reason": "UntoleratedTaint", "count": 8}]),
    "VolumeElsewhere": undecided("NoCapacity", rejected=[{"reason": "VolumeElsewhere", "count": 2}]),
    "Waiting": undecided("WaitingForPreemption", "waits for default/a-0 to leave"),
    "WaitingForHolder": undecided("WaitingForHolder", "starts on node n1 as soon as a holder pod"),
    "Partitioning": undecided(
        "WaitingForPartition", "waits until the GPUs of node n1 are cut into all-1g.10gb"
    ),
    "TakingTurns": undecided("WaitingForStartup", "waits for default/a-0 to load on device 0 of node n1"),
    "NoCapacity": undecided("NoCapacity", "0 of 3 nodes fit"),
    "Inspecting": undecided("WaitingForProfile"),
    "BackingOff": the_facts(a_condition("Scheduled", "BackOff", "Waiting after a failure: it ended")),
    "NextInTurn": undecided("Pending", "waits for its former pod chat-0 to be gone"),
    "Loading": the_facts(a_condition("ModelLoaded", "Downloading"), a_condition("Ready", "Downloading")),
    "ScaledToZero": undecided("ScaledToZero"),
    "NotObserved": Facts(
        {"metadata": {"name": "chat", "namespace": "team", "generation": 1}}, NOW, lease=LEASE
    ),
    "Idle": idle(),
    "Healthy": ready(gpu_nodes=on_a_device("Healthy")),
}


def test_every_cause_of_the_table_has_an_example() -> None:
    assert [cause.name for cause in CAUSES] == list(EXAMPLES)


def the_reasons_of_the_page() -> list[str]:
    """Return the first column of the table in docs/scheduler.md that says why something waits."""
    page = (Path(__file__).parents[3] / "docs/scheduler.md").read_text(encoding="utf-8")
    table = page.partition("## Why something waits")[2].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    return [reason for row in rows for reason in re.findall(r"`(\w+)`", row.split("|")[1])]


def the_reasons_of_the_scheduler() -> list[str]:
    """Return the reasons that the scheduler and what holds replicas back have in their source."""
    package = Path(llmos_operator.__file__).parent
    sources = [*sorted((package / "scheduler").rglob("*.py")), package / "state/volumes.py"]
    text = "\n".join(one.read_text(encoding="utf-8") for one in sources)
    return sorted({Reason[name].value for name in re.findall(r"\bReason\.([A-Z_]+)\b", text)})


# What the scheduler says of what it did, or of devices; and why a replica went, not why one waits.
OTHERS = frozenset(
    {
        "Accepted",
        "Asleep",
        "Awake",
        "Bound",
        "CalledBack",
        "GPUUnhealthy",
        "Idle",
        "Lent",
        "Moved",
        "NodeLost",
    }
    | {"NotPartitioned", "Partitioning", "Preempted", "Reclaimed", "Restored", "Suspended"}
)


@pytest.mark.parametrize("reason", the_reasons_of_the_page())
def test_every_reason_to_wait_has_a_cause(reason: str) -> None:
    found = diagnose.report(undecided(reason, "some message"))
    assert found.verdict.cause != "Unknown"


def test_every_reason_to_wait_is_explained_on_the_page() -> None:
    assert not {*the_reasons_of_the_scheduler()} - OTHERS - {*the_reasons_of_the_page()}


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_cause_is_told_from_its_signs(name: str) -> None:
    found = diagnose.report(EXAMPLES[name])
    assert found.verdict.cause == name
    assert found.verdict.evidence
    assert not any("{workload}" in step or "{namespace}" in step for step in found.verdict.next_steps)


@pytest.mark.parametrize("name", [cause.name for cause in CAUSES if cause.trouble])
def test_trouble_comes_with_what_to_do(name: str) -> None:
    assert diagnose.report(EXAMPLES[name]).verdict.next_steps


def test_what_a_cause_brings_about_is_no_second_trouble() -> None:
    facts = replace(
        EXAMPLES["CrashLoop"], logs={"chat-0/runtime": ["torch.OutOfMemoryError: tried to allocate 2 GiB"]}
    )
    found = diagnose.report(facts)
    assert found.verdict.cause == "OutOfMemory"
    assert "CrashLoop" not in [one.cause for one in found.others]


def test_two_troubles_are_both_told() -> None:
    facts = replace(EXAMPLES["ImageMissing"], events=[an_event("FailedMount", "no such volume")])
    found = diagnose.report(facts)
    assert (found.verdict.cause, [one.cause for one in found.others]) == ("ImageMissing", ["VolumeMissing"])


def test_what_happened_before_it_served_is_over() -> None:
    old = replace(ready(), events=EXAMPLES["ProbeFailing"].events, pods=EXAMPLES["ImageMissing"].pods)
    assert diagnose.report(old).verdict.cause == "Healthy"


def test_an_event_of_yesterday_says_nothing() -> None:
    assert diagnose.report(with_events(an_event("Unhealthy", "failed", 86_400))).verdict.cause == "Loading"


def test_an_agent_that_is_missing_under_a_serving_workload_is_told() -> None:
    facts = ready(gpu_nodes=on_a_device("Healthy"), agents=[])
    assert diagnose.report(facts).verdict.cause == "TelemetryStale"


def test_what_fits_no_cause_is_said_to_be_unknown() -> None:
    facts = the_facts(a_condition("Available", "SomethingNew", "never seen"))
    found = judge(clues(facts))
    assert (found.verdict.cause.name, found.verdict.evidence[0].reason) == ("Unknown", "SomethingNew")


SECRET = "hunter2hunter2"


@pytest.mark.parametrize(
    "line",
    [
        f"Authorization: Bearer {SECRET}",
        f'{{"api_key": "{SECRET}"}}',
        f"GET https://user:{SECRET}@models.example/x failed",
        f"fetch s3 https://bucket.example/a?X-Amz-Signature={SECRET}&x=1",
        f"HF_TOKEN={SECRET} not accepted",
        f"password = '{SECRET}'",
        f"token hf_{SECRET} is invalid",
        f"key sk-{SECRET}",
    ],
)
def test_no_secret_of_a_log_is_shown(line: str) -> None:
    logs = {"chat-0/runtime": [line, "401 Client Error: Unauthorized"]}
    found = diagnose.report(replace(EXAMPLES["CrashLoop"], logs=logs))
    assert found.verdict.cause == "AccessDenied"
    assert SECRET not in str(found)
    assert "***" in str(found.logs)


@pytest.mark.parametrize(
    "line", ["prompt_tokens=512 generation_tokens: 64", "https://hub.example/a/b?", "n1: ready"]
)
def test_what_is_no_secret_stays(line: str) -> None:
    assert mask(line) == line
