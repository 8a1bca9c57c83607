"""Figures of the gateway. Labels `namespace` and `workload` name objects that exist, so their number is bounded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from llmos_operator.observability.metrics import span_counter

if TYPE_CHECKING:
    from llmos_operator.gateway.catalog import WorkloadKey

# Seconds. Answers of models take from tens of milliseconds to minutes.
ANSWER_BUCKETS: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0)
FIRST_BYTE_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
OVERHEAD_BUCKETS: Final = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1)
_WORKLOAD: Final = ["namespace", "workload"]


class Metrics:
    """All series of the gateway on one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, labels: list[str]) -> Counter:
            return Counter(f"llmos_gateway_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, labels: list[str]) -> Gauge:
            return Gauge(f"llmos_gateway_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, labels: list[str], buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"llmos_gateway_{name}", text, labels, buckets=buckets, registry=registry)

        self.requests = counter("requests_total", "Requests answered, by HTTP status.", [*_WORKLOAD, "code"])
        self.seconds = histogram(
            "request_seconds", "Time to the last byte, holds included.", _WORKLOAD, ANSWER_BUCKETS
        )
        self.first_byte = histogram(
            "first_byte_seconds",
            "Time from sending to the replica to its first byte.",
            _WORKLOAD,
            FIRST_BYTE_BUCKETS,
        )
        self.overhead = histogram(
            "overhead_seconds",
            "Time the gateway itself spent before sending to the replica.",
            [],
            OVERHEAD_BUCKETS,
        )
        self.in_flight = gauge("in_flight", "Requests at replicas now.", _WORKLOAD)
        self.held = gauge("held", "Requests held until a replica is ready, now.", _WORKLOAD)
        self.hold_seconds = histogram("hold_seconds", "Time requests were held.", _WORKLOAD, ANSWER_BUCKETS)
        self.hold_ended = counter(
            "hold_ended_total",
            "Held requests by how it ended: served, timeout, gone, or an error code.",
            [*_WORKLOAD, "how"],
        )
        self.retries = counter(
            "retries_total", "Requests sent to another replica, by reason.", [*_WORKLOAD, "reason"]
        )
        self.upstream_errors = counter(
            "upstream_errors_total",
            "Answers that a replica broke off or never gave, by reason.",
            [*_WORKLOAD, "reason"],
        )
        self.client_gone = counter(
            "client_gone_total", "Requests whose client left before the end.", _WORKLOAD
        )
        self.refused = counter(
            "refused_total", "Requests the gateway answered itself with an error, by code.", ["code"]
        )
        self.tokens = counter(
            "tokens_total", "Tokens of answers that said their usage.", [*_WORKLOAD, "kind"]
        )
        self.prompts = counter(
            "prompts_total",
            "Prompts by where they went: kept, to a replica that had one that begins alike; moved, to another; new, none had.",
            [*_WORKLOAD, "result"],
        )
        self.canary_requests = counter(
            "canary_requests_total",
            "Attempts while a canary is under way, by the spec of the replica (new, old) and HTTP status; 503 if it did not take it.",
            [*_WORKLOAD, "spec", "code"],
        )
        self.workloads = gauge("workloads", "Inference workloads known.", [])
        self.replicas = gauge("replicas", "Ready replicas known.", [])
        self.reports = counter(
            "demand_reports_total", "Demand reports to the operator, by result.", ["result"]
        )
        self.objects_skipped = counter(
            "objects_skipped_total", "Watched objects that could not be read.", ["kind"]
        )
        self.buffered_bytes = gauge("buffered_bytes", "Bytes of request bodies in memory.", [])
        self.spans = span_counter(registry)
        self.key_reloads = counter("key_reloads_total", "Reloads of the keys file, by result.", ["result"])
        self._by_workload = [
            self.requests, self.seconds, self.first_byte, self.in_flight, self.held, self.hold_seconds,
            self.hold_ended, self.retries, self.upstream_errors, self.client_gone, self.tokens,
            self.prompts, self.canary_requests,
        ]  # fmt: skip

        for result in ("sent", "failed"):
            self.reports.labels(result)

    def hold(self, key: WorkloadKey) -> None:
        """Count a request that begins to be held, and show its possible ends at 0 before one comes about."""
        self.held.labels(*key).inc()
        for how in ("served", "timeout"):
            self.hold_ended.labels(*key, how)

    def forget(self, key: WorkloadKey) -> None:
        """Drop the series of a deleted workload."""
        for metric in self._by_workload:
            metric.remove_by_labels({"namespace": key.namespace, "workload": key.name})
