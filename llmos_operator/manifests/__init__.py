"""Pure builders of Kubernetes objects: pods, services, status patches.

Owns the shape of what the operator writes.
Must not know I/O or the store.
"""
