"""Logging, metrics registry, health endpoints, tracing: the same for every process.

Owns formats and names of signals.
Must not know what is being observed.
"""
