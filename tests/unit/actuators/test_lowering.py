"""Claims that are lowered and given back: the ledger first, the pod's annotation after it, the last word always there."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from llmos_operator.api import names
from llmos_operator.api.conditions import Reason
from llmos_operator.cluster.failures import Ambiguous, Forbidden
from llmos_operator.cluster.port import PODS
from llmos_operator.scheduler.plan import Restore, Shrink, Sleep, Wake
from llmos_operator.state import convert
from llmos_operator.state.store import Store
from llmos_operator.state.types import Sleeping
from tests.support.executor import Bench, a_bench

if TYPE_CHECKING:
    from llmos_operator.state.types import Pod

pytestmark = pytest.mark.anyio

GIB = 1 << 30
LESS = 600 << 20


async def a_running_pod(bench: Bench) -> Pod:
    bind = bench.bind()
    bench.carry_out(bind)
    await bench.idle()
    bench.heard.said.clear()
    return bench.store.pod(bind.claim.pod)


def a_shrink(pod: Pod, left: int = LESS) -> Shrink:
    return Shrink(
        pod.key, pod.uid, pod.node, "team/chat", "uid-1", left, 1, Reason.PREEMPTED, "room", "team/urgent"
    )


def a_restore(pod: Pod) -> Restore:
    return Restore(pod.key, pod.uid, pod.node, "team/chat", "uid-1", GIB, Reason.RESTORED, "room again")


async def annotation(bench: Bench, pod: Pod) -> dict[str, Any]:
    namespace, _, name = pod.key.partition("/")
    found = await bench.port.get(PODS, name, namespace=namespace)
    return json.loads(found["metadata"]["annotations"][names.ANNOTATION_CLAIM])


def reserved(bench: Bench) -> int:
    return sum(d.reserved_bytes for d in bench.store.node("n1").devices)


async def test_who_is_asked_counts_with_all_it_has_until_it_was_seen_to_have_come_down() -> None:
    async with a_bench() as bench:
        pod = await a_running_pod(bench)
        assert bench.carry_out(a_shrink(pod)) == 1
        await bench.idle()
        assert reserved(bench) == GIB
        assert (await annotation(bench, pod))["askedBytes"] == LESS
        assert "yielded" not in await annotation(bench, pod)
        bench.executor.lowering.yielded(bench.store.pod(pod.key))
        await bench.idle()
        assert reserved(bench) == LESS
        assert (await annotation(bench, pod))["yielded"] is True
        assert [word for word in bench.heard.said if "settled" not in word] == [
            f"shrunk {pod.key}",
            f"yielded {pod.key}",
        ]


async def test_a_ledger_rebuilt_from_the_pods_is_the_same_at_every_step() -> None:
    async with a_bench() as bench:
        pod = await a_running_pod(bench)

        async def rebuilt() -> int:
            store = Store()
            name = pod.key.partition("/")[2]
            store.apply_pod(convert.pod(await bench.port.get(PODS, name, namespace="team")))
            claim, own = store.pod(pod.key).claim, bench.store.pod(pod.key).claim
            assert claim == own
            return claim.held_bytes

        bench.carry_out(a_shrink(pod))
        await bench.idle()
        assert await rebuilt() == GIB
        bench.executor.lowering.yielded(bench.store.pod(pod.key))
        await bench.idle()
        assert await rebuilt() == LESS
        bench.carry_out(a_restore(pod))
        await bench.idle()
        assert await rebuilt() == GIB


async def test_nobody_is_asked_twice_and_only_the_pod_that_was_meant() -> None:
    async with a_bench() as bench:
        pod = await a_running_pod(bench)
        assert bench.carry_out(a_shrink(pod)) == 1
        assert bench.carry_out(a_shrink(pod, LESS // 2)) == 0
        await bench.idle()
        other = Shrink(pod.key, "another", "n1", "team/chat", "uid-1", LESS, 1, Reason.PREEMPTED, "room")
        assert bench.carry_out(other) == 0
        assert (await annotation(bench, pod))["askedBytes"] == LESS


async def test_the_workload_it_makes_room_for_keeps_its_turn() -> None:
    async with a_bench() as bench:
        pod = await a_running_pod(bench)
        bench.carry_out(a_shrink(pod))
        assert bench.store.snapshot().nominated["team/urgent"] > bench.clock.now()


async def test_who_does_not_come_down_keeps_all_and_is_left_alone_for_a_while() -> None:
    async with a_bench() as bench:
        pod = await a_running_pod(bench)
        bench.carry_out(a_shrink(pod))
        await bench.idle()
        bench.executor.lowering.refused(bench.store.pod(pod.key), "it uses more")
        await bench.idle()
        now = bench.store.pod(pod.key)
        assert reserved(bench) == GIB
        assert now.firm_until > bench.clock.now()
        assert "askedBytes" not in await annotation(bench, pod)
        assert bench.executor.lowering.raised == {pod.key}
        assert f"not shrunk {pod.key}" in bench.heard.said


async def test_a_write_in_doubt_is_repeated_with_what_holds_by_then() -> None:
    async with a_bench() as bench:
        pod = await a_running_pod(bench)
        bench.port.fail("patch", "pods", Ambiguous("lost"))
        bench.patient = True
        bench.carry_out(a_shrink(pod))
        for _ in range(50):
            if bench.kept:
                break
            await asyncio.sleep(0)
        bench.executor.lowering.yielded(bench.store.pod(pod.key))
        for call in bench.kept:
            call()
        bench.kept.clear()
        await bench.idle()
        assert (await annotation(bench, pod))["yielded"] is True


async def test_a_claim_that_cannot_be_written_down_is_not_lowered() -> None:
    async with a_bench() as bench:
        pod = await a_running_pod(bench)
        bench.port.fail("patch", "pods", Forbidden("no patch for you"))
        bench.carry_out(a_shrink(pod))
        await bench.idle()
        assert not bench.store.pod(pod.key).claim.lowered
        assert f"not shrunk {pod.key}" in bench.heard.said


async def test_what_the_fence_dropped_is_written_when_this_process_may_write_again() -> None:
    async with a_bench() as bench:
        pod = await a_running_pod(bench)
        bench.leading = False
        bench.carry_out(a_shrink(pod))
        await bench.idle()
        assert "askedBytes" not in await annotation(bench, pod)
        bench.leading = True
        bench.executor.resume()
        await bench.idle()
        assert (await annotation(bench, pod))["askedBytes"] == LESS


async def test_the_watch_cannot_lower_a_claim() -> None:
    async with a_bench() as bench:
        pod = await a_running_pod(bench)
        name = pod.key.partition("/")[2]
        forged = {**await annotation(bench, pod), "askedBytes": 1, "yielded": True}
        body = {"metadata": {"annotations": {names.ANNOTATION_CLAIM: json.dumps(forged)}}}
        bench.mirror.observe("MODIFIED", await bench.port.merge_patch(PODS, name, body, namespace="team"))
        assert reserved(bench) == GIB


def a_sleep(pod: Pod) -> Sleep:
    sleeping = Sleeping(LESS, GIB, 1.0, "team/urgent")
    return Sleep(
        pod.key, pod.uid, pod.node, "team/chat", "uid-1", sleeping, 1, Reason.PREEMPTED, "room", "team/urgent"
    )


def a_wake(pod: Pod) -> Wake:
    return Wake(pod.key, pod.uid, pod.node, "team/chat", "uid-1", Reason.AWAKE, "room again")


async def test_who_sleeps_counts_on_its_device_until_it_was_seen_to_and_on_its_node_at_once() -> None:
    async with a_bench() as bench:
        pod = await a_running_pod(bench)
        before = bench.store.node("n1").memory_bytes
        assert bench.carry_out(a_sleep(pod)) == 1
        await bench.idle()
        assert (reserved(bench), bench.store.node("n1").memory_bytes) == (GIB, before + GIB)
        assert "down" not in (await annotation(bench, pod))["sleeping"]
        bench.executor.lowering.asleep(bench.store.pod(pod.key))
        await bench.idle()
        assert (reserved(bench), bench.store.node("n1").memory_bytes) == (LESS, before + GIB)
        assert (await annotation(bench, pod))["sleeping"]["down"] is True
        assert bench.carry_out(a_wake(pod)) == 1
        await bench.idle()
        assert (reserved(bench), bench.store.node("n1").memory_bytes) == (GIB, before)
        assert "sleeping" not in await annotation(bench, pod)
        assert bench.executor.lowering.waking == {pod.key}
        assert [word for word in bench.heard.said if "settled" not in word] == [
            f"put to sleep {pod.key}",
            f"fell asleep {pod.key}",
            f"woken {pod.key}",
        ]


async def test_a_sleep_that_cannot_be_written_down_is_undone() -> None:
    async with a_bench() as bench:
        pod = await a_running_pod(bench)
        bench.port.fail("patch", "pods", Forbidden("no patch for you"))
        bench.carry_out(a_sleep(pod))
        await bench.idle()
        assert bench.store.pod(pod.key).claim.sleeping is None
        assert f"not slept {pod.key}" in bench.heard.said


async def test_the_devices_a_pod_was_given_are_written_into_its_claim() -> None:
    async with a_bench() as bench:
        pod = await a_running_pod(bench)
        node = bench.store.node(pod.node)
        (other,) = [one.device for one in node.devices if one.uuid not in pod.claim.devices][:1]
        devices = tuple(
            replace(one.device, holders=(pod.key,)) if one.device is other else one.device
            for one in node.devices
        )
        bench.store.apply_gpu_node(replace(node.gpu, devices=devices))
        for corrected in bench.store.take_corrected():
            bench.executor.lowering.corrected(corrected)
        await bench.idle()
        assert (await annotation(bench, pod))["devices"] == [other.uuid]
