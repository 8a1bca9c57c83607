"""Documentation: links lead somewhere, and files name no machine and no registry address."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")])
LINK = re.compile(r"\]\((?!https?://|#|mailto:)([^)#\s]+)(#[^)]*)?\)")
# A download address or a home directory in a tracked file makes it true on one machine only.
ADDRESS = re.compile(r"https?://[^\s\"'<>]+(\.whl|\.tgz|/simple)\b|/(root|home/[a-z]+)/")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_to_a_file(page: Path) -> None:
    targets = [match[1] for match in LINK.finditer(page.read_text(encoding="utf-8"))]
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing


def test_tracked_files_hold_no_machine_path_and_no_download_address() -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    found = []
    for name in filter(None, tracked):
        if name.endswith((".sum", ".lock")) or not (ROOT / name).is_file():
            continue
        text = (ROOT / name).read_bytes().decode(errors="ignore")
        found += [f"{name}: {match[0]}" for match in ADDRESS.finditer(text)]
    assert not found
