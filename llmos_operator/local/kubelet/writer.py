"""Writes one pod's status: the newest state, only when it says something new, until the API server has taken it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from llmos_operator.cluster import port
from llmos_operator.cluster.failures import NotFound
from llmos_operator.errors import Conflict, Permanent, Retryable
from llmos_operator.local.kubelet.status import differs
from llmos_operator.observability.logging import logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmos_operator.local.kubelet.context import PodContext
    from llmos_operator.local.kubelet.model import Json

log = logger(__name__)

STRATEGIC = "application/strategic-merge-patch+json"
_GATHER_SECONDS = 0.01  # changes that come together are written together
_RETRY_SECONDS = (0.2, 0.5, 1.0, 2.0, 5.0)


class Gone(Exception):  # noqa: N818 - reads as what happened
    """The pod no longer exists under this UID."""


class StatusWriter:
    """`wanted()` returns the status to write, or None while there is nothing to say."""

    def __init__(self, context: PodContext, wanted: Callable[[], Json | None]) -> None:
        self._context = context
        self._wanted = wanted
        self._dirty = asyncio.Event()
        self._version = 0  # of our own last write: older views of the pod are no reason to write again

    def mark(self) -> None:
        """Note that something may have changed."""
        self._dirty.set()

    async def run(self) -> None:
        """Write whenever marked, until cancelled. Raises :class:`Gone`."""
        while True:
            await self._dirty.wait()
            await asyncio.sleep(_GATHER_SECONDS)
            await self.flush()

    async def flush(self) -> None:
        """Write until the API server knows the present state. Raises :class:`Gone`."""
        failures = 0
        while True:
            self._dirty.clear()
            try:
                await self._write()
            except Retryable as error:
                delay = _RETRY_SECONDS[min(failures, len(_RETRY_SECONDS) - 1)]
                failures += 1
                log.debug("status not written", pod=self._context.key, seconds=delay, error=error)
                await asyncio.sleep(max(delay, error.after))
            else:
                return

    async def _write(self) -> None:
        context, status = self._context, self._wanted()
        if status is None:
            return
        pod = context.pod
        if int(pod["metadata"]["resourceVersion"]) >= self._version and not differs(
            pod.get("status") or {}, status
        ):
            return
        body = {"metadata": {"uid": context.uid}, "status": status}
        meta = pod["metadata"]
        path = port.PODS.path(meta["namespace"], meta["name"], "status")
        try:
            answer = await context.shared.transport.request(
                "PATCH", path, body=body, content_type=STRATEGIC, verb="patch", plural="pods"
            )
        except (NotFound, Conflict) as error:  # the UID is a precondition
            raise Gone(str(error)) from error
        except Permanent as error:
            log.warning("the API server refuses a pod's status", pod=context.key, error=error)
            return
        self._version = int(answer["metadata"]["resourceVersion"])
        if int(context.pod["metadata"]["resourceVersion"]) < self._version:
            context.pod = answer
