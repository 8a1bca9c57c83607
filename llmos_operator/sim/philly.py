"""The Philly trace: jobs of a GPU cluster with their submit times and durations (Jeon et al., ATC'19)."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Final

import numpy as np

from llmos_operator.sim.trace_files import BadTrace, find, folder_of, real, rows, whole

if TYPE_CHECKING:
    from pathlib import Path

    from llmos_operator.scheduler.service_index import Floats
    from llmos_operator.scheduler.thrift import Bools
    from llmos_operator.sim.openb import Ints

DAY: Final = 86_400.0


@dataclass(slots=True)
class Jobs:
    """All jobs in the order of their submission, one entry each; times are seconds since the chosen days began.

    The first four are read, the others are what a replay makes of them. A policy may read `submit`, `gpus`, `done`,
    `vc` and `running`; how long a job takes is not known to it.
    """

    submit: Floats
    length: Floats  # seconds of service until it is complete
    gpus: Ints
    vc: Ints  # its virtual cluster, which is its queue
    done: Floats = field(init=False)  # seconds of service received
    owed: Floats = field(init=False)  # seconds of restart still to pay
    since: Floats = field(init=False)  # when it last began to run
    finish: Floats = field(init=False)  # NaN until then
    stops: Ints = field(init=False)
    running: Bools = field(init=False)

    def __post_init__(self) -> None:
        """Nothing has run yet."""
        count = len(self.submit)
        self.done, self.owed, self.since = np.zeros(count), np.zeros(count), np.zeros(count)
        self.finish = np.full(count, np.nan)
        self.stops = np.zeros(count, np.int64)
        self.running = np.zeros(count, np.bool_)


def read_jobs(data: str, days: tuple[float, float] | None = None, limit: int = 0) -> Jobs:
    """Read the jobs submitted in `days` of the log (from, to), at most `limit` of them."""
    folder = folder_of(data, "philly")
    path = find(folder, "philly*.csv", "the Philly log (timestamp, duration, num_gpus, cluster)")
    read = list(rows(path, "timestamp", "duration", "num_gpus", "cluster"))
    at = np.array([_seconds(row["timestamp"], path) for row in read])
    length = np.array([real(row, "duration", path) for row in read])
    gpus = np.array([whole(row, "num_gpus", path) for row in read], np.int64)
    names = {name: number for number, name in enumerate(sorted({row["cluster"] for row in read}))}
    queue = np.array([names[row["cluster"]] for row in read], np.int64)
    if read and (gpus.min() < 1 or length.min() <= 0):
        raise BadTrace(f"{path}: every job needs at least one device and a duration above 0")
    order = np.argsort(at, kind="stable")
    at = (at - at.min(initial=np.inf))[order]
    begin, end = (days[0] * DAY, days[1] * DAY) if days is not None else (0.0, np.inf)
    chosen = np.flatnonzero((at >= begin) & (at < end))[: limit or None]
    if not len(chosen):
        raise BadTrace(f"{path} holds no job of days {begin / DAY:g} to {end / DAY:g}")
    kept = order[chosen]
    return Jobs(at[chosen] - begin, length[kept], gpus[kept], queue[kept])


def _seconds(text: str, path: Path) -> float:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise BadTrace(f"{path}: timestamp = {text!r} is not a time like 2017-10-09 07:01:55") from None
