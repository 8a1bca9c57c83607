"""LLMOS operator: an operating system for large models on Kubernetes.

Five processes share this package (operator, agent, runtime, gateway, local cluster); docs/architecture.md
tells which may import what, and `lint-imports` holds it.
"""

__version__ = "0.1.0"
