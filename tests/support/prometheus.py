"""`promtool` and `prometheus` for tests; a machine that cannot have them skips, and only such a machine."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from llmos_operator.errors import Permanent
from scripts.prometheus import NO_PACKAGE, resolve

if TYPE_CHECKING:
    from pathlib import Path


def program(name: str) -> Path:
    """Return `prometheus` or `promtool`; skip where no package of it exists, fail where it could not be had."""
    try:
        return resolve(name)
    except Permanent as error:
        if error.reason == NO_PACKAGE:
            pytest.skip(str(error))
        raise


def promtool(*arguments: str, cwd: Path) -> tuple[int, str]:
    """Run promtool; return its exit status and everything it wrote."""
    done = subprocess.run(
        [str(program("promtool")), *arguments], cwd=cwd, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr
