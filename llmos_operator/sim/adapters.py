"""Policies over the operator's own functions, by the names that trace replays ask for."""

from llmos_operator.sim.adapters_queueing import queueing

__all__ = ["queueing"]
