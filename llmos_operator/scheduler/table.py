"""The planner's arrays over nodes and devices; keep one between cycles and only changed nodes are read again."""

from __future__ import annotations


class NodeTable:
    """A cache for `cycle.plan`; it holds no decision."""
