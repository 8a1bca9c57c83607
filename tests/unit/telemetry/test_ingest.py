"""The operator's side: what is taken, dropped, refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llmos_operator.api.telemetry import Verdict
from llmos_operator.state.telemetry import Reading
from llmos_operator.telemetry.ingest import MAX_BODY, TAKEOVER_SECONDS, BadBatch, Ingest, PodUse


def a_batch(
    sequence: int = 1, epoch: int = 1000, node: str = "n1", devices: list[dict[str, Any]] | None = None
) -> bytes:
    entries = (
        [{"uuid": "GPU-a", "index": 0, "memoryUsedBytes": 5, "memoryTotalBytes": 10}]
        if devices is None
        else devices
    )
    return json.dumps({"node": node, "epoch": epoch, "sequence": sequence, "devices": entries}).encode()


def test_a_batch_becomes_readings() -> None:
    device = {
        "uuid": "GPU-a",
        "index": 3,
        "memoryUsedBytes": 5,
        "memoryTotalBytes": 10,
        "verdict": "Degraded",
        "reason": "X",
    }
    report = Ingest().accept(a_batch(devices=[device, {"uuid": "GPU-b", "index": 4}]), "n1", 7.5)
    assert report is not None
    assert (report.node, report.received_at) == ("n1", 7.5)
    assert report.readings == (
        Reading("GPU-a", 5, 10, Verdict.DEGRADED, "X"),
        Reading("GPU-b", None, None, Verdict.UNKNOWN, ""),
    )
    assert report.uses is None, "this batch told no processes, which is not the same as none"


def test_processes_are_summed_by_pod() -> None:
    processes = [
        {"pid": 1, "memoryBytes": 10, "podUid": "p1"},
        {"pid": 2, "memoryBytes": 20, "podUid": "p1"},
        {"pid": 3, "memoryBytes": 5},
        {"pid": 4, "podUid": "p2"},
        {"pid": 5, "memoryBytes": 7, "podUid": "p2"},
    ]
    devices = [
        {"uuid": "GPU-a", "index": 0, "processes": processes},
        {"uuid": "GPU-b", "index": 1, "processes": []},
    ]
    report = Ingest().accept(a_batch(devices=devices), "n1", 0.0)
    assert report is not None
    assert report.uses == (
        PodUse("GPU-a", "", 5, 1),
        PodUse("GPU-a", "p1", 30, 2),
        PodUse("GPU-a", "p2", None, 2),
    )
    assert report.listed == {"GPU-a", "GPU-b"}, "GPU-b is known to be empty"


def test_late_and_doubled_batches_are_dropped_and_lost_ones_counted() -> None:
    ingest = Ingest()
    taken = [ingest.accept(a_batch(sequence), "n1", 0.0) for sequence in (1, 2, 2, 1, 5, 3, 6)]
    assert [report is not None for report in taken] == [True, True, False, False, True, False, True]
    assert taken[4] is not None
    assert taken[4].missed == 2
    assert (ingest.counts.accepted, ingest.counts.dropped, ingest.counts.missed) == (4, 3, 2)


def test_a_restarted_agent_starts_over() -> None:
    ingest = Ingest()
    assert ingest.accept(a_batch(500, epoch=1000), "n1", 0.0)
    assert ingest.accept(a_batch(1, epoch=1001), "n1", 1.0)
    assert ingest.accept(a_batch(501, epoch=1000), "n1", 2.0) is None, "the old agent's last words"


def test_an_agent_whose_clock_was_set_back_is_believed_when_its_predecessor_is_silent() -> None:
    ingest = Ingest()
    assert ingest.accept(a_batch(9, epoch=5000), "n1", 0.0)
    assert ingest.accept(a_batch(1, epoch=1000), "n1", TAKEOVER_SECONDS - 0.1) is None
    assert ingest.accept(a_batch(2, epoch=1000), "n1", TAKEOVER_SECONDS)
    assert ingest.accept(a_batch(3, epoch=1000), "n1", TAKEOVER_SECONDS + 1)


def test_nodes_are_ordered_apart() -> None:
    ingest = Ingest()
    assert ingest.accept(a_batch(9), "n1", 0.0)
    assert ingest.accept(a_batch(1, node="n2"), "n2", 0.0)


def test_a_node_that_is_gone_is_forgotten() -> None:
    ingest = Ingest()
    assert ingest.accept(a_batch(9), "n1", 0.0)
    ingest.forget("n1")
    assert ingest.accept(a_batch(1), "n1", 0.0)


GPU = {"uuid": "GPU-a", "index": 0}
BAD: dict[str, tuple[bytes, str, str]] = {
    "another node": (a_batch(node="n2"), "WrongNode", "'n2'.*'n1'"),
    "twice the same device": (a_batch(devices=[GPU, GPU]), "DuplicateDevice", "GPU-a"),
    "not JSON": (b"{", "Malformed", "Invalid JSON"),
    "not an object": (b"[]", "Malformed", "object"),
    "empty": (b"", "Malformed", "body"),
    "not UTF-8": (b'{"node": "\xff"}', "Malformed", "UTF-8|utf-8|unicode|Invalid JSON"),
    "no node": (b'{"epoch":1,"sequence":1,"devices":[]}', "Malformed", "node"),
    "a negative sequence": (a_batch(-1), "Malformed", "sequence"),
    "an index beyond the wire": (
        a_batch(devices=[{"uuid": "x", "index": 256}]),
        "Malformed",
        r"devices\.0\.index",
    ),
    "text for a number": (
        a_batch(devices=[{**GPU, "memoryUsedBytes": "much"}]),
        "Malformed",
        "memoryUsedBytes",
    ),
    "a fraction of a byte": (
        a_batch(devices=[{**GPU, "memoryUsedBytes": 1.5}]),
        "Malformed",
        "memoryUsedBytes",
    ),
    "negative memory": (
        a_batch(devices=[{**GPU, "memoryUsedBytes": -1}]),
        "ImpossibleValue",
        "memoryUsedBytes = -1",
    ),
    "memory beyond all memory": (
        a_batch(devices=[{**GPU, "memoryTotalBytes": 1 << 63}]),
        "ImpossibleValue",
        "cannot be",
    ),
    "a verdict of no version": (a_batch(devices=[{**GPU, "verdict": "Fine"}]), "Malformed", "verdict"),
    "a long reason": (a_batch(devices=[{**GPU, "reason": "x" * 65}]), "Malformed", "reason"),
    "too many devices": (
        a_batch(devices=[{"uuid": f"g{i}", "index": 0} for i in range(65)]),
        "Malformed",
        "devices",
    ),
    "too many processes": (
        a_batch(devices=[{**GPU, "processes": [{"pid": 1}] * 513}]),
        "Malformed",
        "processes",
    ),
    "too large": (b" " * (MAX_BODY + 1), "TooLarge", str(MAX_BODY)),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_batch_is_refused_with_its_reason_and_changes_nothing(name: str) -> None:
    body, reason, message = BAD[name]
    ingest = Ingest()
    assert ingest.accept(a_batch(5), "n1", 0.0)
    with pytest.raises(BadBatch, match=message) as refused:
        ingest.accept(body, "n1", 1.0)
    assert refused.value.reason == reason
    assert ingest.counts.refused == 1
    assert ingest.accept(a_batch(6), "n1", 2.0), "the node's own batches still come through"


def test_newer_agents_may_tell_more() -> None:
    device = {**GPU, "inventedLater": [1, 2, 3]}
    assert Ingest().accept(a_batch(devices=[device]), "n1", 0.0)


def test_a_refusal_does_not_repeat_what_it_refuses() -> None:
    with pytest.raises(BadBatch) as refused:
        Ingest().accept(a_batch(devices=[{**GPU, "memoryUsedBytes": "secret" * 1000}]), "n1", 0.0)
    assert "secret" not in str(refused.value)
