"""Domain values and the single-writer store: what the cluster looks like, in exact integers.

Owns convert (the only reader of Kubernetes shapes), store, ledger, snapshot and telemetry smoothing.
Must not know I/O, asyncio, clocks or decisions.
"""
