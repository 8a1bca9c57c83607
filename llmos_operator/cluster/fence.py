"""The fence around writes: none begins without the lease, none is waited for once another process may hold it.

The fence asked before a write does not bound the write itself: a request takes up to its own time limit, which is
longer than the lease. So every write in flight has a second limit that moves with each renewal and comes before the
moment of a takeover. At that limit the connection is closed, the API server cancels what it was doing for it, and the
caller gets `Ambiguous`, as for any lost answer. What remains, a request that lies in a broken network path and arrives
later, is the business of preconditions; docs/architecture.md goes through the verbs.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from llmos_operator.cluster.failures import Ambiguous
from llmos_operator.errors import Retryable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    from llmos_operator.cluster import port as ports
    from llmos_operator.cluster.port import ClusterPort, Json, Kind


class WriteWindow:
    """The writes in flight of one process, and the time until which they may be."""

    def __init__(self, allowed: Callable[[], bool], remaining: Callable[[], float]) -> None:
        """`allowed` says whether a write may begin; `remaining` for how many seconds one may stay in flight."""
        self._allowed = allowed
        self._remaining = remaining
        self._limits: set[asyncio.Timeout] = set()

    def __len__(self) -> int:
        """Writes in flight."""
        return len(self._limits)

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[None]:
        """Bound the write in the body. Raises `Retryable` if it may not begin, `Ambiguous` if it was cut off."""
        if not self._allowed():
            raise Retryable("this process may not write now")
        limit = asyncio.timeout(max(0.0, self._remaining()))
        try:
            async with limit:
                self._limits.add(limit)
                try:
                    yield
                finally:
                    self._limits.discard(limit)
        except TimeoutError as error:
            raise Ambiguous("the write was cut off: another process may hold the lease by now") from error

    def moved(self) -> None:
        """Say that `remaining` has changed: a renewal gives more time, a lost lease none."""
        when = asyncio.get_running_loop().time() + max(0.0, self._remaining())
        for limit in self._limits:
            if not limit.expired():
                limit.reschedule(when)


class FencedPort:
    """:class:`~llmos_operator.cluster.port.ClusterPort` whose writes go through a window; reads pass as they are."""

    def __init__(self, port: ClusterPort, writing: Callable[[], AbstractAsyncContextManager[None]]) -> None:
        self._port = port
        self._writing = writing
        # Reads need no lease; neither does a TokenReview, which is a create only by its verb.
        self.list_pages = port.list_pages
        self.watch = port.watch
        self.get = port.get
        self.token_review = port.token_review
        self.close = port.close

    async def create(self, kind: Kind, body: Json, *, namespace: str = "") -> Json:
        """See the port."""
        async with self._writing():
            return await self._port.create(kind, body, namespace=namespace)

    async def replace(self, kind: Kind, body: Json, *, namespace: str = "") -> Json:
        """See the port."""
        async with self._writing():
            return await self._port.replace(kind, body, namespace=namespace)

    async def apply(
        self,
        kind: Kind,
        body: Json,
        *,
        manager: str,
        namespace: str = "",
        subresource: str = "",
        force: bool = True,
    ) -> Json:
        """See the port."""
        async with self._writing():
            return await self._port.apply(
                kind, body, manager=manager, namespace=namespace, subresource=subresource, force=force
            )

    async def patch_status(self, kind: Kind, body: Json, *, manager: str, namespace: str = "") -> Json:
        """See the port."""
        async with self._writing():
            return await self._port.patch_status(kind, body, manager=manager, namespace=namespace)

    async def merge_patch(
        self, kind: Kind, name: str, patch: Json, *, namespace: str = "", subresource: str = ""
    ) -> Json:
        """See the port."""
        async with self._writing():
            return await self._port.merge_patch(
                kind, name, patch, namespace=namespace, subresource=subresource
            )

    async def delete(
        self,
        kind: Kind,
        name: str,
        *,
        namespace: str = "",
        uid: str = "",
        resource_version: str = "",
        grace_seconds: int | None = None,
    ) -> None:
        """See the port."""
        async with self._writing():
            await self._port.delete(
                kind,
                name,
                namespace=namespace,
                uid=uid,
                resource_version=resource_version,
                grace_seconds=grace_seconds,
            )

    async def evict(
        self, name: str, *, namespace: str, uid: str = "", grace_seconds: int | None = None
    ) -> None:
        """See the port."""
        async with self._writing():
            await self._port.evict(name, namespace=namespace, uid=uid, grace_seconds=grace_seconds)

    async def create_event(self, body: Json, *, namespace: str) -> None:
        """See the port."""
        async with self._writing():
            await self._port.create_event(body, namespace=namespace)


if TYPE_CHECKING:

    def _fulfils(port: FencedPort) -> ports.ClusterPort:
        return port
