"""`llmos usage` against a real Prometheus that has kept three hours of what the operator's books show."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry

from llmos_operator.cli.app import main
from llmos_operator.control.accounting import Accounts
from llmos_operator.control.metrics import OperatorMetrics
from llmos_operator.control.records import Records
from llmos_operator.control.working import DeviceWork
from llmos_operator.state.telemetry import Reading
from llmos_operator.state.types import Queue
from tests.support.builders import a_cluster, a_node, a_workload, gpu
from tests.support.hub import free_port
from tests.support.prometheus import Prometheus, promtool, running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.component

MINUTES = 180
RESERVED = 40 * 2**30  # bytes of each of two devices


Run = Callable[..., str]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `llmos usage` in this process; return what it printed, on standard error if it had to fail."""
    monkeypatch.delenv("LLMOS_PROMETHEUS", raising=False)
    monkeypatch.delenv("LLMOS_PROMETHEUS_TOKEN", raising=False)

    def call(*arguments: str, expect: int = 0) -> str:
        status = main(["usage", *arguments])
        out, err = capsys.readouterr()
        assert status == expect, out + err
        return err if expect else out

    return call


def _history(until: float) -> str:
    """Return what a Prometheus that scraped once a minute would have read, in OpenMetrics with times."""
    cluster = a_cluster(
        a_node("n1").with_gpus(2, "A100-80G"), a_node("n2").with_gpus(1, "L4-24G"), Queue("research")
    )
    cluster.running(a_workload("train").gpus(2).in_queue("research"), "n1", [0, 1], memory="40Gi")
    cluster.running(a_workload("chat"), "n2", [0], memory="20Gi")
    registry = CollectorRegistry()
    metrics = OperatorMetrics(registry)
    accounts = Accounts(metrics, Records(), DeviceWork())
    lines: dict[str, list[str]] = {}
    for minute in range(MINUTES + 1):
        at = until - 60.0 * (MINUTES - minute)
        busy = Reading(gpu("n1", 0), busy_percent=75, energy_millijoules=minute * 60 * 300_000)
        accounts.sampled([busy, Reading(gpu("n1", 1), busy_percent=25)])
        accounts.charge(cluster.snapshot(), at, 60.0 * minute)
        metrics.leader.set(1)
        for family in registry.collect():
            for sample in family.samples:
                if not sample.name.endswith("_total") and family.name != "llmos_operator_leader":
                    continue
                labels = ",".join(f'{name}="{value}"' for name, value in sample.labels.items())
                head = f"# TYPE {family.name} {family.type}"
                lines.setdefault(head, []).append(f"{sample.name}{{{labels}}} {sample.value} {at:.3f}")
    return "\n".join(line for head, body in lines.items() for line in (head, *body)) + "\n# EOF\n"


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    folder = tmp_path_factory.mktemp("prometheus")
    (folder / "history.om").write_text(_history(time.time()))
    status, said = promtool(
        "tsdb", "create-blocks-from", "openmetrics", str(folder / "history.om"), str(folder / "data")
    )
    assert status == 0, said
    with running(folder, {"groups": []}) as found:
        yield found


def test_usage_by_queue_is_what_the_books_counted(
    run: Run, prometheus: Prometheus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMOS_PROMETHEUS", prometheus.url)
    text = run("--by", "queue", "--since", "2h", "--output", "json")
    research, default = json.loads(text)["rows"]
    assert (research["name"], default["name"]) == ("research", "default")
    # Scraped once a minute: the ends of the range are good to a minute of each device.
    assert research["gpuSeconds"] == pytest.approx(2 * 7200, abs=2 * 60)
    assert default["gpuSeconds"] == pytest.approx(7200, abs=60)
    assert research["busyGpuSeconds"] / research["gpuSeconds"] == pytest.approx(0.5, abs=0.01)
    assert research["energyJoules"] == pytest.approx(7200 * 300, rel=0.02)
    assert default["busyGpuSeconds"] == 0
    assert research["memoryByteSeconds"] == pytest.approx(2 * 7200 * RESERVED, rel=0.02)
    assert research["cost"] is None


def test_the_table_adds_up_and_prices_what_has_a_rate(run: Run, prometheus: Prometheus) -> None:
    text = run("--by", "workload", "--since", "1h", "--rate", "A100=2.5", "--prometheus", prometheus.url)
    lines = [line.split() for line in text.splitlines()]
    assert [line[0] for line in lines[1:4]] == ["default/train", "default/chat", "total"]
    cost = float(lines[1][-1])
    assert cost == pytest.approx(2 * 2.5, abs=0.1)
    assert float(lines[3][-1]) == cost
    assert "no rate was given for L4-24G" in text


def test_a_namespace_without_work_has_had_nothing(run: Run, prometheus: Prometheus) -> None:
    assert "nothing was held in the last 7d" in run("-n", "elsewhere", "--prometheus", prometheus.url)


def test_without_a_prometheus_it_says_how_to_name_one(run: Run) -> None:
    assert "port-forward" in run(expect=2)
    nowhere = f"http://127.0.0.1:{free_port()}"
    assert f"no Prometheus answers at {nowhere}" in run("--prometheus", nowhere, expect=3)


def test_a_prometheus_that_does_not_scrape_the_operator_is_told(run: Run, tmp_path: Path) -> None:
    with running(tmp_path, {"groups": []}) as empty:
        assert "does it scrape it" in run("--prometheus", empty.url, expect=1)


def test_what_is_no_prometheus_is_told_by_what_it_answers(run: Run) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            url = f"http://127.0.0.1:{server.server_port}"
            assert "does not answer like a Prometheus" in run("--prometheus", url, expect=1)
        finally:
            server.shutdown()


@pytest.mark.parametrize(
    "arguments",
    [("--since", "7"), ("--since", "1h]"), ("--rate", "A100"), ("-n", 'a"}'), ("--prometheus", "x")],
)
def test_bad_options_are_told_before_anything_is_asked(run: Run, arguments: tuple[str, str]) -> None:
    assert arguments[1] in run(*arguments, expect=2)
