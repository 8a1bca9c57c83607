from __future__ import annotations

import asyncio
from typing import Any

import pytest

from llmos_operator.actuators.outcomes import Retire
from llmos_operator.actuators.support import ControlTokens
from llmos_operator.api.conditions import Reason
from llmos_operator.cluster.failures import Ambiguous, Forbidden, Invalid
from llmos_operator.cluster.port import MODEL_WORKLOADS, PODS, SECRETS
from llmos_operator.errors import Permanent, Retryable
from llmos_operator.scheduler.plan import Bind, Evict
from llmos_operator.state.types import PodPhase
from tests.support.executor import Bench, a_bench
from tests.support.replicas import a_claim_of, a_manifest, a_work

pytestmark = pytest.mark.anyio


async def test_a_bind_counts_at_once_and_becomes_a_pod() -> None:
    async with a_bench() as bench:
        bind = bench.bind()
        assert bench.carry_out(bind) == 1
        assert bench.store.pod(bind.claim.pod).phase is PodPhase.ASSUMED
        assert bench.executor.busy("team/chat")
        await bench.idle()
        assert bench.store.pod(bind.claim.pod).phase is PodPhase.BOUND
        assert bench.heard.said == [f"bound {bind.claim.pod}", "settled team/chat"]
        assert not bench.executor.busy("team/chat")


async def test_the_control_secret_is_made_once_for_a_namespace() -> None:
    async with a_bench() as bench:
        bench.carry_out(bench.bind(0, replicas=2), bench.bind(1, replicas=2))
        await bench.idle()
        secret = await bench.port.get(SECRETS, "llmos-runtime-control", namespace="team")
        assert secret["stringData"]["token"] == ControlTokens(b"k" * 16).token("team")
        reads = [call for call in bench.port.calls if call[1] == "secrets" and call[0] in {"list", "watch"}]
        assert reads == []


async def test_the_same_device_is_not_given_twice() -> None:
    async with a_bench() as bench:
        bench.carry_out(bench.bind(0))
        rival = a_work("rival", "uid-2")
        claim = a_claim_of(rival, devices=("GPU-n1-0",))
        bench.store.apply_workload(rival)
        assert bench.carry_out(Bind(rival, claim, 1, Reason.BOUND, "")) == 0
        await bench.idle()
        assert bench.pods_created() == 1


@pytest.mark.parametrize("error", [Invalid("bad field"), Forbidden("exceeded quota")])
async def test_a_pod_that_is_refused_frees_its_claim(error: Exception) -> None:
    async with a_bench() as bench:
        bench.port.fail("create", "pods", error)  # type: ignore[arg-type]
        bind = bench.bind()
        bench.carry_out(bind)
        await bench.idle()
        assert bench.store.pod(bind.claim.pod) is None
        assert bench.heard.said == [f"failed {bind.claim.pod}", "settled team/chat"]


async def test_a_template_that_is_refused_frees_its_claim() -> None:
    async with a_bench() as bench:
        bind = bench.bind(podTemplate={"spec": {"hostNetwork": True}})
        bench.carry_out(bind)
        await bench.idle()
        assert bench.store.pod(bind.claim.pod) is None
        assert "hostNetwork" in str(bench.heard.errors[0])
        assert bench.pods_created() == 0


async def test_a_create_in_doubt_stays_assumed_until_it_is_known() -> None:
    async with a_bench() as bench:
        bench.port.fail("create", "pods", Ambiguous("lost"), times=3)
        bind = bench.bind()
        bench.carry_out(bind)
        while bench.pods_created() < 2:
            assert bench.store.pod(bind.claim.pod) is not None
            await asyncio.sleep(0)
        await bench.idle()
        assert bench.store.pod(bind.claim.pod).phase is PodPhase.BOUND


async def test_a_create_in_doubt_that_was_done_is_found_not_doubled() -> None:
    async with a_bench() as bench:
        bench.port.fail("create", "pods", Ambiguous("lost"), done=True)
        bind = bench.bind()
        bench.carry_out(bind)
        await bench.idle()
        assert len((await anext(bench.port.list_pages(PODS))).items) == 1
        assert f"bound {bind.claim.pod}" in bench.heard.said


async def test_creates_that_keep_failing_hold_no_slot_while_they_wait() -> None:
    async with a_bench() as bench:
        bench.patient = True
        failing = bench.bind(name="broken", uid="uid-broken")
        bench.port.fail("create", "pods", Ambiguous("webhook answered 500"), times=1)
        bench.carry_out(failing)
        while not bench.kept:
            await asyncio.sleep(0)
        assert not bench.queue._running
        assert bench.heard.said[0] == f"delayed {failing.claim.pod}"
        assert not bench.executor.busy(failing.workload.key)  # its status may say so
        other = bench.bind(1, name="other", uid="uid-other")
        bench.carry_out(other)
        while f"bound {other.claim.pod}" not in bench.heard.said:
            await asyncio.sleep(0)
        bench.kept.pop()()
        await bench.idle()
        assert f"bound {failing.claim.pod}" in bench.heard.said


async def test_each_repetition_of_a_create_waits_longer() -> None:
    async with a_bench() as bench:
        bench.port.fail("create", "pods", Ambiguous("webhook answered 500"), times=5)
        bench.carry_out(bench.bind())
        await bench.idle()
        assert len(bench.delays) == 5
        assert bench.delays == sorted(bench.delays)
        assert bench.delays[-1] > 2 * bench.delays[0]


async def test_a_create_in_doubt_of_a_workload_that_is_gone_is_forgotten() -> None:
    async with a_bench() as bench:
        bench.port.fail("create", "pods", Retryable("down"), times=3)
        bind = bench.bind()
        bench.carry_out(bind)
        bench.store.delete_workload("team/chat")
        await bench.idle()
        assert bench.store.pod(bind.claim.pod) is None


async def test_a_name_somebody_else_has_is_left_to_them() -> None:
    async with a_bench() as bench:
        bind = bench.bind()
        name = bind.claim.pod.partition("/")[2]
        await bench.port.create(PODS, {"metadata": {"name": name}, "spec": {}}, namespace="team")
        bench.carry_out(bind)
        await bench.idle()
        (error,) = bench.heard.errors
        assert isinstance(error, Permanent)
        assert error.reason == Reason.NAME_TAKEN
        assert bench.store.pod(bind.claim.pod) is None


async def test_a_former_leader_creates_nothing_and_counts_nothing() -> None:
    async with a_bench() as bench:
        bench.leading = False
        bind = bench.bind()
        bench.carry_out(bind)
        await bench.idle()
        assert bench.pods_created() == 0
        assert bench.store.pod(bind.claim.pod) is None
        assert not bench.executor.busy("team/chat")


async def test_what_was_in_doubt_when_the_lease_lapsed_is_taken_up_again() -> None:
    async with a_bench() as bench:
        bench.port.fail("create", "pods", Ambiguous("lost"), times=3)
        bind = bench.bind()
        bench.carry_out(bind)
        while bench.pods_created() < 3:
            await asyncio.sleep(0)
        bench.leading = False
        await bench.idle()
        assert (
            bench.store.pod(bind.claim.pod) is not None
        )  # still in doubt: its device must not be given away
        bench.leading = True
        bench.executor.resume()
        await bench.idle()
        assert bench.store.pod(bind.claim.pod).phase is PodPhase.BOUND


async def placed(bench: Bench) -> tuple[Bind, str]:
    bind = bench.bind()
    bench.carry_out(bind)
    await bench.idle()
    bench.heard.said.clear()
    return bind, bench.store.pod(bind.claim.pod).uid


def an_eviction(bind: Bind, uid: str, **changes: Any) -> Evict:
    values = {
        "pod": bind.claim.pod,
        "pod_uid": uid,
        "node": "n1",
        "victim": "team/chat",
        "victim_uid": "uid-1",
        "cost": 1,
        "reason": Reason.PREEMPTED,
        "explanation": "made room",
        "preemptor": "team/vip",
    }
    return Evict(**{**values, **changes})


async def test_an_eviction_nominates_whom_it_makes_room_for() -> None:
    async with a_bench() as bench:
        bind, uid = await placed(bench)
        bench.carry_out(an_eviction(bind, uid, preemptor="default/urgent"))
        assert "default/urgent" in bench.store.snapshot().nominated


async def test_a_nomination_follows_the_grace_of_the_victim() -> None:
    async with a_bench() as bench:
        bind, uid = await placed(bench)
        body = await bench.port.get(PODS, bind.claim.pod.partition("/")[2], namespace="team")
        grace = body["spec"]["terminationGracePeriodSeconds"]
        bench.carry_out(an_eviction(bind, uid, preemptor="default/urgent"))
        assert bench.store.snapshot().nominated["default/urgent"] == bench.clock.now() + grace


async def test_an_eviction_is_sent_once_and_the_pod_counts_as_ending() -> None:
    async with a_bench() as bench:
        bind, uid = await placed(bench)
        assert bench.carry_out(an_eviction(bind, uid)) == 1
        assert bench.store.pod(bind.claim.pod).phase is PodPhase.TERMINATING
        assert bench.carry_out(an_eviction(bind, uid)) == 0
        await bench.idle()
        assert [call[0] for call in bench.port.calls].count("evict") == 1
        assert bench.heard.said[0] == f"evicted {bind.claim.pod}"


async def test_a_disruption_budget_is_honoured_and_asked_again_later() -> None:
    async with a_bench() as bench:
        bind, uid = await placed(bench)
        bench.port.disruptions_allowed[bind.claim.pod] = 0
        bench.carry_out(an_eviction(bind, uid))
        await bench.idle()
        assert bench.heard.said[0] == f"refused {bind.claim.pod}"
        assert bench.store.pod(bind.claim.pod).phase is PodPhase.BOUND
        assert bench.heard.retry_at > bench.clock.now()
        assert bench.carry_out(an_eviction(bind, uid)) == 0  # not before its time
        bench.clock.advance(60)
        bench.port.disruptions_allowed[bind.claim.pod] = 1
        assert bench.carry_out(an_eviction(bind, uid)) == 1
        await bench.idle()
        assert f"evicted {bind.claim.pod}" in bench.heard.said


@pytest.mark.parametrize("jump", [-86_400.0, 86_400.0])
async def test_a_jump_of_the_wall_clock_neither_storms_nor_stalls(jump: float) -> None:
    async with a_bench() as bench:
        bind, uid = await placed(bench)
        bench.port.disruptions_allowed[bind.claim.pod] = 0
        bench.carry_out(an_eviction(bind, uid))
        await bench.idle()
        bench.clock.jump(jump)
        assert bench.carry_out(an_eviction(bind, uid)) == 0  # its wait is not over
        bench.clock.advance(60)
        assert bench.carry_out(an_eviction(bind, uid)) == 1  # now it is
        await bench.idle()


async def test_another_pod_under_the_victims_name_is_not_evicted() -> None:
    async with a_bench() as bench:
        bind, _ = await placed(bench)
        bench.carry_out(an_eviction(bind, "some-older-uid"))
        await bench.idle()
        body = await bench.port.get(PODS, bind.claim.pod.partition("/")[2], namespace="team")
        assert "deletionTimestamp" not in body["metadata"]
        assert bench.store.pod(bind.claim.pod).phase is PodPhase.BOUND


async def test_a_pod_whose_owner_only_seems_gone_is_spared() -> None:
    async with a_bench() as bench:
        bind, uid = await placed(bench)
        made = await bench.port.create(MODEL_WORKLOADS, a_manifest(), namespace="team")
        orphan = Retire(bind.claim.pod, uid, "team/chat", made["metadata"]["uid"], "Gone", "", orphan=True)
        assert bench.executor.retire(orphan)
        await bench.idle()
        body = await bench.port.get(PODS, bind.claim.pod.partition("/")[2], namespace="team")
        assert "deletionTimestamp" not in body["metadata"]


async def test_a_pod_whose_owner_is_gone_is_removed() -> None:
    async with a_bench() as bench:
        bind, uid = await placed(bench)
        assert bench.executor.retire(
            Retire(bind.claim.pod, uid, "team/chat", "uid-1", "Gone", "", orphan=True)
        )
        assert not bench.executor.retire(
            Retire(bind.claim.pod, uid, "team/chat", "uid-1", "Gone", "", orphan=True)
        )
        await bench.idle()
        assert f"retired {bind.claim.pod}" in bench.heard.said
