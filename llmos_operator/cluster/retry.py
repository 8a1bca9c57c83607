"""Trying API calls again: reads freely, writes only when doing them twice cannot hurt.

A create is made safe by its deterministic name: after an ambiguous answer the object is looked up in etcd, and found
or created again. Applies, deletes and evictions with preconditions may simply be sent again.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from llmos_operator.cluster.backoff import Curve
from llmos_operator.cluster.failures import AlreadyExists, Ambiguous, NotFound
from llmos_operator.errors import Retryable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from random import Random

    from llmos_operator.cluster.port import ClusterPort, Json, Kind

T = TypeVar("T")
CURVE = Curve(base=0.1, cap=4.0)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """At most `attempts` tries within `seconds`, spaced by `curve` and by what the server asks for."""

    attempts: int = 5
    seconds: float = 20.0
    curve: Curve = CURVE


DEFAULT = RetryPolicy()
ONCE = RetryPolicy(attempts=1)  # for jobs of the write queue: what waits there does not hold a slot


class Retrier:
    """Runs calls under a policy. `sleep` and `monotonic` are the loop's; tests pass their own.

    `allowed` is the fence: it is asked before each try, because a try may come many seconds after the call began.
    """

    def __init__(
        self,
        rng: Random,
        policy: RetryPolicy = DEFAULT,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        monotonic: Callable[[], float] | None = None,
        allowed: Callable[[], bool] = lambda: True,
    ) -> None:
        self._allowed = allowed
        self._rng = rng
        self._policy = policy
        self._sleep = sleep
        self._monotonic = monotonic or (lambda: asyncio.get_running_loop().time())

    async def call(self, operation: Callable[[], Awaitable[T]]) -> T:
        """Return the result of ``operation``, repeated while it raises `Retryable`; then raise the last error."""
        deadline = self._monotonic() + self._policy.seconds
        attempt = 1
        while True:
            if not self._allowed():
                raise Retryable("this process may not write now")
            try:
                return await operation()
            except Retryable as error:
                wait = max(error.after, self._policy.curve.delay(attempt, self._rng))
                if attempt >= self._policy.attempts or self._monotonic() + wait > deadline:
                    raise
                attempt += 1
                await self._sleep(wait)

    async def create(
        self, port: ClusterPort, kind: Kind, body: Json, *, namespace: str = ""
    ) -> tuple[Json, bool]:
        """Create the object, or find it there. Returns it and whether this call may have created it.

        The caller must check that an object found under the name is its own.
        """
        name = str(body["metadata"]["name"])
        doubtful = False

        async def attempt() -> tuple[Json, bool]:
            nonlocal doubtful
            if doubtful:
                try:
                    return await port.get(kind, name, namespace=namespace), True
                except NotFound:
                    doubtful = False  # etcd has not seen it: the write is lost, do it again
            try:
                return await port.create(kind, body, namespace=namespace), True
            except AlreadyExists:
                return await port.get(kind, name, namespace=namespace), False
            except Ambiguous:
                doubtful = True
                raise

        return await self.call(attempt)

    async def delete(
        self,
        port: ClusterPort,
        kind: Kind,
        name: str,
        *,
        namespace: str = "",
        uid: str = "",
        grace_seconds: int | None = None,
    ) -> None:
        """Delete the object if it still is ``uid``; gone already is success. Raises `Conflict` for another UID."""

        async def attempt() -> None:
            try:
                await port.delete(kind, name, namespace=namespace, uid=uid, grace_seconds=grace_seconds)
            except NotFound:
                return

        await self.call(attempt)
