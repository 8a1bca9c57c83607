"""When this process may act: it holds the lease, its lists are complete, and its view is newer than its leadership.

A leader that could not renew in time stops writing (the lease's fence). When it gets the lease back, its view may be
old, so decisions wait until a full resync begun after that moment has succeeded.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from llmos_operator.api import names
from llmos_operator.cluster.port import PODS
from llmos_operator.errors import LlmosError
from llmos_operator.observability.logging import logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmos_operator.cluster.lease import LeaderLease
    from llmos_operator.cluster.port import ClusterPort
    from llmos_operator.state.store import Store

log = logger(__name__)

LABEL_LEADER = "llmos.dev/leader"  # on the leader's own pod; the ingest Service selects it


class Leadership:
    """Answers whether this process may write, and whether it may decide."""

    def __init__(self, lease: LeaderLease, store: Store, *, resumed: Callable[[], None]) -> None:
        """`resumed` is called when decisions may go on after the lease had lapsed."""
        self._lease = lease
        self._store = store
        self._resumed = resumed
        self._stopped = False
        self._confirmed = 0  # lapses of the lease up to which the view is known to be fresh

    def may_write(self) -> bool:
        """Return whether this process holds the lease right now."""
        return self._lease.leading()

    def may_act(self) -> bool:
        """Return whether decisions may be taken."""
        fresh = self._store.synced() and self._confirmed == self._lease.lapses
        return self._lease.leading() and fresh and not self._stopped

    def stop(self) -> None:
        """Take no more decisions; writes under way may be finished."""
        self._stopped = True

    def lapses(self) -> int:
        """Return the token a resync takes at its start."""
        return self._lease.lapses

    def confirm(self, token: int) -> None:
        """Say that a full resync begun at ``token`` lapses has succeeded."""
        if token > self._confirmed:
            self._confirmed = token
            log.info("view is fresh again, decisions go on", lapses=token)
            self._resumed()


class LeaderLabel:
    """The label that routes telemetry and demand to the leader's pod; does nothing outside of a pod."""

    def __init__(self, port: ClusterPort, namespace: str) -> None:
        self._port = port
        self._namespace = namespace
        self._pod = os.environ.get(names.ENV_POD_NAME, "")

    async def set(self, *, leading: bool) -> None:
        """Label or unlabel this process's pod. A failure is told and otherwise ignored: agents try again."""
        if not self._pod:
            return
        patch = {"metadata": {"labels": {LABEL_LEADER: "true" if leading else None}}}
        try:
            await self._port.merge_patch(PODS, self._pod, patch, namespace=self._namespace)
        except LlmosError as error:
            log.warning("pod not labelled", leading=leading, error=error)
