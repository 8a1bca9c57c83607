"""Keeps what the kubelet last said at hand, and says in the log when it begins and ceases to say it.

A socket that is not there is an absent fact, not a fault: clusters without device plugins have none to tell, and an agent
may run without the right to it. What was heard is kept while the kubelet is silent, because containers keep their devices
over a kubelet's restart.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from llmos_operator.errors import LlmosError, Retryable
from llmos_operator.observability.logging import logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmos_operator.telemetry.kubelet.pod_resources import Allocations

log = logger(__name__)


class KubeletDevices:
    """The kubelet's word on devices, asked for again and again."""

    def __init__(
        self, socket: str, *, interval: float, note: Callable[[bool], None] = lambda _: None
    ) -> None:
        """``socket`` "" asks nobody; ``interval`` in seconds. ``note`` is told whether each try succeeded."""
        self.allocations: Allocations | None = None  # None: never heard
        self.trouble = ""
        self._socket = socket
        self._interval = interval
        self._note = note

    async def run(self) -> None:
        """Ask until cancelled; returns at once where there is nobody to ask."""
        while self._socket:
            await self.ask()
            await asyncio.sleep(self._interval)

    async def ask(self) -> None:
        """Ask once. Never raises for what the kubelet does."""
        heard = self.allocations is not None and not self.trouble
        try:
            self.allocations = await _read(self._socket)
        except LlmosError as error:
            trouble = str(error)
            if trouble != self.trouble:
                log.warning(
                    "the kubelet does not tell who holds devices; pods of others are counted by what they ask for",
                    socket=self._socket,
                    error=trouble,
                )
            self.trouble = trouble
            self._note(False)  # noqa: FBT003 - the only thing it is told
        else:
            if not heard:
                log.info("the kubelet tells who holds devices", devices=len(self.allocations.offered))
            self.trouble = ""
            self._note(True)  # noqa: FBT003


async def _read(socket: str) -> Allocations:
    """Ask the kubelet. Raises `LlmosError` with what is wrong, and with what to do about it where there is nobody to ask."""
    _demand(socket)
    # HTTP/2 is more than a MiB that an agent without a socket does not need.
    from llmos_operator.telemetry.kubelet.pod_resources import read  # noqa: PLC0415

    return await read(socket)


def _demand(socket: str) -> None:
    if not Path(socket).exists():
        raise Retryable(
            f"no socket {socket}; the chart's agent.podResources mounts it where the node's kubelet has one"
        )
