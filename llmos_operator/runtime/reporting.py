"""What the engine says of itself, in the words of the control API."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmos_operator.api.runtime.messages import (
    AdapterReport,
    LoadProgress,
    MemoryReport,
    RankReport,
    RequestStats,
    RuntimeState,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llmos_operator.runtime.ipc.client import EngineStatus
    from llmos_operator.runtime.ipc.messages import AdapterInfo, EngineMemory, Stats


def load(status: EngineStatus) -> LoadProgress:
    """Return how far the load is."""
    progress = status.progress
    if progress is None:
        return LoadProgress()
    if status.state in {RuntimeState.READY, RuntimeState.ASLEEP}:
        return LoadProgress(stage=RuntimeState.READY)
    return progress.report()


def memory(found: EngineMemory) -> MemoryReport:
    """Return predicted and measured memory, in bytes."""
    return MemoryReport(
        predicted_bytes=found.predicted_bytes,
        measured_bytes=found.measured_bytes,
        peak_bytes=found.peak_bytes,
        weights_bytes=found.weights_bytes,
        kv_bytes=found.kv_bytes,
        base_bytes=found.base_bytes,
        limit_bytes=found.limit_bytes,
        host_bytes=found.host_bytes,
        full_bytes=found.full_bytes,
        needed_bytes=found.needed_bytes,
        ranks=tuple(
            RankReport(rank=one.rank, weights_bytes=one.weights_bytes, measured_bytes=one.measured_bytes)
            for one in found.ranks
        ),
    )


def requests(stats: Stats, last_request_age_seconds: int | None) -> RequestStats:
    """Return counters and gauges."""
    blocks = stats.kv_blocks_total
    return RequestStats(
        running=stats.running,
        waiting=stats.waiting,
        finished=stats.finished,
        aborted=stats.aborted,
        prompt_tokens=stats.prompt_tokens,
        generation_tokens=stats.generation_tokens,
        kv_usage_milli=1000 * stats.kv_blocks_used // blocks if blocks else 0,
        last_request_age_seconds=last_request_age_seconds,
        first_tokens=stats.first_tokens,
        first_token_millis=round(1000 * stats.first_token_seconds),
    )


def adapters(many: Iterable[AdapterInfo]) -> tuple[AdapterReport, ...]:
    """Return the adapters that are served."""
    return tuple(
        AdapterReport(
            name=one.name, uri=one.uri, digest=one.digest, rank=one.rank, weights_bytes=one.weights_bytes
        )
        for one in many
    )
