"""Runs every scenario file through the real `plan()`; see README.md beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.plans import MOST_CYCLES, carry_out, plan_of, retired, summary
from tests.support.scenario import load

FILES = sorted(Path(__file__).parent.glob("*/*.yaml"))


def check(expected: dict[str, Any], got: dict[str, Any], when: str) -> None:
    for key, value in expected.items():
        if key in {"messages", "rejected"}:
            for name, part in value.items():
                assert name in got[key], f"{when}: nothing was decided about {name}"
                if key == "messages":
                    assert part in got[key][name], f"{when}: {name}"
                else:
                    assert got[key][name] == part, f"{when}: {name}"
        elif isinstance(value, list) and key != "devices":
            assert got[key] == sorted(value), f"{when}: {key} (messages: {got['messages']})"
        else:
            assert got[key] == value, f"{when}: {key} (messages: {got['messages']})"


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_the_plan_is_the_expected_one(path: Path) -> None:
    scenario = load(path)
    nothing = {"evict": [], "fewer": [], "shrink": [], "sleep": [], "wake": [], "bind": [], "wait": {}}
    expected = nothing | scenario.expect
    given_back = sorted(expected.pop("retire", []))
    assert retired(scenario) == given_back, "pods given back"
    first = plan_of(scenario)
    check(expected, summary(first), "first plan")
    assert plan_of(scenario) == first, "the same snapshot gave another plan"

    carry_out(scenario.cluster, first)
    second = plan_of(scenario)
    if scenario.then:
        check({"evict": [], "fewer": [], "shrink": []} | scenario.then, summary(second), "second plan")

    evicted = [e.pod_uid for e in (*first.evictions, *second.evictions)]
    shrunk = [s.pod_uid for s in (*first.shrinks, *second.shrinks)]
    for _ in range(MOST_CYCLES):
        if not second.actions:
            break
        carry_out(scenario.cluster, second)
        second = plan_of(scenario)
        evicted += [e.pod_uid for e in second.evictions]
        shrunk += [s.pod_uid for s in second.shrinks]
    assert not second.actions, "the cluster does not come to rest"
    assert len(evicted) == len(set(evicted)), "a pod was evicted twice"
    assert len(shrunk) == len(set(shrunk)), "a pod was asked twice for the same memory"


def test_there_are_scenarios() -> None:
    assert len(FILES) >= 30
