"""Where, and by when, replicas that fit nowhere now will find a place.

Everything with an expected end (`ends`), and everything the claimant may displace once it has run for its least time,
leaves the later world in the order of those times, between checkpoint and rollback; the place is the one where the
claimant fits first. Lower bounds, from the times at which single devices can be free, say where to look.

Where no time can be told, `gather` names the nodes on which the fewest devices are missing, as if all that is in the
way would leave some day.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from llmos_operator.scheduler import gang
from llmos_operator.scheduler.claims import claim_for
from llmos_operator.scheduler.ends import NEVER
from llmos_operator.scheduler.placement import device_fits, pick, whole_fitting
from llmos_operator.scheduler.topology import INSIDE, Domain
from llmos_operator.scheduler.yielding import yields_from
from llmos_operator.state.snapshot import assumed_pod
from llmos_operator.state.types import PodPhase

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from llmos_operator.scheduler.attempt import Attempts
    from llmos_operator.scheduler.ends import Ends
    from llmos_operator.scheduler.queueing import Pending
    from llmos_operator.scheduler.recall import Shape
    from llmos_operator.scheduler.table import Bools
    from llmos_operator.state.ledger import NodeState
    from llmos_operator.state.types import Claim, Pod

_DOMAINS: Final = 8  # searched, most promising first


@dataclass(frozen=True, slots=True)
class Vacancy:
    """A place in the future. `states` are its nodes as they will be then, the claims included."""

    start: float  # epoch seconds; NEVER: nobody knows
    claims: tuple[Claim, ...]
    states: Mapping[str, NodeState]
    waits_for: tuple[Pod, ...]


class Search:
    """The search for one unit: replicas that start together, or one of them."""

    def __init__(
        self, attempts: Attempts, ends: Ends, pending: Pending, shape: Shape, unit: Sequence[int]
    ) -> None:
        self._attempts = attempts
        self._ends = ends
        self._pending = pending
        self._unit = unit
        # The smallest size is the first that fits; when the time has come, the best one that fits is taken.
        self._size, self._request = min(shape.options, key=lambda option: option[0].bytes_per_device)
        self._feasible = attempts.feasibility.acceptable(self._request)
        self._together = gang.concerns(pending.workload)
        self._departures: dict[int, list[tuple[float, Pod]]] = {}
        self._names = attempts.scene.table.names

    def soonest(self) -> Vacancy | None:
        """Return the place that is expected to be free first, None where nobody knows of any."""
        best: Vacancy | None = None
        if not self._anybody():
            return None
        for bound, domain in self._promising():
            if self._attempts.preemption.out_of_time or (best is not None and bound >= best.start):
                break
            found = self._in(domain, bound)
            if found is not None and (best is None or found.start < best.start):
                best = found
        return best

    def gather(self) -> Vacancy | None:
        """Return the place where the least is missing, None where the unit could never be."""
        best: tuple[tuple[int, str], Vacancy] | None = None
        for bound, domain, rows, missing in self._fullest():
            if self._attempts.preemption.out_of_time or (
                best is not None and (bound, domain.name) >= best[0]
            ):
                break
            for count in range(1, len(rows) + 1):
                key = (sum(missing[:count]), domain.name)
                if key[0] < bound or (best is not None and key >= best[0]):
                    continue
                place = self._try(rows[:count], NEVER, everybody=True)
                if place is not None:
                    best = (key, place)
                    break
        return best[1] if best is not None else None

    def _fullest(self) -> Iterable[tuple[int, Domain, list[int], list[int]]]:
        """Return (least number missing, domain, its rows with the least missing first, what is missing on each), best first."""
        return self._fullest_domains() if self._together else self._fullest_nodes()

    def _fullest_nodes(self) -> Iterable[tuple[int, Domain, list[int], list[int]]]:
        """Yield the same for a single pod: every node is a domain, and the table has them in the order of their names."""
        request, acceptable = self._request, self._feasible.devices & self._feasible.nodes[:, None]
        for row in self._attempts.reservations.rows():
            acceptable[row] = self._acceptable(row)
        missing = np.maximum(0, request.devices - (acceptable & self._fits(acceptable)).sum(axis=1))
        enough = acceptable.sum(axis=1) >= request.devices
        for row in np.argsort(missing, kind="stable"):
            if enough[row]:
                found, name = int(missing[row]), self._names[row]
                yield found, Domain(name, (int(row),)), [int(row)], [found]

    def _fits(self, acceptable: Bools) -> Bools:
        """Return the devices of all rows that would do in the later world, at least of those that are acceptable."""
        table, later = self._attempts.scene.table, self._attempts.worlds.later
        if self._request.whole:
            found = whole_fitting(table, self._request, self._attempts.policy.overuse_percent)
            rows = [table.row_of[name] for name in self._attempts.worlds.differing]
        else:
            found, rows = np.zeros_like(acceptable), np.flatnonzero(acceptable.any(axis=1)).tolist()
        for row in rows:
            states = later.node(self._names[row]).devices
            found[row, : len(states)] = [
                device_fits(one, self._request, self._attempts.policy.overuse_percent) for one in states
            ]
        return found

    def _fullest_domains(self) -> list[tuple[int, Domain, list[int], list[int]]]:
        found = []
        for domain in self._domains():
            sizes = {
                row: self._parts * int(domain.usable(self._acceptable(row)).sum()) for row in domain.rows
            }
            rows = [row for row in domain.rows if sizes[row]]
            missing = {row: self._missing(domain, row) for row in rows}
            rows.sort(key=lambda row: (missing[row], row))
            devices = bound = 0
            for row in rows:
                if devices < self._needed * self._request.devices:
                    devices, bound = devices + sizes[row], bound + missing[row]
            if devices >= self._needed * self._request.devices:
                found.append((bound, domain, rows, [missing[row] for row in rows]))
        found.sort(key=lambda one: (one[0], one[1].name))
        return found

    def _anybody(self) -> bool:
        """Return whether anything at all has an end or will yield; asked before every pod is."""
        preemption, standing = self._attempts.preemption, self._attempts.snapshot.standing
        return self._ends.known or any(preemption.outranks(self._pending, *one) for one in standing)

    @property
    def _needed(self) -> int:
        return len(self._unit) * self._pending.workload.members

    @property
    def _parts(self) -> int:
        """How many pods of the unit may share a device, at most."""
        return 1 if self._request.whole else self._needed

    def _acceptable(self, row: int) -> Bools:
        acceptable = self._feasible
        usable = self._attempts.reservations.usable(self._pending, row, acceptable.devices[row])
        if not acceptable.nodes[row]:
            usable = np.zeros_like(usable)
        return usable

    def _domains(self) -> list[Domain]:
        """Return where the unit may be: each node for a single pod, else the domains it asks for."""
        if not self._together:
            return [Domain(name, (row,)) for row, name in enumerate(self._names)]
        level = self._pending.workload.topology.required
        return list(self._attempts.gangs.map.domains(level if len(self._unit) == 1 else ""))

    def _promising(self) -> list[tuple[float, Domain]]:
        """Return (lower bound of the start, domain), soonest first."""
        found = []
        for domain in self._domains():
            times = sorted(time for row in domain.rows for time in self._pod_times(domain, row))
            if len(times) >= self._needed and times[self._needed - 1] < NEVER:
                found.append((times[self._needed - 1], domain))
        found.sort(key=lambda one: (one[0], one[1].name))
        return found[: _DOMAINS if self._together else self._attempts.policy.preemption.nodes]

    def _pod_times(self, domain: Domain, row: int) -> list[float]:
        """Return lower bounds of the times by which a row could take one pod, two pods and so on."""
        columns = domain.usable(self._acceptable(row))
        if not columns.any():
            return []
        state, request = self._attempts.worlds.later.node(self._names[row]), self._request
        leaving: dict[str, list[float]] = {}
        for time, pod in self._departing(row):
            for uuid in pod.claim.devices if pod.claim is not None else ():
                leaving.setdefault(uuid, []).append(time)
        times = []
        for column, device in enumerate(state.devices):
            if not columns[column]:
                continue
            known = leaving.get(device.uuid, [])
            if device_fits(device, request, self._attempts.policy.overuse_percent):
                times.append(self._attempts.now)
            elif request.whole:
                times.append(max(known) if len(known) == device.claims and known else NEVER)
            else:
                times.append(min(known, default=NEVER))
        return sorted(times * self._parts)[request.devices - 1 :: request.devices]

    def _departing(self, row: int) -> list[tuple[float, Pod]]:
        """Return the pods of a row that will leave, or yield, in the order of their times."""
        found = self._departures.get(row)
        if found is None:
            pods = self._claims_on(row)
            timed = (
                (min(self._ends.of(pod), yields_from(self._attempts, self._pending, pod)), pod)
                for pod in pods
            )
            found = sorted((one for one in timed if one[0] < NEVER), key=lambda one: (one[0], one[1].key))
            self._departures[row] = found
        return found

    def _claims_on(self, row: int) -> list[Pod]:
        pods = self._attempts.worlds.later.node(self._names[row]).pods.values()
        return [pod for pod in pods if pod.claim is not None and pod.phase is not PodPhase.FINISHED]

    def _in(self, domain: Domain, bound: float) -> Vacancy | None:
        """Return the first place in a domain: more and more leave until the unit fits, then as few as are needed."""
        times = sorted({bound, *(t for row in domain.rows for t, _ in self._departing(row) if t > bound)})
        low, step = -1, 1
        found = None
        while found is None:
            at = min(low + step, len(times) - 1)
            if at <= low:
                return None
            found = self._try(domain.rows, times[at])
            if found is None:
                low, step = at, 2 * step
        high = at
        while high - low > 1 and not self._attempts.preemption.out_of_time:
            middle = (low + high) // 2
            earlier = self._try(domain.rows, times[middle])
            if earlier is None:
                low = middle
            else:
                high, found = middle, earlier
        return found

    def _try(self, rows: Sequence[int], time: float, *, everybody: bool = False) -> Vacancy | None:
        """Return the place there is once those have left who leave by a time (or everybody), with all undone."""
        worlds = self._attempts.worlds
        mark = worlds.checkpoint()
        gone = [
            pod
            for row in rows
            for pod in (self._claims_on(row) if everybody else self._gone_by(row, time))
            if pod.claim is not None and pod.claim.workload_uid != self._pending.workload.uid
        ]
        for pod in gone:
            worlds.leave(pod)
        before = {self._names[row]: worlds.later.node(self._names[row]) for row in rows}
        claims = self._hold(rows)
        worlds.rollback(mark)
        if not claims or any(claim.node not in before for claim in claims):
            return None
        claims = self._arranged(claims, before, freest_first=everybody)
        states = {claim.node: before[claim.node] for claim in claims}
        for claim in claims:
            states[claim.node] = states[claim.node].with_pod(assumed_pod(claim))
        held = {uuid for claim in claims for uuid in claim.devices}
        here = [pod for pod in gone if pod.node in states]
        of_them = [pod for pod in here if pod.claim is not None and held & set(pod.claim.devices)]
        return Vacancy(time, tuple(claims), states, tuple(of_them or here))

    def _gone_by(self, row: int, time: float) -> Iterable[Pod]:
        return (pod for at, pod in self._departing(row) if at <= time)

    def _hold(self, rows: Sequence[int]) -> list[Claim]:
        """Return the claims of all pods of the unit in the later world as it stands, none if they do not fit."""
        attempts, later = self._attempts, self._attempts.worlds.later
        if self._together:
            nodes = attempts.gangs.hold(self._pending, self._unit, self._size, self._request)
            uid = self._pending.workload.uid
            pods = (pod for name in dict.fromkeys(nodes) for pod in later.node(name).pods.values())
            found = [
                p.claim for p in pods if p.claim is not None and p.claim.workload_uid == uid and not p.uid
            ]
            return sorted(
                (claim for claim in found if claim.ordinal in self._unit), key=lambda c: (c.ordinal, c.member)
            )
        state, overuse = later.node(self._names[rows[0]]), attempts.policy.overuse_percent
        devices = pick(state, self._request, self._acceptable(rows[0]), overuse)
        if not devices:
            return []
        claim = claim_for(
            self._pending,
            self._unit[0],
            state,
            devices,
            self._request,
            self._size,
            attempts.policy,
            attempts.now,
        )
        return [claim] if later.admits(claim) else []

    def _arranged(
        self, claims: list[Claim], before: Mapping[str, NodeState], *, freest_first: bool
    ) -> list[Claim]:
        """Return the claims on the devices that serve best what is meant.

        Where the time is known, on those that are in use till then: what is idle now stays open to everybody. Where it
        is not, on those that have most room now: it is kept from being used.
        """
        topology = self._pending.workload.topology
        if INSIDE & {topology.required, topology.preferred} or (self._together and not self._request.whole):
            return claims
        overuse, row_of = self._attempts.policy.overuse_percent, self._attempts.scene.table.row_of
        found: list[Claim] = []
        taken: set[str] = set()
        for claim in claims:
            columns, now = self._acceptable(row_of[claim.node]), self._attempts.worlds.later.node(claim.node)
            room = {d.uuid: d.headroom_bytes() for d in now.devices}
            usable = [
                d.uuid
                for column, d in enumerate(before[claim.node].devices)
                if columns[column] and device_fits(d, self._request, overuse) and d.uuid not in taken
            ]
            usable.sort(key=lambda uuid: -room[uuid] if freest_first else room[uuid])
            devices = tuple(usable[: len(claim.devices)])
            taken.update(devices)
            found.append(replace(claim, devices=devices))
        return found

    def _missing(self, domain: Domain, row: int) -> int:
        """Return how many devices have to become free before a row can take one more pod."""
        columns = domain.usable(self._acceptable(row))
        state = self._attempts.worlds.later.node(self._names[row])
        return max(
            0,
            self._request.devices
            - gang.fitting(state, self._request, columns, self._attempts.policy.overuse_percent),
        )
