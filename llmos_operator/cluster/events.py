"""Kubernetes Events: what happened to an object, said once.

An Event costs the API server as much as any write, so they are deduplicated by (object, reason, key) for some minutes
and rate limited; writing happens in the background and is allowed to fail. Reasons come from `api.conditions.Reason`.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from llmos_operator.api import names
from llmos_operator.errors import LlmosError
from llmos_operator.observability.logging import logger

if TYPE_CHECKING:
    from enum import StrEnum

    from llmos_operator.clock import Clock
    from llmos_operator.cluster.port import ClusterPort, Json

log = logger(__name__)

EventType = Literal["Normal", "Warning"]
NOTE_LIMIT = 1024  # of the API


@dataclass(frozen=True, slots=True)
class Subject:
    """The object an Event is about."""

    api_version: str
    kind: str
    name: str
    namespace: str = ""
    uid: str = ""


@dataclass(frozen=True, slots=True)
class EventLimits:
    """Bounds of the recorder: seconds of deduplication, events per second and in a burst, events waiting."""

    window: float = 300.0
    per_second: float = 20.0
    burst: float = 100.0
    waiting: int = 1000
    remembered: int = 20_000


class EventRecorder:
    """Records Events; :meth:`run` writes them."""

    def __init__(
        self,
        port: ClusterPort,
        clock: Clock,
        *,
        instance: str,
        component: str = names.MANAGED_BY,
        limits: EventLimits | None = None,
    ) -> None:
        self.dropped = 0  # over the limits, or refused by the API server
        self.written = 0
        self._port = port
        self._clock = clock
        self._instance = instance
        self._component = f"{names.GROUP}/{component}"
        self._limits = limits or EventLimits()
        self._tokens = self._limits.burst
        self._refilled_at = clock.monotonic()
        self._said: dict[tuple[str, str, str, str], float] = {}
        self._queue: deque[tuple[str, Json]] = deque()
        self._wake = asyncio.Event()

    def record(
        self,
        subject: Subject,
        event_type: EventType,
        reason: StrEnum,
        note: str,
        *,
        action: str = "Reconcile",
        key: str = "",
    ) -> bool:
        """Queue an Event. ``key`` tells apart what shares a reason. Returns False if it was said already or dropped."""
        now = self._clock.monotonic()
        identity = (subject.namespace, subject.uid or subject.name, reason.value, key)
        said = self._said.get(identity)
        if said is not None and now - said < self._limits.window:
            return False
        if len(self._queue) >= self._limits.waiting or not self._take_token(now):
            self.dropped += 1
            return False
        self._said.pop(identity, None)  # to the end: dicts keep insertion order
        self._said[identity] = now
        self._forget(now)
        namespace = subject.namespace or "default"
        self._queue.append((namespace, self._body(subject, event_type, reason, note, action, namespace)))
        self._wake.set()
        return True

    async def run(self) -> None:
        """Write queued Events until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self.flush()

    async def flush(self) -> None:
        """Write what is queued now."""
        while self._queue:
            namespace, body = self._queue.popleft()
            try:
                await self._port.create_event(body, namespace=namespace)
                self.written += 1
            except LlmosError as error:
                self.dropped += 1
                log.debug("event not written", reason=body["reason"], error=error)

    def _take_token(self, now: float) -> bool:
        limits = self._limits
        self._tokens = min(limits.burst, self._tokens + (now - self._refilled_at) * limits.per_second)
        self._refilled_at = now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True

    def _forget(self, now: float) -> None:
        """Drop what is too old or too much; the oldest stand first."""
        while self._said:
            identity, at = next(iter(self._said.items()))
            if now - at < self._limits.window and len(self._said) <= self._limits.remembered:
                return
            del self._said[identity]

    def _body(
        self, subject: Subject, event_type: EventType, reason: StrEnum, note: str, action: str, namespace: str
    ) -> Json:
        regarding = {
            "apiVersion": subject.api_version,
            "kind": subject.kind,
            "name": subject.name,
            "namespace": subject.namespace,
            "uid": subject.uid,
        }
        stamp = datetime.fromtimestamp(self._clock.now(), tz=UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        return {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": f"{subject.name[:200]}.{secrets.token_hex(8)}", "namespace": namespace},
            "eventTime": stamp,
            "type": event_type,
            "reason": reason.value,
            "action": action,
            "note": note[:NOTE_LIMIT],
            "reportingController": self._component,
            "reportingInstance": self._instance[:128],
            "regarding": {key: value for key, value in regarding.items() if value},
        }
