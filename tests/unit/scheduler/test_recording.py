from __future__ import annotations

import json
import math
from typing import Any

import pytest

from llmos_operator.api.conditions import Reason
from llmos_operator.scheduler.cycle import plan
from llmos_operator.scheduler.fragmentation.prices import Prices
from llmos_operator.scheduler.fragmentation.shapes import Shape
from llmos_operator.scheduler.fragmentation.worth import Worth
from llmos_operator.scheduler.policy import Policy
from llmos_operator.scheduler.recording import (
    BadRecording,
    Recording,
    dump,
    load,
    plan_document,
    plan_text,
    replay,
)
from llmos_operator.state.types import Hold, Model, Queue
from tests.support.builders import NOW, ClusterBuilder, a_cluster, a_node, a_profile, a_workload

POLICY = Policy()


def a_busy_cluster() -> ClusterBuilder:
    cluster = a_cluster(
        a_node("n1").with_gpus(4).labelled(zone="a").tainted("spare", effect="PreferNoSchedule"),
        a_node("n2").with_gpus(1).observed_using(0, "3Gi"),
        a_profile("hf://org/m"),
        Queue("aged", half_life=3600.0),
        a_workload("held"),
    ).with_priorities(low=1, high=9)
    cluster.store.note_refusal("n2", NOW + 60.0)
    cluster.running(a_workload("old").priority("low").in_queue("aged"), "n2", [0])
    cluster.store.set_hold("default/held", Hold(Reason.UNSUPPORTED, "not in this release", math.inf, 1))
    cluster.add(a_workload("new").priority("high").serving("hf://org/m"), a_workload("wide").gpus(8))
    return cluster


def recorded(cluster: ClusterBuilder, prices: Prices | None = None) -> Recording:
    for_advance = cluster.snapshot()
    assert for_advance.synced
    cluster.store.advance(NOW)
    snapshot = cluster.snapshot()
    made = plan(snapshot, POLICY, NOW, prices=prices)
    return Recording(snapshot, POLICY, NOW, prices, plan_document(made))


def changed(text: str, **fields: Any) -> str:
    return json.dumps({**json.loads(text), **fields})


def test_everything_a_plan_depends_on_comes_back() -> None:
    written = recorded(a_busy_cluster())
    assert written.snapshot.averages
    assert written.snapshot.holds
    assert [name for name, state in written.snapshot.nodes.items() if state.refusing] == ["n2"]
    found = load(dump(written, "1"))
    assert found == written
    assert found.snapshot.holds["default/held"].until == math.inf


def test_prices_come_back_and_decide_as_before() -> None:
    of = {Shape(4, 1000, 8000): 4.0, Shape(1, 1000, 8000): 0.5}
    prices = Prices(of, (("A100-80G", 80 << 30),), Worth(of, 2, 4), NOW)
    written = recorded(a_busy_cluster(), prices)
    found = load(dump(written, "1"))
    assert found.prices is not None
    assert (found.prices.of, found.prices.kinds, found.prices.at) == (of, prices.kinds, NOW)
    assert plan_text(plan_document(replay(found))) == plan_text(written.plan or {})


def test_specs_credentials_and_signatures_stay_out_of_the_file_and_the_plan_is_the_same() -> None:
    secret = "hunter2"
    spec = {"podTemplate": {"spec": {"containers": [{"env": [{"name": "TOKEN", "value": secret}]}]}}}
    signed, unknown = f"https://models.example/a?sig={secret}", f"https://models.example/a?sig={secret}-2"
    cluster = a_cluster(
        a_node("n1").with_gpus(2),
        a_profile(signed),
        a_workload("chat").with_(spec=spec, model=Model(f"https://me:{secret}@models.example/a@b")),
        a_workload("signed").serving(signed),
        a_workload("unknown").serving(unknown),
    )
    refused = Hold(Reason.MODEL_NOT_FOUND, f"{unknown}: HTTP 404", math.inf, 1)
    cluster.store.set_hold("default/unknown", refused)
    written = recorded(cluster)
    assert secret in plan_text(written.plan or {}), "a decision tells the URI"
    text = dump(written, "1")
    assert secret not in text
    assert "https://models.example/a@b?redacted=1" in text
    found = load(text)
    assert plan_text(plan_document(replay(found))) == plan_text(found.plan or {})
    bound = [one["claim"]["workload"] for one in (found.plan or {})["actions"] if one["action"] == "Bind"]
    assert "default/signed" in bound, "its profile is still found"
    assert dump(found, "1") == text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not JSON"),
        ("[]", "is not a recorded cycle"),
        ('{"format": "other"}', "is not a recorded cycle"),
        (
            '{"format": "llmos-cycle", "version": 9, "llmos": "3.0"}',
            "version 9 of the format, this program reads",
        ),
        ('{"format": "llmos-cycle", "version": 1}', "llmos: Field required"),
    ],
)
def test_what_is_no_recording_says_so(text: str, words: str) -> None:
    with pytest.raises(BadRecording, match=words):
        load(text)


def test_a_cut_or_changed_file_is_refused_with_the_place() -> None:
    text = dump(recorded(a_busy_cluster()), "1")
    with pytest.raises(BadRecording, match="cut off while it was copied"):
        load(text[: len(text) // 2])
    cluster = json.loads(text)["cluster"]
    with pytest.raises(BadRecording, match=r"pod .*gone.* is named but not in the file"):
        load(changed(text, cluster={**cluster, "terminating": ["default/gone"]}))
    with pytest.raises(BadRecording, match=r"policy\.default_queue"):
        load(changed(text, policy={**json.loads(text)["policy"], "default_queue": 7}))
    with pytest.raises(BadRecording, match="Extra inputs"):
        load(changed(text, more=1))


def test_a_plan_that_differs_has_another_text() -> None:
    cluster = a_busy_cluster()
    first = recorded(cluster)
    cluster.add(a_node("n0").with_gpus(8))
    assert plan_text(recorded(cluster).plan or {}) != plan_text(first.plan or {})
