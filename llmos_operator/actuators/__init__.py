"""Turns a Plan into API writes and control calls: assume, write, confirm or forget.

Owns order, concurrency and preconditions of writes.
Must not read the snapshot or decide anything.
"""
