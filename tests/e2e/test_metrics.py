"""A real Prometheus scrapes the running system: every panel and every rule asks for what is there, and gets it.

With LLMOS_SCREENSHOTS=FOLDER it leaves the pictures of the boards for the documentation there (`make board-pictures`).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from demo.screen import DemoFailed
from llmos_operator.api import names
from scripts.dashboards.__main__ import BOARDS
from scripts.metrics import catalogue
from tests.support.boards import draw
from tests.support.chart import CHART, find, render
from tests.support.prometheus import Prometheus, promtool, running

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scripts.dashboards.panels import Board
    from tests.support.boards import Series
    from tests.support.installed import Workspace

pytestmark = pytest.mark.e2e

EXAMPLE = Path(__file__).parents[2] / "examples" / "01-chat" / "workload.yaml"
# Series that need an event or a device this cluster does not have. Whatever else a query names must be there.
ABSENT = {
    "llmos_gateway_upstream_errors_total": "a replica breaks off in the middle of an answer",
    "llmos_gpu_health_cause": "a finding against a device",
    "llmos_gpu_xid_errors_total": "an XID error",
    "llmos_operator_repaired_objects_total": "a resync that finds what no watch has told",
    "llmos_gpu_sm_active_ratio": "a device that samples its multiprocessors; simulated ones cannot",
    "llmos_gpu_clock_limited": "a device with clocks; simulated ones have none",
    "llmos_operator_device_strain_ratio": "a strained device; simulated ones are when told to be",
    "llmos_operator_power_budget_watts": "a node or rack with a power budget",
    "llmos_operator_power_drawn_watts": "a node or rack with a power budget",
    "llmos_operator_power_expected_watts": "a node or rack with a power budget",
    "llmos_operator_interference_ratio": "models that slow each other down",
    "llmos_gpu_ecc_errors_total": "a device whose memory counts errors; simulated ones have none",
}
# Queries whose series are there while the selection is empty in a healthy cluster, and why.
EMPTY = {
    "scheduler: Failures": "no request to the API server was refused",
    "LlmosApiRequestsFail": "no request to the API server had no answer or a 5xx",
    "LlmosTelemetryRefused": "no batch of telemetry was refused",
    "LlmosRequestsFail": "no request was answered with 5xx",
    "workload:llmos_gateway_failed:ratio_rate5m": "no request was answered with 5xx",
    "workloads: Failed requests": "no request was answered with 5xx",
}
SHOWN_SECONDS = 300.0  # of a board's picture
PICTURE_BYTES = 150_000
GATEWAY_TOKENS = "sum(llmos_gateway_tokens_total)"
RUNTIME_TOKENS = "sum(vllm:prompt_tokens_total) + sum(vllm:generation_tokens_total)"
VARIABLES = {
    "$__rate_interval": "30s",
    "$namespace": ".*",
    "$workload": ".*",
    "$node": ".*",
    "$product": ".*",
}
_NAME = re.compile(r"\b(?:llmos_|vllm:)[a-z0-9_:]+")


def _groups() -> list[dict[str, Any]]:
    return find(render("everything-values.yaml"), "PrometheusRule", "models")["spec"]["groups"]


def _panels() -> dict[str, list[str]]:
    """Return the expressions of every panel and variable, as Grafana would send them."""
    found: dict[str, list[str]] = {}
    for path in sorted((CHART / "dashboards").glob("*.json")):
        board = json.loads(path.read_text())
        for panel in board["panels"]:
            for target in panel.get("targets", ()):
                found.setdefault(f"{path.stem}: {panel['title']}", []).append(_sent(target["expr"]))
        for variable in board["templating"]["list"]:
            if variable["type"] == "query":
                inside = re.fullmatch(r"label_values\((.*), ([a-z]+)\)", variable["query"]["query"])
                found[f"{path.stem}: ${variable['name']}"] = [_sent(f"count by ({inside[2]}) ({inside[1]})")]
    return found


def _sent(expression: str) -> str:
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    return expression


def _measured(expression: str) -> str:
    """Return an alert's expression without its last comparison: what it measures, alarming or not."""
    bare = re.sub(r"\s*(>|<|==) [0-9.]+\s*$", "", expression.strip(), flags=re.MULTILINE)
    return re.sub(r"\n> clamp_min.*$", "", bare)


PANELS = _panels()


@dataclass
class Watched:
    """What was asked of the system while Prometheus watched it."""

    prometheus: Prometheus
    spent: list[int] = field(default_factory=list)  # tokens, an answer each


@pytest.fixture(scope="module")
def watched(installed: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A Prometheus that has watched the system serve a model, hold requests and let a workload wait."""
    installed.clear()
    with running(tmp_path_factory.mktemp("prometheus"), {"groups": _groups()}) as prometheus:
        watched = Watched(prometheus)
        try:
            _use(installed, prometheus, watched.spent)
            yield watched
        finally:
            installed.clear()


@pytest.fixture
def prometheus(watched: Watched) -> Prometheus:
    return watched.prometheus


def _use(lab: Workspace, prometheus: Prometheus, spent: list[int]) -> None:
    prometheus.watch(_own(lab))
    workload = yaml.safe_load(EXAMPLE.read_text())
    too_large = {**workload, "metadata": {"name": "too-large"}}
    too_large["spec"] = {**workload["spec"], "resources": {"accelerators": 8}}
    too_large["spec"]["model"] = {**workload["spec"]["model"], "name": "too-large"}
    lab.apply(workload, too_large)
    url = lab.service_url("llmos-gateway")
    lab.wait(
        "the first answer", lambda: _ask(url, spent), 120
    )  # the gateway holds it until the model is ready
    lab.ready("chat")
    prometheus.watch([*_own(lab), *_runtimes(lab)])
    lab.wait("all targets to answer", lambda: _healthy(prometheus, len(_own(lab)) + 1), 20)

    # A rate needs an increase between two scrapes: go on until the slowest of the counters has shown one.
    def counted() -> bool:
        _ask(url, spent)
        return all(
            any(float(one["value"][1]) > 0 for one in prometheus.query(query))
            for query in (
                "sum(rate(vllm:time_to_first_token_seconds_count[30s]))",
                "sum(rate(vllm:inter_token_latency_seconds_count[30s]))",
                "sum(rate(llmos_gateway_tokens_total[30s]))",
                "sum(rate(llmos_operator_gpu_seconds_total[30s]))",
                "sum(rate(llmos_operator_tokens_total[30s]))",
                "sum(llmos_operator_waiting_workloads)",
                "workload:llmos_gateway_requests:rate5m",
            )
        )

    lab.wait("traffic to show", counted, 60)

    # The gateway counts an answer when it has sent it, the runtime reports once a second, and both are scraped then.
    def settled() -> bool:
        found = [prometheus.query(query) for query in (GATEWAY_TOKENS, RUNTIME_TOKENS)]
        return all(vector and float(vector[0]["value"][1]) == sum(spent) for vector in found)

    with contextlib.suppress(DemoFailed):  # what came instead is for the test to say
        lab.wait("all tokens to be counted", settled, 20)


def _ask(url: str, spent: list[int]) -> bool:
    body = {"model": "smollm2", "messages": [{"role": "user", "content": "Count to five."}], "max_tokens": 8}
    request = urllib.request.Request(  # noqa: S310 - an address of the local cluster
        f"{url}/v1/chat/completions",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as response:  # noqa: S310 - same
            spent.append(json.loads(response.read())["usage"]["total_tokens"])
            return True
    except urllib.error.HTTPError as error:
        if error.code == 404:  # the gateway has not heard of the workload yet
            return False
        raise


def _own(lab: Workspace) -> list[tuple[str, dict[str, str]]]:
    """Return addresses and labels of the chart's processes, as its ServiceMonitor gives them."""
    return [
        (f"{pod['status']['podIP']}:{names.PORT_HEALTH}", _labels(pod, component))
        for pod in lab.items("pods", namespace=names.SYSTEM_NAMESPACE)
        if (component := pod["metadata"]["labels"].get("app.kubernetes.io/component"))
        in {"operator", "agent", "gateway"}
        and "deletionTimestamp" not in pod["metadata"]
        and pod["status"].get("podIP")
    ]


def _runtimes(lab: Workspace) -> list[tuple[str, dict[str, str]]]:
    """Return addresses and labels of the models, as the chart's PodMonitor gives them."""
    return [
        (
            f"{pod['status']['podIP']}:{names.PORT_SERVING}",
            _labels(pod, "runtime") | {"workload": pod["metadata"]["labels"][names.LABEL_WORKLOAD]},
        )
        for pod in lab.pods_of("chat")
    ]


def _labels(pod: dict[str, Any], job: str) -> dict[str, str]:
    meta = pod["metadata"]
    return {
        "job": job,
        "namespace": meta["namespace"],
        "pod": meta["name"],
        "node": pod["spec"]["nodeName"],
    }


def _healthy(prometheus: Prometheus, count: int) -> bool:
    targets = prometheus.targets()
    return len(targets) == count and all(target["health"] == "up" for target in targets)


def test_every_series_that_may_be_absent_is_one_that_the_code_has_and_a_query_needs():
    known = {series for metrics in catalogue().values() for one in metrics for series in one.series()}
    asked = {name for queries in PANELS.values() for query in queries for name in _NAME.findall(query)}
    assert set(ABSENT) <= known & asked


def test_every_series_a_panel_or_a_rule_names_is_scraped(prometheus: Prometheus):
    scraped = prometheus.names()
    asked = {place: _NAME.findall(" ".join(queries)) for place, queries in PANELS.items()}
    asked |= {rule["name"]: _NAME.findall(rule["query"]) for rule in prometheus.rules()}
    recorded = {rule["record"] for group in _groups() for rule in group["rules"] if "record" in rule}
    missing = {
        (place, name)
        for place, found in asked.items()
        for name in found
        if name not in scraped | ABSENT.keys() and not any(name in record for record in recorded)
    }
    assert not missing


def test_what_is_scraped_is_in_the_catalogue(prometheus: Prometheus):
    known = {series for metrics in catalogue().values() for one in metrics for series in one.series()}
    strangers = {name for name in prometheus.names() if name.startswith(("llmos_", "vllm:"))}
    assert strangers - known == {"llmos_build_info"}


def test_promtool_has_nothing_against_what_is_served(prometheus: Prometheus):
    for target in prometheus.targets():
        with urllib.request.urlopen(target["scrapeUrl"], timeout=10) as response:  # noqa: S310 - a target's own
            _, complaints = promtool("check", "metrics", stdin=response.read().decode())
        # vLLM's names have a colon, and its gauges of 0 to 1 are called a percentage; both are what clients look for.
        ours = [line for line in complaints.splitlines() if not line.startswith("vllm:")]
        assert not ours, target["labels"]["job"]


@pytest.mark.parametrize("place", PANELS)
def test_a_panel_has_data(prometheus: Prometheus, place: str):
    for query in PANELS[place]:
        found = prometheus.query(query)
        if place not in EMPTY and not ABSENT.keys() & set(_NAME.findall(query)):
            assert found, query


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)
def test_a_board_can_be_drawn(prometheus: Prometheus, board: Board, tmp_path: Path):
    def answer(query: str) -> list[Series]:
        found = prometheus.history(_sent(query), SHOWN_SECONDS, 2.0)
        return [(one["metric"], [(float(at), float(value)) for at, value in one["values"]]) for one in found]

    picture = (
        Path(os.environ.get("LLMOS_SCREENSHOTS") or tmp_path)
        / f"board-{board.uid.removeprefix('llmos-')}.png"
    )
    drawn = draw(board, answer, picture)
    panels = [panel for row in board.rows for panel in row.panels]
    assert drawn >= len(panels) // 2
    assert picture.stat().st_size < PICTURE_BYTES


def test_every_rule_evaluates_and_finds_what_it_measures(prometheus: Prometheus):
    written = {
        rule.get("alert") or rule["record"]: rule["expr"] for group in _groups() for rule in group["rules"]
    }
    evaluated = {rule["name"]: rule for rule in prometheus.rules()}
    assert evaluated.keys() == written.keys()
    for name, rule in evaluated.items():
        assert (rule["health"], rule.get("lastError")) == ("ok", None), name
        query = _measured(written[name]) if rule["type"] == "alerting" else name
        if name not in EMPTY and not ABSENT.keys() & set(_NAME.findall(query)):
            assert prometheus.query(query), f"{name}: {query}"


def test_values_are_the_clusters_own(watched: Watched, installed: Workspace):
    def value(query: str) -> float:
        (found,) = watched.prometheus.query(query)
        return float(found["value"][1])

    assert value("sum(llmos_operator_leader)") == 1
    devices = [device for node in installed.items("gn") for device in node["status"]["devices"]]
    parts = [device for device in devices if device["mig"]]
    assert value('count(llmos_gpu_info{parent!=""})') == len(parts) > 0
    cut = {device["parent"] for device in parts}  # measured, and not given out as a whole
    assert value('count(llmos_gpu_info{parent=""})') == len(devices) - len(parts) + len(cut)
    assert value('sum(llmos_operator_waiting_workloads{queue="default"})') == 1
    assert 0 < value("time() - min(llmos_operator_waiting_since_timestamp_seconds)") < 600
    assert value("max(time() - llmos_operator_telemetry_timestamp_seconds)") < 60
    # A part of one device of 2 GiB is held, and no more.
    assert 0 < value('queue:llmos_gpus_held:rate5m{queue="default"}') <= 1.05
    assert value('sum(llmos_gateway_requests_total{workload="chat", code="200"})') > 0
    assert value(GATEWAY_TOKENS) == sum(watched.spent)
    assert value(RUNTIME_TOKENS) == sum(watched.spent)
