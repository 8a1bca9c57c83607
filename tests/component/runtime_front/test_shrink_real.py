"""The operator's side of a shrink against a real runtime with a real model: told, watched, counted, and told again."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from llmos_operator.actuators.runtime_client import RuntimeClient
from llmos_operator.clock import SystemClock
from llmos_operator.control.records import Records
from llmos_operator.control.yielding import Yielding
from llmos_operator.state.replicas import Replica
from llmos_operator.state.store import Store
from tests.support.builders import a_node, gpu
from tests.support.models import CHAT, packaged
from tests.support.replicas import a_claim_of, a_pod_of, a_work
from tests.support.served import MIB, runtime_process

if TYPE_CHECKING:
    from pathlib import Path

    from llmos_operator.state.types import Pod
    from tests.support.served import Served

pytestmark = [pytest.mark.anyio, pytest.mark.model]

ADDRESS = "127.99.8.20"
LIMIT = 1200 * MIB
SECONDS = 60.0  # to come down, on a busy machine


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
        self.yielding = Yielding(*parts, timeout=SECONDS, may_act=lambda: True)

    def _yielded(self, pod: Pod) -> None:
        self.store.note_yielded(pod.key, pod.uid)
        self.said.append("yielded")

    def _refused(self, pod: Pod, why: str) -> None:
        self.store.restore_memory(pod.key, pod.uid)
        self.lowering.raised.add(pod.key)
        self.said.append(why)

    async def ask(self, asked: int) -> str:
        """Ask for a shrink and return what came of it."""
        pod = self.store.pod(self.key)
        assert pod is not None
        assert self.store.ask_to_lower(pod.key, pod.uid, asked, 0.0)
        self.said.clear()
        task = asyncio.create_task(self.yielding.run())
        async with asyncio.timeout(SECONDS * 2):
            while not self.said:
                await asyncio.sleep(0.1)
        task.cancel()
        return self.said[0]


def fill(served: Served) -> None:
    """Leave the caches of four long conversations behind."""
    for number in range(4):
        text = " ".join(f"{number} {place}" for place in range(400))
        served.client.completions.create(
            model="m", prompt=text[:1800], max_tokens=1, extra_body={"ignore_eos": True}
        )


async def test_a_real_runtime_comes_down_is_seen_to_have_and_goes_on_serving(tmp_path: Path) -> None:
    options = {"LLMOS_FORMAT": "bf16", "LLMOS_MAX_MODEL_LEN": "2048"}
    with runtime_process(tmp_path, str(packaged(CHAT)), ADDRESS, **options) as served:
        await asyncio.to_thread(fill, served)
        memory = served.report()["memory"]
        client = RuntimeClient(lambda _: "t", port=18801)
        work = a_work()
        side = Side(
            client,
            a_pod_of(
                work, ready=True, claim=a_claim_of(work, devices=(gpu("n1", 0),), bytes_per_device=LIMIT)
            ),
        )
        least = memory["baseBytes"] + memory["weightsBytes"]
        try:
            asked = (memory["neededBytes"] + memory["measuredBytes"]) // 2  # the old conversations have to go
            assert await side.ask(asked) == "yielded"
            report = served.report()["memory"]
            assert report["limitBytes"] == asked >= report["measuredBytes"]
            pod = side.store.pod(side.key)
            assert pod is not None
            assert pod.claim is not None
            assert pod.claim.held_bytes == asked
            answer = await asyncio.to_thread(
                served.client.completions.create, model="m", prompt="The capital of France is", max_tokens=8
            )
            assert answer.usage is not None
            assert answer.usage.completion_tokens > 0

            # Given back, and asked for more than it can give.
            side.store.restore_memory(side.key, pod.uid)
            side.lowering.raised.add(side.key)
            await side.yielding.turn()
            assert side.lowering.raised == set()
            side.yielding._timeout = 5.0
            refusal = await side.ask(least // 2)
            assert "were asked for" in refusal
            await side.yielding.turn()
            assert side.store.pod(side.key).claim.held_bytes == LIMIT  # type: ignore[union-attr]
            assert served.report()["memory"]["limitBytes"] == LIMIT
        finally:
            await client.close()
