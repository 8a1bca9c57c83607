"""`python -m tests.bench [NAME …] [--dry]`: run benchmarks, print their tables, keep them in docs/benchmarks.md."""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from pathlib import Path

from tests.bench import report

LONG = {"e2e", "runtime", "scale"}  # many minutes each: only when named
NAMES = sorted(path.stem.removeprefix("bench_") for path in Path(__file__).parent.glob("bench_*.py"))


def main() -> int:
    """Run what was asked for; return 1 if one of them failed."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"of: {', '.join(NAMES)} (default: all but {', '.join(sorted(LONG))})",
    )
    parser.add_argument("--dry", action="store_true", help="do not write docs/benchmarks.md")
    options = parser.parse_args()
    unknown = set(options.names) - set(NAMES)
    if unknown:
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are: {', '.join(NAMES)}")
    for name in options.names or [name for name in NAMES if name not in LONG]:
        module = importlib.import_module(f"tests.bench.bench_{name}")
        heading = (module.__doc__ or name).strip().splitlines()[0].rstrip(".")
        print(f"== {heading}", flush=True)
        started = time.monotonic()
        tables = module.run()
        text = report.section(name, heading, tables)
        print("\n\n".join(table.markdown() for table in tables))
        print(f"   ({time.monotonic() - started:.0f} s)\n", flush=True)
        if not options.dry:
            report.save(name, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
