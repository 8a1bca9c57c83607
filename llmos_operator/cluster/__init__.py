"""Kubernetes I/O behind one port: list, watch, get, apply, evict, lease, events.

Owns transport, retries and reflectors; translates API failures to llmos errors.
Must not know workloads or decisions.
"""
