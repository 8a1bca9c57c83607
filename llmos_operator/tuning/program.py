"""`llmos tune`: load the model, train, leave the result, and say how it ended.

The training loop has the main thread, where SIGTERM arrives: it is noted, and the run ends after the part it is at,
with a checkpoint where it has a place for one. A failure's reason goes to the termination message, see `jobs.ending`.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmos_operator.api.conditions import Reason
from llmos_operator.api.runtime.messages import RuntimeState
from llmos_operator.clock import Clock, SystemClock
from llmos_operator.errors import Permanent, Retryable
from llmos_operator.observability import logging, metrics, tracing
from llmos_operator.runtime.jobs.data import Data
from llmos_operator.runtime.jobs.ending import Ending, tell
from llmos_operator.runtime.jobs.front import JobFront
from llmos_operator.runtime.jobs.settings import JobSettings, job_from_environment
from llmos_operator.runtime.settings import BadEnvironment
from llmos_operator.tuning.metrics import TuneCollector
from llmos_operator.tuning.progress import Board
from llmos_operator.tuning.recipe import read_order
from llmos_operator.tuning.spans import RUN, RunSpans, Stopped, reason_of
from llmos_operator.tuning.status import live, progress_of, status_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llmos_operator.tuning.away import Folder
    from llmos_operator.tuning.recipe import Order

log = logging.logger(__name__)

_FINISH_SECONDS = 600.0


class Stop:
    """Whether the run has been asked to end."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self) -> bool:
        """Return whether it has."""
        return self.asked

    def ask(self, number: int, _frame: object = None) -> None:
        """Note a signal."""
        self.asked = True
        log.info("asked to end", signal=signal.Signals(number).name)


@dataclass(frozen=True, slots=True)
class Places:
    """Local paths of a run's data; ``checkpoint`` None: none are kept. What is ``away`` belongs into a bucket."""

    dataset: Path
    output: Path
    checkpoint: Path | None
    output_away: Folder | None = None
    checkpoint_away: Folder | None = None

    def take_up(self) -> None:
        """Bring what an earlier process of the run left in buckets."""
        if self.output_away is not None:
            self.output_away.take_up_result()
        if self.checkpoint_away is not None:
            self.checkpoint_away.take_up_checkpoint()

    def written(self, folder: Path) -> None:
        """Bring a checkpoint where it belongs."""
        if self.checkpoint_away is not None:
            self.checkpoint_away.send_checkpoint(folder)

    def finish(self) -> None:
        """Bring the result where it belongs."""
        if self.output_away is not None:
            self.output_away.send_result()


def main(argv: Sequence[str] | None = None) -> int:
    """Train once; return the exit code (see `jobs.ending`)."""
    parser = argparse.ArgumentParser(
        prog="llmos tune", description="Fine-tune one model; settings come from the environment."
    )
    parser.parse_args(argv)
    try:
        settings = job_from_environment()
    except BadEnvironment as error:
        sys.stderr.write(f"llmos tune: {error}\n")
        return int(Ending.FAILED_FOR_GOOD)
    logging.setup(settings.runtime.log_level, settings.runtime.log_format, process="tune")
    stop = Stop()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop.ask)
    clock = SystemClock()
    board = Board(clock)
    registry = metrics.new_registry("tune")
    registry.register(TuneCollector(board))
    counted = metrics.span_counter(registry)
    try:
        tracer = tracing.open_tracer(
            "tune",
            endpoint=settings.runtime.trace_endpoint,
            always=True,
            count=lambda what, spans: counted.labels(what).inc(spans),
        )
    except tracing.BadTracing as error:
        sys.stderr.write(f"llmos tune: {error}\n")
        return int(Ending.FAILED_FOR_GOOD)
    try:
        with JobFront(
            settings.runtime, lambda: status_of(settings.runtime, board), registry, lambda: live(board)
        ):
            return run(settings, board, clock, stop, RunSpans(tracer, settings.runtime.trace_parent))
    except OSError as error:
        return tell(settings, Ending.FAILED, Reason.FAILED, f"cannot listen: {error}")
    finally:
        tracer.close()


def run(settings: JobSettings, board: Board, clock: Clock, stop: Callable[[], bool], spans: RunSpans) -> int:
    """Do the whole work and tell how it ended; return the exit code."""
    try:
        with spans.part(RUN, {"llmos.format": settings.runtime.format}):
            message = _work(settings, board, clock, stop, spans)
    except _Saved as error:
        return tell(settings, Ending.STOPPED, Reason.STOPPED, str(error), progress_of(board))
    except Permanent as error:
        return _failed(settings, board, Ending.FAILED_FOR_GOOD, error.reason, str(error))
    except Exception as error:  # the reason goes to the operator, which counts and shows it
        if not isinstance(error, (Retryable, OSError, MemoryError)):
            log.exception("training failed")
        return _failed(settings, board, Ending.FAILED, reason_of(error), _words(error))
    return tell(settings, Ending.DONE, Reason.SUCCEEDED, message, progress_of(board))


class _Saved(Stopped):
    """The run ends because it was asked to; the message says what is saved."""


def _words(error: Exception) -> str:
    """Return the message of a failure that another try may not meet."""
    if isinstance(error, (Retryable, OSError)):
        return str(error)
    return (
        f"memory ran out: {error}" if isinstance(error, MemoryError) else f"{type(error).__name__}: {error}"
    )


def _failed(settings: JobSettings, board: Board, ending: Ending, reason: str, message: str) -> int:
    board.put(state=RuntimeState.FAILED, failure=(reason, message, ending is Ending.FAILED_FOR_GOOD))
    return tell(settings, ending, reason, message, progress_of(board))


def _work(
    settings: JobSettings, board: Board, clock: Clock, stop: Callable[[], bool], spans: RunSpans
) -> str:
    """Return one line about the finished run."""
    order = read_order(settings.block)
    places = _places(settings, order, board)
    # torch is not needed to refuse an order.
    from llmos_operator.tuning.session import Session  # noqa: PLC0415

    session = Session(
        settings.runtime.load_order(),
        order,
        places.dataset,
        digest_of(places.dataset),
        board,
        clock,
        stop,
        spans,
    )
    try:
        message = session.run(places.output, places.checkpoint, places.written)
    except Stopped as error:
        saved = board.now.checkpoint_step
        what = f"saved at update {saved}" if saved >= 0 else "nothing was saved"
        raise _Saved(f"stopped at update {board.now.step} of {board.now.total_steps}; {what}") from error
    _finish(places, clock, stop)
    return message


def _finish(places: Places, clock: Clock, stop: Callable[[], bool]) -> None:
    """Bring the result where it belongs. A store that cannot be reached for now is tried again until the run is to end."""
    until = clock.monotonic() + _FINISH_SECONDS
    while True:
        try:
            return places.finish()
        except Retryable as error:
            if stop() or clock.monotonic() > until:
                raise
            log.warning("the result is not where it belongs yet", detail=str(error))
            time.sleep(min(error.after, 5.0))


def _places(settings: JobSettings, order: Order, board: Board) -> Places:
    scratch = Path(tempfile.gettempdir())
    data = Data(scratch, Path(settings.runtime.volumes), settings.runtime.allow_file, board.put)
    output = data.writable(order.output, "fineTune.output.uri")
    checkpoint = data.writable(order.checkpoint, "fineTune.checkpoint.uri") if order.checkpoint else None
    try:
        for folder in (output, *([checkpoint] if checkpoint else [])):
            folder.mkdir(exist_ok=True)
            if not os.access(folder, os.W_OK):
                raise PermissionError(13, "permission denied", str(folder))
    except OSError as error:
        raise Permanent(
            f"fineTune.output.uri or checkpoint.uri cannot be written: {error}; name a folder on a volume that is "
            "mounted for writing",
            reason=Reason.OUTPUT_NOT_WRITABLE,
        ) from error
    dataset = data.readable(order.dataset, "fineTune.dataset.uri")
    if dataset.is_dir():
        raise Permanent(
            f"fineTune.dataset.uri: {order.dataset} is a folder; name a file of JSON lines",
            reason=Reason.INVALID_DATA,
        )
    places = Places(
        dataset,
        output,
        checkpoint,
        _away(data, order.output, "fineTune.output.uri", output),
        _away(data, order.checkpoint, "fineTune.checkpoint.uri", checkpoint),
    )
    places.take_up()
    return places


def _away(data: Data, uri: str, field: str, path: Path | None) -> Folder | None:
    """Return the place of a folder that belongs into a bucket, None for all others."""
    if path is None or (bucket := data.bucket(uri, field)) is None:
        return None
    bucket.check_writable()
    from llmos_operator.tuning.away import Folder  # noqa: PLC0415 - it knows of torch

    return Folder(bucket, path)


def digest_of(path: Path) -> str:
    """Return "sha256:…" of a file."""
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    sys.exit(main())
