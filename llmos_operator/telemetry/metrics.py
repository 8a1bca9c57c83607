"""The agent's Prometheus metrics: devices from the latest samples, and the agent about itself.

Device series are made at scrape time from the last view of the node, so that a second without a scrape costs nothing
and a device that is gone leaves no series behind. docs/reference/metrics.md is made from the same data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from prometheus_client import Counter, Gauge
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector as MetricsSource

from llmos_operator.api.telemetry import Verdict
from llmos_operator.telemetry.figures import DCGM, FIGURES
from llmos_operator.telemetry.sample import ClockReason, EventKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

    from llmos_operator.telemetry.collector import Figures
    from llmos_operator.telemetry.figures import Figure
    from llmos_operator.telemetry.health import DeviceHealth
    from llmos_operator.telemetry.sample import DeviceEvent, DeviceInfo, ProcessUse, Sample

LABELS: Final = ("gpu", "uuid", "product")
DCGM_LABELS: Final = ("gpu", "UUID", "device", "modelName", "Hostname", "GPU_I_ID")


@dataclass(frozen=True, slots=True)
class DeviceView:
    """Everything known about one device now."""

    info: DeviceInfo
    health: DeviceHealth
    sample: Sample | None = None  # None: nothing fresh
    processes: tuple[ProcessUse, ...] | None = None
    throttled_milli: int | None = None  # of its time, held down by heat or a power brake
    risk_milli: int | None = None  # how its memory ages


class DeviceMetrics(MetricsSource):
    """Device series from the latest views. Register it once; `show` replaces what it tells."""

    def __init__(self, node: str, *, dcgm: bool = False) -> None:
        self._node = node
        self._dcgm = dcgm
        self._views: tuple[DeviceView, ...] = ()

    def show(self, views: Iterable[DeviceView]) -> None:
        """Take the views the next scrape tells."""
        self._views = tuple(views)

    def describe(self) -> Iterator[Metric]:
        """Return nothing: series come and go with devices and what they can tell."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Yield the series of all devices."""
        views = self._views
        yield from _families(FIGURES, views, LABELS, _labels)
        if self._dcgm:
            yield from _families(DCGM, views, DCGM_LABELS, self._dcgm_labels)
        yield _info(views)
        yield _verdicts(views)
        yield _reasons(views)
        yield _clock_reasons(views)
        yield _processes(views)

    def _dcgm_labels(self, view: DeviceView) -> list[str]:
        info = view.info
        instance = "" if info.gpu_instance is None else str(info.gpu_instance)
        return [str(info.index), info.uuid, f"nvidia{info.index}", info.product, self._node, instance]


def _labels(view: DeviceView) -> list[str]:
    return [str(view.info.index), view.info.uuid, view.info.product]


def _families(
    figures: tuple[Figure, ...],
    views: tuple[DeviceView, ...],
    names: tuple[str, ...],
    labels: Callable[[DeviceView], list[str]],
) -> Iterator[Metric]:
    family: CounterMetricFamily | GaugeMetricFamily | None = None
    for figure in figures:
        if family is None or family.name != figure.name.removesuffix("_total"):
            if family is not None and family.samples:
                yield family
            kind = CounterMetricFamily if figure.name.endswith("_total") else GaugeMetricFamily
            family = kind(figure.name, figure.help, labels=[*names, *figure.labels])
        for view in views:
            value = figure.read(view.sample) if view.sample is not None else None
            if value is not None:
                family.add_metric([*labels(view), *figure.labels.values()], value)
    if family is not None and family.samples:
        yield family


def _info(views: tuple[DeviceView, ...]) -> Metric:
    family = GaugeMetricFamily(
        "llmos_gpu_info",
        "What the device is; always 1.",
        labels=[*LABELS, "bus", "compute_capability", "parent"],
    )
    for view in views:
        info = view.info
        family.add_metric([*_labels(view), info.bus_id, info.compute_capability, info.parent], 1)
    return family


def _verdicts(views: tuple[DeviceView, ...]) -> Metric:
    family = GaugeMetricFamily(
        "llmos_gpu_verdict", "1 for the verdict on the device.", labels=[*LABELS, "verdict"]
    )
    for view in views:
        for verdict in Verdict:
            family.add_metric([*_labels(view), verdict], int(verdict is view.health.verdict))
    return family


def _reasons(views: tuple[DeviceView, ...]) -> Metric:
    family = GaugeMetricFamily(
        "llmos_gpu_health_cause",
        "1 for each finding that stands against the device.",
        labels=[*LABELS, "reason"],
    )
    for view in views:
        for reason, _ in view.health.strength:
            family.add_metric([*_labels(view), reason], 1)
    return family


def _clock_reasons(views: tuple[DeviceView, ...]) -> Metric:
    family = GaugeMetricFamily(
        "llmos_gpu_clock_limited", "1 for each reason that holds clocks down.", labels=[*LABELS, "reason"]
    )
    for view in views:
        if view.sample is None or view.sample.clock_reasons is None:
            continue
        for reason in ClockReason:
            family.add_metric([*_labels(view), reason], int(reason in view.sample.clock_reasons))
    return family


def _processes(views: tuple[DeviceView, ...]) -> Metric:
    family = GaugeMetricFamily(
        "llmos_gpu_processes",
        "Processes on the device, by whether their pod is known.",
        labels=[*LABELS, "pod"],
    )
    for view in views:
        if view.processes is None:
            continue
        known = sum(1 for use in view.processes if use.pod_uid)
        family.add_metric([*_labels(view), "known"], known)
        family.add_metric([*_labels(view), "unknown"], len(view.processes) - known)
    return family


class CollectorMetrics(MetricsSource):
    """The agent's own measuring, read from the collector at scrape time."""

    def __init__(self, figures: Figures, hung: Callable[[], int]) -> None:
        """``hung`` returns the number of driver calls that have not come back now."""
        self._figures = figures
        self._hung = hung

    def describe(self) -> Iterator[Metric]:
        """Return nothing, as for devices: the names are fixed in `collect`."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Yield the figures."""
        figures = self._figures
        for name, text, count in (
            ("rounds", "Rounds of measuring.", figures.rounds),
            ("driver_hangs", "Driver calls that did not come back in time.", figures.hangs),
            ("event_errors", "Failed waits for driver events.", figures.event_errors),
            ("events_dropped", "Driver events dropped in storms.", figures.events_dropped),
            ("process_lists", "Process lists read.", figures.process_lists),
        ):
            yield CounterMetricFamily(f"llmos_agent_{name}_total", text, value=count)
        yield GaugeMetricFamily(
            "llmos_agent_round_seconds",
            "Duration of the last round of measuring.",
            value=figures.round_seconds,
        )
        yield GaugeMetricFamily(
            "llmos_agent_hung_calls", "Driver calls that have not come back now.", value=self._hung()
        )


class CopyMetrics:
    """Models the node keeps."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._models = Gauge(
            "llmos_node_models",
            "Models of ModelCaches on this node, by state (Ready, Downloading, Failed).",
            ["state"],
            registry=registry,
        )
        self._bytes = Gauge(
            "llmos_node_models_bytes", "Bytes of the models kept on this node.", registry=registry
        )
        self._ended = Counter(
            "llmos_node_model_downloads_total",
            "Downloads of models to this node by result (ok, error).",
            ["result"],
            registry=registry,
        )
        for result in ("ok", "error"):
            self._ended.labels(result)

    def show(self, states: Mapping[str, int], held: int) -> None:
        """Take how many models are in each state, and their bytes."""
        for state, count in states.items():
            self._models.labels(state).set(count)
        self._bytes.set(held)

    def ended(self, *, ok: bool) -> None:
        """Count a download that ended."""
        self._ended.labels("ok" if ok else "error").inc()


class AgentMetrics:
    """Counters of driver events and of reports."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._xids = Counter(
            "llmos_gpu_xid_errors_total", "XID errors by code.", [*LABELS, "xid"], registry=registry
        )
        self._events = Counter(
            "llmos_gpu_events_total", "Driver events other than XIDs.", [*LABELS, "kind"], registry=registry
        )
        self._published = Counter(
            "llmos_agent_publish_total",
            "Reports by receiver (operator, status) and result (ok, error).",
            ["receiver", "result"],
            registry=registry,
        )
        self._published_at = Gauge(
            "llmos_agent_last_publish_timestamp_seconds",
            "When a report was last accepted.",
            ["receiver"],
            registry=registry,
        )
        self._asked = Counter(
            "llmos_agent_kubelet_reads_total",
            "Questions to the kubelet about who holds devices, by result (ok, error).",
            ["result"],
            registry=registry,
        )
        for result in ("ok", "error"):
            self._asked.labels(result)
            for receiver in ("operator", "status"):
                self._published.labels(receiver, result)

    def note(self, event: DeviceEvent, info: DeviceInfo | None) -> None:
        """Count an event; ``info`` is None for a device nobody knows."""
        labels = [str(info.index), info.uuid, info.product] if info is not None else ["", event.uuid, ""]
        if event.kind is EventKind.XID:
            self._xids.labels(*labels, str(event.code)).inc()
        else:
            self._events.labels(*labels, event.kind).inc()

    def asked(self, ok: bool) -> None:
        """Count a question to the kubelet."""
        self._asked.labels("ok" if ok else "error").inc()

    def reported(self, receiver: str, *, ok: bool) -> None:
        """Count a report to the operator or to GPUNode status."""
        self._published.labels(receiver, "ok" if ok else "error").inc()
        if ok:
            self._published_at.labels(receiver).set_to_current_time()
