"""What is done about sick devices is written before it is done, and a restarted operator reads it back."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmos_operator.api.conditions import Reason
from llmos_operator.cluster import port as ports
from llmos_operator.errors import Retryable
from llmos_operator.scheduler.plan import Evict
from llmos_operator.state import convert
from llmos_operator.state.care import NODE, Care, Phase, Treatment
from llmos_operator.state.store import Store
from tests.support.builders import a_node
from tests.support.executor import Bench, a_bench

pytestmark = pytest.mark.anyio


async def an_evictable(bench: Bench, reason: Reason = Reason.GPU_UNHEALTHY) -> Evict:
    await bench.port.create(ports.GPU_NODES, {"metadata": {"name": "n1"}})
    bind = bench.bind()
    bench.carry_out(bind)
    await bench.idle()
    pod = bench.store.pod(bind.claim.pod)
    assert pod is not None
    return Evict(pod.key, pod.uid, "n1", bind.workload.key, bind.workload.uid, 0, reason, "it is sick")


async def test_taking_work_off_a_sick_device_is_written_down_first() -> None:
    async with a_bench() as bench:
        evict = await an_evictable(bench)
        bench.carry_out(evict)
        await bench.idle()
        verbs = [(verb, plural) for verb, plural, _ in bench.port.writes()]
        assert verbs[-2:] == [("apply", "gpunodes"), ("evict", "pods")]
        body = await bench.port.get(ports.GPU_NODES, "n1")
        assert convert.gpu_node(body).care.disturbed_at == pytest.approx(bench.clock.now(), abs=1.0)


async def test_what_cannot_be_written_down_is_not_done() -> None:
    async with a_bench() as bench:
        evict = await an_evictable(bench)
        bench.port.fail("apply", "gpunodes", Retryable("down", after=1.0))
        bench.carry_out(evict)
        await bench.idle()
        assert not [call for call in bench.port.calls if call[0] == "evict"]
        assert bench.heard.said[-2:] == [f"refused {evict.pod}", f"settled {evict.victim}"]


async def test_the_gate_holds_what_a_plan_of_an_older_snapshot_asks_for() -> None:
    async with a_bench() as bench:
        evict = await an_evictable(bench)
        other = a_node("n2").with_gpus(1)
        assert other.gpus is not None
        bench.store.apply_gpu_node(other.gpus)
        assert bench.store.disturb("n2", bench.clock.now(), bench.breaker)
        assert bench.carry_out(evict) == 0
        assert bench.carry_out(replace(evict, reason=Reason.PREEMPTED)) == 1, "others are not its business"


async def test_care_comes_back_from_the_api_as_it_was() -> None:
    async with a_bench() as bench:
        await bench.port.create(ports.GPU_NODES, {"metadata": {"name": "n1"}})
        now = float(int(bench.clock.now()))
        treatments = (
            Treatment("GPU-n1-0", "DrainAndReset", "DoubleBitEcc", Phase.PROBATION, now - 5, 2),
            Treatment(NODE, "RebootNode", "FallenOffBus", Phase.DRAINING, now),
        )
        care = Care(now, cordoned=True, treatments=treatments)
        bench.store.set_care("n1", care)
        assert bench.care.dirty() == ["n1"]
        await bench.care.write("n1")
        assert bench.care.dirty() == []
        read = convert.gpu_node(await bench.port.get(ports.GPU_NODES, "n1"))
        assert read.care == care
        restarted = Store()
        restarted.apply_gpu_node(read)
        assert restarted.care("n1") == care
        assert not restarted.disturb("n2", now, bench.breaker), "the breaker remembers, too"


async def test_an_older_event_does_not_undo_what_was_decided_since() -> None:
    async with a_bench() as bench:
        node = bench.store.node("n1")
        assert node is not None
        assert node.gpu is not None
        before = node.gpu
        bench.store.set_care("n1", Care(5.0))
        bench.store.apply_gpu_node(replace(before, driver="999"))
        assert bench.store.care("n1") == Care(5.0)
        bench.store.delete_gpu_node("n1")
        bench.store.apply_gpu_node(before)
        assert bench.store.care("n1") == Care(), "another GPUNode of the same name is another one"
