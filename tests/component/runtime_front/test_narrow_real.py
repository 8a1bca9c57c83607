"""The operator's side of a narrower format against a real runtime with a real model: told, watched, counted, given back."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from llmos_operator.actuators.runtime_client import RuntimeClient
from llmos_operator.api.runtime.memory import ModelShape
from llmos_operator.clock import SystemClock
from llmos_operator.control.records import Records
from llmos_operator.control.yielding import Yielding
from llmos_operator.scheduler.narrowing import narrowed
from llmos_operator.scheduler.policy import Policy
from llmos_operator.state.replicas import Replica
from llmos_operator.state.store import Store
from llmos_operator.state.types import Sharing
from tests.support.builders import a_node, a_profile, gpu
from tests.support.models import CHAT, packaged
from tests.support.replicas import a_claim_of, a_pod_of, a_work
from tests.support.served import LOAD_SECONDS, MIB, runtime_process

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from llmos_operator.state.types import Pod

pytestmark = [pytest.mark.anyio, pytest.mark.model]

ADDRESS = "127.99.8.34"
LIMIT = 1400 * MIB
SMOL = ModelShape("LlamaForCausalLM", 106_168_320, 28_311_552, 35_136, 30, 576, 1536, 9, 3, 64, 49_152, 8192)


class Side:
    """One replica as the operator holds it, with what is said of it."""

    def __init__(self, client: RuntimeClient, pod: Pod) -> None:
        self.store, self.records, self.said = Store(), Records(), list[str]()
        self.key = pod.key
        node = a_node("n1").with_host("8", "64Gi").with_gpus(1)
        assert node.gpus is not None
        self.store.apply_node(node.node)
        self.store.apply_gpu_node(node.gpus)
        self.store.apply_pod(pod)
        self.records.put_replica(Replica(pod.key, pod.uid, "uid-1", ip=ADDRESS, running=True, ready=True))
        self.lowering = SimpleNamespace(raised=set(), yielded=self._yielded, refused=self._refused)
        parts: Any = (self.store, self.records, client, self.lowering, SystemClock())
        self.yielding = Yielding(*parts, timeout=1.0, may_act=lambda: True, narrowing_timeout=LOAD_SECONDS)

    def _yielded(self, pod: Pod) -> None:
        self.store.note_yielded(pod.key, pod.uid)
        self.said.append("yielded")

    def _refused(self, pod: Pod, why: str) -> None:
        self.store.restore_memory(pod.key, pod.uid)
        self.said.append(why)

    def pod(self) -> Pod:
        pod = self.store.pod(self.key)
        assert pod is not None
        assert pod.claim is not None
        return pod

    async def turns_until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(LOAD_SECONDS):
            while not holds():
                await self.yielding.turn()
                await asyncio.sleep(0.1)


async def test_a_real_runtime_serves_at_int8_keeps_to_what_was_planned_and_goes_back(tmp_path: Path) -> None:
    options = {
        "LLMOS_FORMAT": "bf16",
        "LLMOS_FORMATS": "bf16,int8,int4",
        "LLMOS_MAX_MODEL_LEN": "2048",
        "LLMOS_MEMORY_LIMIT_BYTES": str(LIMIT),
    }
    with runtime_process(tmp_path, str(packaged(CHAT)), ADDRESS, **options) as served:
        memory = served.report()["memory"]
        client = RuntimeClient(lambda _: "t", port=18801)
        work = a_work()
        shared = {"devices": (gpu("n1", 0),), "sharing": Sharing.SHARED, "compute_milli": 100}
        claim = a_claim_of(work, bytes_per_device=LIMIT, format="bf16", max_model_len=2048, **shared)
        side = Side(client, a_pod_of(work, ready=True, claim=claim))
        profile = a_profile("hf://org/smol", SMOL, base_bytes=memory["baseBytes"])
        try:
            # What the scheduler says it would keep is enough for a real one.
            found = narrowed(claim, work, profile, Policy())
            assert found is not None
            name, left = found
            assert name == "int8"
            assert side.store.ask_to_lower(side.key, side.pod().uid, left, 0.0, fmt=name)
            await side.turns_until(lambda: bool(side.said))
            assert side.said == ["yielded"]
            report = served.report()
            assert (report["model"]["format"], report["memory"]["limitBytes"]) == ("int8", left)
            assert report["memory"]["measuredBytes"] <= left
            assert (side.pod().claim.held_bytes, side.pod().claim.served_format) == (left, "int8")  # type: ignore[union-attr]
            answer = await asyncio.to_thread(
                served.client.completions.create, model="m", prompt="The capital of France is", max_tokens=8
            )
            assert answer.system_fingerprint.split("-")[1] == "int8"

            assert side.store.restore_memory(side.key, side.pod().uid)
            side.lowering.raised.add(side.key)
            await side.turns_until(lambda: not side.lowering.raised)
            report = served.report()
            assert (report["model"]["format"], report["memory"]["limitBytes"]) == ("bf16", LIMIT)
        finally:
            await client.close()
