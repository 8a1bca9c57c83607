"""Keeps the placeholders there are the ones that are wanted: created, marked as unschedulable, deleted.

What exists is learned from the watch of pods, so that an operator that was restarted goes on with those of the one before.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from llmos_operator.actuators.writequeue import Job, Rank
from llmos_operator.api import names
from llmos_operator.cluster.failures import AlreadyExists, NotFound
from llmos_operator.cluster.port import PODS
from llmos_operator.errors import Conflict, LlmosError
from llmos_operator.manifests.placeholder import is_marked, is_placeholder, unschedulable
from llmos_operator.observability.logging import logger

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmos_operator.actuators.writequeue import WriteQueue
    from llmos_operator.clock import Clock
    from llmos_operator.cluster.backoff import KeyedBackoff
    from llmos_operator.cluster.port import ClusterPort

Json = dict[str, Any]
log = logger(__name__)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A placeholder that should exist, and what it says of why."""

    body: Json
    why: str


@dataclass(frozen=True, slots=True)
class _Present:
    uid: str
    marked: bool
    leaving: bool


class Placeholders:
    """Jobs of the write queue. What fails is tried again when it is asked for again, later each time."""

    def __init__(
        self, port: ClusterPort, queue: WriteQueue, clock: Clock, backoff: KeyedBackoff[str]
    ) -> None:
        self._port = port
        self._queue = queue
        self._clock = clock
        self._backoff = backoff
        self._present: dict[str, _Present] = {}  # by namespace/name

    def __len__(self) -> int:
        """Placeholders that exist."""
        return len(self._present)

    def note(self, pod: Json, *, exists: bool) -> None:
        """Take a pod as the watch tells it. Of one that is gone only its metadata is sure to be there."""
        meta = pod["metadata"]
        key = f"{meta.get('namespace', '')}/{meta['name']}"
        if not exists:
            self._present.pop(key, None)
        elif is_placeholder(pod):
            leaving = bool(meta.get("deletionTimestamp"))
            self._present[key] = _Present(str(meta["uid"]), is_marked(pod), leaving)

    def keep(self, wanted: Mapping[str, Wanted]) -> None:
        """Make what exists the same as ``wanted``, by namespace/name. Call it again: it does what is left to do."""
        now = self._clock.monotonic()
        for key, one in wanted.items():
            present = self._present.get(key)
            if present is not None and (present.marked or present.leaving):
                self._backoff.succeed(key)
            elif self._backoff.ready(key, now):
                self._submit(key, partial(self._make, key, one, there=present is not None))
        for key, present in self._present.items():
            if key not in wanted and not present.leaving and self._backoff.ready(key, now):
                self._submit(key, partial(self._delete, key, present.uid))
        self._backoff.keep_only({*wanted, *self._present})

    def _submit(self, key: str, run: Any) -> None:
        name = f"placeholder {key}"
        if not self._queue.holds(name):
            self._queue.submit(Job(Rank.SUPPORT, name, run))

    async def _make(self, key: str, one: Wanted, *, there: bool) -> None:
        namespace, _, name = key.partition("/")
        try:
            if not there:
                self.note(await self._port.create(PODS, one.body, namespace=namespace), exists=True)
            status = unschedulable(one.why, self._clock.now())
            marked = await self._port.patch_status(
                PODS,
                {"metadata": {"name": name}, "status": status},
                manager=names.MANAGER_OPERATOR,
                namespace=namespace,
            )
            self.note(marked, exists=True)
        except (AlreadyExists, NotFound, Conflict):
            self._backoff.fail(key, self._clock.monotonic())  # the watch has not told yet
        except LlmosError as error:
            wait = self._backoff.fail(key, self._clock.monotonic()) - self._clock.monotonic()
            log.warning("placeholder not made", pod=key, seconds=round(wait, 1), error=error)

    async def _delete(self, key: str, uid: str) -> None:
        namespace, _, name = key.partition("/")
        try:
            await self._port.delete(PODS, name, namespace=namespace, uid=uid, grace_seconds=0)
        except (NotFound, Conflict):
            self._present.pop(key, None)
        except LlmosError as error:
            self._backoff.fail(key, self._clock.monotonic())
            log.warning("placeholder not deleted", pod=key, error=error)
