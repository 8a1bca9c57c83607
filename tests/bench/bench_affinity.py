"""Prompts that begin alike, at the gateway: what it costs a request, and how much of a prompt the replica has seen.

The first table is CPU time of the choice alone. The second is a count without engines: conversations in random turns,
and what share of each prompt's characters the chosen replica had as the beginning of an earlier one.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections import Counter, deque

from prometheus_client import CollectorRegistry

from llmos_operator.gateway.affinity import Affinity
from llmos_operator.gateway.balance import Balancer
from llmos_operator.gateway.catalog import Catalog, Replica, Route, Workload, WorkloadKey
from llmos_operator.gateway.dispatch import Dispatcher
from llmos_operator.gateway.metrics import Metrics
from tests.bench.report import Table

REPLICAS = 8
SIZES = (200, 2_000, 32_000, 200_000)  # characters
REPEATS = 400
CONVERSATIONS, TURNS, TURN = 64, 12, 1_200  # the last in characters
SYSTEM_PROMPTS, SYSTEM = 4, 3_000  # the last in characters
AT_ONCE = 16  # requests in flight


def _dispatcher(*, on: bool) -> tuple[Dispatcher, Route]:
    catalog = Catalog()
    workload = Workload(WorkloadKey("team", "chat"), "w", "chat")
    catalog.put_workload(workload)
    for number in range(REPLICAS):
        catalog.put_replica(Replica(f"r{number}", "w", f"team/r{number}", "127.0.0.1", 1))
    dispatcher = Dispatcher(
        catalog,
        Balancer(),
        Metrics(CollectorRegistry()),
        time.monotonic,
        hold_limit=0,
        on_hold=lambda: None,
        affinity=Affinity() if on else None,
    )
    return dispatcher, Route((workload,))


async def _chosen(dispatcher: Dispatcher, route: Route, prompt: str) -> Replica:
    document = {"messages": [{"role": "user", "content": prompt}]}
    known = dispatcher.prompt(route, "", document)
    return await dispatcher.acquire(route, "", tried=(), deadline=0.0, prompt=known)


async def _cost(characters: int, *, on: bool, fresh: bool) -> float:
    """Return microseconds of CPU that a choice takes, the median."""
    dispatcher, route = _dispatcher(on=on)
    taken = []
    for turn in range(REPEATS):
        prompt = f"{turn if fresh else 0:08}" + "x" * (characters - 8)
        began = time.process_time_ns()
        replica = await _chosen(dispatcher, route, prompt)
        taken.append((time.process_time_ns() - began) / 1000)
        dispatcher.release(route, replica)
    return statistics.median(taken)


async def _seen(*, on: bool) -> tuple[float, float, float]:
    """Return shares of characters seen by the chosen replica and by any, and the most loaded one's share of the mean."""
    dispatcher, route = _dispatcher(on=on)
    chance = random.Random(7)
    texts = {one: _words(one % SYSTEM_PROMPTS, SYSTEM) for one in range(CONVERSATIONS)}
    order = [one for one in range(CONVERSATIONS) for _ in range(TURNS)]
    chance.shuffle(order)
    had: dict[str, list[str]] = {}
    running: deque[Replica] = deque()
    given: Counter[str] = Counter()
    seen = anywhere = total = 0
    for turn, one in enumerate(order):
        texts[one] += _words(10_000 + turn, TURN)
        if len(running) >= AT_ONCE:
            dispatcher.release(route, running.popleft())
        replica = await _chosen(dispatcher, route, texts[one])
        running.append(replica)
        given[replica.uid] += 1
        common = {uid: max(_common(texts[one], other) for other in all_of) for uid, all_of in had.items()}
        seen += common.get(replica.uid, 0)
        anywhere += max(common.values(), default=0)
        total += len(texts[one])
        had.setdefault(replica.uid, []).append(texts[one])
    return seen / total, anywhere / total, max(given.values()) * REPLICAS / len(order)


def _words(seed: int, characters: int) -> str:
    return random.Random(seed).randbytes(characters // 2).hex()


def _common(one: str, other: str) -> int:
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[:middle] == other[:middle] else (low, middle - 1)
    return low


def run() -> list[Table]:
    """Measure both."""
    rows = []
    for characters in SIZES:
        off, known, new = (
            asyncio.run(_cost(characters, on=on, fresh=fresh))
            for on, fresh in ((False, False), (True, False), (True, True))
        )
        rows.append([f"{characters:,}", f"{off:.0f} µs", f"{known:.0f} µs", f"{new:.0f} µs"])
    columns = ["characters of the prompt", "off", "on, a known prompt", "on, a new one"]
    note = f"Median of {REPEATS} choices among {REPLICAS} replicas, CPU time."
    counts = []
    for name, on in (("off", False), ("on", True)):
        share, most, load = asyncio.run(_seen(on=on))
        counts.append([name, f"{share:.0%}", f"{most:.0%}", f"{load:.2f}"])
    told = (
        f"{CONVERSATIONS} conversations of {TURNS} turns in random order over {REPLICAS} replicas, {AT_ONCE} requests at once; "
        f"{SYSTEM_PROMPTS} system prompts of {SYSTEM:,} characters, {TURN:,} more each turn. Replicas forget nothing here."
    )
    return [
        Table("The choice", columns, rows, note),
        Table(
            "What a replica has seen of its prompts",
            ["affinity", "seen", "seen by any replica", "most requests against the mean"],
            counts,
            told,
        ),
    ]
