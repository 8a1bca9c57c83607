"""The output: one line an answer, appended to a file beside the output that takes its place when all are there.

A run that was ended goes on where the file ends: the `id` of every answer says which line of which input it answers, for
which model, so answers of another run are never taken for its own. What a crash tore off at the end is dropped. Lines
reach the disk at the latest `SYNC_SECONDS` after they were made, and a bucket `SEND_SECONDS`; a crash costs no more than that.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from typing import TYPE_CHECKING, Any, Final

from llmos_operator.runtime.jobs.batch.away import Away
from llmos_operator.runtime.jobs.data import put_in_place

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import IO

    from llmos_operator.modelstore.bucket import Bucket

SYNC_SECONDS: Final = 2.0
SEND_SECONDS: Final = 30.0
_ENDING: Final = ".llmos-partial"


def run_key(digest: str, model: str, revision: str) -> str:
    """Return what names one run: the same input for the same model."""
    return hashlib.sha256(f"{digest}\n{model}\n{revision}".encode()).hexdigest()[:16]


class Results:
    """The answers of one run. Not safe for threads; two processes must not write one output at the same time.

    Where the output is in a bucket, ``output`` is a file of this pod, and what is on the disk is not yet saved. Then all
    methods but `add` raise Permanent and Retryable, too.
    """

    def __init__(
        self,
        output: Path,
        key: str,
        bucket: Bucket | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._output = output
        self._away = Away(bucket, key, _ENDING) if bucket is not None else None
        self._monotonic = monotonic
        self._sent_at = monotonic()
        self._lock = threading.Lock()  # a cancelled wait for a thread does not end the thread
        self._durable = (0, 0)  # bytes and answers of the partial file that are on the disk
        self._partial = output.with_name(f"{output.name}.{key}{_ENDING}")
        self._prefix = f"batch_req_{key}_"
        self._file: IO[bytes] | None = None
        self._unsynced = 0
        self.answered: set[int] = set()  # numbers of lines
        self.failed = 0
        self.synced = 0  # answers that are saved: on the disk, or in the bucket
        self.finished = False  # the output itself is that of this run, and whole

    def open(self, lines: int) -> None:
        """Take up what is there of this run, of ``lines`` lines. Raises OSError."""
        if self._away is not None:
            self._away.take_up(self._output, self._partial)
        if self._output.is_file():
            self._take(self._output)
            self.finished = len(self.answered) >= lines > 0
            if self.finished:
                self.synced = len(self.answered)
                return
            self.answered, self.failed = set(), 0  # of another run: it is replaced when this one has ended
        whole = self._take(self._partial) if self._partial.is_file() else 0
        self._file = self._partial.open("ab")
        self._file.truncate(whole)
        if self._away is not None:
            self._away.keep(whole)
            self._away.send(self._partial, whole)
        self.synced = len(self.answered)
        self._durable = (whole, self.synced)

    def _take(self, path: Path) -> int:
        """Read the answers of this run in a file; return up to which byte it is whole."""
        whole = 0
        with path.open("rb") as file:
            for raw in file:
                found = self._read(raw)
                if found is None or found[0] in self.answered:
                    break  # torn, or of two pods that wrote at once
                whole += len(raw)
                self.answered.add(found[0])
                self.failed += found[1]
        return whole

    def _read(self, raw: bytes) -> tuple[int, bool] | None:
        """Return which line of this run's input an answer is to, and whether it is none; None if it is of another run."""
        try:
            found = json.loads(raw) if raw.endswith(b"\n") else None
        except ValueError:
            return None
        if not isinstance(found, dict):
            return None
        name = found.get("id")
        if not isinstance(name, str) or not name.startswith(self._prefix):
            return None
        text = name.removeprefix(self._prefix)
        if not text.isdecimal():
            return None
        return int(text), is_failure(found)

    def add(
        self,
        number: int,
        custom_id: str | None,
        response: dict[str, Any] | None,
        error: dict[str, Any] | None,
    ) -> None:
        """Append the answer to a line: a response with its status, or an error where there is none."""
        if self._file is None:
            raise ValueError("results are not open")
        line = {"id": f"{self._prefix}{number}", "custom_id": custom_id, "response": response, "error": error}
        self._file.write(json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")
        self.answered.add(number)
        self.failed += is_failure(line)
        self._unsynced += 1

    def sync(self) -> None:
        """Bring what was added to the disk. It may block; call it from a thread, not beside `add`."""
        with self._lock:
            if self._file is not None and self._unsynced:
                self._file.flush()
                os.fsync(self._file.fileno())
                self._unsynced = 0
                self._durable = (self._file.tell(), len(self.answered))
                if self._away is None:
                    self.synced = len(self.answered)

    def send(self, *, now: bool = False) -> bool:
        """Bring what is on the disk to the bucket if it is time; return whether all of it is saved. It may block."""
        with self._lock:
            if self._away is not None and (now or self._monotonic() - self._sent_at >= SEND_SECONDS):
                end, count = self._durable
                self._away.send(self._partial, end)
                self.synced, self._sent_at = count, self._monotonic()
            return self.synced == self._durable[1]

    def close(self) -> None:
        """Keep what there is for the next try."""
        if self._file is not None:
            self._close()
            self.send(now=True)

    def _close(self) -> None:
        self.sync()
        if self._file is not None:
            self._file.close()
            self._file = None

    def finish(self) -> None:
        """Put the answers in the place of the output, whole."""
        self._close()
        if not self.finished:
            self.send(now=True)  # should sending the whole fail, nothing has to be answered anew
            put_in_place(self._partial, self._output)
            if self._away is not None:
                self._away.finish(self._output)
            self.synced = len(self.answered)
            self.finished = True


def is_failure(line: dict[str, Any]) -> bool:
    """Return whether an answer is none: no response, or one with an error status."""
    response = line.get("response")
    return not isinstance(response, dict) or response.get("status_code") != 200  # noqa: PLR2004 - HTTP OK
