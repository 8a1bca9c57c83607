"""How the programs of FineTune and Batch end, as the operator reads it from the pod: exit codes and the last line."""

from __future__ import annotations

import re
from typing import Final

FAILED_FOR_GOOD: Final = 65  # sysexits.h EX_DATAERR: the same input fails again
STOPPED: Final = 128 + 15  # ended by SIGTERM, as a shell would report it

_LINE = re.compile(r"([A-Z][A-Za-z0-9]{0,63}): (.+)", re.DOTALL)
_MOST_BYTES = 4096  # the kubelet keeps no more


def format_line(reason: str, message: str) -> str:
    """Return the termination message: one line of at most 4096 bytes."""
    line = f"{reason}: {' '.join(message.split())}"
    return line.encode()[:_MOST_BYTES].decode(errors="ignore")


def parse_line(text: str) -> tuple[str, str]:
    """Return (reason, message) of a termination message; reason "" where a program wrote something else."""
    found = _LINE.fullmatch(text.strip())
    return (found[1], found[2]) if found else ("", text.strip())
