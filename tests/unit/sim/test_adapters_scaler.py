from __future__ import annotations

import random

from llmos_operator.scheduler.autoscaling.autoscaler import Autoscaler
from llmos_operator.scheduler.autoscaling.values import Aim, Arrivals, Capacity
from llmos_operator.sim.adapters import scaler

ENV = {"step": 5.0, "slots": 16.0, "service": 8.0, "cold": 60.0, "slo": 10.0, "gpus": 1.0, "start": 3.0}


def noisy(seed: int, steps: int, rate: float) -> list[float]:
    """Requests per step; the noise of a quarter lasts a minute, as in the public replay."""
    draw, noise, history = random.Random(seed), 1.0, []
    for step in range(steps):
        if step % 12 == 0:
            noise = draw.gammavariate(20.0, 1.0 / 20.0)
        history.append(rate * 5.0 * noise)
    return history


def test_what_runs_is_kept_until_something_has_arrived() -> None:
    assert scaler(ENV).decide(0.0, [], 3, 1, 0.0) == 4


def test_the_replay_asks_the_autoscaler_that_the_operator_asks() -> None:
    history = noisy(1, 600, 6.0)
    replayed, asked = scaler(ENV), Autoscaler(Aim(10.0))
    capacity, have = Capacity(16.0, 8.0, 60.0), 3
    for end in range(3, 600, 3):
        now = end * 5.0
        wanted = replayed.decide(now, history[:end], have, 0, 0.0)
        asked.learn(Arrivals(now, sum(history[end - 3 : end]), 15.0), capacity)
        assert wanted == max(1, asked.need(now, capacity, have, have, 0.0).replicas)
        have = wanted


def test_a_doubled_load_is_followed_and_served() -> None:
    history = noisy(2, 720, 6.0) + noisy(3, 1440, 12.0)
    replayed, ready, starting, queue = scaler(ENV), 4, [], 0.0
    late = 0
    for step, arrived in enumerate(history):
        now = step * 5.0
        ready += sum(1 for at in starting if at <= now)
        starting = [at for at in starting if at > now]
        if step % 3 == 0:
            wanted = replayed.decide(now, history[:step], ready, len(starting), queue)
            starting += [now + 60.0] * max(0, wanted - ready - len(starting))
            ready = min(ready, wanted)
        queue = max(0.0, queue + arrived - ready * 2.0 * 5.0)
        late += step > 1080 and queue / (ready * 2.0) > 10.0
    assert ready + len(starting) >= 7  # 12 a second need six
    assert late <= 2  # of 1,080 steps, once the new level has been seen for half an hour
