"""Turns of jobs: a total order, nobody starves, and a started job is not stopped at once."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from llmos_operator.scheduler.thrift import Standing, Thrift, Turn, places, turns
from llmos_operator.sim.adapters import queueing

FRESH = 100.0
THRIFT = Thrift(
    fresh_seconds=FRESH,
    bound_seconds=1000.0,
    lease_seconds=100.0,
    patience_seconds=50.0,
    patience_per_service=0.0,
)
SECONDS = st.floats(0.0, 5000.0)
Job: TypeAlias = tuple[float, int, float, float, float, bool, float]
JOB = st.tuples(SECONDS, st.integers(1, 64), SECONDS, SECONDS, SECONDS, st.booleans(), SECONDS)


def standing(jobs: list[Job]) -> Standing:
    index, devices, submitted, attained, waited, running, since = (
        np.array(c) for c in zip(*jobs, strict=True)
    )
    return Standing(index, devices, submitted, attained, waited, running.astype(np.bool_), since)


@given(st.lists(JOB, min_size=1, max_size=30))
def test_the_order_is_total_and_repeatable(jobs: list[Job]) -> None:
    found = places(standing(jobs), THRIFT)
    assert sorted(found) == list(range(len(jobs)))
    assert (found == places(standing(jobs), THRIFT)).all()


@given(st.lists(JOB, min_size=2, max_size=30))
def test_classes_come_one_after_the_other(jobs: list[Job]) -> None:
    side = standing(jobs)
    turn, place = turns(side, THRIFT), places(side, THRIFT)
    assert (np.diff(turn[np.argsort(place)]) >= 0).all()
    late = np.flatnonzero(turn == Turn.OVERDUE)
    oldest_first = side.submitted[late[np.argsort(place[late])]]
    assert (np.diff(oldest_first) >= 0).all()
    assert not (side.running & (turn == Turn.PATIENT)).any()


class Jobs:
    """One node of `devices`, jobs that need one device each, run by whoever is asked for the order."""

    def __init__(self, submit: list[float], length: list[float], devices: int) -> None:
        self.submit, self.length, self.devices = np.array(submit), np.array(length), devices
        count = len(submit)
        self.gpus, self.vc = np.ones(count, np.int64), np.zeros(count, np.int64)
        self.done, self.running = np.zeros(count), np.zeros(count, np.bool_)
        self.finish = np.full(count, np.inf)

    def run(self, tick: float) -> None:
        policy, now = queueing(), 0.0
        policy._thrift = THRIFT  # small bounds: the run is short
        while np.isinf(self.finish).any():
            ids = np.flatnonzero((self.submit <= now) & np.isinf(self.finish))
            if len(ids):
                key = policy.rank(now, self, ids)
                self.running[:] = False
                self.running[ids[np.argsort(key)[: self.devices]]] = True
            now += tick
            self.done[self.running] += np.minimum(tick, self.length - self.done)[self.running]
            over = self.running & (self.done >= self.length)
            self.finish[over & np.isinf(self.finish)] = now
            self.running[over] = False


@given(
    st.lists(st.tuples(st.floats(0, 2000), st.floats(20, 3000)), min_size=1, max_size=12), st.integers(1, 3)
)
def test_nobody_waits_longer_than_the_bound_and_the_work_of_those_older(
    jobs: list[tuple[float, float]], devices: int
) -> None:
    tick = 20.0
    cluster = Jobs([s for s, _ in jobs], [float(round(d / tick) * tick) for _, d in jobs], devices)
    cluster.run(tick)
    for i in range(len(jobs)):
        waited = cluster.finish[i] - cluster.submit[i] - cluster.length[i]
        older = cluster.length[cluster.submit <= cluster.submit[i]].sum() - cluster.length[i]
        leases = (len(jobs) / devices + 1) * (THRIFT.lease_seconds + tick)
        assert waited <= THRIFT.bound_seconds + older + leases + len(jobs) * (FRESH + tick) + 2 * tick


def test_short_work_does_not_wait_behind_a_cluster_full_of_overdue_work() -> None:
    late = (60.0, 8, 0.0, 90_000.0, 5000.0, True, 500.0)
    side = standing([late] * 5 + [(60.0, 1, 4900.0, 0.0, 60.0, False, 60.0)])
    assert list(turns(side, THRIFT)) == [Turn.OVERDUE] * 5 + [Turn.FRESH]
    assert places(side, THRIFT)[-1] == 0
