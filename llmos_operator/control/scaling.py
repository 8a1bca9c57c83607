"""How many replicas a workload with `scaling` wants: pure arithmetic over demand, with a memory against flapping.

Up at once, down only after the lower number was enough for a while, to zero only after `idle.scaleToZeroAfter` without
a request, up from zero by the first request that waits. Where latency is promised (`slo`) the autoscaler's need counts
beside the metrics. Figures that are out of date hide demand and never show too much of it: with them the number may
rise, and never falls.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from llmos_operator.api.conditions import Reason
from llmos_operator.api.quantity import parse_milliseconds
from llmos_operator.manifests.observed import Scaling

if TYPE_CHECKING:
    from collections.abc import Mapping

DOWN_AFTER = 60.0  # seconds a lower number must have been enough
CALL_AFTER = 2.0  # seconds of requests in progress after which lent memory is called back; one that waits does so at once
_DEFAULT_METRICS: tuple[dict[str, Any], ...] = ({"type": "QueueDepth", "target": 4},)


@dataclass(frozen=True, slots=True)
class Demand:
    """What gateways, runtimes and devices say of a workload right now. Times are epoch seconds."""

    waiting: int = 0
    running: int = 0
    per_minute: int = 0
    kv_percent: int = 0  # summed over replicas
    last_request: float = 0.0  # 0.0: none seen
    arrived: int = 0  # requests since this process began to count
    lost: str = ""  # whose figures are out of date, in words; "": all is known
    working: str = ""  # what shows that it works though nobody tells of a request, in words


@dataclass(frozen=True, slots=True)
class Memory:
    """What scaling remembers of one workload."""

    wanted: int
    idle_since: float
    # (when, number that would have been enough) of the last DOWN_AFTER seconds, one entry a change
    enough: tuple[tuple[float, int], ...] = field(default=())


@dataclass(frozen=True, slots=True)
class Promise:
    """How many replicas the promised latency takes, and why in words."""

    replicas: int
    why: str


def begin(scaling: Mapping[str, Any], live: int, now: float) -> Memory:
    """Return the memory of a workload first seen with ``live`` replicas: what runs is kept until demand is known."""
    least, most = bounds(scaling)
    wanted = min(max(live, least), most)
    return Memory(wanted, idle_since=now, enough=((now, wanted),))


def bounds(scaling: Mapping[str, Any]) -> tuple[int, int]:
    """Return minReplicas and maxReplicas."""
    least = int(scaling.get("minReplicas", 1))
    return least, max(least, int(scaling.get("maxReplicas", 1)))


def decide(
    scaling: Mapping[str, Any],
    demand: Demand,
    memory: Memory,
    now: float,
    promise: Promise | None = None,
    held: int | None = None,
) -> tuple[Memory, Scaling]:
    """Return the new memory, whose `wanted` is the number of replicas, and how to explain it.

    `held` is the number of replicas it may have until others give back the room they took (None: as many as it wants).
    Until then the queue that grows asks for one more than that at most, or for as many as before: what cannot be had is
    no reason to want more.
    """
    least, most = bounds(scaling)
    if held is not None:
        most = max(least, min(most, max(memory.wanted, held + 1)))
    busy = demand.waiting + demand.running > 0 or bool(demand.working)
    idle_since = now if busy else max(memory.idle_since, demand.last_request)
    may_sleep = _may_sleep(scaling, least, busy=busy, idle_for=now - idle_since) and not demand.lost
    asked, why = _needed(scaling, demand, None if may_sleep else promise)
    needed = min(max(asked, least, 1 if busy else 0), most)
    if needed == 0 and memory.wanted > 0:
        needed = 1  # whether the last one goes is decided by idleness alone
    if demand.lost and memory.wanted and needed <= memory.wanted:
        held = min(max(memory.wanted, least), most)
        text = f"{_replicas(held)} kept: {demand.lost}, so fewer would be a guess."
        return Memory(held, idle_since, ((now, held),)), Scaling(
            active=True, reason=Reason.SIGNALS_STALE, message=text
        )
    enough = _remember(memory.enough, needed, now)
    wanted = max(number for _, number in enough) if needed < memory.wanted else needed
    wanted = min(max(wanted, least), most)
    if may_sleep and wanted <= 1:
        after = str((scaling.get("idle") or {}).get("scaleToZeroAfter"))
        verdict = Scaling(
            active=True, reason=Reason.SCALED_TO_ZERO, message=f"No request for {after}; one starts it again."
        )
        return Memory(0, idle_since), verdict
    if memory.wanted == 0 and not busy:
        text = "No replica runs until a request comes."
        return replace(memory, idle_since=idle_since), Scaling(
            active=True, reason=Reason.SCALED_TO_ZERO, message=text
        )
    reason, limit = Reason.SCALING, ""
    if asked > most:
        reason, limit = Reason.TOO_MANY_REPLICAS, f" {asked} would be needed: raise maxReplicas."
    alive = f" It is not idle: {demand.working}." if demand.working else ""
    text = f"{_replicas(wanted)} for {why}; between {least} and {most}.{limit}{alive}"
    return Memory(wanted, idle_since, enough), Scaling(active=True, reason=reason, message=text)


def may_doze(scaling: Mapping[str, Any], demand: Demand, memory: Memory, now: float, *, dozes: bool) -> bool:
    """Return whether replicas may sleep because nobody asks anything of them; `dozes`: they do so already.

    Who sleeps goes on until somebody asks, so that neither a restart of the operator nor silence wakes it.
    """
    after = (scaling.get("idle") or {}).get("sleepAfter")
    if not after or demand.waiting + demand.running > 0 or demand.working:
        return False
    if dozes or demand.lost:
        return dozes
    return (now - memory.idle_since) * 1000 >= parse_milliseconds(str(after))


def may_lend(
    scaling: Mapping[str, Any], demand: Demand, memory: Memory, now: float, *, lends: bool, asked_for: float
) -> bool:
    """Return whether replicas may lend memory because nobody asks anything of them; `lends`: they do so already.

    What is lent is not called back for a request that is answered in `CALL_AFTER` seconds, of which `asked_for` have
    passed: the lender serves it with what it has left. It is, once one waits or they go on; and not by silence or a
    restart of the operator. Between two loans lies `lendAfter`.
    """
    after = (scaling.get("idle") or {}).get("lendAfter")
    if not after:
        return False
    asked = demand.running > 0 or bool(demand.working)
    if lends:
        return not demand.waiting and (not asked or asked_for < CALL_AFTER)
    if asked or demand.waiting or demand.lost:
        return False
    return (now - memory.idle_since) * 1000 >= parse_milliseconds(str(after))


def _replicas(number: int) -> str:
    return f"{number} replica{'s' if number != 1 else ''}"


def _needed(scaling: Mapping[str, Any], demand: Demand, promise: Promise | None) -> tuple[int, str]:
    """Return the largest number any metric or the promised latency asks for, and what that is in words."""
    found = [(promise.replicas, promise.why)] if promise is not None else []
    for metric in scaling.get("metrics") or (() if found else _DEFAULT_METRICS):
        target = max(1, int(metric.get("target", 1)))
        value, words = _value(str(metric.get("type")), demand)
        found.append((-(-value // target), f"{words} with target {target}"))
    return max(found)


def _value(kind: str, demand: Demand) -> tuple[int, str]:
    if kind == "RunningRequests":
        return demand.running, "requests in progress"
    if kind == "RequestsPerMinute":
        return demand.per_minute, "requests per minute"
    if kind == "KVCachePercent":
        return demand.kv_percent, "KV cache use"
    return demand.waiting, "requests waiting"


def _remember(
    enough: tuple[tuple[float, int], ...], needed: int, now: float
) -> tuple[tuple[float, int], ...]:
    """Keep what was needed in the last DOWN_AFTER seconds; the entry that was in force at its start counts too."""
    entries = [*enough, (now, needed)] if not enough or enough[-1][1] != needed else list(enough)
    first = max((i for i, (at, _) in enumerate(entries) if at <= now - DOWN_AFTER), default=0)
    return tuple(entries[first:])


def _may_sleep(scaling: Mapping[str, Any], least: int, *, busy: bool, idle_for: float) -> bool:
    after = (scaling.get("idle") or {}).get("scaleToZeroAfter")
    return least == 0 and not busy and bool(after) and idle_for * 1000 >= parse_milliseconds(str(after))
