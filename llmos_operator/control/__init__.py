"""The operator process: kopf handlers, batcher, cycle loop, resync, health.

Owns the wiring and the leader's life.
Must not know torch, NVML or HTTP clients of models.
"""
