"""The operator's order of FineTune and Batch work as a policy that a trace replay can ask.

The replay hands arrays of jobs (`submit`, `gpus`, `done`, `vc`, `running`; seconds, `vc` is the queue) and ids of those
that are unfinished. A job that was there at the last call and is no more has finished: that, and the service received
by all, is everything this policy knows of durations.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from llmos_operator.scheduler.service_index import ServiceIndex, size_class
from llmos_operator.scheduler.thrift import Standing, Thrift, places

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llmos_operator.scheduler.service_index import Floats, Key
    from llmos_operator.scheduler.thrift import Bools, Ints

RELEARN_SECONDS = 86_400.0


class JobArrays(Protocol):
    """What the replay tells of all jobs; arrays of one entry a job."""

    submit: Floats
    gpus: Ints
    done: Floats
    vc: Ints
    running: Bools


class Queueing:
    """A policy of the replay. Its state is what it has seen; two with the same past order alike."""

    preemptive = True
    backfill = True
    min_run = 1800.0  # seconds: what the replay itself keeps from being stopped

    def __init__(self, thrift: Thrift | None = None) -> None:
        self._thrift = thrift if thrift is not None else Thrift()
        self._index = ServiceIndex()
        self._relearn_at = 0.0
        self._seen: Ints = np.empty(0, np.int64)
        self._ran: Bools = np.empty(0, np.bool_)  # at the last call, by job
        self._changed: Floats = np.empty(0)  # when it last began to run or to stand still, by job

    def rank(self, now: float, jobs: JobArrays, ids: Ints) -> Floats:
        """Return a key for each id, smaller first; all different."""
        if not len(self._changed):
            self._changed = jobs.submit.astype(np.float64)
            self._ran = np.zeros(len(jobs.submit), np.bool_)
        self._observe(now, jobs, ids)
        index = np.empty(len(ids))
        for key, members in _groups(jobs, ids):
            index[members] = self._index.of(key, jobs.done[ids[members]])
        attained = jobs.done[ids]
        standing = Standing(
            index=index,
            devices=jobs.gpus[ids],
            submitted=jobs.submit[ids],
            attained=attained,
            waited=now - jobs.submit[ids] - attained,
            running=jobs.running[ids],
            since=now - self._changed[ids],
        )
        return places(standing, self._thrift).astype(np.float64)

    def _observe(self, now: float, jobs: JobArrays, ids: Ints) -> None:
        gone = np.setdiff1d(self._seen, ids, assume_unique=True)
        for key, members in _groups(jobs, gone):
            self._index.learn(key, jobs.done[gone[members]])
        self._seen = ids.copy()
        if now >= self._relearn_at:
            self._index.refresh({key: jobs.done[ids[members]] for key, members in _groups(jobs, ids)})
            self._relearn_at = now + RELEARN_SECONDS
        running = jobs.running[ids]
        turned = ids[running != self._ran[ids]]
        self._changed[turned] = now
        self._ran[ids] = running


def _groups(jobs: JobArrays, ids: Ints) -> Iterator[tuple[Key, Ints]]:
    """Yield (queue and size class, positions in ids)."""
    if not len(ids):
        return
    sizes = np.array([size_class(g) for g in range(int(jobs.gpus[ids].max()) + 1)])[jobs.gpus[ids]]
    labels = jobs.vc[ids] * 8 + sizes
    for label in np.unique(labels):
        yield (str(int(label) // 8), int(label) % 8), np.flatnonzero(labels == label)


def queueing() -> Queueing:
    """Return a fresh policy for one replay."""
    return Queueing()
