"""Placeholders ask in the terms of nodes for what the real pod would ask for."""

from __future__ import annotations

from dataclasses import replace

from llmos_operator.manifests.placeholder import is_marked, placeholder, unschedulable
from tests.support.builders import a_workload


def test_it_asks_for_what_the_pod_would_ask_for_where_the_pod_would_go() -> None:
    template = {
        "spec": {
            "nodeSelector": {"pool": "h100"},
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
            "volumes": [{"name": "data", "emptyDir": {}}],
            "affinity": {
                "nodeAffinity": {
                    "requiredDuringSchedulingIgnoredDuringExecution": {
                        "nodeSelectorTerms": [
                            {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]},
                            {"matchExpressions": [{"key": "spot", "operator": "Exists"}]},
                        ]
                    }
                }
            },
        }
    }
    work = replace(a_workload("chat").gpus(4).value, spec={"podTemplate": template})
    pod = placeholder(work, (1500, 3 << 30), {"NVIDIA H100 80GB HBM3"}, 0)
    assert pod["metadata"]["labels"]["llmos.dev/role"] == "placeholder"
    spec = pod["spec"]
    assert spec["nodeSelector"] == {"pool": "h100"}
    assert spec["tolerations"] == template["spec"]["tolerations"]
    assert "volumes" not in spec
    terms = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][
        "nodeSelectorTerms"
    ]
    product = {"key": "nvidia.com/gpu.product", "operator": "In", "values": ["NVIDIA-H100-80GB-HBM3"]}
    assert [term["matchExpressions"][-1] for term in terms] == [product, product]
    assert [term["matchExpressions"][0]["key"] for term in terms] == ["zone", "spot"]
    resources = spec["containers"][0]["resources"]
    assert resources["requests"] == {"cpu": "1500m", "memory": str(3 << 30), "nvidia.com/gpu": "4"}
    assert resources["limits"] == {"nvidia.com/gpu": "4"}


def test_work_without_devices_asks_for_none() -> None:
    pod = placeholder(a_workload("cpu").gpus(0).value, (2000, 1 << 30), (), 1)
    assert pod["spec"]["containers"][0]["resources"] == {
        "requests": {"cpu": "2000m", "memory": str(1 << 30)},
        "limits": {},
    }
    assert "affinity" not in pod["spec"]


def test_names_differ_by_workload_and_number_and_are_short_enough() -> None:
    work = a_workload("w" * 63).value
    found = {
        placeholder(one, (1, 1), (), number)["metadata"]["name"]
        for one in (work, replace(work, uid="u2"))
        for number in (0, 1)
    }
    assert len(found) == 4
    assert all(len(name) <= 63 for name in found)


def test_autoscalers_see_it_once_its_condition_is_set() -> None:
    pod = placeholder(a_workload("chat").value, (1, 1), (), 0)
    assert not is_marked(pod)
    status = unschedulable("needs 80 GiB " * 200, 0.0)
    assert is_marked(pod | {"status": status})
    assert len(status["conditions"][0]["message"]) <= 1024
