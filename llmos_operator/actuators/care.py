"""Writes down what is done about sick devices, before it is done: a restarted operator must not act twice as much.

The store holds what is decided; here it becomes `GPUNode.status.care`. Whoever acts on a node waits for `write` first.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import TYPE_CHECKING

from llmos_operator.api import names
from llmos_operator.cluster.failures import NotFound
from llmos_operator.cluster.port import GPU_NODES
from llmos_operator.manifests.care import care_status
from llmos_operator.state.care import NO_CARE

if TYPE_CHECKING:
    from llmos_operator.cluster.port import ClusterPort
    from llmos_operator.state.care import Care
    from llmos_operator.state.store import Store


class CareWriter:
    """One writer for all nodes; writes of one node follow each other."""

    def __init__(self, port: ClusterPort, store: Store) -> None:
        self._port = port
        self._store = store
        self._written: dict[str, Care] = {}
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    def dirty(self) -> list[str]:
        """Return the nodes whose care is not known to stand in the API as it is decided."""
        nodes = [name for name in self._written if self._store.care(name) is None]
        for name in nodes:  # their GPUNode is gone
            del self._written[name]
            self._locks.pop(name, None)
        return [name for name, care in self._store.cares() if care != self._written.get(name, NO_CARE)]

    async def write(self, node: str) -> None:
        """Write a node's care if it is not written. Raises LlmosError if that is not known to have happened."""
        async with self._locks[node]:
            care = self._store.care(node)
            if care is None or care == self._written.get(node):
                return
            try:
                await self._port.patch_status(GPU_NODES, care_status(node, care), manager=names.MANAGER_CARE)
            except NotFound:
                return  # with the GPUNode goes what there was to remember; the store learns it from the watch
            self._written[node] = care
