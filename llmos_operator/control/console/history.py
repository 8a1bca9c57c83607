"""The last hour of the whole cluster, for the console's charts: a ring of samples in memory, of a size that never grows.

It belongs to one leader: the next one begins with an empty ring and says nothing of the time before. Prometheus keeps
what should last. Waits for the first token are means over the time since the sample before, from counters of runtimes.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from llmos_operator.control.activity import FRESH_SECONDS
from llmos_operator.observability.slices import in_slices

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmos_operator.control.records import Records
    from llmos_operator.state.snapshot import Snapshot

EVERY_SECONDS: Final = 15.0
SAMPLES: Final = 240  # an hour
_MILLI: Final = 1000
_WAITS: Final = "Pending"


class Sample(NamedTuple):
    """One moment. None: nobody tells."""

    time: int  # epoch seconds
    busy: int | None  # percent, mean of the devices that tell
    reserved: int | None  # thousandths of all device memory
    used: int | None  # thousandths of the memory of devices that tell
    waiting: int  # workloads
    requests: int  # in progress or waiting, at all replicas
    first: int | None  # milliseconds, mean wait for the first token since the sample before


class History:
    """The ring. `sample` is called by one task; `told` may be called between."""

    def __init__(self, records: Records, busy: Callable[[str], int | None]) -> None:
        """`busy`: percent of a device by UUID, None if it does not tell."""
        self._records = records
        self._busy = busy
        self._ring: deque[Sample] = deque(maxlen=SAMPLES)
        self._firsts: dict[
            str, tuple[int, int]
        ] = {}  # pod UID -> requests with a first token, their wait in ms

    async def sample(self, snapshot: Snapshot, now: float) -> None:
        """Add how it stands at ``now`` (epoch seconds)."""
        busy, reserved, used = self._devices(snapshot)
        waiting = 0
        async for record in in_slices(list(self._records)):
            waiting += str(record.status.get("phase") or _WAITS) == _WAITS
        requests, first = await self._served(now)
        self._ring.append(Sample(int(now), busy, reserved, used, waiting, requests, first))

    def told(self) -> dict[str, Any]:
        """Return the ring as columns, oldest first."""
        columns = {name: [one[i] for one in self._ring] for i, name in enumerate(Sample._fields)}
        return {"every": int(EVERY_SECONDS), "most": SAMPLES, **columns}

    def _devices(self, snapshot: Snapshot) -> tuple[int | None, int | None, int | None]:
        """Return what devices do: busy, reserved and used as `Sample` has them."""
        percents: list[int] = []
        memory = reserved = measured = used = 0
        for state in snapshot.nodes.values():
            for one in state.devices if state.gpu is not None else ():
                size = one.device.memory_bytes
                memory += size
                reserved += size if one.exclusive or one.foreign else min(size, one.reserved_bytes)
                if one.observed_bytes is not None:
                    measured, used = measured + size, used + one.observed_bytes
                percent = self._busy(one.uuid)
                if percent is not None:
                    percents.append(percent)
        busy = round(sum(percents) / len(percents)) if percents else None
        return busy, _share(reserved, memory), _share(used, measured)

    async def _served(self, now: float) -> tuple[int, int | None]:
        """Return requests at all replicas, and the mean wait for the first token since the last call."""
        requests = count = waited = 0
        known: dict[str, tuple[int, int]] = {}
        async for replica in in_slices(list(self._records.replicas())):
            report = self._records.report(replica.uid)
            if report is None:
                continue
            stats = report.requests
            if now - self._records.heard_at(replica.uid) <= FRESH_SECONDS:
                requests += stats.running + stats.waiting
            known[replica.uid] = told = (stats.first_tokens, stats.first_token_millis)
            before = self._firsts.get(
                replica.uid, told
            )  # what was before the first look belongs to no sample
            if told[0] < before[0]:
                before = (0, 0)  # the engine was started anew
            count, waited = count + told[0] - before[0], waited + max(0, told[1] - before[1])
        self._firsts = known
        return requests, round(waited / count) if count else None


def _share(part: int, whole: int) -> int | None:
    return _MILLI * part // whole if whole else None
