"""How a program that ends tells the operator how it ended: an exit code, and one line in the termination message.

The line is `Reason: what happened; what to do`. The kubelet puts it into the pod's status, where the operator finds it
however late it looks: https://kubernetes.io/docs/tasks/debug/debug-application/determine-reason-pod-failure/
"""

from __future__ import annotations

from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING

from llmos_operator.api.runtime.endings import FAILED_FOR_GOOD, STOPPED, format_message
from llmos_operator.observability.logging import logger

if TYPE_CHECKING:
    from llmos_operator.api.runtime.messages import WorkProgress
    from llmos_operator.runtime.jobs.settings import JobSettings

log = logger(__name__)


class Ending(IntEnum):
    """Exit codes."""

    DONE = 0
    FAILED = 1  # a new try may help
    FAILED_FOR_GOOD = FAILED_FOR_GOOD  # only a change of the workload or of its data can help
    STOPPED = STOPPED  # SIGTERM; what was done is saved


def tell(
    settings: JobSettings, ending: Ending, reason: str, message: str, progress: WorkProgress | None = None
) -> int:
    """Write the termination message and return the exit code. A message that cannot be written is logged instead.

    ``reason`` is one of `api.conditions.Reason`; ``progress`` is how far the run came at last.
    """
    line = format_message(reason, message, progress)
    try:
        Path(settings.termination_log).write_text(line, encoding="utf-8")
    except (
        OSError
    ) as error:  # outside a pod there is no such file, and inside it must not hide why the run failed
        log.debug("no termination message", path=settings.termination_log, error=error)
    shown = log.info if ending in (Ending.DONE, Ending.STOPPED) else log.error
    shown("run ended", ending=ending.name, reason=reason, why=message)
    return int(ending)
