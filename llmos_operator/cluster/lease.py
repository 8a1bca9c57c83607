"""Leader election over a Lease, with a fence.

The times that matter are monotonic and our own: another holder's lease counts as expired when its record did not change
for its duration since we first saw it, and we hold ours only `renew_deadline` seconds from the moment the last
confirmed renewal was *sent*. `leading()` is that fence: writers ask it right before each write. As renew_deadline is
below the duration, a leader that cannot renew stops writing before anybody else may start. What it has in flight at that
moment is cut off half way between the two (`cluster.fence`).

While the API server is down nobody can take the lease, so the fenced leader waits. When the server is back it resumes
if the record still is its own, and raises :class:`LeaseLost` if another took it: the process must then end, because
its caches and plans belong to the past.
"""

from __future__ import annotations

import asyncio
import math
import os
import secrets
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from llmos_operator.api import names
from llmos_operator.clock import Clock, SystemClock
from llmos_operator.cluster.failures import NotFound
from llmos_operator.cluster.fence import WriteWindow
from llmos_operator.cluster.port import LEASES
from llmos_operator.errors import Conflict, LlmosError
from llmos_operator.observability.logging import logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from llmos_operator.cluster.port import ClusterPort, Json
    from llmos_operator.settings import LeaseSettings

log = logger(__name__)


class LeaseLost(LlmosError):  # noqa: N818 - reads as what happened
    """Another process holds the lease; this one must end."""


def holder_identity(identity: str) -> str:
    """Return a name no other process has.

    A pod's UID makes it stable over container restarts: the new container may take over from the dead one at once.
    """
    pod_uid = os.environ.get(names.ENV_POD_UID, "")
    return f"{identity}_{pod_uid or secrets.token_hex(8)}"


class LeaderLease:
    """One process's claim to the lease."""

    def __init__(
        self,
        port: ClusterPort,
        settings: LeaseSettings,
        *,
        namespace: str,
        identity: str,
        clock: Clock | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        on_regained: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_regained` is called when this process may write again after a time in which it might not."""
        self.identity = identity
        self.lapses = 0  # times the fence fell and this process got the lease back
        self.transitions = 0  # grows with every change of holder; the epoch of our writes
        self._port = port
        self._settings = settings
        self._namespace = namespace
        self._clock = clock or SystemClock()
        self._sleep = sleep
        self._on_regained = on_regained
        self._held_until = float("-inf")
        self._seen: tuple[str, float] = ("", 0.0)  # resource version of another's record, when first seen
        self._record: Json = {}
        self._read_at = float("-inf")
        self.writes = WriteWindow(self.leading, self._write_seconds)

    def leading(self) -> bool:
        """Return whether writes are allowed right now."""
        return self._clock.monotonic() < self._held_until

    def _write_seconds(self) -> float:
        """Return for how long a write may be in flight: less than until a takeover, by the time a server may need."""
        margin = (self._settings.duration - self._settings.renew_deadline) / 2
        return self._held_until + margin - self._clock.monotonic()

    def standing_by(self) -> bool:
        """Return whether another process leads and this one has seen its record lately: ready to take over."""
        if self.leading() or self._holder() in {"", self.identity}:
            return False
        return self._clock.monotonic() - self._read_at <= 2 * self._settings.duration

    def check(self) -> str:
        """Readiness: "" while leading, else who leads."""
        holder = (self._record.get("spec") or {}).get("holderIdentity") or "nobody"
        return "" if self.leading() else f"not the leader; the lease is held by {holder}"

    async def acquire(self) -> None:
        """Return when this process is the leader."""
        log.info("waiting for the lease", lease=self._settings.name, identity=self.identity)
        while not await self._attempt():
            await self._sleep(self._settings.retry)
        log.info("leading", lease=self._settings.name, identity=self.identity, transitions=self.transitions)

    async def hold(self) -> None:
        """Renew until cancelled. Raises :class:`LeaseLost` when the lease is no longer this process's.

        Renewals begin `retry` seconds after the one before began, so that a slow answer does not delay the next too.
        """
        spent = 0.0
        while True:
            pause = self._settings.retry if self.leading() else self._settings.retry / 4
            await self._sleep(max(0.0, pause - spent))
            was_leading, began = self.leading(), self._clock.monotonic()
            await self._attempt(holding=True)
            spent = self._clock.monotonic() - began
            if was_leading and not self.leading():
                log.warning("the lease cannot be renewed: not writing")

    async def release(self) -> None:
        """Give the lease up, so that another replica takes over at once. Failures only cost it the wait."""
        if not self.leading():
            return
        self._held_until = float("-inf")
        if len(self.writes):
            # What is cut off may still be carried out: the next leader must not begin before it cannot any more.
            log.warning("the lease is left to expire", in_flight=len(self.writes))
            self.writes.moved()
            return
        try:
            await self._write(holder="")
        except LlmosError as error:
            log.warning("lease not released; the next leader waits it out", error=error)

    async def _attempt(self, *, holding: bool = False) -> bool:
        """Take or renew the lease if possible. Returns whether that was confirmed."""
        started = self._clock.monotonic()
        try:
            async with asyncio.timeout(self._settings.renew_deadline):
                await self._read()
                if holding:
                    self._check_still_ours()
                if not self._may_take():
                    return False
                await self._write(holder=self.identity)
        except LeaseLost:
            raise
        except Conflict:
            return False  # somebody else was faster, or our own write had got through: read again
        except (LlmosError, TimeoutError) as error:
            log.warning("lease not renewed", error=str(error) or "no answer in time")
            return False
        lapsed = holding and not self.leading()  # also if the fence fell only while the answer was on its way
        self._held_until = started + self._settings.renew_deadline
        self.writes.moved()
        if lapsed:
            self.lapses += 1
            log.warning("the lease had lapsed and is held again", lapses=self.lapses)
            self._on_regained()
        return True

    async def _read(self) -> None:
        """Read the record, unless the answer to our last write still stands for it."""
        if self._record and self._holder() == self.identity and self.leading():
            return
        try:
            self._record = await self._port.get(LEASES, self._settings.name, namespace=self._namespace)
            self._read_at = self._clock.monotonic()
        except NotFound:
            self._record = {}

    def _check_still_ours(self) -> None:
        if self._record and self._epoch() != (self.identity, self.transitions):
            self._held_until = float("-inf")
            self.writes.moved()
            raise LeaseLost(f"the lease is held by {self._holder() or 'nobody'}")

    def _may_take(self) -> bool:
        if self._holder() in {"", self.identity}:
            return True
        version = self._record["metadata"]["resourceVersion"]
        now = self._clock.monotonic()
        if self._seen[0] != version:
            self._seen = (version, now)
        duration = float(self._record["spec"].get("leaseDurationSeconds") or self._settings.duration)
        return now - self._seen[1] >= duration

    def _holder(self) -> str:
        return str((self._record.get("spec") or {}).get("holderIdentity") or "")

    def _epoch(self) -> tuple[str, int]:
        return self._holder(), int((self._record.get("spec") or {}).get("leaseTransitions") or 0)

    async def _write(self, *, holder: str) -> None:
        record, self._record = self._record, {}  # until the answer is in, nothing is known
        now = _micro_time(self._clock.now())
        old = record.get("spec") or {}
        fresh = holder not in {"", old.get("holderIdentity")} or not self.transitions
        transitions = int(old.get("leaseTransitions") or 0) + (1 if fresh else 0)
        spec = {
            "holderIdentity": holder,
            # Whole seconds in this API: rounded up, so that nobody takes over early.
            "leaseDurationSeconds": math.ceil(self._settings.duration),
            "acquireTime": now if fresh else old.get("acquireTime", now),
            "renewTime": now,
            "leaseTransitions": transitions,
        }
        if record:
            self._record = await self._port.replace(
                LEASES, {**record, "spec": spec}, namespace=self._namespace
            )
        else:
            meta = {"name": self._settings.name, "namespace": self._namespace}
            body = {"apiVersion": LEASES.api_version, "kind": LEASES.kind, "metadata": meta, "spec": spec}
            self._record = await self._port.create(LEASES, body, namespace=self._namespace)
        self.transitions = transitions


def _micro_time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, tz=UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
