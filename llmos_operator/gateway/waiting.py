"""The waiting room of one workload: requests held until a replica can take them.

Fair: tenants take turns, each tenant's requests stay in order. When the room is full, the newest request of the tenant
that holds most makes room for a tenant that holds less; a tenant at or above its share is turned away itself.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(slots=True)
class WaitingRoom(Generic[T]):
    """Bounded, fair queue. `T` is whatever stands for a held request."""

    limit: int
    _queues: dict[str, deque[T]] = field(default_factory=dict)  # in turn order: the first is served next
    _count: int = 0

    def __len__(self) -> int:
        return self._count

    def enter(self, tenant: str, ticket: T) -> tuple[bool, T | None]:
        """Take ``ticket`` in. Returns whether it was taken, and the ticket that had to leave for it, if any."""
        displaced: T | None = None
        if self._count >= self.limit:
            displaced = self._make_room(tenant)
            if displaced is None:
                return False, None
        self._queues.setdefault(tenant, deque()).append(ticket)
        self._count += 1
        return True, displaced

    def leave(self, tenant: str, ticket: T) -> None:
        """Take a ticket out before its turn (client gone, time over). Unknown tickets are ignored."""
        queue = self._queues.get(tenant)
        if queue is None or ticket not in queue:
            return
        queue.remove(ticket)
        self._count -= 1
        if not queue:
            del self._queues[tenant]

    def first(self) -> T | None:
        """Return the ticket whose turn it is and leave it there; None if nobody waits."""
        return next(iter(self._queues.values()))[0] if self._queues else None

    def next(self) -> T | None:
        """Return the ticket whose turn it is and take it out; None if nobody waits."""
        if not self._queues:
            return None
        tenant, queue = next(iter(self._queues.items()))
        ticket = queue.popleft()
        self._count -= 1
        # To the end of the line, or out of it.
        del self._queues[tenant]
        if queue:
            self._queues[tenant] = queue
        return ticket

    def drain(self) -> list[T]:
        """Take everybody out, in turn order."""
        tickets = []
        while (ticket := self.next()) is not None:
            tickets.append(ticket)
        return tickets

    def _make_room(self, tenant: str) -> T | None:
        if not self._queues:
            return None
        own = len(self._queues.get(tenant, ()))
        largest, queue = max(self._queues.items(), key=lambda item: len(item[1]))
        if len(queue) <= own + 1:
            return None
        ticket = queue.pop()
        self._count -= 1
        if not queue:
            del self._queues[largest]
        return ticket
