"""Power budgets on a real API server: a label limits a node, and who goes gives its power back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from llmos_operator.api import names
from llmos_operator.cluster import port as ports
from tests.support.tinymodels import write_model

if TYPE_CHECKING:
    from tests.support.operator_process import Bench

pytestmark = [pytest.mark.anyio, pytest.mark.component]


async def limit(bench: Bench, node: str, watts: str | None) -> None:
    """Label a node with a power budget, or take the label off."""
    labels = {"metadata": {"labels": {names.LABEL_POWER_BUDGET: watts}}}
    await bench.port.merge_patch(ports.NODES, node, labels)


async def waits_for(bench: Bench, name: str, words: str) -> None:
    """Wait until a workload says that it waits, and why."""

    async def said() -> bool:
        decision = ((await bench.workload(name)).get("status") or {}).get("decision") or {}
        return words in str(decision.get("message"))

    await bench.until(said, f"{name} says {words!r}")


async def test_a_node_gives_no_more_than_it_may_draw_and_gives_it_again(bench: Bench) -> None:
    await bench.node("n1", devices=2)
    await bench.devices("n1", 2, watts=300)
    await limit(bench, "n1", "350")  # 60 W idle, 270 W more for each at work
    bench.operator()
    uri = write_model(bench.hub, "acme/tiny")
    await bench.apply("first", uri)
    await bench.until_phase("first", "Running")
    await bench.apply("second", uri)
    await waits_for(
        bench, "second", "PowerBudgetExceeded (the power budget of n1 leaves 20 W of the 270 W needed)"
    )
    await limit(bench, "n1", "lots")
    await waits_for(bench, "second", "label llmos.dev/power-budget of n1 is 'lots': give whole watts")
    await limit(bench, "n1", "350")
    await bench.delete("first")
    await bench.until_phase("second", "Running")
