"""Write the dashboards; with ``--check`` nothing is written and a stale file fails. Run by `make generate`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from llmos_operator.api.generated import settle
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
    files = {
        FOLDER / f"{board.uid.removeprefix('llmos-')}.json": json.dumps(dashboard(board), indent=1) + "\n"
        for board in BOARDS
    }
    return settle(files, check=parser.parse_args().check)


if __name__ == "__main__":
    sys.exit(main())
