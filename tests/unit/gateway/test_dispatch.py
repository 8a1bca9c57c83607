"""Replicas for requests: at once, after a wait, or not."""

from __future__ import annotations

import asyncio
import itertools
import random
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from llmos_operator.gateway.affinity import LONG, Affinity, Prompt
from llmos_operator.gateway.answers import Refused
from llmos_operator.gateway.balance import Balancer
from llmos_operator.gateway.catalog import Catalog, ColdStart, Replica, Route, Workload, WorkloadKey
from llmos_operator.gateway.dispatch import Dispatcher
from llmos_operator.gateway.metrics import Metrics

pytestmark = pytest.mark.anyio

CHAT = Workload(
    WorkloadKey("team", "chat"),
    "w",
    "chat",
    max_in_flight=2,
    waiting_for="Downloading: 1 of 9 GB",
    eta_seconds=42,
)


class _Bench:
    def __init__(self, *workloads: Workload, hold_limit: int = 8) -> None:
        self.catalog = Catalog()
        self.balancer = Balancer()
        self.registry = CollectorRegistry()
        self.holds = 0
        self.known: Prompt | None = None  # of the last prompt
        self.loop = asyncio.get_running_loop()
        self.route = Route(workloads or (CHAT,))
        for workload in self.route.workloads:
            self.catalog.put_workload(workload)
        self.dispatcher = Dispatcher(
            self.catalog,
            self.balancer,
            Metrics(self.registry),
            self.loop.time,
            hold_limit=hold_limit,
            on_hold=self._held,
            affinity=Affinity(),
        )

    def _held(self) -> None:
        self.holds += 1

    def replica(self, uid: str, workload: str = "w", spec_hash: str = "") -> None:
        self.catalog.put_replica(Replica(uid, workload, f"team/{uid}", "127.0.0.1", 1, spec_hash))

    def ask(
        self, tenant: str = "", *, seconds: float = 5.0, tried: tuple[str, ...] = (), prompt: str = ""
    ) -> asyncio.Task[Replica]:
        deadline = self.loop.time() + seconds
        known = self.known = self.dispatcher.prompt(self.route, tenant, {"prompt": prompt})
        return asyncio.create_task(
            self.dispatcher.acquire(self.route, tenant, tried=tried, deadline=deadline, prompt=known)
        )

    async def answered(self, prompt: str, tenant: str = "") -> str:
        """Ask, have the answer, and say who gave it."""
        replica = await self.ask(tenant, prompt=prompt)
        self.dispatcher.began(self.workload_of(replica), self.known)
        self.dispatcher.release(self.route, replica)
        return replica.uid

    def workload_of(self, replica: Replica) -> Workload:
        return next(w for w in self.route.workloads if w.uid == replica.workload_uid)

    def prompts(self, result: str, workload: str = "chat") -> float:
        labels = {"namespace": "team", "workload": workload, "result": result}
        return self.registry.get_sample_value("llmos_gateway_prompts_total", labels) or 0.0

    def in_flight(self) -> int:
        return self.balancer.in_flight(self.catalog.replicas("w"))

    def ended(self, how: str) -> float:
        labels = {"namespace": "team", "workload": "chat", "how": how}
        return self.registry.get_sample_value("llmos_gateway_hold_ended_total", labels) or 0.0

    def held(self) -> float:
        labels = {"namespace": "team", "workload": "chat"}
        return self.registry.get_sample_value("llmos_gateway_held", labels) or 0.0


async def _turn() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def _refusal(task: asyncio.Task[Any]) -> Refused:
    with pytest.raises(Refused) as caught:
        await task
    return caught.value


async def test_a_ready_replica_is_given_at_once() -> None:
    bench = _Bench()
    bench.replica("r1")
    assert (await bench.ask()).uid == "r1"
    assert bench.holds == 0


async def test_a_request_waits_for_a_replica_and_says_so() -> None:
    bench = _Bench()
    asked = bench.ask()
    await _turn()
    assert (bench.holds, bench.held(), bench.dispatcher.waiting()) == (1, 1.0, {CHAT.key: 1})
    bench.replica("r1")
    assert (await asked).uid == "r1"
    assert (bench.held(), bench.ended("served"), bench.dispatcher.waiting()) == (0.0, 1.0, {})


async def test_held_requests_are_let_in_only_as_fast_as_the_replica_takes_them() -> None:
    bench = _Bench()
    asked = [bench.ask() for _ in range(5)]
    await _turn()
    bench.replica("r1")
    await _turn()
    assert [task.done() for task in asked] == [True, True, False, False, False]
    bench.dispatcher.release(bench.route, asked[0].result())
    await _turn()
    assert [task.done() for task in asked] == [True, True, True, False, False]
    bench.replica("r2")
    await asyncio.gather(*asked)
    assert bench.in_flight() == 4


async def test_nobody_overtakes_who_waits() -> None:
    bench = _Bench()
    first = [bench.ask() for _ in range(3)]
    await _turn()
    bench.replica("r1")
    await _turn()
    late = bench.ask()
    await _turn()
    assert [task.done() for task in [*first, late]] == [True, True, False, False]
    bench.dispatcher.release(bench.route, first[0].result())
    await _turn()
    assert [task.done() for task in [*first, late]] == [True, True, True, False]
    late.cancel()


async def test_without_anybody_waiting_a_full_replica_still_gets_requests() -> None:
    bench = _Bench()
    bench.replica("r1")
    assert len(await asyncio.gather(*[bench.ask() for _ in range(10)])) == 10


async def test_tenants_take_turns() -> None:
    bench = _Bench()
    asked = {name: bench.ask(name[0]) for name in ("a1", "a2", "a3", "b1")}
    await _turn()
    bench.replica("r1")
    await _turn()
    assert [name for name, task in asked.items() if task.done()] == ["a1", "b1"]
    for task in asked.values():
        task.cancel()


async def test_a_full_waiting_room_refuses_with_the_expected_time() -> None:
    bench = _Bench(hold_limit=2)
    waiting = [bench.ask("a") for _ in range(2)]
    await _turn()
    refusal = await _refusal(bench.ask("a"))
    assert (refusal.status, refusal.code, refusal.retry_after) == (503, "hold_queue_full", 42.0)
    other = bench.ask("b")
    await _turn()
    assert (await _refusal(waiting[1])).code == "hold_queue_full"
    assert not waiting[0].done()
    assert bench.ended("hold_queue_full") == 2.0
    for task in (waiting[0], other):
        task.cancel()


async def test_a_hold_ends_with_its_deadline_and_says_what_was_missing() -> None:
    bench = _Bench()
    refusal = await _refusal(bench.ask(seconds=0.02))
    assert (refusal.status, refusal.code) == (503, "hold_timeout")
    assert "Downloading: 1 of 9 GB" in refusal.message
    assert bench.dispatcher.waiting() == {}


async def test_reject_answers_at_once() -> None:
    bench = _Bench(replace(CHAT, cold_start=ColdStart.REJECT))
    refusal = await _refusal(bench.ask())
    assert (refusal.status, refusal.code, refusal.retry_after) == (503, "workload_starting", 42.0)
    assert bench.holds == 0


@pytest.mark.parametrize(
    ("change", "code"),
    [({"suspended": True}, "workload_suspended"), ({"failure": "UnsafeFormat: pickle"}, "workload_failed")],
)
async def test_waiting_for_what_cannot_come_is_refused_also_when_it_turns_so(
    change: dict[str, Any], code: str
) -> None:
    bench = _Bench()
    asked = bench.ask()
    await _turn()
    bench.catalog.put_workload(replace(CHAT, **change))
    assert (await _refusal(asked)).code == code
    assert (await _refusal(bench.ask())).code == code
    bench.replica("r1")
    assert (await bench.ask()).uid == "r1"  # an old replica still serves: use it


async def test_a_workload_deleted_meanwhile_is_not_found() -> None:
    bench = _Bench()
    asked = bench.ask()
    await _turn()
    bench.catalog.remove_workload(CHAT.key)
    refusal = await _refusal(asked)
    assert (refusal.status, refusal.code) == (404, "model_not_found")
    assert (await _refusal(bench.ask())).status == 404


async def test_whoever_leaves_the_room_takes_no_replica() -> None:
    bench = _Bench()
    asked = [bench.ask() for _ in range(3)]
    await _turn()
    asked[0].cancel()
    await _turn()
    bench.replica("r1")
    await asyncio.gather(*asked[1:])
    assert bench.in_flight() == 2
    assert bench.ended("gone") == 1.0


async def test_leaving_in_the_moment_a_replica_is_given_gives_it_back() -> None:
    bench = _Bench()
    asked = bench.ask()
    await _turn()
    bench.replica("r1")  # the future is resolved, the waiter has not run yet
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    assert asked.cancelled()
    assert bench.in_flight() == 0


async def test_a_replica_that_refused_is_left_alone_until_it_has_rested() -> None:
    bench = _Bench()
    bench.replica("r1")
    bench.balancer.refused("r1", bench.loop.time(), rest=0.05)
    began = bench.loop.time()
    replica = await bench.ask(tried=("r1",))
    assert replica.uid == "r1"
    assert bench.loop.time() - began >= 0.04


async def test_another_replica_is_taken_instead_of_one_tried() -> None:
    bench = _Bench()
    bench.replica("r1")
    bench.replica("r2")
    assert (await bench.ask(tried=("r1",))).uid == "r2"


async def test_workloads_that_share_a_name_share_replicas_and_the_room() -> None:
    other = replace(CHAT, key=WorkloadKey("team", "chat-2"), uid="w2")
    bench = _Bench(CHAT, other)
    asked = bench.ask()
    await _turn()
    bench.replica("r2", workload="w2")
    assert (await asked).uid == "r2"


async def test_closing_turns_everybody_away() -> None:
    bench = _Bench()
    asked = bench.ask()
    await _turn()
    bench.dispatcher.close()
    assert (await _refusal(asked)).code == "gateway_stopping"


async def test_prompts_that_begin_alike_go_to_one_replica_and_others_take_turns() -> None:
    bench = _Bench()
    for uid in ("r1", "r2", "r3"):
        bench.replica(uid)
    homes = {letter: await bench.answered(letter * 900) for letter in "abc"}
    assert sorted(homes.values()) == ["r1", "r2", "r3"]
    for letter, home in homes.items():
        assert [await bench.answered(letter * 900 + str(turn)) for turn in range(3)] == [home] * 3
    assert (bench.prompts("new"), bench.prompts("kept"), bench.prompts("moved")) == (3.0, 9.0, 0.0)


async def test_a_busy_replica_passes_a_long_prompt_on_to_one_that_learns_it() -> None:
    bench = _Bench()
    bench.replica("r1")
    bench.replica("r2")
    prompt = "a" * LONG
    busy = [(await bench.ask(prompt=prompt)).uid for _ in range(3)]
    assert busy[0] == busy[1] != busy[2]
    assert await bench.answered(prompt) == busy[2]  # both hold it now: the less loaded one


async def test_an_idle_replica_is_better_than_a_wait_for_a_short_beginning() -> None:
    bench = _Bench()
    bench.replica("r1")
    bench.replica("r2")
    prompt = "a" * (LONG - 1)
    assert (await bench.ask(prompt=prompt)).uid != (await bench.ask(prompt=prompt)).uid


@pytest.mark.parametrize(("characters", "at_once"), [(3000, 16), (3000, 32), (9000, 16), (9000, 32)])
async def test_a_system_prompt_of_everybody_leaves_no_replica_idle(characters: int, at_once: int) -> None:
    bench = _Bench(replace(CHAT, max_in_flight=64))
    for number in range(32):
        bench.replica(f"r{number}")
    chance = random.Random(3)
    running: list[Replica] = []
    idle = []
    for turn in range(900):
        if len(running) >= at_once:
            bench.dispatcher.release(bench.route, running.pop(chance.randrange(at_once)))
        running.append(await bench.ask(prompt="s" * characters + f"{turn:0900}"))
        if turn >= 300:
            idle.append(32 - len({one.uid for one in running}))
    assert sum(idle) / len(idle) <= 32 - at_once + 0.5


async def test_a_replica_that_did_not_take_a_prompt_does_not_hold_it() -> None:
    bench = _Bench()
    bench.replica("r1")
    replica = await bench.ask(prompt="a" * 900)
    bench.dispatcher.not_begun(replica, bench.known)
    bench.dispatcher.release(bench.route, replica)
    bench.replica("r2")
    assert await bench.answered("a" * 900) == "r2"
    assert (bench.prompts("new"), bench.prompts("moved")) == (1.0, 0.0)


async def test_a_prompt_is_counted_for_the_workload_that_answers_it() -> None:
    other = replace(CHAT, key=WorkloadKey("team", "chat-2"), uid="w2")
    bench = _Bench(CHAT, other)
    bench.replica("r2", workload="w2")
    await bench.answered("a" * 900)
    assert (bench.prompts("new"), bench.prompts("new", "chat-2")) == (0.0, 1.0)


async def test_a_request_that_left_the_room_spends_no_turn_of_a_canary() -> None:
    bench = _Bench(replace(CHAT, canary_hash="new", canary_percent=50, max_in_flight=1))
    gone = bench.ask()
    stays = [bench.ask() for _ in range(2)]
    await _turn()
    gone.cancel()
    for uid, spec in (("old", "old"), ("new", "new")):
        bench.catalog._by_workload.setdefault("w", {})[uid] = Replica(uid, "w", uid, "127.0.0.1", 1, spec)
    bench.dispatcher._changed("w")
    assert [replica.uid for replica in await asyncio.gather(*stays)] == ["old", "new"]
    assert bench.dispatcher._canaries._credit == {"w": 50}


async def test_tenants_do_not_share_what_is_known_of_prompts() -> None:
    bench = _Bench()
    bench.replica("r1")
    bench.replica("r2")
    prompt = "a" * 900
    assert await bench.answered(prompt, "one") != await bench.answered(prompt, "two")
    assert bench.prompts("kept") == 0.0


async def test_held_prompts_are_remembered_with_the_replica_that_came() -> None:
    bench = _Bench()
    held = bench.ask(prompt="a" * LONG)
    await _turn()
    bench.replica("r1")
    await held
    bench.replica("r2")
    assert await bench.answered("a" * LONG) == "r1"


async def test_a_replica_that_is_gone_is_not_counted_as_busy() -> None:
    bench = _Bench()
    bench.replica("r1")
    await bench.answered("a" * 900)
    bench.catalog.remove_replica("r1")
    bench.replica("r2")
    assert await bench.answered("a" * 900) == "r2"
    assert (bench.prompts("new"), bench.prompts("moved")) == (2.0, 0.0)


def _canary(percent: int, **changes: Any) -> _Bench:
    """A workload with two replicas of an older spec and a canary."""
    bench = _Bench(replace(CHAT, canary_hash="new", canary_percent=percent, **changes))
    for uid, spec in (("old-1", "old"), ("old-2", "old"), ("new-1", "new")):
        bench.replica(uid, spec_hash=spec)
    return bench


@pytest.mark.parametrize("percent", [1, 10, 33, 50, 99])
async def test_a_canary_gets_its_share_of_any_hundred_requests_and_evenly(percent: int) -> None:
    bench = _canary(percent)
    given = [await bench.answered("") for _ in range(200)]
    for begin in (0, 37, 100):
        assert given[begin : begin + 100].count("new-1") == percent
    turns = [turn for turn, uid in enumerate(given) if uid == "new-1"]
    gaps = {after - before for before, after in itertools.pairwise(turns)}
    assert max(gaps) - min(gaps) <= 1
    assert abs(given.count("old-1") - given.count("old-2")) <= 1


async def test_busy_replicas_do_not_change_the_share_of_a_canary() -> None:
    bench = _canary(50)
    given = [(await bench.ask()).uid for _ in range(40)]
    assert given.count("new-1") == 20


async def test_a_side_that_rests_or_is_gone_leaves_its_share_to_the_other_and_catches_nothing_up() -> None:
    bench = _canary(50)
    bench.balancer.refused("new-1", bench.loop.time(), rest=1000.0)
    assert {await bench.answered("") for _ in range(20)} == {"old-1", "old-2"}
    bench.balancer.answered("new-1", 0.1, bench.loop.time())
    assert [await bench.answered("") for _ in range(4)].count("new-1") == 2
    bench.catalog.remove_replica("old-1")
    bench.catalog.remove_replica("old-2")
    assert {await bench.answered("") for _ in range(4)} == {"new-1"}


async def test_a_request_that_its_canary_did_not_take_goes_to_the_other_side() -> None:
    bench = _canary(99)
    assert (await bench.ask(tried=("new-1",))).uid.startswith("old")


async def test_prompts_that_begin_alike_stay_together_on_each_side_of_a_canary() -> None:
    bench = _canary(50)
    bench.replica("new-2", spec_hash="new")
    given = [await bench.answered("a" * 900) for _ in range(10)]
    assert len(set(given)) == 2
    assert sum(uid.startswith("new") for uid in given) == 5


async def test_the_canary_of_one_of_two_workloads_that_share_a_name_leaves_the_other_alone() -> None:
    canary = replace(CHAT, canary_hash="new", canary_percent=10)
    other = replace(CHAT, key=WorkloadKey("team", "chat-2"), uid="w2")
    bench = _Bench(canary, other)
    for uid, workload, spec in (("old", "w", "old"), ("new", "w", "new"), ("plain", "w2", "x")):
        bench.replica(uid, workload, spec)
    given = [await bench.answered("") for _ in range(300)]
    mine = [uid for uid in given if uid != "plain"]
    assert len(mine) < len(given)
    assert abs(mine.count("new") * 10 - len(mine)) <= 10


async def test_a_busy_canary_does_not_starve_the_old_side_beside_another_workload() -> None:
    canary = replace(CHAT, canary_hash="new", canary_percent=10, max_in_flight=1000)
    other = replace(CHAT, key=WorkloadKey("team", "chat-2"), uid="w2", max_in_flight=1000)
    bench = _Bench(canary, other)
    for uid, workload, spec in (
        ("old-1", "w", "old"),
        ("old-2", "w", "old"),
        ("old-3", "w", "old"),
        ("new", "w", "new"),
        ("plain", "w2", "x"),
    ):
        bench.replica(uid, workload, spec)
    given = []
    for _ in range(1000):
        replica = await bench.ask()
        given.append(replica.uid)
        if replica.uid != "new":  # the canary hangs
            bench.dispatcher.release(bench.route, replica)
    old = [given.count(f"old-{number}") for number in (1, 2, 3)]
    assert given.count("plain") <= 260  # as many as each of three idle replicas
    assert min(old) >= 200
    assert max(old) - min(old) <= 3
    assert abs(given.count("new") * 10 - (1000 - given.count("plain"))) <= 10
