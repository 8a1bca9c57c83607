"""ResourceClaims of our pods: in which order they are written, to whom they yield, and how they end."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from llmos_operator.cluster.failures import Ambiguous, NotFound
from llmos_operator.cluster.port import PODS, RESOURCE_CLAIMS
from llmos_operator.cluster.reflector import Reflector
from llmos_operator.errors import Retryable
from llmos_operator.manifests.deviceclaim import FINALIZER, user
from llmos_operator.state.slices import Allocation, Handle, Slice, SliceDevice
from llmos_operator.state.types import Pod, PodPhase
from tests.support.executor import Bench, a_bench

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from llmos_operator.scheduler.plan import Bind

pytestmark = pytest.mark.anyio

NAME = "chat-0-abc"
KEY = f"team/{NAME}"
HANDLES = tuple(Handle("gpu.nvidia.com", "n1", f"gpu-{number}") for number in range(2))


@asynccontextmanager
async def a_dra_bench(*, shown: bool = True) -> AsyncIterator[Bench]:
    """Yield an executor on a node whose devices a driver publishes; unless `shown` the watch of claims tells nothing."""
    async with a_bench() as bench:
        state = bench.store.node("n1")
        assert state is not None
        assert state.node is not None
        bench.store.apply_node(replace(state.node, gpus=0))
        told = tuple(SliceDevice(f"gpu-{number}", f"GPU-n1-{number}") for number in range(2))
        bench.store.apply_slice(Slice("s1", "n1", "n1", devices=told))
        watch = asyncio.create_task(Reflector(bench.port, bench.claims).run()) if shown else None
        try:
            yield bench
        finally:
            if watch is not None:
                watch.cancel()
                await asyncio.gather(watch, return_exceptions=True)


def claiming(bench: Bench) -> Bind:
    bind = bench.bind()
    return replace(bind, claim=replace(bind.claim, resource_claim=NAME))


async def the_claim(bench: Bench) -> dict[str, Any]:
    return await bench.port.get(RESOURCE_CLAIMS, NAME, namespace="team")


def writes(bench: Bench) -> list[tuple[str, str]]:
    return [(verb, kind) for verb, kind, _ in bench.port.writes() if kind != "secrets"]


async def test_a_claim_has_its_devices_before_the_pod_is_there_and_is_reserved_after() -> None:
    async with a_dra_bench() as bench:
        bench.carry_out(claiming(bench))
        await bench.idle()
        assert writes(bench) == [
            ("create", "resourceclaims"),
            ("patch", "resourceclaims"),
            ("create", "pods"),
            ("patch", "resourceclaims"),
        ]
        found = await the_claim(bench)
        allocation = found["status"]["allocation"]
        assert allocation["devices"]["results"] == [
            {"request": "devices", "driver": "gpu.nvidia.com", "pool": "n1", "device": "gpu-0"}
        ]
        (term,) = allocation["nodeSelector"]["nodeSelectorTerms"]
        assert term["matchFields"] == [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]
        (pod,) = (await anext(bench.port.list_pages(PODS))).items
        assert found["status"]["reservedFor"] == [user(pod["metadata"]["name"], pod["metadata"]["uid"])]
        assert found["metadata"]["finalizers"] == [FINALIZER]


async def test_a_device_that_another_claim_has_by_now_is_left_and_no_pod_is_made() -> None:
    async with a_dra_bench() as bench:
        bind = claiming(bench)
        bench.carry_out(bind)
        bench.store.apply_allocation(Allocation("other/rival", (HANDLES[0],)))
        await bench.idle()
        assert bench.store.pod(bind.claim.pod) is None
        assert bench.pods_created() == 0
        assert bench.heard.said == ["settled team/chat"], "that is no failure of the workload"


async def test_a_claim_that_comes_before_ours_in_the_watch_is_yielded_to() -> None:
    async with a_dra_bench() as bench:
        bind = claiming(bench)
        note = bench.device_claims.note

        def with_rival(body: dict[str, Any]) -> None:
            if body.get("status"):
                bench.store.apply_allocation(Allocation("other/rival", (HANDLES[0],)))
            note(body)

        bench.device_claims.note = with_rival  # type: ignore[method-assign]
        bench.carry_out(bind)
        await bench.idle()
        assert (await the_claim(bench))["status"]["allocation"], "it was written"
        assert bench.pods_created() == 0
        assert bench.store.pod(bind.claim.pod) is None


@pytest.mark.parametrize("done", [True, False], ids=["was done", "was lost"])
async def test_a_device_lost_after_a_create_in_doubt_is_held_while_the_pod_may_be_there(done: bool) -> None:
    async with a_dra_bench() as bench:
        bench.patient = True
        bind = claiming(bench)
        bench.port.fail("create", "pods", Ambiguous("lost"), done=done)
        bench.carry_out(bind)
        while not bench.kept:
            await asyncio.sleep(0)
        bench.store.apply_allocation(Allocation("other/rival", (HANDLES[0],)))
        bench.kept.pop()()
        await bench.idle()
        found = bench.store.pod(bind.claim.pod)
        assert (found is not None) is done, "a pod that is there is taken away by the look at claims"
        assert len((await anext(bench.port.list_pages(PODS))).items) == done
        if found is not None:
            assert (found.phase, bool(found.uid)) == (PodPhase.BOUND, True)


async def test_a_device_that_is_no_longer_published_is_decided_again() -> None:
    async with a_dra_bench() as bench:
        bind = claiming(bench)
        bench.carry_out(bind)
        bench.store.delete_slice("s1")
        await bench.idle()
        assert bench.pods_created() == 0
        assert bench.heard.errors == []


async def test_two_that_wait_for_one_claim_both_see_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async with a_dra_bench(shown=False) as bench:
        bind = claiming(bench)
        monkeypatch.setattr("llmos_operator.actuators.deviceclaims.SHOWN_SECONDS", 0.01)
        with pytest.raises(Retryable, match="has not shown"):
            await bench.device_claims.take(bind.claim)
        monkeypatch.setattr("llmos_operator.actuators.deviceclaims.SHOWN_SECONDS", 60.0)
        stays = asyncio.create_task(bench.device_claims.take(bind.claim))
        leaves = asyncio.create_task(bench.device_claims.take(bind.claim))
        while not bench.device_claims._waiting:
            await asyncio.sleep(0)
        for _ in range(20):  # both wait by then
            await asyncio.sleep(0)
        leaves.cancel()
        await asyncio.gather(leaves, return_exceptions=True)
        bench.claims.observe("MODIFIED", await the_claim(bench))
        async with asyncio.timeout(30):
            await stays
        assert not bench.device_claims._waiting


async def test_a_claim_that_lost_its_label_is_told_and_not_written_again_each_turn() -> None:
    async with a_dra_bench() as bench:
        bind = claiming(bench)
        bench.carry_out(bind)
        await bench.idle()
        bare = {"metadata": {"labels": {"app.kubernetes.io/managed-by": None}}}
        await bench.port.merge_patch(RESOURCE_CLAIMS, NAME, bare, namespace="team")
        pod = bench.store.pod(bind.claim.pod)
        assert pod is not None
        assert pod.claim is not None
        before = len(bench.port.calls)
        for _ in range(5):
            bench.device_claims.mend(pod, pod.claim)
            await bench.idle()
        tried = [
            call for call in bench.port.calls[before:] if call[1] == "resourceclaims" and call[0] == "create"
        ]
        assert len(tried) == 1, "it waits longer each time, as after any failure"


async def test_somebody_elses_claim_of_the_name_is_told_and_left_alone() -> None:
    async with a_dra_bench() as bench:
        theirs = {"metadata": {"name": NAME, "namespace": "team"}, "spec": {}}
        await bench.port.create(RESOURCE_CLAIMS, theirs, namespace="team")
        bench.carry_out(claiming(bench))
        await bench.idle()
        assert "exists that is not the operator's; delete it" in str(bench.heard.errors[0])
        assert "status" not in await the_claim(bench)


async def test_no_pod_is_made_before_the_watch_has_shown_the_allocation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("llmos_operator.actuators.deviceclaims.SHOWN_SECONDS", 0.01)
    async with a_dra_bench(shown=False) as bench:
        bench.patient = True
        bind = claiming(bench)
        bench.carry_out(bind)
        while not bench.kept:
            await asyncio.sleep(0)
        assert bench.pods_created() == 0
        assert isinstance(bench.heard.errors[0], Retryable)
        held = bench.store.pod(bind.claim.pod)
        assert held is not None
        assert held.phase is PodPhase.ASSUMED, "its devices stay held"
        bench.claims.observe("MODIFIED", await the_claim(bench))
        bench.kept.pop()()
        await bench.idle()
        assert bench.pods_created() == 1


@pytest.mark.parametrize("lost", [0, 1], ids=["create", "allocation"])
async def test_a_write_that_fails_for_now_is_repeated_under_the_same_name(lost: int) -> None:
    async with a_dra_bench() as bench:
        bench.port.fail(["create", "patch"][lost], "resourceclaims", Retryable("down"), times=2)
        bench.carry_out(claiming(bench))
        await bench.idle()
        assert bench.pods_created() == 1
        assert len((await anext(bench.port.list_pages(RESOURCE_CLAIMS))).items) == 1


async def test_pods_that_use_the_claim_beside_ours_stay_in_it() -> None:
    async with a_dra_bench() as bench:
        bind = claiming(bench)
        await bench.device_claims.take(bind.claim)
        other = user("other", "uid-other")
        await bench.port.merge_patch(
            RESOURCE_CLAIMS,
            NAME,
            {"status": {"reservedFor": [other]}},
            namespace="team",
            subresource="status",
        )
        await bench.device_claims.reserve(bind.claim, "uid-ours")
        await bench.device_claims.reserve(bind.claim, "uid-ours")
        name = bind.claim.pod.partition("/")[2]
        assert (await the_claim(bench))["status"]["reservedFor"] == [other, user(name, "uid-ours")]

        bench.device_claims.release(Allocation(KEY, (HANDLES[0],), pod=bind.claim.pod))
        await bench.idle()
        assert (await the_claim(bench))["status"]["allocation"], "its device is in use"


async def test_a_claim_is_taken_back_whatever_is_left_of_it() -> None:
    async with a_dra_bench() as bench:
        bind = claiming(bench)
        await bench.device_claims.take(bind.claim)
        await bench.device_claims.reserve(bind.claim, "uid-ours")
        bench.port.fail("patch", "resourceclaims", Retryable("down"))
        one = Allocation(KEY, (HANDLES[0],), pod=bind.claim.pod)
        bench.device_claims.release(one)
        await bench.idle()
        bench.device_claims.release(one)
        await bench.idle()
        assert (await the_claim(bench))["status"]["allocation"], "it is not tried again at once"
        bench.clock.advance(60)
        bench.device_claims.release(one)
        await bench.idle()
        with pytest.raises(NotFound):
            await the_claim(bench)
        bench.device_claims.release(one)  # gone already: nothing is wrong with that
        await bench.idle()


async def test_a_claim_is_not_taken_from_a_pod_that_was_reserved_meanwhile() -> None:
    async with a_dra_bench() as bench:
        bind = claiming(bench)
        await bench.device_claims.take(bind.claim)
        await bench.device_claims.reserve(bind.claim, "uid-ours")
        bench.store.apply_pod(Pod(bind.claim.pod, "uid-ours", "n1"))  # its annotation is not believed
        bench.device_claims.release(Allocation(KEY, (HANDLES[0],), pod=bind.claim.pod))
        await bench.idle()
        assert (await the_claim(bench))["status"]["allocation"], "its device is in use"
        bench.store.delete_pod(bind.claim.pod)
        bench.clock.advance(60)
        bench.device_claims.release(Allocation(KEY, (HANDLES[0],), pod=bind.claim.pod))
        await bench.idle()
        with pytest.raises(NotFound):
            await the_claim(bench)


async def test_a_claim_that_was_deleted_under_a_pod_is_made_again() -> None:
    async with a_dra_bench() as bench:
        bind = claiming(bench)
        bench.carry_out(bind)
        await bench.idle()
        await bench.port.merge_patch(
            RESOURCE_CLAIMS, NAME, {"metadata": {"finalizers": []}}, namespace="team"
        )
        await bench.port.delete(RESOURCE_CLAIMS, NAME, namespace="team")
        while bench.store.allocation(KEY) is not None:
            await asyncio.sleep(0)
        pod = bench.store.pod(bind.claim.pod)
        assert pod is not None
        assert pod.claim is not None
        bench.device_claims.mend(pod, pod.claim)
        await bench.idle()
        found = await the_claim(bench)
        assert found["status"]["allocation"]
        assert [one["uid"] for one in found["status"]["reservedFor"]] == [pod.uid]
