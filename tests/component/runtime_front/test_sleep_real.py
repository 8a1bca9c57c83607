"""The operator's side of a sleep against a real runtime with a real model: told, watched, counted, and woken."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from llmos_operator.actuators.runtime_client import RuntimeClient
from llmos_operator.api.runtime.memory import ModelShape
from llmos_operator.clock import SystemClock
from llmos_operator.control.records import Records
from llmos_operator.control.sleepers import Sleepers
from llmos_operator.scheduler.policy import Policy
from llmos_operator.scheduler.sleeping import asleep_as
from llmos_operator.state.replicas import Replica
from llmos_operator.state.store import Store
from llmos_operator.state.types import Sharing
from tests.support.builders import a_node, a_profile, gpu
from tests.support.models import CHAT, packaged
from tests.support.replicas import a_claim_of, a_pod_of, a_work
from tests.support.served import MIB, runtime_process

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from llmos_operator.state.types import Pod, Sleeping
    from tests.support.served import Served

pytestmark = [pytest.mark.anyio, pytest.mark.model]

ADDRESS = "127.99.8.21"
LIMIT = 1200 * MIB
SECONDS = 60.0  # on a busy machine
SMOL = ModelShape("LlamaForCausalLM", 106_168_320, 28_311_552, 35_136, 30, 576, 1536, 9, 3, 64, 49_152, 8192)


class Side:
    """One replica as the operator holds it."""

    def __init__(self, client: RuntimeClient, pod: Pod) -> None:
        self.store, self.records, self.said = Store(), Records(), list[str]()
        self.key = pod.key
        node = a_node(pod.node).with_host("8", "64Gi").with_gpus(1)
        assert node.gpus is not None
        self.store.apply_node(node.node)
        self.store.apply_gpu_node(node.gpus)
        self.store.apply_pod(pod)
        self.records.put_replica(Replica(pod.key, pod.uid, "uid-1", ip=ADDRESS, running=True, ready=True))
        self.lowering = SimpleNamespace(waking=set(), asleep=self._asleep, not_slept=self._not_slept)
        parts: Any = (self.store, self.records, client, self.lowering, SystemClock())
        self.sleepers = Sleepers(*parts, timeout=SECONDS, may_act=lambda: True)

    def _asleep(self, pod: Pod) -> None:
        self.store.note_asleep(pod.key, pod.uid)
        self.said.append("asleep")

    def _not_slept(self, pod: Pod, why: str) -> None:
        self.store.wake(pod.key, pod.uid)
        self.lowering.waking.add(pod.key)
        self.said.append(why)

    async def turns_until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(SECONDS * 2):
            while not holds():
                await self.sleepers.turn()
                await asyncio.sleep(0.1)

    async def ask(self, sleeping: Sleeping) -> str:
        """Ask for a sleep and return what came of it."""
        pod = self.store.pod(self.key)
        assert pod is not None
        assert self.store.ask_to_sleep(pod.key, pod.uid, sleeping)
        self.said.clear()
        await self.turns_until(lambda: bool(self.said))
        return self.said[0]

    async def wake(self) -> None:
        pod = self.store.pod(self.key)
        assert pod is not None
        assert self.store.wake(pod.key, pod.uid)
        self.lowering.waking.add(pod.key)
        await self.turns_until(lambda: not self.lowering.waking)


def say(served: Served) -> str:
    answer = served.client.completions.create(
        model="m", prompt="The capital of France is", max_tokens=12, temperature=0
    )
    return answer.choices[0].text


async def until_ready(served: Served) -> None:
    async with asyncio.timeout(SECONDS):
        while served.status_of("/readyz") != 200:
            await asyncio.sleep(0.1)


async def test_a_real_runtime_sleeps_keeps_no_more_than_it_may_and_says_the_same_when_it_wakes(
    tmp_path: Path,
) -> None:
    options = {"LLMOS_FORMAT": "bf16", "LLMOS_MAX_MODEL_LEN": "2048"}
    with runtime_process(tmp_path, str(packaged(CHAT)), ADDRESS, **options) as served:
        before = await asyncio.to_thread(say, served)
        memory = served.report()["memory"]
        client = RuntimeClient(lambda _: "t", port=18801)
        work = a_work()
        shared = {"devices": (gpu("n1", 0),), "sharing": Sharing.SHARED, "compute_milli": 100}
        claim = a_claim_of(work, bytes_per_device=LIMIT, format="bf16", max_model_len=2048, **shared)
        side = Side(client, a_pod_of(work, ready=True, claim=claim))
        profile = a_profile("hf://org/smol", SMOL, base_bytes=memory["baseBytes"])
        try:
            # What the scheduler says it would keep is enough for a real one.
            sleeping = asleep_as(claim, work, profile, Policy(), 0.0, "team/urgent")
            assert sleeping is not None
            assert sleeping.bytes_per_device < memory["measuredBytes"] - memory["weightsBytes"] // 2
            assert await side.ask(sleeping) == "asleep"
            report = served.report()
            assert report["state"] == "Asleep"
            assert report["memory"]["hostBytes"] == memory["weightsBytes"]
            assert report["memory"]["measuredBytes"] <= sleeping.bytes_per_device
            assert served.status_of("/readyz") == 503
            assert served.status_of("/livez") == 200
            pod = side.store.pod(side.key)
            assert pod is not None
            assert pod.claim is not None
            assert pod.claim.held_bytes == sleeping.bytes_per_device

            await side.wake()
            await until_ready(served)
            assert served.report()["loadPath"] == "hot"
            assert await asyncio.to_thread(say, served) == before
        finally:
            await client.close()
