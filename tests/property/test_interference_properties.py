"""Interference moves work between places and never decides whether there is one; what is learned stays within its bounds."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from llmos_operator.api.runtime.messages import RequestStats, RuntimeState, RuntimeStatus
from llmos_operator.control.interference import Interference
from llmos_operator.control.metrics import OperatorMetrics
from llmos_operator.control.records import Records
from llmos_operator.scheduler.cycle import plan
from llmos_operator.scheduler.interference import MOST, subject_of
from llmos_operator.scheduler.policy import Policy
from llmos_operator.state.store import Store
from tests.property.test_ladder_properties import LADDER, pressed
from tests.support.builders import NOW, ClusterBuilder, a_cluster, a_node, a_workload
from tests.support.plans import assert_rests

WORST = Policy(
    require_queue=False, preemption=LADDER.preemption, interference_weight=LADDER.interference_weight * 100
)


@given(pressed(), st.data())
def test_what_fits_without_it_fits_with_it_and_nobody_else_is_displaced(
    asked: tuple[ClusterBuilder, object], data: st.DataObject
) -> None:
    cluster, workload = asked
    cluster.store.apply_workload(replace(workload, created_at=NOW))
    store = Store.of(cluster.snapshot())
    subjects = sorted({subject_of(one) for one in cluster.snapshot().workloads.values()})
    for first in subjects:
        for second in subjects:
            store.set_interference(first, second, data.draw(st.integers(0, 2 * MOST)))
    for policy in (LADDER, WORST):
        without, within = plan(cluster.snapshot(), policy, NOW), plan(store.snapshot(), policy, NOW)
        assert {b.claim.pod for b in within.binds} == {b.claim.pod for b in without.binds}
        assert [e.pod for e in within.displacements] == [e.pod for e in without.displacements]
        assert [(w.workload, w.reason) for w in within.waits] == [
            (w.workload, w.reason) for w in without.waits
        ]


@given(pressed(), st.integers(50, MOST))
def test_a_cluster_that_knows_of_it_comes_to_rest(asked: tuple[ClusterBuilder, object], milli: int) -> None:
    cluster, workload = asked
    cluster.store.apply_workload(replace(workload, created_at=NOW))
    subjects = sorted({subject_of(one) for one in cluster.snapshot().workloads.values()})
    for first in subjects:
        cluster.store.set_interference(first, subjects[0], milli)
    assert_rests(cluster, lambda snapshot: plan(snapshot, LADDER, NOW))


@st.composite
def reports(draw: st.DrawFn) -> list[tuple[float, dict[str, tuple[int, int]]]]:
    """Answers of two runtimes: seconds since the last, and (requests in progress, tokens since) of each."""
    one = st.tuples(st.sampled_from([0, 1, 1, 1, 9]), st.sampled_from([0, 1, 50, 5000]))
    return draw(
        st.lists(
            st.tuples(st.sampled_from([1.0, 10.0, 10.0, 100.0]), st.fixed_dictionaries({"a": one, "b": one}))
        )
    )


@given(reports(), st.integers(1, 40))
def test_whatever_runtimes_say_what_is_believed_is_a_bounded_loss(
    told: list[tuple[float, dict[str, tuple[int, int]]]], times: int
) -> None:
    cluster = a_cluster(a_node("n1").with_gpus(1))
    pods = {n: cluster.running(a_workload(n).shared(), "n1", [0], memory="8Gi") for n in ("a", "b")}
    records, now, tokens = Records(), NOW, dict.fromkeys(pods, 0)
    learner = Interference(OperatorMetrics(CollectorRegistry()), records)

    async def hear() -> None:
        nonlocal now
        for seconds, said in told * times:
            now += seconds
            for name, (running, grown) in said.items():
                tokens[name] += grown
                stats = RequestStats(running=running, generation_tokens=tokens[name])
                records.put_report(
                    pods[name].uid, RuntimeStatus(state=RuntimeState.READY, requests=stats), now
                )
            await learner.look(cluster.snapshot(), cluster.store, now)

    asyncio.run(hear())
    found = cluster.snapshot().interference
    assert found == learner.learned()
    assert all(0 < milli <= MOST for milli in found.values())
