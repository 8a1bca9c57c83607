"""Dashboards and alerts ask for series that the processes expose, by labels that these series have."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from scripts.chart import CHART
from scripts.metrics import catalogue

REPOSITORY = Path(__file__).resolve().parents[3]
# What Prometheus adds to every series of the chart's monitors: the node by relabelling, the rest by itself. The
# workload label of runtimes comes from their pods.
TARGET = {"job", "instance", "namespace", "pod", "node", "le"}
_METRIC = re.compile(r"\b((?:llmos_|vllm:)[a-z0-9_:]+)(\{[^}]*\})?")
_LABEL = re.compile(r"([a-z_]+)\s*(?:=~|!~|!=|=)")
_GROUPING = re.compile(r"\b(?:by|on)\s*\(([^)]*)\)")


def exposed() -> dict[str, set[str]]:
    """Return the labels of every series name that some process can expose."""
    return {
        series: set(metric.labels) | ({"workload"} if process == "runtime" else set())
        for process, metrics in catalogue().items()
        for metric in metrics
        for series in metric.series()
    }


EXPOSED = exposed()


def _queries() -> list[tuple[str, str]]:
    queries = []
    for path in sorted((CHART / "dashboards").glob("*.json")):
        board = json.loads(path.read_text())
        for panel in board["panels"]:
            queries += [
                (f"{path.stem}: {panel['title']}", target["expr"]) for target in panel.get("targets", [])
            ]
        for variable in board["templating"]["list"]:
            if variable["type"] == "query":
                inside = re.fullmatch(r"label_values\((.*), ([a-z]+)\)", variable["query"]["query"])
                queries.append((f"{path.stem}: ${variable['name']}", f"count by ({inside[2]}) ({inside[1]})"))
    queries += [(rule.get("alert") or rule["record"], rule["expr"]) for rule in RULES]
    return queries


RULES = [
    rule for group in yaml.safe_load((CHART / "rules.yaml").read_text())["groups"] for rule in group["rules"]
]
RECORDED = {rule["record"] for rule in RULES if "record" in rule}
QUERIES = _queries()


def test_dashboards_are_up_to_date():
    done = subprocess.run(
        [sys.executable, "-m", "scripts.dashboards", "--check"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("place", "query"), QUERIES, ids=[place for place, _ in QUERIES])
def test_a_query_names_series_and_labels_that_exist(place: str, query: str):
    recorded = {name for name in re.findall(r"\b\w+:\w+:\w+\b", query) if not name.startswith("vllm:")}
    assert recorded <= RECORDED
    for name in recorded:
        query = query.replace(name, "")
    used = _METRIC.findall(query)
    assert used or recorded, place
    known: set[str] = set()
    for name, matchers in used:
        assert name in EXPOSED, f"{name} is exposed by no process"
        known |= EXPOSED[name] | TARGET
        assert set(_LABEL.findall(matchers)) <= EXPOSED[name] | TARGET, (
            f"labels of {name} are {sorted(EXPOSED[name])}"
        )
    for labels in _GROUPING.findall(query):
        assert {label.strip() for label in labels.split(",")} <= known
    assert query.count("(") == query.count(")")


@pytest.mark.parametrize(("place", "query"), QUERIES, ids=[place for place, _ in QUERIES])
def test_counters_are_read_as_rates_and_histograms_by_bucket(place: str, query: str):
    for name in re.findall(r"\b((?:llmos_|vllm:)[a-z0-9_:]+(?:_total|_bucket|_count))\b", query):
        if "$" not in place:  # a variable lists label values
            assert re.search(rf"(rate|increase)\({re.escape(name)}", query), name
    if "_bucket" in query:
        assert "histogram_quantile" in query or re.search(r'_bucket\{le="[0-9.]+"\}', query)
    else:
        assert "histogram_quantile" not in query


def test_there_are_three_boards_with_stable_ids():
    boards = [json.loads(path.read_text()) for path in sorted((CHART / "dashboards").glob("*.json"))]
    assert [board["uid"] for board in boards] == ["llmos-fleet", "llmos-scheduler", "llmos-workloads"]
    for board in boards:
        ids = [panel["id"] for panel in board["panels"]]
        assert len(ids) == len(set(ids))
        for panel in board["panels"]:
            if panel["type"] != "row":
                assert len(panel["description"]) > 10, panel["title"]
                assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
                assert panel["datasource"]["uid"] == "${datasource}"
                assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24


def test_every_alert_has_a_runbook_and_every_runbook_an_alert():
    rules = [rule for rule in RULES if "alert" in rule]
    text = (REPOSITORY / "docs" / "runbooks" / "alerts.md").read_text()
    assert set(re.findall(r"^## (\w+)$", text, re.MULTILINE)) == {rule["alert"] for rule in rules}
    for rule in rules:
        assert rule["severity"] in {"critical", "warning"}
        assert rule["for"]
        assert rule["summary"]
        assert rule["description"]


def test_the_check_itself_can_fail():
    with pytest.raises(AssertionError, match="llmos_gpu_wishes is exposed by no process"):
        test_a_query_names_series_and_labels_that_exist("here", "sum(llmos_gpu_wishes)")
    with pytest.raises(AssertionError, match="labels of llmos_operator_workloads"):
        test_a_query_names_series_and_labels_that_exist("here", 'llmos_operator_workloads{colour="red"}')
