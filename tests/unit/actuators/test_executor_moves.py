"""Moves: the target is on the pod before the eviction is sent, and off it again where that is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from llmos_operator.api import names
from llmos_operator.api.conditions import Reason
from llmos_operator.cluster.failures import Disrupted, Forbidden
from llmos_operator.cluster.port import PODS
from llmos_operator.scheduler.plan import Move
from llmos_operator.state.types import PodPhase
from tests.support.executor import Bench, a_bench

if TYPE_CHECKING:
    from llmos_operator.state.types import Pod

pytestmark = pytest.mark.anyio


async def a_move(bench: Bench) -> Move:
    """Let a replica run, and return its move to the node's other device."""
    bind = bench.bind()
    bench.carry_out(bind)
    await bench.idle()
    bench.heard.said.clear()
    bench.port.calls.clear()
    pod = bench.store.pod(bind.claim.pod)
    assert pod is not None
    target = replace(bind.claim, devices=("GPU-n1-1",))
    reason = Reason.MOVED
    return Move(pod.key, pod.uid, "n1", "team/chat", "uid-1", target, 1, reason, "moved", "team/big")


def pod_of(bench: Bench, move: Move) -> Pod:
    pod = bench.store.pod(move.pod)
    assert pod is not None
    return pod


async def claim_on(bench: Bench, move: Move) -> dict[str, Any]:
    body = await bench.port.get(PODS, move.pod.partition("/")[2], namespace="team")
    found: dict[str, Any] = json.loads(body["metadata"]["annotations"][names.ANNOTATION_CLAIM])
    return found


async def test_the_target_is_written_down_and_then_the_eviction_is_sent() -> None:
    async with a_bench() as bench:
        move = await a_move(bench)
        assert bench.carry_out(move) == 1
        assert pod_of(bench, move).phase is PodPhase.TERMINATING
        assert bench.carry_out(move) == 0
        await bench.idle()
        sent = [(verb, plural) for verb, plural, _ in bench.port.calls]
        assert sent == [("patch", "pods"), ("evict", "pods")]
        written = (await claim_on(bench, move))["target"]
        assert (written["node"], written["devices"], written["for"]) == ("n1", ["GPU-n1-1"], "team/big")
        assert f"moved {move.pod}" in bench.heard.said
        snapshot = bench.store.snapshot()
        assert snapshot.targets["uid-1", 0].devices == ("GPU-n1-1",)
        assert {"team/big", "team/chat"} <= set(snapshot.nominated)


async def test_a_disruption_budget_that_refuses_leaves_the_replica_and_its_claim_as_they_were() -> None:
    async with a_bench() as bench:
        move = await a_move(bench)
        before = await claim_on(bench, move)
        bench.port.calls.clear()
        bench.port.fail("evict", "pods", Disrupted("no disruption allowed"))
        bench.carry_out(move)
        await bench.idle()
        assert pod_of(bench, move).phase is PodPhase.BOUND
        assert bench.store.snapshot().targets == {}
        assert await claim_on(bench, move) == before
        assert f"not moved {move.pod}" in bench.heard.said
        assert bench.carry_out(move) == 0  # not before its time
        bench.clock.advance(60)
        assert bench.carry_out(move) == 1


async def test_nothing_is_evicted_where_the_target_cannot_be_written_down() -> None:
    async with a_bench() as bench:
        move = await a_move(bench)
        bench.port.fail("patch", "pods", Forbidden("no"))
        bench.carry_out(move)
        await bench.idle()
        assert "evict" not in [call[0] for call in bench.port.calls]
        assert pod_of(bench, move).phase is PodPhase.BOUND
        assert f"not moved {move.pod}" in bench.heard.said


async def test_another_pod_of_that_name_is_not_moved() -> None:
    async with a_bench() as bench:
        move = replace(await a_move(bench), pod_uid="some-older-uid")
        assert bench.carry_out(move) == 0
        assert pod_of(bench, move).phase is PodPhase.BOUND
