"""The last one: when the supervisor is gone, ends what the kernel does not end by itself.

The parent-death signal reaches direct children only; what a container's process started would outlive a supervisor
that was killed. This process waits for the end of its standard input, a pipe only the supervisor holds, then kills
everything that carries the cluster's mark. It carries the mark too, so the next `up` of the directory ends it first.
Started as ``python -m llmos_operator.local.sweeper STATE_DIRECTORY``.
"""

from __future__ import annotations

import os
import signal
import sys
import time

from llmos_operator.local.layout import ENV_CLUSTER
from llmos_operator.local.processes import marked_processes

_PASSES = 5  # processes may be starting others while they are being ended
_PAUSE_SECONDS = 0.1


def main(root: str) -> None:
    """Wait, then kill."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while os.read(0, 1):
        pass
    for _ in range(_PASSES):
        for record in marked_processes(f"{ENV_CLUSTER}={root}"):
            record.signal(signal.SIGKILL)
        time.sleep(_PAUSE_SECONDS)


if __name__ == "__main__":
    main(sys.argv[1])
