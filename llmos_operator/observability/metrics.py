"""The metrics registry of a process, and the histogram edges everybody shares.

Metrics are defined beside their subsystem on a registry that is passed in (tests get a fresh one); the prefix is
`llmos_`, units are base units in the name, labels have few values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from llmos_operator import __version__
from llmos_operator.observability.slices import in_slices

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client import Metric

# Edges in seconds. Around the targets of the design: a decision takes milliseconds, a write tens of them, a model
# load seconds to minutes.
DECISION_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
REQUEST_BUCKETS: Final = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
WAIT_BUCKETS: Final = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0, 86400.0)
LOAD_BUCKETS: Final = (0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0, 1800.0)


# When each series of a counter began: as much text again as the counters themselves, which nothing here reads.
disable_created_metrics()  # type: ignore[no-untyped-call]


def new_registry(process: str) -> CollectorRegistry:
    """Return a registry with the process's own figures and `llmos_build_info{process, version} 1`."""
    registry = CollectorRegistry(auto_describe=True)
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    build = Gauge(
        "llmos_build_info", "Version of this process; always 1.", ["process", "version"], registry=registry
    )
    build.labels(process=process, version=__version__).set(1)
    return registry


def span_counter(registry: CollectorRegistry) -> Counter:
    """Return what counts spans by what became of them: ended, then sent or failed; the rest waits or was dropped."""
    return Counter(
        "llmos_tracing_spans_total",
        "Spans by what became of them: ended; sent; failed. What is neither sent nor failed waits or was dropped.",
        ["result"],
        registry=registry,
    )


class _Alone:
    """One family of metrics, as what `generate_latest` takes."""

    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Iterator[Metric]:
        yield self._family


async def rendered(registry: CollectorRegistry) -> tuple[bytes, str]:
    """Return what :func:`render` does, leaving the event loop to others between families of metrics.

    Of thousands of workloads the whole is megabytes and takes the better part of a second.
    """
    parts = [generate_latest(_Alone(family)) async for family in in_slices(registry.collect())]
    return b"".join(parts), CONTENT_TYPE_LATEST


def render(registry: CollectorRegistry) -> tuple[bytes, str]:
    """Return the exposition text of ``registry`` and its content type."""
    return generate_latest(registry), CONTENT_TYPE_LATEST
