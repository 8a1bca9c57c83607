"""Results and checkpoints in a bucket: folders of a run that are sent as objects, and brought back when it goes on.

What makes a folder whole (`training.json` of a result, `state.json` of a checkpoint) is sent last and removed first, so a
process that ends in between leaves nothing that looks whole.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from llmos_operator.observability.logging import logger
from llmos_operator.tuning.checkpoints import KEPT, STATE
from llmos_operator.tuning.result import FACTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from llmos_operator.modelstore.bucket import Bucket

log = logger(__name__)

_STEP: Final = re.compile(r"(step-[0-9]{10})/([^/]+)")


class Folder:
    """A folder of a run and its place in a bucket. All methods raise Permanent, Retryable and OSError."""

    def __init__(self, bucket: Bucket, path: Path) -> None:
        self._bucket = bucket
        self._path = path

    def take_up_result(self) -> None:
        """Bring what says whether the result is there."""
        found = self._bucket.objects().get(self._key(FACTS))
        if found is not None:
            self._bucket.fetch(found, self._path / FACTS)

    def send_result(self) -> None:
        """Send the whole result; files that are there and are none of it stay."""
        self._bucket.delete(self._key(FACTS))  # of an earlier run: its weights are replaced
        files = [one for one in sorted(self._path.rglob("*")) if one.is_file()]
        for one in sorted(files, key=lambda one: one == self._path / FACTS):
            self._bucket.put(self._key(one.relative_to(self._path).as_posix()), one)

    def take_up_checkpoint(self) -> None:
        """Bring the newest whole checkpoints, of which the second is for the case that the first is damaged."""
        objects = self._bucket.objects()
        steps = self._steps(objects)
        for step in _whole(steps)[:KEPT]:
            folder = self._path / step
            folder.mkdir(exist_ok=True)
            for name in sorted(steps[step], key=lambda name: name == STATE):
                self._bucket.fetch(objects[self._key(f"{step}/{name}")], folder / name)
            log.info("checkpoint fetched", step=step)

    def send_checkpoint(self, folder: Path) -> None:
        """Send a checkpoint and forget all but the newest two that are whole."""
        files = sorted(one for one in folder.iterdir() if one.is_file())
        for one in sorted(files, key=lambda one: one.name == STATE):
            self._bucket.put(self._key(f"{folder.name}/{one.name}"), one)
        steps = self._steps(self._bucket.objects())
        kept = {folder.name, *_whole(steps)[:KEPT]}
        for old in sorted(steps.keys() - kept):
            for name in sorted(steps[old], key=lambda name: name != STATE):
                self._bucket.delete(self._key(f"{old}/{name}"))

    def _steps(self, objects: Iterable[str]) -> dict[str, set[str]]:
        """Return the names of the files of each checkpoint."""
        folder = self._key("")
        found: dict[str, set[str]] = {}
        for key in objects:
            if key.startswith(folder) and (match := _STEP.fullmatch(key.removeprefix(folder))):
                found.setdefault(match[1], set()).add(match[2])
        return found

    def _key(self, path: str) -> str:
        return f"{self._bucket.key}/{path}"


def _whole(steps: Mapping[str, set[str]]) -> list[str]:
    """Return the whole checkpoints, newest first."""
    return sorted((name for name, files in steps.items() if STATE in files), reverse=True)
