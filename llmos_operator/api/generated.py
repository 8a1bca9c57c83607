"""Files that are made from code: written, or compared where nothing may be written."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def settle(files: Mapping[Path, str], *, check: bool) -> int:
    """Write each of ``files`` (path: text) that is not as it should be and say so; return the exit status.

    With ``check`` nothing is written, the stale ones are named on standard error and the status is 1 if there are any.
    """
    stale = [path for path, text in files.items() if not _holds(path, text)]
    for path in stale:
        if check:
            sys.stderr.write(f"{path} is stale: run `make generate`\n")
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(files[path], encoding="utf-8")
        sys.stdout.write(f"wrote {path}\n")
    return 1 if check and stale else 0


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text
