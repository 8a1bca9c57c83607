"""How the programs of FineTune and Batch end, as the operator reads it from the pod: exit codes and the last message.

The message has one line for people, `Reason: what happened; what to do`, and may have a second one, for the operator: the
last progress as JSON, because a short run may end between two looks at it.
"""

from __future__ import annotations

import re
from typing import Final

from pydantic import ValidationError

from llmos_operator.api.runtime.messages import WorkProgress

FAILED_FOR_GOOD: Final = 65  # sysexits.h EX_DATAERR: the same input fails again
STOPPED: Final = 128 + 15  # ended by SIGTERM, as a shell would report it

_LINE = re.compile(r"([A-Z][A-Za-z0-9]{0,63}): (.+)")
_MOST_BYTES = 4096  # the kubelet keeps no more
_PROGRESS_BYTES = 512  # kept free for the second line
_MOST_SHOWN = 1000  # characters of what a program wrote that knows nothing of this format


def format_message(reason: str, message: str, progress: WorkProgress | None = None) -> str:
    """Return the termination message, at most 4096 bytes."""
    line = f"{reason}: {' '.join(message.split())}".encode()[: _MOST_BYTES - _PROGRESS_BYTES]
    text = line.decode(errors="ignore")
    if progress is None:
        return text
    return f"{text}\n{progress.model_dump_json(by_alias=True, exclude_defaults=True)}"


def parse_reason(text: str) -> tuple[str, str]:
    """Return (reason, message) of a termination message; reason "" and the last line where a program wrote something else."""
    lines = text.strip().splitlines()
    found = _LINE.fullmatch(lines[0]) if lines else None
    if found is not None and len(lines) <= 2:  # noqa: PLR2004 - the line for people, and the one for us
        return found[1], found[2]
    return "", lines[-1][:_MOST_SHOWN] if lines else ""


def parse_progress(text: str) -> WorkProgress | None:
    """Return the progress a termination message carries, None if it has none."""
    lines = text.strip().splitlines()
    if len(lines) != 2:  # noqa: PLR2004 - as above
        return None
    try:
        return WorkProgress.model_validate_json(lines[1])
    except ValidationError:
        return None
