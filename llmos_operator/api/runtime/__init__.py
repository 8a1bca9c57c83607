"""What the operator and the runtime sidecar agree on: control messages and the memory model.

The runtime may import this package and, of the rest, only `observability`, `errors` and `clock`.
"""
