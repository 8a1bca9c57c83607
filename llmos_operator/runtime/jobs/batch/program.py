"""`llmos batch`: loads the model, answers a file of requests, and says how it ended.

Exit 0 when every line has an answer or an error of its own; 65 when trying again cannot help: no input, a model that
cannot be loaded, no line that got an answer; 1 when it can; 143 on SIGTERM, with every answer so far on the disk.
"""

from __future__ import annotations

import argparse
import asyncio
import logging as stdlib_logging
import signal
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from llmos_operator.api.conditions import Reason
from llmos_operator.api.runtime.messages import RuntimeState, WorkProgress
from llmos_operator.errors import Permanent, Retryable
from llmos_operator.observability import logging
from llmos_operator.runtime.ipc.client import EngineClient
from llmos_operator.runtime.jobs.batch.lines import Reader, Scan, scan
from llmos_operator.runtime.jobs.batch.metrics import BatchMetrics
from llmos_operator.runtime.jobs.batch.results import Results, run_key
from llmos_operator.runtime.jobs.batch.run import BatchRun
from llmos_operator.runtime.jobs.data import Data
from llmos_operator.runtime.jobs.ending import Ending, tell
from llmos_operator.runtime.jobs.settings import JobSettings, job_from_environment
from llmos_operator.runtime.server import Runtime, loop_run
from llmos_operator.runtime.settings import BadEnvironment

if TYPE_CHECKING:
    from collections.abc import Sequence

log = logging.logger(__name__)

LOOK_SECONDS: Final = 0.1
_NEVER: Final = 7 * 24 * 3600  # seconds: nobody waits for an answer who would rather be declined


@dataclass(frozen=True, slots=True)
class End:
    """How a run ended."""

    ending: Ending
    reason: str
    message: str


class Batch:
    """One run in one process, on one event loop."""

    def __init__(self, settings: JobSettings, engine: EngineClient) -> None:
        self._settings = settings
        self.runtime = Runtime(replace(settings.runtime, max_wait_seconds=_NEVER), engine, linger_seconds=0.0)
        self._metrics = BatchMetrics(self.runtime.registry)
        self._run: BatchRun | None = None
        self.runtime.host.progress = self.progress

    def progress(self) -> WorkProgress:
        """Return how far the run is."""
        return self._run.progress() if self._run is not None else WorkProgress(unit="requests")

    async def run(self, stop: asyncio.Event) -> End:
        """Answer the input, or as much of it as there is time for until ``stop``. Raises OSError if a port is taken."""
        leave = asyncio.Event()
        serving = asyncio.create_task(self.runtime.run(leave))
        working = asyncio.create_task(self._work())
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({serving, working, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if serving.done() and not working.done():
                serving.result()  # it ends by itself only if it failed
            if not working.done():
                working.cancel()
                await asyncio.gather(working, return_exceptions=True)
                return self._stopped()
            return working.result()
        finally:
            for task in (working, stopping):
                task.cancel()
            await asyncio.gather(working, stopping, return_exceptions=True)
            leave.set()
            await serving

    def _stopped(self) -> End:
        now = self.progress()
        return End(
            Ending.STOPPED,
            Reason.STOPPED,
            f"Told to stop; {now.saved} of {now.total} requests have an answer that is saved.",
        )

    async def _work(self) -> End:
        """Do the run, and put what went wrong into words."""
        try:
            return await self._answer_all()
        except Permanent as error:
            return End(Ending.FAILED_FOR_GOOD, error.reason, str(error))
        except Retryable as error:
            reason = Reason.DOWNLOAD_FAILED if self._run is None else Reason.OUTPUT_NOT_WRITABLE
            return End(Ending.FAILED, reason, str(error))
        except OSError as error:
            return End(Ending.FAILED, Reason.OUTPUT_NOT_WRITABLE, f"batch.input or batch.output: {error}")

    async def _answer_all(self) -> End:
        found, path, results = await asyncio.to_thread(self._open)
        reader = Reader(path, self._settings.runtime.model_name)
        self._run = run = BatchRun(reader, results, found.lines, self._metrics, self.runtime.drain.monotonic)
        try:
            if not results.finished:
                trouble = await self._loaded() or await self._answered(run)
                if trouble is not None:
                    return trouble
                await asyncio.to_thread(results.finish)
        finally:
            await self._close(results)
        return self._ended(run)

    @staticmethod
    async def _close(results: Results) -> None:
        """Keep what there is. After a failure that is the one to tell, and after a success nothing is left to be sent."""
        try:
            await asyncio.to_thread(results.close)
        except (Permanent, Retryable) as error:
            log.warning("the last answers are not saved", detail=str(error))

    def _open(self) -> tuple[Scan, Path, Results]:
        settings = self._settings
        runtime = settings.runtime
        # Not the cache, which pods of one node may share.
        scratch = Path(tempfile.gettempdir())
        data = Data(scratch, Path(runtime.volumes), allow_file=runtime.allow_file)
        uri = settings.text("input", "uri")
        path = data.readable(uri, "batch.input.uri")
        to = settings.text("output", "uri")
        output, bucket = data.writable(to, "batch.output.uri"), data.bucket(to, "batch.output.uri")
        if not path.is_file() or output.is_dir():
            which, at = ("input", path) if not path.is_file() else ("output", output)
            raise Permanent(
                f"batch.{which}.uri: {at.name} is a folder; name a file in it", reason=Reason.INVALID_DATA
            )
        if bucket is not None:
            bucket.check_writable()
        found = scan(path)
        if not found.lines:
            raise Permanent(
                f"batch.input.uri: {uri} has no lines; write one request a line", reason=Reason.INVALID_DATA
            )
        key = run_key(found.digest, runtime.model_uri, runtime.model_revision)
        results = Results(output, key, bucket)
        results.open(found.lines)
        log.info("batch", lines=found.lines, answered=len(results.answered), finished=results.finished)
        return found, path, results

    async def _loaded(self) -> End | None:
        """Wait until the model can be asked; return how the run ended if it never will be."""
        host = self.runtime.host
        while host.state() is not RuntimeState.READY:
            trouble = self._trouble()
            if trouble is not None:
                return trouble
            await asyncio.sleep(LOOK_SECONDS)
        return None

    async def _answered(self, run: BatchRun) -> End | None:
        """Answer all lines; return how the run ended if the model failed meanwhile for good."""
        settings = self._settings.runtime
        work = asyncio.create_task(
            run.answer_all(self.runtime.serving, settings.api_keys[0], settings.max_num_seqs)
        )
        try:
            while not work.done():
                await asyncio.wait({work}, timeout=1.0)
                failure = self.runtime.host.failure()
                if failure is not None and failure.permanent and not work.done():
                    return self._trouble()
            work.result()
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
        return None

    def _trouble(self) -> End | None:
        failure = self.runtime.host.failure()
        if failure is None:
            return None
        # A larger reservation may hold it: that is a new try, not the end.
        final = failure.permanent and failure.reason != Reason.OUT_OF_MEMORY
        return End(Ending.FAILED_FOR_GOOD if final else Ending.FAILED, failure.reason, failure.message)

    def _ended(self, run: BatchRun) -> End:
        now = run.progress()
        if now.failed >= now.total:
            return End(
                Ending.FAILED_FOR_GOOD,
                Reason.INVALID_DATA,
                f"None of the {now.total} requests got an answer; the output says why for each. The first: "
                f"{run.first_error or 'see the output'}",
            )
        bad = f", {now.failed} of them an error" if now.failed else ""
        return End(Ending.DONE, Reason.SUCCEEDED, f"{now.done} of {now.total} requests have an answer{bad}.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the batch; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="llmos batch", description="Answer a file of requests; settings come from the environment."
    )
    parser.parse_args(argv)
    try:
        settings = job_from_environment()
        for name in ("input", "output"):
            settings.text(name, "uri")
    except BadEnvironment as error:
        sys.stderr.write(f"llmos batch: {error}\n")
        return int(Ending.FAILED_FOR_GOOD)
    logging.setup(settings.runtime.log_level, settings.runtime.log_format, process="batch")
    stdlib_logging.getLogger("uvicorn.error").setLevel(stdlib_logging.WARNING)
    return loop_run(_run(settings))


async def _run(settings: JobSettings) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    engine = EngineClient()
    await engine.prepare()
    batch = Batch(settings, engine)
    try:
        end = await batch.run(stop)
    except OSError as error:
        end = End(Ending.FAILED, Reason.FAILED, f"cannot listen: {error}")
    return tell(settings, end.ending, end.reason, end.message, batch.progress())
