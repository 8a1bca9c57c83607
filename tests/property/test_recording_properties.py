"""A cycle that was written to a file and read again is the same cycle, and leads to the same plan byte for byte."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given

from llmos_operator.scheduler.cycle import plan
from llmos_operator.scheduler.policy import Policy
from llmos_operator.scheduler.recording import Recording, dump, load, plan_document, plan_text, replay
from tests.support.builders import NOW
from tests.support.plans import carry_out
from tests.support.strategies import clusters

if TYPE_CHECKING:
    from tests.support.builders import ClusterBuilder

POLICY = Policy()


def recorded(cluster: ClusterBuilder) -> Recording:
    snapshot = cluster.snapshot()
    return Recording(snapshot, POLICY, NOW, None, plan_document(plan(snapshot, POLICY, NOW)))


@given(clusters(instances=True))
def test_a_recorded_cycle_is_read_back_and_planned_to_the_same_bytes(cluster: ClusterBuilder) -> None:
    for _ in range(2):
        written = recorded(cluster)
        text = dump(written, "1")
        found = load(text)
        assert found == written
        assert plan_text(plan_document(replay(found))) == plan_text(written.plan or {})
        assert dump(found, "1") == text
        carry_out(cluster, replay(written))  # and once more with evictions and nominations in it
