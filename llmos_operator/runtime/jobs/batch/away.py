"""An output in a bucket: what was answered is sent in pieces beside it, and once as a whole in the end.

    <key>                                        the output, noted with the run it is of
    <key>.<run>.llmos-partial/00000001           what was answered so far, in whole lines, in this order

An object cannot be appended to, so each piece holds what came since the one before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from llmos_operator.errors import Permanent, Retryable
from llmos_operator.observability.logging import logger

if TYPE_CHECKING:
    from pathlib import Path

    from llmos_operator.modelstore.bucket import Bucket

log = logger(__name__)

_RUN: Final = "llmos-run"


class Away:
    """The place of one run's output. All methods raise Permanent or Retryable."""

    def __init__(self, bucket: Bucket, run: str, ending: str) -> None:
        self._bucket = bucket
        self._run = run
        self._folder = f"{bucket.key}.{run}{ending}/"
        self._pieces: list[str] = []
        self.sent = 0  # bytes of the partial file that are there

    def take_up(self, output: Path, partial: Path) -> None:
        """Bring what is there of this run: the whole output, or its pieces as one file."""
        found = self._bucket.objects()
        whole = found.get(self._bucket.key)
        self._pieces = sorted(key for key in found if key.startswith(self._folder))
        if whole is not None and self._bucket.note(whole.key, _RUN) == self._run:
            self._bucket.fetch(whole, output)
            self._tidy()
        elif self._pieces:
            with partial.open("wb") as file:
                for key in self._pieces:
                    self._bucket.append(found[key], file)
                self.sent = file.tell()

    def keep(self, whole: int) -> None:
        """Drop the pieces if more than their first ``whole`` bytes is damaged: the next one holds all from the start."""
        if whole < self.sent:
            log.warning(
                "pieces of the output are damaged and are sent anew", whole_bytes=whole, bytes=self.sent
            )
            self._drop()

    def send(self, partial: Path, end: int) -> None:
        """Send what there is up to byte ``end`` and was not sent."""
        if end > self.sent:
            key = f"{self._folder}{len(self._pieces) + 1:08}"
            self._bucket.put(key, partial, start=self.sent, end=end)
            self._pieces.append(key)
            self.sent = end

    def finish(self, output: Path) -> None:
        """Put the output in its place, and remove the pieces."""
        self._bucket.put(self._bucket.key, output, notes={_RUN: self._run})
        self._tidy()

    def _tidy(self) -> None:
        """Remove the pieces of an output that is there; it is whole whether that succeeds or not."""
        try:
            self._drop()
        except (Permanent, Retryable) as error:
            log.warning("pieces of the output are left", folder=self._folder, detail=str(error))

    def _drop(self) -> None:
        while self._pieces:  # the last first: what is left is a beginning
            self._bucket.delete(self._pieces[-1])
            self._pieces.pop()
        self.sent = 0
