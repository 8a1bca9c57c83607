"""What is known of models nobody uses is forgotten, on a real API server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from llmos_operator.cluster import port as ports
from tests.support.operator_process import collect
from tests.support.tinymodels import write_model

if TYPE_CHECKING:
    from tests.support.operator_process import Bench

pytestmark = [pytest.mark.anyio, pytest.mark.component]


async def test_a_profile_goes_after_its_last_workload_and_others_stay(bench: Bench) -> None:
    kept, left = write_model(bench.hub, "acme/kept"), write_model(bench.hub, "acme/left")
    await bench.node("n1", devices=2)
    bench.operator(LLMOS_PROFILE_RETENTION="3")
    await bench.apply("stays", kept)
    await bench.apply("goes", left)
    for name in ("stays", "goes"):
        await bench.until_phase(name, "Running")

    async def known() -> dict[str, dict]:
        return {one["spec"]["uri"]: one for one in await collect(bench.port, ports.MODEL_PROFILES)}

    assert (await known()).keys() == {kept, left}
    await bench.delete("goes")

    async def marked() -> bool:
        found = (await known()).get(left)
        return found is None or "unusedSince" in found["status"]

    async def gone() -> bool:
        return (await known()).keys() == {kept}

    await bench.until(marked, "the profile is marked as unused")
    await bench.until(gone, "the profile is deleted")
    assert "unusedSince" not in (await known())[kept]["status"]
    await bench.apply("again", left)
    await bench.until_phase("again", "Running")
    assert (await known()).keys() == {kept, left}
