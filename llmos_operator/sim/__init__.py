"""Virtual-time cluster that runs the real scheduler over traces: replay and what-if.

Owns time and workload arrival in simulation.
Must not know Kubernetes I/O.
"""
