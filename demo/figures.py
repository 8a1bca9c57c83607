"""The figures of the dashboards, read from the processes' own metrics."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.table import Table

from llmos_operator.api import names
from llmos_operator.cli.render import dig, size

if TYPE_CHECKING:
    from collections.abc import Callable

    from demo.lab import Lab

_SAMPLE = re.compile(r"^(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>.*)\})? (?P<value>\S+)$")


@dataclass(frozen=True, slots=True)
class Figure:
    """One number and the series it is made from; None where no process told it."""

    title: str
    source: str
    value: float | None
    shown: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """A figure to read: the sum of a series over one kind of process, or the mean of a histogram."""

    title: str
    process: str
    series: str
    show: Callable[[float], str]
    mean: bool = False

    def read(self, text: str) -> float | None:
        """Return the figure's value, None where no process tells it."""
        if not self.mean:
            return total(text, self.series)
        count = total(text, f"{self.series}_count")
        return (total(text, f"{self.series}_sum") or 0.0) / count if count else None


def _count(value: float) -> str:
    return f"{value:.0f}"


def _seconds(value: float) -> str:
    return f"{value:.3f} s"


def _bytes(value: float) -> str:
    return size(round(value))


FIGURES = (
    Wanted("planning, mean of a cycle", "operator", "llmos_operator_cycle_seconds", _seconds, mean=True),
    Wanted(
        "workload created to pod created, mean",
        "operator",
        "llmos_operator_bind_seconds",
        _seconds,
        mean=True,
    ),
    Wanted("placed to serving, mean", "operator", "llmos_operator_ready_seconds", _seconds, mean=True),
    Wanted("evictions", "operator", "llmos_operator_evictions_total", _count),
    Wanted("requests to the API server", "operator", "llmos_operator_api_request_seconds_count", _count),
    Wanted("device memory", "agent", "llmos_gpu_memory_total_bytes", _bytes),
    Wanted("device memory in use", "agent", "llmos_gpu_memory_used_bytes", _bytes),
    Wanted(
        "first byte of an answer, mean", "gateway", "llmos_gateway_first_byte_seconds", _seconds, mean=True
    ),
    Wanted(
        "time added by the gateway, mean", "gateway", "llmos_gateway_overhead_seconds", _seconds, mean=True
    ),
    Wanted("tokens generated", "runtime", "vllm:generation_tokens_total", _count),
    Wanted("prompt tokens", "runtime", "vllm:prompt_tokens_total", _count),
    Wanted("time to first token, mean", "runtime", "vllm:time_to_first_token_seconds", _seconds, mean=True),
)


def total(text: str, series: str) -> float | None:
    """Return the sum of a series over its labels, None where it does not occur."""
    values = [
        float(match["value"])
        for match in map(_SAMPLE.match, text.splitlines())
        if match is not None and match["name"] == series
    ]
    return sum(values) if values else None


def collect(lab: Lab) -> list[Figure]:
    """Scrape every process once and read the figures."""
    texts = {
        component: lab.metrics(
            [
                pod
                for pod in lab.items("pods", namespace=names.SYSTEM_NAMESPACE)
                if dig(pod, "metadata", "labels", "app.kubernetes.io/component") == component
            ],
            names.PORT_HEALTH,
        )
        for component in ("operator", "agent", "gateway")
    }
    texts["runtime"] = lab.metrics(
        [pod for pod in lab.pods() if dig(pod, "status", "podIP")], names.PORT_SERVING
    )
    found = []
    for wanted in FIGURES:
        value = wanted.read(texts[wanted.process])
        found.append(Figure(wanted.title, wanted.series, value, "-" if value is None else wanted.show(value)))
    return found


def table(figures: list[Figure]) -> Table:
    """Return the figures as a table."""
    result = Table(box=None, pad_edge=False, padding=(0, 3, 0, 3))
    for column in ("figure", "now", "series"):
        result.add_column(column, justify="right" if column == "now" else "left")
    for figure in figures:
        result.add_row(figure.title, figure.shown, figure.source)
    return result
