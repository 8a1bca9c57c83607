"""The wire: custom resources, conditions, names and the messages processes send each other.

Owns what crosses a process border and how it is validated. No I/O, no clock, no decisions.
"""
