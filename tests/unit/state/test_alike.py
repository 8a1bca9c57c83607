from __future__ import annotations

import json
from typing import Any

from llmos_operator.state import convert
from llmos_operator.state.alike import Alike
from llmos_operator.state.types import Pod
from tests.support.replicas import a_manifest

STATUS: dict[str, Any] = {
    "phase": "Running",
    "replicas": 1,
    "conditions": [{"type": "Ready", "status": "True", "observedGeneration": 1, "message": "said once"}],
    "placements": [{"pod": "one", "deviceUUIDs": ["GPU-1"]}],
}


def parsed(value: Any) -> Any:
    return json.loads(json.dumps(value))


def test_what_is_kept_equals_what_came() -> None:
    odd = {"a": [1, True, 1.0, None, "", [], {}], "b": {"1": 1}, "c": {"1": True}, "d": {"1": 1.0}, "e": [{}]}
    alike = Alike()
    for value in (STATUS, odd, odd, STATUS):
        assert json.dumps(alike.json(parsed(value))) == json.dumps(value)


def test_equal_parts_of_two_objects_are_one() -> None:
    alike = Alike()
    one = alike.json(parsed(STATUS))
    other = alike.json(parsed({**STATUS, "placements": [{"pod": "two", "deviceUUIDs": ["GPU-1"]}]}))
    assert one["conditions"] is other["conditions"]
    assert one["placements"][0]["deviceUUIDs"] is other["placements"][0]["deviceUUIDs"]
    assert one["placements"] != other["placements"]


def test_what_many_have_is_remembered_over_what_each_has_alone() -> None:
    alike = Alike()
    first = alike.json(parsed(STATUS))
    for number in range(20_000):
        alike.json({"own": str(number)})
        if number % 5000 == 0:
            alike.json(parsed(STATUS))
    assert alike.json(parsed(STATUS)) is first


def test_an_object_of_any_depth_is_taken() -> None:
    deep: Any = []
    for _ in range(5000):
        deep = [deep]
    found, levels = Alike().json(deep), 0
    while found:
        found, levels = found[0], levels + 1
    assert levels == 5000


def test_pods_share_the_texts_of_their_labels() -> None:
    labels = ({"app.kubernetes.io/name": "a model"}, json.loads('{"app.kubernetes.io/name": "a model"}'))
    one, other = (Alike().pod(Pod("team/one", "1", "n1", labels=one)) for one in labels)
    assert one == other == Pod("team/one", "1", "n1", labels=labels[1])
    assert one.labels["app.kubernetes.io/name"] is other.labels["app.kubernetes.io/name"]


def test_workloads_of_one_spec_share_it_and_its_values() -> None:
    alike = Alike()
    one, other = (
        alike.workload(convert.workload({**body, "spec": alike.json(body["spec"])}))
        for body in (parsed(a_manifest()), parsed(a_manifest()))
    )
    assert one == other
    assert one.spec is other.spec
    assert one.model is other.model
    assert one.template_hash is other.template_hash
