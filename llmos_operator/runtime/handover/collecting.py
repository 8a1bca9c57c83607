"""The runtime's own figures of a vLLM, beside those vLLM has itself. Names as of our own engine's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from llmos_operator.runtime.metrics import labelled

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.metrics_core import Metric

    from llmos_operator.runtime.admission import Admission
    from llmos_operator.runtime.handover.host import VllmHost


class VllmCollector(Collector):
    """Reads what the host knows when Prometheus asks."""

    def __init__(self, host: VllmHost, admission: Admission) -> None:
        self._host = host
        self._admission = admission

    def collect(self) -> Iterator[Metric]:
        """Yield the current values."""
        status = self._host.status()
        state = [({"state": status.state.value}, 1.0)]
        yield labelled("llmos_runtime_state", "State of the runtime; 1 for the current one.", state)
        if status.model.digest:
            model = {
                "model_name": status.model.name,
                "format": status.model.format,
                "digest": status.model.digest,
                "architecture": status.model.architecture,
            }
            yield labelled("llmos_runtime_model_info", "The model; always 1.", [(model, 1.0)])
        stages = [
            ({"stage": stage, "path": status.load_path}, seconds)
            for stage, seconds in status.load_seconds.items()
        ]
        if stages:
            yield labelled("llmos_runtime_load_seconds", "Time of the last load, by stage.", stages)
        limit = [({"kind": "limit"}, float(status.memory.limit_bytes))]
        yield labelled("llmos_runtime_memory_bytes", "Memory by kind: predicted, measured, its parts.", limit)
        wait: list[tuple[dict[str, str], float]] = [({}, self._admission.expected_wait())]
        yield labelled("llmos_runtime_expected_wait_seconds", "Expected wait of a new request.", wait)
        family = CounterMetricFamily("llmos_runtime_engine_restarts", "Engines that ended unasked.")
        family.add_metric([], float(self._host.restarts))
        yield family
