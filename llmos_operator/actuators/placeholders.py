"""Keeps the placeholders there are the ones that are wanted: created, marked as unschedulable, deleted.

The operator watches bound pods alone, which these never are: what exists is listed at first, so that an operator that was restarted
goes on with those of the one before, and now and then, as somebody else may delete them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from llmos_operator.actuators.writequeue import Job, Rank
from llmos_operator.api import names
from llmos_operator.cluster.failures import AlreadyExists, NotFound
from llmos_operator.cluster.port import PODS
from llmos_operator.errors import Conflict, LlmosError
from llmos_operator.manifests.placeholder import ROLE, is_marked, unschedulable
from llmos_operator.observability.logging import logger

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmos_operator.actuators.writequeue import WriteQueue
    from llmos_operator.clock import Clock
    from llmos_operator.cluster.backoff import KeyedBackoff
    from llmos_operator.cluster.port import ClusterPort

Json = dict[str, Any]
log = logger(__name__)

LOOK_SECONDS: Final = 60.0  # between lists while there are any, or should be
_SELECTOR: Final = f"{names.LABEL_ROLE}={ROLE},{names.LABEL_MANAGED_BY}={names.MANAGED_BY}"


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
        self._listed_at: float | None = None  # monotonic

    def keep(self, wanted: Mapping[str, Wanted]) -> None:
        """Make what exists the same as ``wanted``, by namespace/name. Call it again: it does what is left to do."""
        now = self._clock.monotonic()
        known = self._listed_at is not None
        if self._listed_at is None or ((wanted or self._present) and now - self._listed_at >= LOOK_SECONDS):
            self._submit("list", self._list)
        if not known:
            return
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

    async def _list(self) -> None:
        try:
            found = [
                pod
                async for page in self._port.list_pages(PODS, label_selector=_SELECTOR)
                for pod in page.items
            ]
        except LlmosError as error:
            log.warning("placeholders not listed", error=error)
            return
        self._present.clear()
        self._listed_at = self._clock.monotonic()
        for pod in found:
            self._note(pod)

    def _note(self, pod: Json) -> None:
        meta = pod["metadata"]
        leaving = bool(meta.get("deletionTimestamp"))
        self._present[f"{meta['namespace']}/{meta['name']}"] = _Present(
            str(meta["uid"]), is_marked(pod), leaving
        )

    async def _make(self, key: str, one: Wanted, *, there: bool) -> None:
        namespace, _, name = key.partition("/")
        try:
            if not there:
                self._note(await self._port.create(PODS, one.body, namespace=namespace))
            status = unschedulable(one.why, self._clock.now())
            marked = await self._port.patch_status(
                PODS,
                {"metadata": {"name": name}, "status": status},
                manager=names.MANAGER_OPERATOR,
                namespace=namespace,
            )
            self._note(marked)
        except (AlreadyExists, NotFound, Conflict):
            self._listed_at = None  # somebody else has deleted or made it
            self._backoff.fail(key, self._clock.monotonic())
        except LlmosError as error:
            wait = self._backoff.fail(key, self._clock.monotonic()) - self._clock.monotonic()
            log.warning("placeholder not made", pod=key, seconds=round(wait, 1), error=error)

    async def _delete(self, key: str, uid: str) -> None:
        namespace, _, name = key.partition("/")
        try:
            await self._port.delete(PODS, name, namespace=namespace, uid=uid, grace_seconds=0)
        except (NotFound, Conflict):
            pass
        except LlmosError as error:
            self._backoff.fail(key, self._clock.monotonic())
            log.warning("placeholder not deleted", pod=key, error=error)
            return
        self._present.pop(key, None)
