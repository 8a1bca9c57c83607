"""A run's report as the operator reads it: the runtime's own status message, with steps for progress."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmos_operator.api.runtime.messages import (
    Failure,
    LoadProgress,
    MemoryReport,
    ModelInfo,
    RequestStats,
    RuntimeState,
    RuntimeStatus,
    WorkProgress,
)

if TYPE_CHECKING:
    from llmos_operator.runtime.settings import RuntimeSettings
    from llmos_operator.tuning.progress import Board, Report

STALLED_SECONDS = 1800.0  # without a sign of life: one part of a large model may take minutes on a CPU


def status_of(settings: RuntimeSettings, board: Board) -> RuntimeStatus:
    """Return the status now."""
    now = board.now
    return RuntimeStatus(
        state=now.state,
        model=ModelInfo(
            name=settings.model_name,
            digest=now.digest,
            revision=now.revision,
            format=settings.format,
            architecture=now.architecture,
        ),
        load=_load(now),
        memory=MemoryReport(
            predicted_bytes=now.predicted_bytes,
            measured_bytes=now.measured_bytes,
            peak_bytes=now.peak_bytes,
            weights_bytes=now.weights_bytes,
            base_bytes=now.base_bytes,
            limit_bytes=now.limit_bytes,
        ),
        requests=RequestStats(prompt_tokens=now.tokens),
        failure=_failure(now),
        load_seconds=dict(now.stage.stage_seconds) if now.stage is not None else {},
        progress=progress_of(board),
    )


def progress_of(board: Board) -> WorkProgress:
    """Return how far the run has come, in updates."""
    now = board.now
    return WorkProgress(
        unit="steps",
        done=now.step,
        total=now.total_steps,
        saved=max(0, now.checkpoint_step),
        saved_age_seconds=None if now.checkpoint_at is None else int(_since(board, now.checkpoint_at)),
    )


def live(board: Board) -> str:
    """Return "" or why the process should be restarted."""
    silent = _since(board, board.now.beat_at)
    return f"no sign of life for {silent:.0f} s" if silent > STALLED_SECONDS else ""


def _since(board: Board, then: float) -> float:
    return board.clock.monotonic() - then


def _load(now: Report) -> LoadProgress:
    if now.state is RuntimeState.READY:
        return LoadProgress(stage=RuntimeState.READY)
    if now.stage is None:
        return LoadProgress()
    return now.stage.report()


def _failure(now: Report) -> Failure | None:
    if now.failure is None:
        return None
    reason, message, permanent = now.failure
    return Failure(reason=reason, message=message, permanent=permanent)
