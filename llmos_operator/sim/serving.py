"""The ServeGen trace: requests per second of models in production (Alibaba Cloud, ServeGen), and replicas that follow.

The trace has the mean of every ten minutes. Between them rates are interpolated; each minute gets its own noise (gamma
with a mean of 1), each step a Poisson number of requests. A replica serves as a fluid: `slots` requests at a time, each
for `service` seconds. Service times, slots, devices and cold starts are assumptions, the trace does not tell them.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from llmos_operator.sim.philly import DAY
from llmos_operator.sim.trace_files import BadTrace, find, folder_of, real, rows

if TYPE_CHECKING:
    from llmos_operator.scheduler.service_index import Floats
    from llmos_operator.sim.openb import Ints

STEP: Final = 5.0  # seconds
_EVERY: Final = 3  # steps between decisions
WITHIN: Final = 10.0  # seconds a request may wait
_MINUTE: Final = round(60 / STEP)  # steps
_MIDDLE: Final = 300.0  # seconds: a ten-minute mean is taken as the rate in its middle
_STREAM: Final = 17
_SHAPE: Final = 20.0  # of the noise: its standard deviation is 1 / sqrt(20)
_EMPTY: Final = 1e-9  # requests
_AT_FIRST: Final = 0.7  # part of its slots that a replica uses before anybody has decided


@dataclass(frozen=True, slots=True)
class Assumed:
    """What a replica of a model is like, and by how much the trace's rate is scaled to give a fleet of tens."""

    service: float  # seconds of a request
    slots: int  # requests at a time
    gpus: int  # of a replica
    cold: float  # seconds until a new replica serves
    scale: float


MODELS: Final = {
    "m-small": Assumed(3.0, 64, 1, 60.0, 0.2),
    "m-mid": Assumed(6.0, 64, 2, 120.0, 0.1),
    "m-large": Assumed(12.0, 48, 4, 180.0, 1.0),
}


class Scaler(Protocol):
    """What is replayed: see `sim.adapters.scaler`."""

    def decide(self, now: float, history: list[float], ready: int, starting: int, backlog: float) -> int:
        """Return the replicas wanted."""
        ...


@dataclass(frozen=True, slots=True)
class Served:
    """What became of the requests. Arrays have one entry a step."""

    requests: float
    in_time: float  # requests that waited no longer than `WITHIN`
    waits: Floats  # seconds, sorted
    weights: Floats  # requests that waited so long
    billed: float  # replica seconds, starting ones included
    starts: int
    replicas: Ints  # ready and starting
    queued: Floats  # requests


def read_arrivals(data: str, model: str, seed: int, days: tuple[float, float] | None = None) -> Floats:
    """Return requests per step of a model. Raises `BadTrace` naming the models there are."""
    path = find(
        folder_of(data, "serving"), "servegen_rates*.csv", "rates of the ServeGen trace (t_s, models)"
    )
    if model not in MODELS:
        raise BadTrace(f"{model!r} is no model of the ServeGen replay; there are {', '.join(MODELS)}")
    read = list(rows(path, "t_s", model))
    at = np.array([real(row, "t_s", path) for row in read]) + _MIDDLE
    rate = np.array([real(row, model, path) for row in read]) * MODELS[model].scale
    if not len(at):
        raise BadTrace(f"{path} holds no rates")
    draw = np.random.default_rng([_STREAM, seed])
    steps = np.arange(0.0, at[-1], STEP)
    expected = np.interp(steps, at, rate) * STEP
    noise = np.repeat(draw.gamma(_SHAPE, 1 / _SHAPE, len(steps) // _MINUTE + 1), _MINUTE)[: len(steps)]
    arrived = draw.poisson(expected * noise).astype(np.float64)
    if days is not None:
        arrived = arrived[round(days[0] * DAY / STEP) : round(days[1] * DAY / STEP)]
    if not len(arrived):
        raise BadTrace(f"{path} ends before the chosen days begin")
    return arrived


def environment(model: str) -> dict[str, float]:
    """Return what the scaler is told of the model, by the names of `sim.adapters.scaler`."""
    known = MODELS[model]
    return {
        "step": STEP,
        "slots": float(known.slots),
        "service": known.service,
        "cold": known.cold,
        "slo": WITHIN,
    }


class Fleet:
    """Replicas and the requests that wait for them, first come, first served."""

    def __init__(self, model: Assumed, arrivals: Floats) -> None:
        self._model = model
        minutes = arrivals[: len(arrivals) // _MINUTE * _MINUTE].reshape(-1, _MINUTE).sum(1) / 60
        first = float(minutes[:10].mean()) if len(minutes) else 0.0
        self.ready = max(1, int(np.ceil(first / _AT_FIRST * model.service / model.slots)))
        self.coming: deque[float] = deque()  # when those that start will be ready
        self.starts = 0
        self.backlog = 0.0
        self._queue: deque[list[float]] = deque()  # [seconds of arrival, requests]

    def awake(self, now: float) -> None:
        """Count those as ready that have started."""
        while self.coming and self.coming[0] <= now:
            self.coming.popleft()
            self.ready += 1

    def scale(self, wanted: int, now: float) -> None:
        """Start replicas, or end them: those that start first, and never the last that serves."""
        missing = wanted - self.ready - len(self.coming)
        if missing > 0:
            self.coming.extend([now + self._model.cold] * missing)
            self.starts += missing
        for _ in range(-missing):
            if self.coming:
                self.coming.pop()
            else:
                self.ready = max(1, self.ready - 1)

    def serve(self, now: float, arrived: float) -> list[tuple[float, float]]:
        """Take requests in and serve what can be served in a step; return (seconds waited, requests)."""
        if arrived:
            self._queue.append([now, arrived])
            self.backlog += arrived
        room = self.ready * self._model.slots * STEP / self._model.service
        served = []
        while self._queue and room > _EMPTY:
            oldest = self._queue[0]
            count = min(oldest[1], room)
            served.append((now - oldest[0], count))
            oldest[1] -= count
            room -= count
            self.backlog -= count
            if oldest[1] <= _EMPTY:
                self._queue.popleft()
        return served


def replay(model: str, arrivals: Floats, scaler: Scaler) -> Served:
    """Serve the arrivals with as many replicas as the scaler wants, asked every fifteen seconds."""
    fleet = Fleet(MODELS[model], arrivals)
    history: list[float] = []
    served: list[tuple[float, float]] = []
    replicas, queued = np.zeros(len(arrivals), np.int64), np.zeros(len(arrivals))
    for step, arrived in enumerate(arrivals):
        now = step * STEP
        fleet.awake(now)
        if step % _EVERY == 0:
            wanted = int(scaler.decide(now, history, fleet.ready, len(fleet.coming), fleet.backlog))
            fleet.scale(wanted, now)
        history.append(float(arrived))
        served += fleet.serve(now, float(arrived))
        replicas[step], queued[step] = fleet.ready + len(fleet.coming), fleet.backlog
    waits, weights = np.array(served).T if served else (np.empty(0), np.empty(0))
    order = waits.argsort(kind="stable")
    return Served(
        requests=float(weights.sum()) + fleet.backlog,
        in_time=float(weights[waits <= WITHIN].sum()),
        waits=waits[order],
        weights=weights[order],
        billed=float(replicas.sum()) * STEP,
        starts=fleet.starts,
        replicas=replicas,
        queued=queued,
    )
