"""Figures of a run for Prometheus, read off its report when they are asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from llmos_operator.api.runtime.messages import RuntimeState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.metrics_core import Metric

    from llmos_operator.tuning.progress import Board

_MEMORY = ("predicted", "measured", "peak", "weights", "base", "limit")


class TuneCollector(Collector):
    """Yields the report's figures."""

    def __init__(self, board: Board) -> None:
        self._board = board

    def collect(self) -> Iterator[Metric]:
        """Yield the current values; what is not known yet is absent."""
        now = self._board.now
        state = GaugeMetricFamily(
            "llmos_tune_state", "State of the run; 1 for the current one.", labels=["state"]
        )
        for one in RuntimeState:
            state.add_metric([one.value], float(one is now.state))
        yield state
        gauges: tuple[tuple[str, str, float | None], ...] = (
            ("planned_updates", "Updates the run will have made at its end.", now.total_steps),
            ("loss_nats", "Loss of the last update, for each learned token.", now.loss),
            ("validation_loss_nats", "Loss on the samples kept from training.", now.validation_loss),
            ("learning_rate", "Learning rate of the last update.", now.learning_rate),
            (
                "gradient_norm",
                "Norm of the last update's gradients before they were clipped.",
                now.gradient_norm,
            ),
            ("tokens_per_second", "Tokens read a second, over about half a minute.", now.tokens_per_second),
            ("part_tokens", "Tokens that are computed at a time.", now.part_tokens),
            (
                "recompute",
                "Whether layers are computed again on the way back, to save memory.",
                now.recompute,
            ),
            ("checkpoint_step", "Updates in the last checkpoint; -1 without one.", now.checkpoint_step),
            ("checkpoint_age_seconds", "Time since the last checkpoint.", self._age()),
            ("checkpoint_seconds", "Time the last checkpoint took.", now.checkpoint_seconds),
        )
        for name, text, value in gauges:
            if value is not None:
                yield GaugeMetricFamily(f"llmos_tune_{name}", text, value=float(value))
        for name, text, count in (
            ("updates", "Updates made, those before a resumption included.", now.step),
            ("tokens", "Tokens read, as above.", now.tokens),
            ("retreats", "Times memory ran short and parts were made smaller.", now.retreats),
            ("checkpoints", "Checkpoints written by this process.", now.checkpoints),
        ):
            yield CounterMetricFamily(f"llmos_tune_{name}", text, value=float(count))
        memory = GaugeMetricFamily("llmos_tune_memory_bytes", "Memory by kind.", labels=["kind"])
        for kind in _MEMORY:
            memory.add_metric([kind], float(getattr(now, f"{kind}_bytes")))
        yield memory

    def _age(self) -> float | None:
        at = self._board.now.checkpoint_at
        return None if at is None else self._board.clock.monotonic() - at
