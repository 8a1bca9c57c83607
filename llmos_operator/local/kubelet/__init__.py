"""The process kubelet: runs the pods of simulated nodes as child processes.

Owns pods from "bound to a node" to "gone", as a kubelet does: volumes, environment, init containers and sidecars,
probes, restarts, logs, termination, status. What differs from a real node is listed in docs/local-cluster.md.
Must not know what runs inside a pod.
"""
