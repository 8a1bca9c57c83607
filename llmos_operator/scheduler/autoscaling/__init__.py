"""How many replicas a served workload needs: forecast, queueing model, learned margin and hysteresis.

Owns the arithmetic from arrivals to a number of replicas; the operator and the replay of traces call the same code.
Must not know I/O, the clock, Kubernetes or who measured what it is told.
"""
