"""Turns among jobs that may be stopped for one another: index first, but nobody starves and few are stopped.

Five classes, smaller first, and inside a class what is said:

    LEASED    runs, and for less than `lease_seconds` since it (re)started                index
    FRESH     has received less than `fresh_seconds` of device time, and has been patient  index, overdue ones first
    OVERDUE   has waited more than `bound_seconds` altogether, whether it runs or not     submission
    DUE       runs, or waits and has been patient                                         index
    PATIENT   has waited for less than its patience since it stood still                  index

A PATIENT job takes what is free but, standing behind everything that runs, displaces nobody: most waits end by
themselves within minutes, and a stop costs its victim a restart. An OVERDUE job is passed by leased work and by
fresh work only, and among its like the oldest goes first: its wait is bounded by what is older than it and by
`fresh_seconds` of every other job. Fresh work comes first because a cluster that has more work than it can do would
otherwise have only overdue work in it, and everything short would wait as long as everything long. A lease keeps a job that
was just started from being the next victim (no flapping).

`index` is the expected service per completion times the number of devices to the power of `size_exponent`: 1 would be
the expected device time, which is what a device second of waiting room is worth, but lets large work pay for all waits;
0 counts jobs alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from llmos_operator.scheduler.service_index import Floats

Bools: TypeAlias = NDArray[np.bool_]
Ints: TypeAlias = NDArray[np.int64]


class Turn(IntEnum):
    """See the module's text."""

    LEASED = 0
    FRESH = 1
    OVERDUE = 2
    DUE = 3
    PATIENT = 4


@dataclass(frozen=True, slots=True)
class Thrift:
    """Bounds of waiting and of stopping, in seconds. None of them depends on what is known of durations."""

    fresh_seconds: float = 7200.0  # of device time: a job that has received less goes before overdue ones
    bound_seconds: float = 165_000.0  # waiting, all of it together, after which a job goes before its equals
    lease_seconds: float = 5400.0  # for which a started job is not passed by others
    patience_seconds: float = 180.0  # for which a job that stands still displaces nobody
    size_exponent: float = 0.1
    patience_per_service: float = 0.03  # and more by this part of the service it has received already


@dataclass(frozen=True, slots=True)
class Standing:
    """Jobs side by side, one entry each, times in seconds."""

    index: Floats  # expected service per completion, in seconds
    devices: Ints
    submitted: Floats
    attained: Floats  # service received
    waited: Floats  # since submission, without service
    running: Bools
    since: Floats  # for how long it has run, or stood still, without a change


def turns(standing: Standing, thrift: Thrift) -> Ints:
    """Return the class of each job."""
    patience = thrift.patience_seconds + thrift.patience_per_service * standing.attained
    turn = np.where(~standing.running & (standing.since < patience), Turn.PATIENT, Turn.DUE)
    turn = np.where(overdue(standing.waited, thrift), Turn.OVERDUE, turn)
    fresh = standing.attained * standing.devices < thrift.fresh_seconds
    turn = np.where(fresh & (turn != Turn.PATIENT), Turn.FRESH, turn)
    leased = standing.running & (standing.since < thrift.lease_seconds)
    return np.where(leased, Turn.LEASED, turn).astype(np.int64)


def overdue(waited: Floats, thrift: Thrift) -> Bools:
    """Return who has waited beyond the bound."""
    late: Bools = np.asarray(waited > thrift.bound_seconds, dtype=np.bool_)
    return late


def places(standing: Standing, thrift: Thrift) -> Ints:
    """Return each job's place in the order, from 0: all different. Equals go by submission, then as given."""
    turn = turns(standing, thrift)
    weighted = standing.index * standing.devices.astype(np.float64) ** thrift.size_exponent
    index = np.where(overdue(standing.waited, thrift) & (turn != Turn.LEASED), 0.0, weighted)
    order = np.lexsort((standing.submitted, index, turn))
    found = np.empty(len(order), np.int64)
    found[order] = np.arange(len(order))
    return found
