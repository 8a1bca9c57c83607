"""`llmos`: one command, many processes; also `python -m llmos_operator` and the kubectl plugin `kubectl llmos`.

The long-running processes are dispatched by name before anything else is imported, so that each loads only what its
own extra installs. People's commands live in `cli` and may take the time that typer and rich need.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# Process name -> (module with `main(argv) -> exit status`, the extra that installs what it imports).
PROCESSES: dict[str, tuple[str, str]] = {
    "operator": ("llmos_operator.control.app", "operator"),
    "agent": ("llmos_operator.telemetry.agent", "agent"),
    "runtime": ("llmos_operator.runtime.server", "runtime"),
    "tune": ("llmos_operator.tuning.program", "runtime"),
    "batch": ("llmos_operator.runtime.jobs.batch.program", "runtime"),
    "fetch": ("llmos_operator.modelstore.fetch", "agent"),
    "gateway": ("llmos_operator.gateway.app", "gateway"),
}
CLI = ("llmos_operator.cli.app", "cli")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the process or command that ``argv`` (default: the command line) names; return its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in PROCESSES:
        module, extra = PROCESSES[arguments.pop(0)]
    else:
        module, extra = CLI
    try:
        run: Callable[[list[str]], int] = importlib.import_module(module).main
    except ModuleNotFoundError as missing:
        if missing.name is None or missing.name.startswith("llmos_operator"):
            raise
        sys.stderr.write(
            f"llmos: {missing.name} is not installed; this command needs the extra {extra!r}: "
            f"pip install 'llmos-operator[{extra}]'\n"
        )
        return 1
    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
