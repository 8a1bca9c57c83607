"""`make demo` holds everything it claims."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]


def test_the_demo_ends_with_everything_held_and_nothing_left(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "demo", "--dir", str(tmp_path / "demo")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=540,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "✗" not in done.stdout
    assert not (tmp_path / "demo").exists()
