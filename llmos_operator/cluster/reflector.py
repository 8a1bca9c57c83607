"""Keeps a mirror fresh: one complete list, then a watch for ever.

A watch is resumed where it stopped, also after a broken connection; the list is repeated only when the server has
forgotten the version (410), when resuming keeps failing, or when somebody asks (:meth:`Reflector.relist`) because a
resync found that the watch lost events. A stream that is silent past its bookmarks is treated as broken.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

from llmos_operator.cluster.backoff import Curve
from llmos_operator.cluster.failures import Expired, NotFound, Silent
from llmos_operator.cluster.mirror import Known, identify
from llmos_operator.cluster.port import Page
from llmos_operator.errors import LlmosError, Retryable
from llmos_operator.observability.logging import logger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from llmos_operator.cluster.mirror import Mirror, ObjectKey
    from llmos_operator.cluster.port import ClusterPort

log = logger(__name__)

CURVE = Curve(base=0.2, cap=5.0)
UNSERVED_SECONDS = 30.0  # between looks for a kind that the API server does not serve
RESUMES = 3  # failed resumptions in a row before the list is repeated


class Reflector:
    """List and watch one kind into a mirror until cancelled."""

    def __init__(
        self,
        port: ClusterPort,
        mirror: Mirror,
        *,
        label_selector: str = "",
        field_selector: str = "",
        rng: random.Random | None = None,
        curve: Curve = CURVE,
        on_recovery: Callable[[], None] | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        inactivity_seconds: float = 75.0,
        optional: bool = False,
    ) -> None:
        """With `optional` a kind that the API server has never served has no objects; one that it served before has to be read."""
        self.mirror = mirror
        self.lists = 0
        self._port = port
        self._kind = mirror.kind
        self._labels = label_selector
        self._fields = field_selector
        self._rng = rng or random.Random()  # noqa: S311 - jitter, not cryptography
        self._curve = curve
        self._on_recovery = on_recovery
        self._sleep = sleep
        self._inactivity = inactivity_seconds
        self._optional = optional
        self._failures = 0
        self._cycle: asyncio.Task[None] | None = None
        self._relisting = False
        self._version = ""

    def relist(self) -> None:
        """Drop the current watch and begin with a list."""
        if self._cycle is not None and not self._cycle.done():
            self._relisting = True
            self._cycle.cancel()

    async def run(self) -> None:
        """List and watch until cancelled. Errors are waited out; only a bug ends this."""
        while True:
            self._cycle = asyncio.create_task(self._list_and_follow(), name=f"reflect-{self._kind.plural}")
            try:
                await self._cycle
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if not self._relisting or (task is not None and task.cancelling()):
                    raise
                self._relisting = False
            except Expired as error:
                log.info("watch expired, listing again", kind=self._kind.kind, error=error)
            except LlmosError as error:
                await self._wait(error)

    async def versions(self) -> tuple[dict[ObjectKey, Known], int]:
        """Return which objects there are now, and the version of that list; the mirror is told nothing.

        Only metadata is read, page by page: this is asked every half minute, of as many objects as there may be.
        """
        before = self.mirror.version
        listed: dict[ObjectKey, Known] = {}
        version = 0
        async for page in self._pages(metadata_only=True):
            version = int(page.resource_version or 0)
            for body in page.items:
                key, uid, at = identify(body)
                listed[key] = Known(uid, at)
        self._notice(before, version)
        return listed, version

    async def refill(self) -> tuple[int, int]:
        """Pass a complete fresh list on, page by page. Returns the number of changes it brought, and its version."""
        before = self.mirror.version
        listed: set[ObjectKey] = set()
        changes, version = 0, -1
        async for page in self._pages():
            if version < 0:
                version = int(page.resource_version or 0)
                self._notice(before, version)
            for body in page.items:
                listed.add(identify(body)[0])
                changes += self.mirror.observe("ADDED", body)
        return changes + self.mirror.settle(listed, version), version

    async def _pages(self, *, metadata_only: bool = False) -> AsyncIterator[Page]:
        pages = self._port.list_pages(
            self._kind,
            label_selector=self._labels,
            field_selector=self._fields,
            metadata_only=metadata_only,
        )
        while True:
            try:
                page = await anext(pages)
            except StopAsyncIteration:
                return
            except NotFound:
                if not self._optional:
                    raise
                yield Page((), "0")
                return
            self._optional = False
            yield page
            await asyncio.sleep(0)  # a page of big objects takes a while to parse: let probes in between

    def _notice(self, before: int, version: int) -> None:
        """A list begun after a version was seen cannot be older, unless the server's history was replaced."""
        if version < before:
            log.warning("resource versions went back", kind=self._kind.kind, was=before, now=version)
            self.mirror.reset()

    async def _list_and_follow(self) -> None:
        _, version = await self.refill()
        self.lists += 1
        self._recovered()
        if self._optional:  # not served: there is nothing to watch
            await self._sleep(UNSERVED_SECONDS)
            return
        await self._follow(str(version))

    async def _follow(self, version: str) -> None:
        """Watch from ``version`` on, over broken streams; raises when resuming keeps failing."""
        self._version = version
        failures = 0
        while True:
            try:
                if await self._stream():
                    failures = 0
                else:
                    # A server or proxy that accepts a watch only to end it would be asked without pause.
                    await self._sleep(self._curve.delay(1, self._rng))
            except Silent:
                log.debug("watch was silent, opening it again", kind=self._kind.kind)
            except Retryable as error:
                failures += 1
                if failures > RESUMES:
                    raise
                await self._wait(error)

    async def _stream(self) -> bool:
        """Follow one watch to its end; returns whether it said anything."""
        spoke = False
        async for event in self._port.watch(
            self._kind,
            resource_version=self._version,
            label_selector=self._labels,
            field_selector=self._fields,
            timeout_seconds=240 + self._rng.randrange(120),
            inactivity_seconds=self._inactivity,
        ):
            spoke = True
            self._recovered()
            self.mirror.touch()
            if event.type != "BOOKMARK":
                self.mirror.observe(event.type, event.object)
            self._version = event.resource_version or self._version
        return spoke

    def _recovered(self) -> None:
        if self._failures:
            log.info("reading again", kind=self._kind.kind, failures=self._failures)
            self._failures = 0
            if self._on_recovery is not None:
                self._on_recovery()

    async def _wait(self, error: LlmosError) -> None:
        self._failures += 1
        delay = self._curve.delay(self._failures, self._rng)
        if isinstance(error, Retryable):
            delay = max(delay, error.after)
        log.warning("cannot read, trying again", kind=self._kind.kind, seconds=round(delay, 1), error=error)
        await self._sleep(delay)
