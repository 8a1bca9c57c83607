"""The operator's own decisions behind the interfaces of the replay harnesses, by the names the harnesses load."""

from llmos_operator.sim.adapters_placement import placement, placement_online
from llmos_operator.sim.adapters_queueing import queueing
from llmos_operator.sim.adapters_scaler import scaler

__all__ = ["placement", "placement_online", "queueing", "scaler"]
