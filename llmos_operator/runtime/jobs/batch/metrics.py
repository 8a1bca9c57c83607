"""Figures of a run over a file of requests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from prometheus_client import Counter, Gauge

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

_KINDS: Final = {"prompt_tokens": "prompt", "completion_tokens": "completion"}


class BatchMetrics:
    """What a batch shows beside the figures of the runtime it runs in."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Gauge(
            "llmos_batch_requests",
            "Requests of the input by state: answered, failed, open. What a former pod of the run did counts, too.",
            ["state"],
            registry=registry,
        )
        self._tokens = Counter(
            "llmos_batch_tokens_total",
            "Tokens of requests this process answered: prompt, completion.",
            ["kind"],
            registry=registry,
        )
        self.retries = Counter(
            "llmos_batch_retries_total",
            "Requests asked again, because they were declined for now or the engine was lost.",
            registry=registry,
        )
        self.in_flight = Gauge("llmos_batch_in_flight", "Requests under way.", registry=registry)
        for kind in _KINDS.values():
            self._tokens.labels(kind)
        self.took_up(0, 0, 0)

    def took_up(self, total: int, done: int, failed: int) -> None:
        """Show a run of ``total`` requests of which ``done`` have an answer, ``failed`` of them an error."""
        self._requests.labels("answered").set(done - failed)
        self._requests.labels("failed").set(failed)
        self._requests.labels("open").set(total - done)

    def answered(self, *, failed: bool, usage: dict[str, Any]) -> None:
        """Count an answer and its tokens."""
        self._requests.labels("failed" if failed else "answered").inc()
        self._requests.labels("open").dec()
        for name, kind in _KINDS.items():
            if isinstance(usage.get(name), int):
                self._tokens.labels(kind).inc(usage[name])
