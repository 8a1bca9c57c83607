"""The operator's autoscaler for the replay of request traces: `--scaler llmos_operator.sim.adapters:scaler`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmos_operator.scheduler.autoscaling.autoscaler import Autoscaler
from llmos_operator.scheduler.autoscaling.values import Aim, Arrivals, Bounds, Capacity

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class ReplayScaler:
    """Feeds the autoscaler what the operator would tell it, at each decision."""

    def __init__(self, env: Mapping[str, float]) -> None:
        """``env``: step, slots, service, cold and slo as the replay names them; seconds but for the slots."""
        self._step = float(env["step"])
        self._capacity = Capacity(float(env["slots"]), float(env["service"]), float(env["cold"]))
        self._autoscaler = Autoscaler(Aim(wait_seconds=float(env["slo"])))
        self._bounds = Bounds(1, 1_000_000)
        self._taken = 0

    def decide(self, now: float, history: Sequence[float], ready: int, starting: int, backlog: float) -> int:
        """Return the replicas wanted; ``history`` holds the arrivals of each step so far."""
        have = ready + starting
        new = len(history) - self._taken
        if new:
            arrived = float(sum(history[self._taken :]))
            self._autoscaler.learn(Arrivals(now, arrived, new * self._step), self._capacity)
            self._taken = len(history)
        if not self._autoscaler.seconds:
            return have  # nothing is known yet: what runs is kept
        return self._bounds.clamp(self._autoscaler.need(now, self._capacity, have, ready, backlog).replicas)


def scaler(env: Mapping[str, float]) -> ReplayScaler:
    """Return the scaler for one replay."""
    return ReplayScaler(env)
