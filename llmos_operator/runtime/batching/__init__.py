"""Iteration-level scheduling of the engine: queue, running set, chunked prefill, preemption, drafts.

Owns the decision what the next step computes, from plain numbers alone.
Must not know tensors, models or sockets.
"""

from llmos_operator.runtime.batching.batcher import Batcher
from llmos_operator.runtime.batching.plan import BatchLimits, Copy, Emitted, Running, StepPlan, Work

__all__ = ["BatchLimits", "Batcher", "Copy", "Emitted", "Running", "StepPlan", "Work"]
