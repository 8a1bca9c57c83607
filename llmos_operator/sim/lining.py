"""Replay of jobs in virtual time: the operator's order of training work decides who runs, who waits and who is stopped.

Time goes in ticks. At each tick in which a job came or went everybody is ranked; whoever is among the first that the
cluster holds runs, and jobs that rank behind make room, if they have run for long enough. A stopped job keeps its
progress and pays a restart. What is left goes to whoever fits, in order.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from llmos_operator.sim.racks import PER_NODE, Racks
from llmos_operator.sim.trace_files import BadTrace

if TYPE_CHECKING:
    from llmos_operator.scheduler.service_index import Floats
    from llmos_operator.scheduler.thrift import Bools
    from llmos_operator.sim.adapters_queueing import Queueing
    from llmos_operator.sim.openb import Ints
    from llmos_operator.sim.philly import Jobs

TICK: Final = 60.0  # seconds
RESTART: Final = 30.0  # seconds of devices in use without progress, after a stop
_ALMOST: Final = 1e-9
_MISSES: Final = 200  # jobs that did not fit before the walk ends, where at most one device is free


@dataclass(frozen=True, slots=True)
class Lined:
    """What became of the jobs: `jobs` holds their ends; the rest is about the cluster."""

    jobs: Jobs
    devices: int
    busy: float  # device seconds in use, restarts included
    restarts: float  # device seconds of restarts
    passes: int
    seconds: float  # CPU seconds of all passes
    at: Floats  # seconds, one entry a pass
    waiting: Ints  # jobs, after each pass
    used: Ints  # devices, after each pass


class Line:
    """One replay."""

    def __init__(self, jobs: Jobs, policy: Queueing, nodes: int) -> None:
        if int(jobs.gpus.max()) > nodes * PER_NODE:
            largest = int(jobs.gpus.max())
            raise BadTrace(
                f"a job asks for {largest} devices, {nodes} nodes have {nodes * PER_NODE}: raise --nodes"
            )
        self._jobs = jobs
        self._policy = policy
        self._racks = Racks(nodes)
        self._total = nodes * PER_NODE
        self._now = 0.0
        self._arrived = 0
        self._active: Ints = np.empty(0, np.int64)
        self._busy = self._restarts = self._seconds = 0.0
        self._seen: list[tuple[float, int, int]] = []

    def run(self) -> Lined:
        """Replay until every job has finished."""
        jobs = self._jobs
        while self._arrived < len(jobs.submit) or len(self._active):
            until = self._next_tick()
            self._work(until - self._now)
            self._now = until
            self._arrive()
            if len(self._active):
                began = time.process_time()
                self._decide()
                self._seconds += time.process_time() - began
                waiting = int((~jobs.running[self._active]).sum())
                self._seen.append((self._now, waiting, self._total - int(self._racks.free.sum())))
        at, waiting_jobs, used = zip(*self._seen, strict=True)
        return Lined(
            jobs, self._total, self._busy, self._restarts, len(at), self._seconds,
            np.array(at), np.array(waiting_jobs, np.int64), np.array(used, np.int64),
        )  # fmt: skip

    def _next_tick(self) -> float:
        """Return the first tick at which a job has come or gone."""
        jobs = self._jobs
        running = self._active[jobs.running[self._active]]
        ends = self._now + jobs.length[running] - jobs.done[running] + jobs.owed[running]
        event = float(ends.min(initial=np.inf))
        if self._arrived < len(jobs.submit):
            event = min(event, float(jobs.submit[self._arrived]))
        if not np.isfinite(event):
            raise RuntimeError("jobs wait, nothing runs and nothing will come: the policy starts nobody")
        return max(self._now + TICK, float(np.ceil(event / TICK)) * TICK)

    def _work(self, span: float) -> None:
        """Let running jobs pay what they owe and then make progress; a job ends inside the span when it is complete."""
        jobs = self._jobs
        running = self._active[jobs.running[self._active]]
        if not len(running):
            return
        paid = np.minimum(jobs.owed[running], span)
        left = jobs.length[running] - jobs.done[running]
        worked = np.minimum(span - paid, left)
        complete = worked >= left - _ALMOST
        jobs.finish[running[complete]] = self._now + paid[complete] + left[complete]
        jobs.done[running] += worked
        jobs.owed[running] -= paid
        self._busy += float(((worked + paid) * jobs.gpus[running]).sum())
        self._restarts += float((paid * jobs.gpus[running]).sum())
        for job in running[complete]:
            self._racks.release(int(job))
            jobs.running[job] = False
        if complete.any():
            self._active = self._active[np.isnan(jobs.finish[self._active])]

    def _arrive(self) -> None:
        until = int(np.searchsorted(self._jobs.submit, self._now, side="right"))
        self._active = np.concatenate([self._active, np.arange(self._arrived, until)])
        self._arrived = until

    def _decide(self) -> None:
        jobs = self._jobs
        keys = self._policy.rank(self._now, jobs, self._active)
        order = self._active[np.argsort(keys, kind="stable")]
        if not jobs.running[order].all():
            self._preempt(order, self._wanted(order))
        self._fill(order[~jobs.running[order]])

    def _wanted(self, order: Ints) -> Bools:
        """Return who runs if devices alone counted: the first in order that fit beside those before them."""
        sizes = self._jobs.gpus[order]
        if int(sizes.sum()) <= self._total:
            return np.ones(len(order), np.bool_)
        room, wanted = self._total, np.zeros(len(order), np.bool_)
        for place, size in enumerate(sizes):
            if size <= room:
                wanted[place] = True
                room -= int(size)
                if not room:
                    break
        return wanted

    def _preempt(self, order: Ints, wanted: Bools) -> None:
        """Start who is wanted; where there is no room, those that are not make it, the last in order first."""
        jobs = self._jobs
        behind = order[~wanted & jobs.running[order]][::-1]
        losers = [int(job) for job in behind if self._now - jobs.since[job] >= self._policy.min_run]
        for job in order[wanted & ~jobs.running[order]]:
            if self._start(int(job)):
                continue
            for victim in self._racks.victims(int(jobs.gpus[job]), losers, jobs.gpus):
                self._stop(victim)
                losers.remove(victim)
            self._start(int(job))

    def _fill(self, waiting: Ints) -> None:
        misses = 0
        for job in waiting:
            free = int(self._racks.free.sum())
            if not free:
                return
            if not self._start(int(job)):
                misses += 1
                if misses > _MISSES and free <= 1:
                    return

    def _start(self, job: int) -> bool:
        jobs = self._jobs
        if not self._racks.place(job, int(jobs.gpus[job])):
            return False
        jobs.running[job] = True
        jobs.since[job] = self._now
        return True

    def _stop(self, job: int) -> None:
        self._racks.release(job)
        self._jobs.running[job] = False
        self._jobs.owed[job] = RESTART
        self._jobs.stops[job] += 1
