"""`llmos usage`: who has had how much in the last days, as Prometheus has kept it; and what it cost, at given rates.

The operator counts (`control.accounting`), Prometheus keeps. PromQL's `increase` extends what it sees to the ends of
the range and misses what happened before the first scrape of a new series: figures are good to about a scrape interval
a workload, and need a retention as long as the range.
"""

from __future__ import annotations

import asyncio
import re
from collections import defaultdict
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from llmos_operator.cli import prometheus, render
from llmos_operator.cli.failures import USAGE, CommandFailed
from llmos_operator.cli.options import AsJson  # noqa: TC001 - typer reads it

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from rich.console import Console

    from llmos_operator.cli.prometheus import Sample

_HOUR = 3600.0
_KWH = 3_600_000.0
_GIB = 1024.0**3
_RANGE = re.compile(r"([1-9][0-9]*[smhdw])+")
_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
# Figure of a row -> the operator's counter.
_DEVICES = {
    "gpu_seconds": "llmos_operator_gpu_seconds_total",
    "busy_gpu_seconds": "llmos_operator_gpu_busy_seconds_total",
    "idle_gpu_seconds": "llmos_operator_gpu_idle_seconds_total",
    "lost_gpu_seconds": "llmos_operator_gpu_lost_seconds_total",
    "memory_byte_seconds": "llmos_operator_gpu_memory_byte_seconds_total",
    "energy_joules": "llmos_operator_energy_joules_total",
}
_TOKENS = "llmos_operator_tokens_total"
_OPERATOR = "count(llmos_operator_leader)"


class By(StrEnum):
    """What usage is added up by."""

    QUEUE = "queue"
    NAMESPACE = "namespace"
    WORKLOAD = "workload"


class Output(StrEnum):
    """How it is printed."""

    TABLE = "table"
    JSON = "json"


@dataclass(slots=True)
class UsageRow:
    """What one queue, namespace or workload had. Devices times seconds; `cost` is None without a rate."""

    name: str
    gpu_seconds: float = 0.0
    busy_gpu_seconds: float = 0.0
    idle_gpu_seconds: float = 0.0
    lost_gpu_seconds: float = 0.0
    memory_byte_seconds: float = 0.0  # device memory reserved
    energy_joules: float = 0.0
    prompt_tokens: float = 0.0
    generation_tokens: float = 0.0
    cost: float | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """What `llmos usage --json` prints: rows by what they held, the largest first."""

    since: str
    by: By
    rows: tuple[UsageRow, ...]
    unpriced: tuple[str, ...] = field(default=())  # products without a rate, where rates were given


def command(
    by: Annotated[By, typer.Option("--by", help="What to add up by.")] = By.QUEUE,
    since: Annotated[str, typer.Option("--since", help="How far back: 7d, 12h, 1d12h.")] = "7d",
    namespace: Annotated[
        str, typer.Option("--namespace", "-n", help="Only this namespace (default: all).")
    ] = "",
    rate: Annotated[
        list[str] | None,
        typer.Option("--rate", help="PRODUCT=PRICE of one device for an hour, as A100=2.5; may be repeated."),
    ] = None,
    url: Annotated[
        str,
        typer.Option("--prometheus", help=f"Address of Prometheus (default: ${prometheus.ENV_URL})."),
    ] = "",
    output: Annotated[Output, typer.Option("--output", "-o", help="How to print.")] = Output.TABLE,
    as_json: AsJson = False,
) -> None:
    """Show GPU hours, memory, energy and tokens by queue, namespace or workload, from Prometheus."""
    rates = read_rates(rate or ())
    if not _RANGE.fullmatch(since):
        raise CommandFailed(f"--since {since!r}: write a range like 7d, 12h or 1d12h", status=USAGE)
    if namespace and not _NAMESPACE.fullmatch(namespace):
        raise CommandFailed(f"--namespace {namespace!r} is no name of a namespace", status=USAGE)
    address = prometheus.address(url)
    answers = asyncio.run(prometheus.ask(address, queries(by, since, namespace)))
    *devices, tokens, operators = answers
    if not operators and not any(answers):
        raise CommandFailed(
            f"{address} has no series of the operator: does it scrape it? The chart's metrics.serviceMonitor.enabled makes "
            "it; docs/reference/metrics.md says where metrics are"
        )
    found = table(by, since, dict(zip(_DEVICES, devices, strict=True)), tokens, rates)
    if as_json or output is Output.JSON:
        render.print_json(found)
    else:
        show(render.console(), found, priced=bool(rates))


def read_rates(texts: Iterable[str]) -> dict[str, float]:
    """Return price per device and hour by word of a product. Raises `CommandFailed` for what is no rate."""
    rates: dict[str, float] = {}
    for text in texts:
        word, _, price = text.rpartition("=")
        if not word or not re.fullmatch(r"[0-9]+(\.[0-9]+)?", price):
            raise CommandFailed(f"--rate {text!r}: write PRODUCT=PRICE, as A100=2.5", status=USAGE)
        rates[word] = float(price)
    return rates


def queries(by: By, since: str, namespace: str = "") -> list[str]:
    """Return the queries: one a counter of devices, one of tokens, and one that tells whether an operator is scraped."""
    labels = "namespace, workload" if by is By.WORKLOAD else by.value
    chosen = f'{{namespace="{namespace}"}}' if namespace else ""
    devices = [
        f"sum by ({labels}, product) (increase({name}{chosen}[{since}]))" for name in _DEVICES.values()
    ]
    return [*devices, f"sum by ({labels}, kind) (increase({_TOKENS}{chosen}[{since}]))", _OPERATOR]


def table(
    by: By,
    since: str,
    devices: Mapping[str, Sequence[Sample]],
    tokens: Sequence[Sample],
    rates: Mapping[str, float],
) -> Usage:
    """Add vectors up to rows. ``devices`` has one vector for each figure of devices."""
    rows: defaultdict[str, UsageRow] = defaultdict(lambda: UsageRow(""))
    unpriced: set[str] = set()
    for figure, vector in devices.items():
        for sample in vector:
            row = rows[_name(by, sample)]
            setattr(row, figure, getattr(row, figure) + sample.value)
            if figure == "gpu_seconds" and rates:
                product = sample.labels.get("product", "")
                price = _price(product, rates)
                if price is None:
                    unpriced |= {product} if sample.value > 0 else set()
                else:
                    row.cost = (row.cost or 0.0) + price * sample.value / _HOUR
    for sample in tokens:
        row = rows[_name(by, sample)]
        if sample.labels.get("kind") == "prompt":
            row.prompt_tokens += sample.value
        else:
            row.generation_tokens += sample.value
    for name, row in rows.items():
        row.name = name
    held = [row for row in rows.values() if row.gpu_seconds or row.prompt_tokens or row.lost_gpu_seconds]
    held.sort(key=lambda row: (-row.gpu_seconds, row.name))
    return Usage(since, by, tuple(held), tuple(sorted(unpriced)))


def _name(by: By, sample: Sample) -> str:
    name = sample.labels.get(by.value, "")
    return f"{sample.labels.get('namespace', '')}/{name}" if by is By.WORKLOAD else name


def _price(product: str, rates: Mapping[str, float]) -> float | None:
    """Return the first rate whose word is in the product, by the rule `spec.resources.selector.product` goes by."""
    from llmos_operator.scheduler.filters.device_kind import (  # noqa: PLC0415 - numpy: only rates pay for it
        product_matches,
    )

    return next((price for word, price in rates.items() if product_matches(product, (word,))), None)


def show(console: Console, found: Usage, *, priced: bool) -> None:
    """Print one line a row and a sum."""
    if not found.rows:
        console.print(f"nothing was held in the last {found.since}")
        return
    columns = [
        found.by.value.upper(),
        "GPU HOURS",
        "BUSY",
        "IDLE",
        "LOST",
        "GIB HOURS",
        "ENERGY",
        "PROMPT",
        "GENERATED",
    ]
    columns += ["COST"] if priced else []
    lines = [_line(row, priced=priced) for row in found.rows]
    if len(found.rows) > 1:
        lines.append(_line(_sum(found.rows), priced=priced))
    console.print(render.table(columns, lines, right=columns[1:]))
    if found.unpriced:
        console.print(f"\nno rate was given for {', '.join(found.unpriced)}: not in the cost")


def _sum(rows: Iterable[UsageRow]) -> UsageRow:
    total = UsageRow("total")
    for row in rows:
        for name in (*_DEVICES, "prompt_tokens", "generation_tokens"):
            setattr(total, name, getattr(total, name) + getattr(row, name))
        if row.cost is not None:
            total.cost = (total.cost or 0.0) + row.cost
    return total


def _line(row: UsageRow, *, priced: bool) -> list[str]:
    cells = [
        row.name,
        f"{row.gpu_seconds / _HOUR:,.2f}",
        _share(row.busy_gpu_seconds, row.gpu_seconds),
        _share(row.idle_gpu_seconds, row.gpu_seconds),
        f"{row.lost_gpu_seconds / _HOUR:,.2f}",
        f"{row.memory_byte_seconds / _GIB / _HOUR:,.1f}",
        f"{row.energy_joules / _KWH:,.3f} kWh",
        f"{row.prompt_tokens:,.0f}",
        f"{row.generation_tokens:,.0f}",
    ]
    return [*cells, "" if row.cost is None else f"{row.cost:,.2f}"] if priced else cells


def _share(part: float, whole: float) -> str:
    return f"{min(1.0, part / whole):.0%}" if whole > 0 else ""
