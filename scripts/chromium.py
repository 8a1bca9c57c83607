"""Find or make a headless Chromium, in which the console's page is tested.

It comes from PATH, else from the distribution's package of the headless shell (`scripts.debian`), with the libraries this
machine lacks. Run by the first test that needs it.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.debian import told, unpacked

if TYPE_CHECKING:
    from collections.abc import Mapping

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
PACKAGE = "chromium-headless-shell"
_PROGRAM = "usr/lib/chromium/chromium-headless-shell"
_ADVICE = "Install Chromium (120 or newer) so that `chromium` is on PATH."


@dataclass(frozen=True, slots=True)
class Browser:
    """How to start it."""

    program: Path
    environment: Mapping[str, str] = field(default_factory=dict)


def resolve() -> Browser:
    """Return the browser. Raises `Permanent`, see `scripts.debian.unpacked`."""
    for name in NAMES:
        if found := shutil.which(name):
            return Browser(Path(found))
    root = unpacked("chromium", PACKAGE, [_PROGRAM], advice=_ADVICE, whole=True)
    libraries = sorted({str(one.parent) for one in (root / "usr" / "lib").glob("*-linux-gnu*/**/*.so*")})
    return Browser(root / _PROGRAM, {"LD_LIBRARY_PATH": ":".join(libraries)})


def main() -> int:
    """Make it; return 0 if it is there or cannot be for want of a package."""
    return told(lambda: [f"chromium: {resolve().program}"])


if __name__ == "__main__":
    sys.exit(main())
