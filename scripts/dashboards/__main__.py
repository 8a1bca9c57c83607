"""Write the dashboards; with ``--check`` nothing is written and a stale file fails. Run by `make generate`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from scripts.dashboards.fleet import FLEET
from scripts.dashboards.grafana import dashboard
from scripts.dashboards.scheduler import SCHEDULER
from scripts.dashboards.workloads import WORKLOADS

FOLDER = Path(__file__).resolve().parents[2] / "helm" / "llmos-operator" / "dashboards"
BOARDS = (FLEET, WORKLOADS, SCHEDULER)


def main() -> int:
    """Write or check the files; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, fail when a file is stale")
    check = parser.parse_args().check
    stale = 0
    for board in BOARDS:
        path = FOLDER / f"{board.uid.removeprefix('llmos-')}.json"
        text = json.dumps(dashboard(board), indent=1) + "\n"
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        if check:
            stale += 1
            sys.stderr.write(f"{path} is stale: run `make generate`\n")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            sys.stdout.write(f"wrote {path}\n")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
