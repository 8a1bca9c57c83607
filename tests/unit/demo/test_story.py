"""The demo's claims can fail: what they are computed from."""

from __future__ import annotations

from typing import Any

import pytest

from demo import asking, figures, story, watching
from demo.screen import Screen
from llmos_operator.cli import workloads


def a_pod(
    name: str, workload: str, ordinal: int, *, restarts: int = 0, deleted: bool = False
) -> dict[str, Any]:
    meta: dict[str, Any] = {
        "name": name,
        "uid": f"uid-{name}",
        "labels": {"llmos.dev/workload": workload, "llmos.dev/ordinal": str(ordinal)},
    }
    if deleted:
        meta["deletionTimestamp"] = "2026-11-01T00:00:00Z"
    return {"metadata": meta, "status": {"initContainerStatuses": [{"restartCount": restarts}]}}


def test_a_second_pod_of_a_replica_is_a_double_unless_it_is_going() -> None:
    one, other = a_pod("a", "chat", 0), a_pod("b", "chat", 0)
    assert story.doubled([one, other]) == ["chat/0"]
    assert story.doubled([one, a_pod("b", "chat", 1)]) == []
    assert story.doubled([one, a_pod("b", "chat", 0, deleted=True)]) == []


def test_a_pod_survived_if_it_is_the_same_and_was_not_restarted() -> None:
    before = {"uid-a": a_pod("a", "chat", 0)}
    assert story.survived(before, {"uid-a": a_pod("a", "chat", 0), "uid-b": a_pod("b", "x", 0)})
    assert not story.survived(before, {"uid-a": a_pod("a", "chat", 0, restarts=1)})
    assert not story.survived(before, {"uid-b": a_pod("b", "chat", 0)})


def test_a_workload_is_ready_only_with_all_its_replicas() -> None:
    def row(ready: str, status: str) -> workloads.WorkloadRow:
        condition = {
            "type": "Ready",
            "status": status,
            "reason": "x",
            "lastTransitionTime": "2026-11-01T00:00:00Z",
        }
        return workloads.row(
            {
                "metadata": {"name": "w"},
                "spec": {},
                "status": {"summary": {"ready": ready}, "conditions": [condition]},
            },
            0.0,
        )

    assert watching.is_ready(row("2/2", "True"))
    assert not watching.is_ready(row("1/2", "True"))
    assert not watching.is_ready(row("2/2", "False"))


def test_figures_are_sums_over_labels_and_absent_ones_are_not_zero() -> None:
    text = 'a_total{x="1"} 2\na_total{x="2"} 3.5\n# HELP a_total\na_total_created 9\nb 1e3\n'
    assert figures.total(text, "a_total") == 5.5
    assert figures.total(text, "b") == 1000
    assert figures.total(text, "c") is None
    histogram = "h_sum 3\nh_count 2\n"
    mean = figures.Wanted("h", "operator", "h", str, mean=True)
    assert mean.read(histogram) == 1.5
    assert mean.read("h_sum 0\nh_count 0\n") is None


def test_cosine_knows_same_orthogonal_and_opposite() -> None:
    assert asking.cosine([1, 2], [2, 4]) == pytest.approx(1)
    assert asking.cosine([1, 0], [0, 3]) == pytest.approx(0)
    assert asking.cosine([1, 1], [-1, -1]) == pytest.approx(-1)


def test_one_claim_that_does_not_hold_fails_the_story(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen()
    with screen.stage("first"):
        screen.claim("the sky is up", held=True)
    assert screen.summary()
    with screen.stage("second"):
        screen.claim("the moon is cheese", held=False, detail="rock")
    assert not screen.summary()
    assert "did not hold: the moon is cheese (rock)" in capsys.readouterr().out


def test_a_stage_that_breaks_off_fails_the_story() -> None:
    screen = Screen()
    with pytest.raises(ValueError, match="boom"), screen.stage("first"):
        raise ValueError("boom")
    assert not screen.summary()
    assert not Screen().summary(), "a story without stages tells nothing"
