"""Write, or with ``--check`` compare, every generated file of the repository.

Each generator is a command of its own beside what it describes; this script only knows their names. Run through
`make generate` and `make generated`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

# Modules with a command line of `[--check]`: exit status 1 and a message naming the stale files.
GENERATORS = (
    "llmos_operator.api.crd",
    "llmos_operator.telemetry.reference",
    "scripts.chart",
    "scripts.dashboards",
    "scripts.metrics",
    "scripts.reference",
)


def main() -> int:
    """Run all generators; return the worst exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, fail if a file is stale")
    options = ["--check"] if parser.parse_args().check else []
    statuses = [
        subprocess.run([sys.executable, "-m", module, *options], check=False).returncode
        for module in GENERATORS
    ]
    if any(statuses) and options:
        sys.stderr.write("generated files are stale or cannot be made: run `make generate` and commit\n")
    return max(statuses)


if __name__ == "__main__":
    sys.exit(main())
