"""How many slots keep the wait short: the M/M/c queue.

P(wait > T) = C(c, a) exp(-(c - a) T / s)  with offered load a = rate x s, service time s and C the Erlang C formula
(A. K. Erlang 1917; as in Gross and Harris, Fundamentals of Queueing Theory, ch. 2). Beyond _EXACT erlangs C is taken
from its limit for many servers, C = 1 / (1 + b F(b) / f(b)) with c = a + b sqrt(a), F and f the normal distribution
and its density (Halfin and Whitt, Operations Research 29(3), 1981).
"""

from __future__ import annotations

import math

_EXACT = 200.0  # erlangs up to which the formula itself is used
_STEPS = 40


def slots_needed(rate: float, service_seconds: float, wait_seconds: float, tail: float) -> float:
    """Return the slots with which at most ``tail`` of the requests wait longer than ``wait_seconds``.

    ``rate`` is in requests per second. Whole slots up to 200 erlangs, a fraction beyond. 0 without requests.
    Raises ValueError for a tail outside (0, 1) or a service time that is not above 0.
    """
    if not 0.0 < tail < 1.0 or service_seconds <= 0.0:
        raise ValueError("tail must be within (0, 1) and service_seconds above 0")
    load = max(0.0, rate) * service_seconds
    if load <= 0.0:
        return 0.0
    patience = max(0.0, wait_seconds) / service_seconds
    return _exact(load, patience, tail) if load <= _EXACT else _limit(load, patience, tail)


def _exact(load: float, patience: float, tail: float) -> float:
    blocked = 1.0  # Erlang B by its recursion over the number of slots
    slots = 0
    while True:
        slots += 1
        blocked = load * blocked / (slots + load * blocked)
        if slots <= load:
            continue
        waits = slots * blocked / (slots - load * (1.0 - blocked))
        if waits * math.exp(-(slots - load) * patience) <= tail:
            return float(slots)


def _limit(load: float, patience: float, tail: float) -> float:
    root = math.sqrt(load)

    def late(beta: float) -> float:
        density = math.exp(-beta * beta / 2.0) / math.sqrt(2.0 * math.pi)
        below = 0.5 * (1.0 + math.erf(beta / math.sqrt(2.0)))
        return math.exp(-beta * root * patience) / (1.0 + beta * below / density)

    low, high = 0.0, 6.0  # late(6) is below 1e-9, late(0) is 1
    for _ in range(_STEPS):
        middle = (low + high) / 2.0
        low, high = (middle, high) if late(middle) > tail else (low, middle)
    return load + high * root
