"""Recording and alerting rules as Helm renders them, in the hands of promtool.

Every alert fires on its condition, stays silent just below it and ends; every recorded series has the value it should.
That these tests would notice a wrong rule is tested, too.
"""

from __future__ import annotations

import copy
import functools
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.support.chart import CHART, find, render
from tests.support.prometheus import promtool

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.component

FOLDER = Path(__file__).parent / "rules"
FILES = sorted(path.name for path in FOLDER.glob("*.yaml"))
# From the chart's source: Helm runs in tests, not while they are collected.
ALERTS = re.findall(r"- alert: (\w+)", (CHART / "rules.yaml").read_text())
Rule = dict[str, Any]


@functools.cache
def rendered() -> list[dict[str, Any]]:
    return find(render("everything-values.yaml"), "PrometheusRule", "models")["spec"]["groups"]


def groups() -> list[dict[str, Any]]:
    return copy.deepcopy(rendered())


def rules(kind: str) -> list[Rule]:
    return [rule for group in groups() for rule in group["rules"] if kind in rule]


@functools.cache
def cases() -> list[dict[str, Any]]:
    return [case for name in FILES for case in yaml.safe_load((FOLDER / name).read_text())["tests"]]


def run_tests(folder: Path, change: Callable[[Rule], None] = lambda _: None) -> tuple[int, str]:
    """Run all rule tests on the rendered rules without their annotations, each changed by ``change``."""
    changed = groups()
    for group in changed:
        for rule in group["rules"]:
            rule.pop("annotations", None)
            change(rule)
    (folder / "rules.json").write_text(json.dumps({"groups": changed}))
    order = [group["name"] for group in changed]
    for name in FILES:
        tests = yaml.safe_load((FOLDER / name).read_text())
        whole = {"rule_files": ["rules.json"], "group_eval_order": order, **tests}
        (folder / name).write_text(json.dumps(whole))
    return promtool("test", "rules", *FILES, cwd=folder)


def failing(output: str) -> set[str]:
    """Return the alerts and recorded names whose tests failed."""
    return set(re.findall(r'(?:alertname: |expr: ")([A-Za-z0-9_:]+)', output))


def test_promtool_accepts_the_rendered_rules(tmp_path: Path):
    (tmp_path / "rules.json").write_text(json.dumps({"groups": groups()}))
    status, output = promtool("check", "rules", "rules.json", cwd=tmp_path)
    assert status == 0, output
    assert f"{len(rules('alert')) + len(rules('record'))} rules found" in output


def test_every_rule_does_what_its_tests_say(tmp_path: Path):
    status, output = run_tests(tmp_path)
    assert status == 0, output


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_is_tested_before_while_and_after_it_fires(alert: str):
    spoken = {True: [], False: []}
    for number, case in enumerate(cases()):
        for one in case.get("alert_rule_test", ()):
            if one["alertname"] == alert:
                minute = int(one["eval_time"].removesuffix("m"))
                spoken[bool(one.get("exp_alerts"))].append((number, minute))
    assert spoken[True], "nothing shows that it fires"
    assert any(
        before[0] == during[0] == after[0] and before[1] < during[1] < after[1]
        for during in spoken[True]
        for before in spoken[False]
        for after in spoken[False]
    ), "nothing shows that it waits and that it ends"


def test_every_alert_is_rendered():
    assert [rule["alert"] for rule in rules("alert")] == ALERTS


def test_every_recorded_series_is_tested():
    asked = {one["expr"] for case in cases() for one in case.get("promql_expr_test", ())}
    assert {rule["record"] for rule in rules("record")} <= asked


def test_texts_use_only_labels_that_the_alert_has():
    labels: dict[str, set[str]] = {}
    for case in cases():
        for one in case.get("alert_rule_test", ()):
            for fired in one.get("exp_alerts", ()):
                labels.setdefault(one["alertname"], set()).update(fired["exp_labels"])
    for rule in rules("alert"):
        told = " ".join(rule["annotations"].values())
        assert set(re.findall(r"\$labels\.(\w+)", told)) <= labels[rule["alert"]], rule["alert"]


def test_an_alert_that_fires_at_nine_tenths_of_its_threshold_is_noticed(tmp_path: Path):
    threshold = re.compile(r"> ([0-9.]+)$", re.MULTILINE)

    def lower(rule: Rule) -> None:
        if "alert" in rule:
            # 0 becomes -0.1: nothing at all is then too much.
            rule["expr"] = threshold.sub(
                lambda m: f"> {float(m[1]) * 0.9 if float(m[1]) else -0.1}", rule["expr"].strip()
            )

    lowered = {rule["alert"] for rule in rules("alert") if threshold.search(rule["expr"].strip())}
    assert len(lowered) > 15
    status, output = run_tests(tmp_path, lower)
    assert status != 0
    assert lowered - failing(output) == set()


def test_an_alert_that_does_not_wait_is_noticed(tmp_path: Path):
    def hurry(rule: Rule) -> None:
        if "alert" in rule:
            rule["for"] = "0s"

    status, output = run_tests(tmp_path, hurry)
    assert status != 0
    assert {rule["alert"] for rule in rules("alert")} - failing(output) == set()
