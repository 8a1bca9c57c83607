"""Gives each request a replica, at once or when one comes up.

A request that finds no replica waits in its workload's room (`coldStart: Hold`) or is refused with 503 and Retry-After
(`Reject`). The room is left in fair turns, only as fast as the new replica takes requests, and nobody overtakes it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from llmos_operator.gateway import refusals, spans
from llmos_operator.gateway.affinity import Prompt
from llmos_operator.gateway.answers import Refused
from llmos_operator.gateway.canary import Canaries
from llmos_operator.gateway.catalog import ColdStart, Route
from llmos_operator.gateway.waiting import WaitingRoom
from llmos_operator.observability import tracing

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from llmos_operator.gateway.affinity import Affinity, Holders
    from llmos_operator.gateway.balance import Balancer
    from llmos_operator.gateway.catalog import Catalog, Replica, Workload, WorkloadKey
    from llmos_operator.gateway.metrics import Metrics
    from llmos_operator.observability.tracing import Tracer


@dataclass(eq=False, slots=True)
class _Ticket:
    tenant: str
    future: asyncio.Future[Replica]
    prompt: Prompt | None


@dataclass(slots=True)
class _Room:
    key: str  # UID of the workload that led the route when the room was opened
    route: Route
    waiting: WaitingRoom[_Ticket]
    timer: asyncio.TimerHandle | None = None

    def concerns(self, uid: str) -> bool:
        return any(w.uid == uid for w in self.route.workloads)


@dataclass(slots=True)
class Dispatcher:
    """Picks replicas and holds requests. All of it runs on one event loop."""

    catalog: Catalog
    balancer: Balancer
    metrics: Metrics
    monotonic: Callable[[], float]
    hold_limit: int
    on_hold: Callable[[], None]
    tracer: Tracer = tracing.OFF
    affinity: Affinity | None = None  # None: prompts that begin alike go anywhere
    _rooms: dict[str, _Room] = field(default_factory=dict)  # by their key
    _canaries: Canaries = field(default_factory=Canaries)

    def __post_init__(self) -> None:
        self.catalog.subscribe(self._changed)

    def prompt(self, route: Route, tenant: str, document: Mapping[str, Any] | None) -> Prompt | None:
        """Return what tells whether another request's prompt began like that of ``document``; None if nothing does."""
        if self.affinity is None:
            return None
        beginnings = self.affinity.beginnings(document, tenant, route.lead.uid, route.adapter)
        return Prompt(beginnings) if beginnings else None

    async def acquire(
        self,
        route: Route,
        tenant: str,
        *,
        tried: Iterable[str],
        deadline: float,
        prompt: Prompt | None = None,
    ) -> Replica:
        """Return a replica, counted in flight: :meth:`release` it. Raises Refused (503).

        ``tried`` are replicas that could not be reached for this request; ``deadline`` (monotonic seconds) ends a hold;
        ``prompt`` makes it go where a prompt that begins alike went.
        """
        route = self._current(route)
        self._check(route)
        if not self._room(route):
            hold = route.lead.cold_start is ColdStart.HOLD
            replica = self._pick(route, exclude=frozenset(tried), awake_only=hold, prompt=prompt)
            if replica is not None:
                return replica
            if not hold:
                raise refusals.starting(route.lead)
        return await self._hold(route, tenant, deadline, prompt)

    def release(self, route: Route, replica: Replica) -> None:
        """The request that got ``replica`` is over; somebody waiting may have its place."""
        self.balancer.release(replica.uid)
        room = self._room(route)
        if room is not None:
            self._pump(room)

    def began(self, workload: Workload, prompt: Prompt | None) -> None:
        """A replica of ``workload`` has begun ``prompt``."""
        if prompt is not None:
            self.metrics.prompts.labels(*workload.key, prompt.result).inc()

    def not_begun(self, replica: Replica, prompt: Prompt | None) -> None:
        """``replica`` did not take ``prompt`` after all, and so does not hold its beginning."""
        if self.affinity is not None and prompt is not None:
            self.affinity.unlearn(prompt.beginnings, replica.uid)

    def others(self, route: Route, tried: Collection[str]) -> bool:
        """Whether a replica that does not rest is left beside ``tried``."""
        left = [r for r in self._replicas(route) if r.uid not in tried]
        return bool(left) and self.balancer.rests_for(left, self.monotonic()) <= 0.0

    def waiting(self) -> dict[WorkloadKey, int]:
        """Requests held now, by the workload they wait for."""
        return {room.route.lead.key: len(room.waiting) for room in self._rooms.values()}

    def close(self) -> None:
        """Turn away everybody who waits: the gateway ends."""
        for room in list(self._rooms.values()):
            refusal = Refused(
                HTTPStatus.SERVICE_UNAVAILABLE, "gateway_stopping", "The gateway is stopping.", retry_after=1
            )
            self._turn_away(room, refusal)

    # ------------------------------------------------------------ holding

    async def _hold(self, route: Route, tenant: str, deadline: float, prompt: Prompt | None) -> Replica:
        lead = route.lead
        labels = tuple(lead.key)
        ticket = _Ticket(tenant, asyncio.get_running_loop().create_future(), prompt)
        room = self._enter(route, ticket)
        began = self.monotonic()
        self.metrics.hold(lead.key)
        span = self.tracer.start(spans.HOLD, parent=tracing.current().context)
        self.on_hold()
        self._pump(room)
        how = "gone"
        try:
            async with asyncio.timeout(max(0.0, deadline - began)):
                replica = await ticket.future
            how = "served"
        except TimeoutError:
            how = "timeout"
            self._unclaimed(ticket)
            raise refusals.overdue(self._latest(lead), self.monotonic() - began) from None
        except Refused as refusal:
            how = refusal.code
            raise
        except asyncio.CancelledError:
            self._unclaimed(ticket)
            raise
        else:
            return replica
        finally:
            room.waiting.leave(tenant, ticket)
            self._close_if_empty(room)
            self.metrics.held.labels(*labels).dec()
            self.metrics.hold_seconds.labels(*labels).observe(self.monotonic() - began)
            self.metrics.hold_ended.labels(*labels, how).inc()
            spans.held(span, how)

    def _enter(self, route: Route, ticket: _Ticket) -> _Room:
        """Put ``ticket`` into the route's room, which is opened if need be. Raises Refused if it is full."""
        room = self._room(route)
        if room is None:
            room = _Room(route.lead.uid, route, WaitingRoom(self.hold_limit))
        entered, displaced = room.waiting.enter(ticket.tenant, ticket)
        if displaced is not None and not displaced.future.done():
            displaced.future.set_exception(refusals.full(route.lead, self.hold_limit))
        if not entered:
            self.metrics.hold_ended.labels(*route.lead.key, "hold_queue_full").inc()
            raise refusals.full(route.lead, self.hold_limit)
        self._rooms[room.key] = room
        return room

    def _room(self, route: Route) -> _Room | None:
        return next((room for w in route.workloads if (room := self._rooms.get(w.uid)) is not None), None)

    def _unclaimed(self, ticket: _Ticket) -> None:
        """A replica may have been given in the same turn of the loop in which the waiter left: hand it back."""
        if ticket.future.done() and not ticket.future.cancelled() and ticket.future.exception() is None:
            self.balancer.release(ticket.future.result().uid)

    def _changed(self, workload_uid: str) -> None:
        for room in [room for room in self._rooms.values() if room.concerns(workload_uid)]:
            try:
                room.route = self._current(room.route)
                self._check(room.route)
            except Refused as refusal:
                self._turn_away(room, refusal)
            else:
                self._pump(room)

    def _pump(self, room: _Room) -> None:
        """Let in as many as the replicas take."""
        while (ticket := self._first(room)) is not None:
            below = room.route.lead.max_in_flight
            replica = self._pick(room.route, below=below, awake_only=True, prompt=ticket.prompt)
            if replica is None:
                self._wake_later(room)
                return
            room.waiting.next()
            ticket.future.set_result(replica)
        self._close_if_empty(room)

    def _first(self, room: _Room) -> _Ticket | None:
        """Return whose turn it is, after taking out those who have just left: no replica's turn is spent on them."""
        while (ticket := room.waiting.first()) is not None and ticket.future.done():
            room.waiting.next()
        return ticket

    def _wake_later(self, room: _Room) -> None:
        """Resting replicas come back without an event: look again then."""
        rest = self.balancer.rests_for(self._replicas(room.route), self.monotonic())
        if rest > 0.0 and room.timer is None:
            room.timer = asyncio.get_running_loop().call_later(rest, self._on_timer, room)

    def _on_timer(self, room: _Room) -> None:
        room.timer = None
        self._pump(room)

    def _turn_away(self, room: _Room, refusal: Refused) -> None:
        for ticket in room.waiting.drain():
            if not ticket.future.done():
                ticket.future.set_exception(refusal)
        self._close_if_empty(room)

    def _close_if_empty(self, room: _Room) -> None:
        if not len(room.waiting):
            if room.timer is not None:
                room.timer.cancel()
                room.timer = None
            if self._rooms.get(room.key) is room:
                del self._rooms[room.key]

    # ------------------------------------------------------------ choosing

    def _current(self, route: Route) -> Route:
        workloads = tuple(w for old in route.workloads if (w := self.catalog.current(old)) is not None)
        if not workloads:
            raise Refused(
                HTTPStatus.NOT_FOUND,
                "model_not_found",
                f"The workload {route.lead.key} was deleted.",
                param="model",
            )
        return Route(workloads, route.adapter)

    def _latest(self, workload: Workload) -> Workload:
        return self.catalog.current(workload) or workload

    def _replicas(self, route: Route) -> list[Replica]:
        return [replica for w in route.workloads for replica in self.catalog.replicas(w.uid)]

    def _pick(
        self,
        route: Route,
        *,
        exclude: frozenset[str] = frozenset(),
        below: int | None = None,
        awake_only: bool,
        prompt: Prompt | None = None,
    ) -> Replica | None:
        prefer = (
            self.affinity.holders(prompt.beginnings)
            if self.affinity is not None and prompt is not None
            else ()
        )
        now = self.monotonic()
        workload, offered = self._offered(route, now, exclude, below, prefer)
        replica = self.balancer.pick(
            offered, now, exclude=exclude, below=below, awake_only=awake_only, prefer=prefer
        )
        if replica is None:
            return None
        if workload is not None:
            self._canaries.took(workload)
        self._learn(route, replica, prompt)
        return replica

    def _offered(
        self,
        route: Route,
        now: float,
        exclude: frozenset[str],
        below: int | None,
        prefer: Sequence[Holders],
    ) -> tuple[Workload | None, Collection[Replica]]:
        """Return which replicas the request may go to, and the workload of which they are the side of a canary.

        Of several workloads the one with the best replica is taken before the side: a side that is busy must not lose
        its workload the requests that the other would get.
        """
        workload = route.lead
        if len(route.workloads) > 1:
            everybody = self._replicas(route)
            if not any(w.canary_percent for w in route.workloads):
                return None, everybody
            leading = self.balancer.lead(everybody, now, exclude=exclude, below=below, prefer=prefer)
            if not leading:
                return None, everybody
            workload = next(w for w in route.workloads if w.uid == leading)
        there = self.catalog.replicas(workload.uid)
        side = self._canaries.side(
            workload, there, lambda some: self.balancer.takes(some, now, exclude=exclude, below=below)
        )
        return (None, there) if side is None else (workload, side)

    def _learn(self, route: Route, replica: Replica, prompt: Prompt | None) -> None:
        """Remember that ``prompt`` goes to ``replica``, so that those that come at once follow it."""
        if self.affinity is None or prompt is None:
            return
        there = {one.uid for one in self._replicas(route)}
        known = there & {uid for one in self.affinity.holders(prompt.beginnings) for uid in one.uids}
        prompt.result = "new" if not known else "kept" if replica.uid in known else "moved"
        self.affinity.learn(prompt.beginnings, replica.uid)

    def _check(self, route: Route) -> None:
        """Raise Refused where no replica serves and none can come up."""
        if any(w.can_start for w in route.workloads) or self._replicas(route):
            return
        raise refusals.hopeless(route.lead)
