"""Sending what the agent knows: batches to the operator, and the GPUNode to the API server.

Neither side may slow the measuring down, so both are tasks of their own that always send the newest and never queue.
Without an operator the batches are thrown away, with growing pauses between tries; without an API server the newest
status waits.
"""

from __future__ import annotations

import asyncio
import json
import random
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import aiohttp

from llmos_operator.api import names
from llmos_operator.cluster.backoff import Curve
from llmos_operator.cluster.failures import NotFound
from llmos_operator.cluster.port import GPU_NODES
from llmos_operator.errors import LlmosError, Retryable
from llmos_operator.observability.logging import logger
from llmos_operator.telemetry.telling import Telling

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmos_operator.cluster.port import ClusterPort, Json
    from llmos_operator.telemetry.metrics import AgentMetrics

log = logger(__name__)

SEND_SECONDS: Final = 3.0
LEAST_STATUS_SECONDS: Final = 1.0  # between two writes of the GPUNode, however often verdicts change
_ENCODER: Final = json.JSONEncoder(separators=(",", ":"), check_circular=False)
OPERATOR_CURVE: Final = Curve(base=1.0, cap=10.0)
STATUS_CURVE: Final = Curve(base=1.0, cap=30.0)


class BatchSender:
    """Posts the newest batch that is worth telling (:mod:`telling`) to the operator, at most once an interval."""

    def __init__(
        self, url: str, token: Callable[..., str], *, interval: float, metrics: AgentMetrics
    ) -> None:
        """``url`` is the operator's, "" to send nothing; ``token(fresh=True)`` reads the token anew."""
        self._url = f"{url.rstrip('/')}/v1/telemetry" if url else ""
        self._token = token
        self._interval = interval
        self._metrics = metrics
        self._fresh = asyncio.Event()
        self._telling = Telling(interval)
        self._batch: Json = {}
        self._rng = random.Random()  # noqa: S311 - jitter
        self.failures = 0  # in a row

    def offer(self, batch: Json) -> None:
        """Take the newest batch, those not sent yet folded in."""
        self._batch, due = self._telling.take(batch)
        if due:
            self._fresh.set()

    async def run(self) -> None:
        """Send until cancelled."""
        if not self._url:
            return
        timeout = aiohttp.ClientTimeout(total=SEND_SECONDS)
        loop = asyncio.get_running_loop()
        async with aiohttp.ClientSession(timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()) as session:
            due = 0.0
            while True:
                await self._fresh.wait()
                # After waiting and not before: a round comes once an interval, and then there is nothing left to wait for.
                if due > loop.time():
                    await asyncio.sleep(due - loop.time())
                self._fresh.clear()
                started = loop.time()
                batch = self._batch
                trouble = await self._post(session, batch)
                if trouble:
                    self._telling.refused()
                else:
                    self._telling.taken(batch)
                self._note(trouble)
                pause = OPERATOR_CURVE.delay(self.failures, self._rng) if trouble else self._interval
                # A little less than the interval: batches are offered once an interval, and none should be skipped.
                due = started + 0.9 * pause

    async def _post(self, session: aiohttp.ClientSession, batch: Json) -> str:
        """Send a batch; return "" or what went wrong."""
        headers = {"Content-Type": "application/json"}
        try:
            token = self._token(fresh=self.failures > 0)
            if token:
                headers["Authorization"] = f"Bearer {token}"
            body = _ENCODER.encode(batch).encode()
            async with session.post(self._url, data=body, headers=headers) as answer:
                if answer.status < HTTPStatus.BAD_REQUEST:
                    return ""
                text = (await answer.content.read(300)).decode(errors="replace")
                return f"HTTP {answer.status} {text}".strip()
        except (aiohttp.ClientError, OSError, TimeoutError, LlmosError) as error:
            return f"{type(error).__name__}: {error}"

    def _note(self, trouble: str) -> None:
        self._metrics.reported("operator", ok=not trouble)
        if trouble:
            self.failures += 1
            if self.failures == 1:
                log.warning("the operator does not take telemetry", url=self._url, error=trouble)
        elif self.failures:
            log.info("the operator takes telemetry again", failures=self.failures)
            self.failures = 0


class NodeWriter:
    """Keeps the GPUNode's agent part as last offered: written on change, and again every ``interval`` seconds."""

    def __init__(
        self,
        port: ClusterPort,
        node: str,
        *,
        interval: float,
        metrics: AgentMetrics,
        on_clear: Callable[[str], None] = lambda _: None,
    ) -> None:
        """``on_clear`` gets the device UUID, or "*", a person declared repaired."""
        self._port = port
        self._node = node
        self._interval = interval
        self._metrics = metrics
        self._on_clear = on_clear
        self._changed = asyncio.Event()
        self._status: Json | None = None
        self._memory = ""
        self._written: tuple[Json | None, str] | None = None
        self._node_uid = ""
        self._rng = random.Random()  # noqa: S311 - jitter
        self._failures = 0
        self.writes = 0

    async def read(self) -> Json:
        """Return the GPUNode as it is, or {} if there is none."""
        try:
            return await self._port.get(GPU_NODES, self._node)
        except NotFound:
            return {}

    def bind(self, node_uid: str) -> None:
        """Name the Node that owns the GPUNode: it goes when the Node goes."""
        self._node_uid = node_uid

    def offer(self, status: Json, memory: str) -> None:
        """Take the newest status and the health memory.

        What devices can tell becomes known call by call in an agent's first seconds; that alone is no reason to write
        and goes with the next write.
        """
        known = self._status
        same = known is not None and (status is known or _weighty(status) == _weighty(known))
        news = not same or memory != self._memory
        self._status, self._memory = status, memory
        if news:
            self._changed.set()

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            try:
                async with asyncio.timeout(self._interval):
                    await self._changed.wait()
            except TimeoutError:
                self._written = None  # write again even what did not change: somebody may have edited it
            self._changed.clear()
            if self._status is None:
                continue
            try:
                await self.write()
            except LlmosError as error:
                self._failures += 1
                self._metrics.reported("status", ok=False)
                log.warning("GPUNode not written", node=self._node, error=str(error), failures=self._failures)
                self._changed.set()
                after = error.after if isinstance(error, Retryable) else 0.0
                await asyncio.sleep(max(after, STATUS_CURVE.delay(self._failures, self._rng)))
            else:
                self._failures = 0
                await asyncio.sleep(LEAST_STATUS_SECONDS)

    async def write(self) -> None:
        """Write what was offered last, if it is not what was written last. Raises the port's errors."""
        status, memory = self._status, self._memory
        if status is None or self._written == (status, memory):
            return
        if self._written is None or self._written[1] != memory:
            await self._apply_object(memory)
        try:
            answer = await self._apply_status(status)
        except NotFound:  # deleted meanwhile: make it again
            await self._apply_object(memory)
            answer = await self._apply_status(status)
        self._written = (status, memory)
        self.writes += 1
        self._metrics.reported("status", ok=True)
        await self._clear_if_asked(answer)

    async def _apply_object(self, memory: str) -> None:
        metadata: dict[str, Any] = {"name": self._node}
        if self._node_uid:
            owner = {"apiVersion": "v1", "kind": "Node", "name": self._node, "uid": self._node_uid}
            metadata["ownerReferences"] = [owner]
        if memory:
            metadata["annotations"] = {names.ANNOTATION_HEALTH_MEMORY: memory}
        await self._port.apply(GPU_NODES, {"metadata": metadata}, manager=names.MANAGER_AGENT)

    async def _apply_status(self, status: Json) -> Json:
        body = {"metadata": {"name": self._node}, "status": status}
        return await self._port.patch_status(GPU_NODES, body, manager=names.MANAGER_AGENT)

    async def _clear_if_asked(self, answer: Json) -> None:
        """Act on the annotation a person sets after a repair, and take it away."""
        annotations = (answer.get("metadata") or {}).get("annotations") or {}
        asked = annotations.get(names.ANNOTATION_HEALTH_CLEAR)
        if not asked:
            return
        for uuid in str(asked).split(","):
            log.info("device declared repaired", node=self._node, device=uuid.strip())
            self._on_clear(uuid.strip())
        patch = {"metadata": {"annotations": {names.ANNOTATION_HEALTH_CLEAR: None}}}
        await self._port.merge_patch(GPU_NODES, self._node, patch)


def _weighty(status: Json) -> Json:
    """Return the part of a status whose change is written at once."""
    devices = [{**device, "capabilities": ()} for device in status.get("devices") or []]
    return {**status, "devices": devices}
