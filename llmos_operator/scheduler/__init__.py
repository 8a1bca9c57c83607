"""Pure decisions: `plan(snapshot, policy, now, budget) -> Plan`.

Owns order, sizing, precision, placement, preemption and their explanations.
Must not know I/O, the Kubernetes client, the wall clock or global randomness.
"""
