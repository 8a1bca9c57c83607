"""Which replica gets the next request: the least loaded one, as this gateway sees it.

The cost of a replica is (own requests in flight + 1) x its typical time to the first byte. That time is an average
that forgets (older answers count less, by time), bounded to half and twice the average of its siblings: it steers away
from a slow replica without starving it. Ties go to the replica that was picked longest ago, so that equal replicas
take turns. A replica that refused a connection rests for a while that doubles from 1 to 30 s; one that rests is only
used when all of them rest.

A replica that is preferred, as it holds the beginning of the prompt, is picked while its cost is at most 1.25 times the
least, plus 1 if the beginning is long: one that is idle is better than a wait for what is computed again soon. It is the
bound on loads of Mirrokni, Thorup and Zadimoghaddam, "Consistent Hashing with Bounded Loads" (SODA 2018).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from llmos_operator.gateway.affinity import Holders
    from llmos_operator.gateway.catalog import Replica

MEMORY_SECONDS = 20.0  # an observation this old counts 1/e
REST_SECONDS = (1.0, 30.0)
PREFERRED_TIMES = 1.25  # a preferred replica costs at most so many times the least,
PREFERRED_EXTRA = 1.0  # and this more for a long beginning


@dataclass(slots=True)
class Load:
    """What this gateway knows of one replica. Seconds on the monotonic clock."""

    in_flight: int = 0
    first_byte: float | None = None  # average seconds to the first byte
    observed_at: float = 0.0
    picked: int = 0  # turn of the last pick
    led: int = 0  # turn in which it last won a request for its workload
    failures: int = 0  # in a row
    rests_until: float = 0.0


@dataclass(slots=True)
class Balancer:
    """Loads of all replicas."""

    _loads: dict[str, Load] = field(default_factory=dict)
    _turn: int = 0

    def pick(
        self,
        replicas: Collection[Replica],
        now: float,
        *,
        exclude: Collection[str] = (),
        below: int | None = None,
        awake_only: bool = False,
        prefer: Sequence[Holders] = (),
    ) -> Replica | None:
        """Return the replica for the next request and count it in flight; None if there is none.

        ``exclude`` are pod UIDs already tried; ``below`` leaves out replicas with that many own requests in flight;
        ``awake_only`` leaves out those that rest; ``prefer`` are those that hold its beginnings, the best first.
        """
        chosen = self._choose(replicas, now, exclude, below, prefer, awake_only=awake_only)
        if chosen is not None:
            load = self._load(chosen.uid)
            self._turn += 1
            load.picked = self._turn
            load.in_flight += 1
        return chosen

    def lead(
        self,
        replicas: Collection[Replica],
        now: float,
        *,
        exclude: Collection[str] = (),
        below: int | None = None,
        prefer: Sequence[Holders] = (),
    ) -> str:
        """Return the UID of the workload whose replica is the next of those that are awake, "" if none is.

        Nothing is counted in flight. Equal replicas lead in turns of their own, as another one of the workload may get
        the request.
        """
        chosen = self._choose(replicas, now, exclude, below, prefer, awake_only=True, leading=True)
        if chosen is None:
            return ""
        self._turn += 1
        self._load(chosen.uid).led = self._turn
        return chosen.workload_uid

    def _choose(
        self,
        replicas: Collection[Replica],
        now: float,
        exclude: Collection[str],
        below: int | None,
        prefer: Sequence[Holders],
        *,
        awake_only: bool,
        leading: bool = False,
    ) -> Replica | None:
        candidates = [r for r in replicas if r.uid not in exclude]
        if below is not None:
            candidates = [r for r in candidates if self._load(r.uid).in_flight < below]
        if not candidates:
            return None
        awake = [r for r in candidates if self._load(r.uid).rests_until <= now]
        if awake_only and not awake:
            return None
        typical = self._typical(candidates)
        ranks = {
            r.uid: self._rank(r.uid, typical, resting=not awake, leading=leading) for r in awake or candidates
        }
        least = min(awake or candidates, key=lambda r: ranks[r.uid])
        return self._preferred(awake, ranks, prefer, ranks[least.uid][1]) or least

    def release(self, uid: str) -> None:
        """A request of the replica is over."""
        load = self._loads.get(uid)
        if load is not None:
            load.in_flight -= 1

    def answered(self, uid: str, first_byte_seconds: float, now: float) -> None:
        """The replica sent its first byte after so many seconds."""
        load = self._load(uid)
        load.failures = 0
        load.rests_until = 0.0
        if load.first_byte is None:
            load.first_byte = first_byte_seconds
        else:
            # At least a tenth of weight: many quick answers in one instant still move the average.
            weight = max(0.1, 1.0 - math.exp(-(now - load.observed_at) / MEMORY_SECONDS))
            load.first_byte += weight * (first_byte_seconds - load.first_byte)
        load.observed_at = now

    def refused(self, uid: str, now: float, *, rest: float | None = None) -> None:
        """The replica refused the connection or said that it cannot take requests; it rests.

        Requests that fail together are one failure: those that come back while it rests already change nothing.
        """
        load = self._load(uid)
        if now < load.rests_until:
            return
        first, longest = REST_SECONDS
        load.rests_until = now + (rest if rest is not None else min(longest, first * 2**load.failures))
        load.failures = min(load.failures + 1, 16)

    def takes(
        self,
        replicas: Iterable[Replica],
        now: float,
        *,
        exclude: Collection[str] = (),
        below: int | None = None,
    ) -> bool:
        """Whether one of ``replicas`` is awake and not left out, as :meth:`pick` leaves out."""
        loads = [self._load(r.uid) for r in replicas if r.uid not in exclude]
        return any(one.rests_until <= now and (below is None or one.in_flight < below) for one in loads)

    def rests_for(self, replicas: Iterable[Replica], now: float) -> float:
        """Return the seconds until the first of ``replicas`` stops resting; 0 if one is awake."""
        return max(0.0, min((self._load(r.uid).rests_until - now for r in replicas), default=0.0))

    def in_flight(self, replicas: Iterable[Replica]) -> int:
        """Own requests in flight at ``replicas``."""
        return sum(self._load(r.uid).in_flight for r in replicas)

    def forget(self, known: Collection[str]) -> None:
        """Drop what is known of replicas that are gone and have nothing in flight."""
        for uid in [u for u, load in self._loads.items() if u not in known and load.in_flight <= 0]:
            del self._loads[uid]

    def _preferred(
        self,
        awake: Sequence[Replica],
        ranks: Mapping[str, tuple[float, float, int]],
        prefer: Sequence[Holders],
        least: float,
    ) -> Replica | None:
        """Return the least loaded holder of the first beginning that has one which is not too busy."""
        for holders in prefer:
            found = min((r for r in awake if r.uid in holders.uids), key=lambda r: ranks[r.uid], default=None)
            bound = PREFERRED_TIMES * least + (PREFERRED_EXTRA if holders.long else 0.0)
            if found is not None and ranks[found.uid][1] <= bound:
                return found
        return None

    def _load(self, uid: str) -> Load:
        load = self._loads.get(uid)
        if load is None:
            load = self._loads[uid] = Load()
        return load

    def _typical(self, replicas: Iterable[Replica]) -> float:
        known = [f for r in replicas if (f := self._load(r.uid).first_byte) is not None]
        return sum(known) / len(known) if known else 0.0

    def _rank(self, uid: str, typical: float, *, resting: bool, leading: bool) -> tuple[float, float, int]:
        load = self._load(uid)
        pace = 1.0
        if load.first_byte is not None and typical > 0.0:
            pace = min(2.0, max(0.5, load.first_byte / typical))
        return (
            load.rests_until if resting else 0.0,
            (load.in_flight + 1) * pace,
            load.led if leading else load.picked,
        )
