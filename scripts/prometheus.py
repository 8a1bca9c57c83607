"""Find or make `prometheus` and `promtool`, which check the chart's rules and dashboards.

They come from PATH, else from the distribution's own package (`scripts.debian`). Run by `make artifacts` and by the first
test that needs one.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from scripts.debian import told, unpacked

NAMES = ("prometheus", "promtool")
PACKAGE = "prometheus"
_ADVICE = "Install Prometheus (2.40 or newer) so that `prometheus` and `promtool` are on PATH."


def resolve(name: str) -> Path:
    """Return the path of ``name``, one of `NAMES`. Raises `Permanent`, see `scripts.debian.unpacked`."""
    if found := shutil.which(name):
        return Path(found)
    programs = [f"usr/bin/{one}" for one in NAMES]
    return unpacked("prometheus", PACKAGE, programs, advice=_ADVICE) / "usr" / "bin" / name


def main() -> int:
    """Make both; return 0 if they are there or cannot be for want of a package."""
    return told(lambda: (f"{name}: {resolve(name)}" for name in NAMES))


if __name__ == "__main__":
    sys.exit(main())
