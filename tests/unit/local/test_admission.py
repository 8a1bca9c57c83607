"""What fits on a node."""

from hypothesis import given
from hypothesis import strategies as st

from llmos_operator.local.kubelet.admission import NodeLedger, pod_requests


def _pod(uid: str, requests: dict | None = None, **spec) -> dict:
    container = {"name": "c", "resources": {"requests": requests or {}}}
    return {"metadata": {"uid": uid}, "spec": {"containers": [container], **spec}}


def _ledger(**changes) -> NodeLedger:
    values = {
        "allocatable": {"cpu": 2000, "memory": 4 << 30, "nvidia.com/gpu": 2, "nvidia.com/mig-1g.1gb": 2},
        "max_pods": 3,
        "devices": {"nvidia.com/gpu": ["g0", "g1"], "nvidia.com/mig-1g.1gb": ["m0", "m1"]},
        "labels": {"zone": "a"},
    }
    return NodeLedger(**(values | changes))


def test_requests_are_the_most_a_pod_uses_at_any_moment() -> None:
    spec = {
        "initContainers": [
            {"name": "big", "resources": {"requests": {"cpu": "3", "memory": "1Gi"}}},
            {"name": "side", "restartPolicy": "Always", "resources": {"requests": {"cpu": "500m"}}},
            {"name": "late", "resources": {"requests": {"cpu": "2"}}},
        ],
        "containers": [
            {"name": "a", "resources": {"requests": {"cpu": "1", "memory": "2Gi"}}},
            {"name": "b", "resources": {"limits": {"cpu": "250m"}}},
        ],
    }
    # big alone: 3; late beside side: 2.5; app beside side: 1.75
    assert pod_requests(spec) == {"cpu": 3000, "memory": 2 << 30}


def test_overhead_is_added() -> None:
    pod = _pod("1", {"cpu": "1"}, overhead={"cpu": "100m"})
    assert pod_requests(pod["spec"])["cpu"] == 1100


def test_a_full_node_says_what_is_missing() -> None:
    ledger = _ledger()
    assert ledger.admit(_pod("1", {"cpu": "1500m"})) is None
    rejection = ledger.admit(_pod("2", {"cpu": "600m"}))
    assert rejection.reason == "OutOfcpu"
    assert (
        rejection.message
        == "Node didn't have enough resource: cpu, requested: 600, used: 1500, capacity: 2000"
    )
    ledger.release("1")
    assert ledger.admit(_pod("2", {"cpu": "600m"})) is None


def test_a_resource_the_node_does_not_have_is_refused() -> None:
    assert _ledger().admit(_pod("1", {"example.org/x": "1"})).reason == "OutOfexample.org/x"


def test_pods_are_counted() -> None:
    ledger = _ledger(max_pods=1)
    assert ledger.admit(_pod("1")) is None
    assert ledger.admit(_pod("2")).reason == "OutOfpods"


def test_devices_are_taken_by_name_if_the_pod_names_them() -> None:
    ledger = _ledger()
    named = _pod("1", {"nvidia.com/gpu": "1"})
    named["spec"]["containers"][0]["env"] = [{"name": "NVIDIA_VISIBLE_DEVICES", "value": "g1"}]
    assert ledger.admit(named) is None
    assert ledger.devices_of("1") == ("g1",)
    assert ledger.admit(_pod("2", {"nvidia.com/gpu": "1"})) is None
    assert ledger.devices_of("2") == ("g0",)
    assert ledger.admit(_pod("3", {"nvidia.com/gpu": "1"})).reason == "UnexpectedAdmissionError"


def test_instances_are_units_of_their_own_resource() -> None:
    ledger = _ledger()
    assert ledger.admit(_pod("1", {"nvidia.com/mig-1g.1gb": "1", "nvidia.com/gpu": "1"})) is None
    assert ledger.devices_of("1") == ("g0", "m0")
    assert ledger.admit(_pod("2", {"nvidia.com/mig-1g.1gb": "1"})) is None
    assert ledger.devices_of("2") == ("m1",)
    refused = ledger.admit(_pod("3", {"nvidia.com/mig-1g.1gb": "1"}))
    assert refused.reason == "UnexpectedAdmissionError"
    assert "nvidia.com/mig-1g.1gb. Requested: 1, Available: 0" in refused.message


def test_the_same_pod_is_counted_once() -> None:
    ledger = _ledger()
    pod = _pod("1", {"cpu": "1500m"})
    assert ledger.admit(pod) is None
    assert ledger.admit(pod) is None


@given(st.lists(st.tuples(st.integers(0, 6), st.booleans(), st.integers(0, 3)), max_size=60))
def test_no_device_is_ever_held_twice(steps) -> None:
    devices = {"nvidia.com/gpu": ["g0", "g1", "g2"]}
    ledger = _ledger(devices=devices, max_pods=100, allocatable={"nvidia.com/gpu": 3})
    for uid, admit, count in steps:
        if admit:
            ledger.admit(_pod(str(uid), {"nvidia.com/gpu": str(count)} if count else {}))
        else:
            ledger.release(str(uid))
        held = [device for key in range(7) for device in ledger.devices_of(str(key))]
        assert len(held) == len(set(held))
        assert set(held) <= {"g0", "g1", "g2"}
