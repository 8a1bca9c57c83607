"""What the benchmark harnesses load: the operator's own decisions behind the interface each harness expects."""

from llmos_operator.sim.adapters_scaler import scaler

__all__ = ["scaler"]
