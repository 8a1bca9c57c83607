"""Which devices ResourceClaims have: by the names a DRA driver publishes, and by what excludes what."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos_operator.errors import Permanent
from llmos_operator.state import convert
from llmos_operator.state.types import Pod
from tests.support.builders import ClusterBuilder, a_node, gpu

if TYPE_CHECKING:
    from llmos_operator.state.store import Store

Json = dict[str, Any]


def slice_of(*devices: Json, name: str = "s1", generation: int = 1, **spec: Any) -> Json:
    pool = {"name": "n1", "generation": generation, "resourceSliceCount": 1}
    told = {"driver": "gpu.nvidia.com", "nodeName": "n1", "pool": pool, "devices": list(devices)}
    return {"metadata": {"name": name}, "spec": told | spec}


def device(number: int, *counter_sets: str, key: str = "uuid", name: str = "") -> Json:
    told: Json = {
        "name": name or f"gpu-{number}",
        "attributes": {key: {"string": gpu("n1", number)}, "productName": {"string": "A100"}},
    }
    if counter_sets:
        told["consumesCounters"] = [{"counterSet": one, "counters": {}} for one in counter_sets]
    return told


def claim(*devices: str, name: str = "c1", **result: Any) -> Json:
    results = [
        {"request": "gpu", "driver": "gpu.nvidia.com", "pool": "n1", "device": one} | result
        for one in devices
    ]
    status = {"allocation": {"devices": {"results": results}}} if results else {}
    return {"metadata": {"name": name, "namespace": "other", "uid": f"uid-{name}"}, "status": status}


def store_with(gpus: int = 2) -> Store:
    return ClusterBuilder().add(a_node().with_gpus(gpus)).store


def take(store: Store, *objects: Json) -> None:
    """Apply slices and claims in order."""
    for one in objects:
        if "spec" in one:
            store.apply_slice(convert.resource_slice(one))
        else:
            store.apply_allocation(convert.resource_claim(one))


def free(store: Store) -> list[int]:
    state = store.node("n1")
    assert state is not None
    return [number for number, one in enumerate(state.devices) if one.idle]


def test_a_device_that_a_claim_has_is_taken_until_the_claim_has_gone() -> None:
    store = store_with()
    take(store, slice_of(device(0), device(1)))
    assert free(store) == [0, 1]
    take(store, claim())
    assert free(store) == [0, 1], "it has no devices yet"
    take(store, claim("gpu-1"))
    assert free(store) == [0]
    state = store.node("n1")
    assert state is not None
    assert state.devices[1].device.claimed_by == ("other/c1",)
    assert state.devices[1].headroom_bytes() == 0
    take(store, claim("gpu-0"))
    assert free(store) == [1], "it was allocated anew"
    assert store.delete_allocation("other/c1")
    assert free(store) == [0, 1]


def test_the_order_in_which_slices_and_claims_come_does_not_matter() -> None:
    store = store_with()
    take(store, claim("gpu-0"), slice_of(device(0, key="gpu.nvidia.com/uuid"), device(1)))
    assert free(store) == [1]
    assert store.delete_slice("s1")
    assert free(store) == [0, 1], "nobody says any more which device that is"


def test_what_the_agent_tells_anew_keeps_what_claims_have() -> None:
    store = store_with()
    take(store, slice_of(device(0), device(1)), claim("gpu-0"))
    store.apply_gpu_node(a_node().with_gpus(3).gpus)  # type: ignore[arg-type]
    assert free(store) == [1, 2]


def test_a_part_of_a_gpu_takes_the_gpu() -> None:
    part = {"name": "gpu-0-mig-1g-0", "consumesCounters": [{"counterSet": "gpu-0", "counters": {}}]}
    store = store_with()
    take(store, slice_of(device(0, "gpu-0"), device(1, "gpu-1"), part), claim("gpu-0-mig-1g-0"))
    assert free(store) == [1]


def test_an_administrator_who_looks_at_a_device_does_not_take_it() -> None:
    store = store_with()
    take(store, slice_of(device(0), device(1)), claim("gpu-0", adminAccess=True))
    assert free(store) == [0, 1]


def test_only_the_newest_generation_of_a_pool_counts() -> None:
    store = store_with()
    take(store, slice_of(device(0, name="old")), slice_of(device(0, name="new"), name="s2", generation=2))
    take(store, claim("old"))
    assert free(store) == [0, 1]
    take(store, claim("new"))
    assert free(store) == [1]


def test_other_drivers_and_devices_without_a_node_are_no_devices_of_ours() -> None:
    store = store_with()
    take(store, slice_of(device(0), driver="nic.example.org"), slice_of(device(1), name="s2", nodeName=None))
    take(store, claim("gpu-0", "gpu-1"))
    assert free(store) == [0, 1]


def test_where_claims_tell_nothing_is_guessed_of_what_pods_ask_for() -> None:
    store = store_with()
    asking = Pod("kube/by-class", "uid-by-class", "n1", gpus=1)  # which a DeviceClass gives a claim for
    store.apply_pod(asking)
    assert free(store) == [0]
    take(store, slice_of(device(0), device(1)), claim("gpu-0"))
    assert free(store) == [1]


def test_objects_that_cannot_be_read_are_refused_with_their_field() -> None:
    broken = slice_of({"name": 7})
    with pytest.raises(Permanent, match=r"spec\.devices\[0\]\.name"):
        convert.resource_slice(broken)
    with pytest.raises(Permanent, match="results"):
        convert.resource_claim(claim() | {"status": {"allocation": {"devices": {"results": 5}}}})


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.lists(st.integers(0, 3), max_size=4, unique=True) | st.none()),
        max_size=20,
    )
)
def test_a_device_is_free_exactly_when_no_claim_there_is_has_it(
    events: list[tuple[int, list[int] | None]],
) -> None:
    store, there = store_with(4), dict[int, list[int]]()
    take(store, slice_of(*(device(number) for number in range(4))))
    for number, devices in events:
        if devices is None:
            store.delete_allocation(f"other/c{number}")
            there.pop(number, None)
        else:
            take(store, claim(*(f"gpu-{one}" for one in devices), name=f"c{number}"))
            there[number] = devices
        taken = {one for held in there.values() for one in held}
        assert free(store) == [one for one in range(4) if one not in taken]
