"""What each look at claims and pods finds to be done."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from llmos_operator.clock import FakeClock
from llmos_operator.control.claiming import Claiming
from llmos_operator.state.slices import Allocation, Handle, Slice, SliceDevice
from llmos_operator.state.store import Store
from llmos_operator.state.types import PodPhase
from tests.support.builders import ClusterBuilder, a_node, gpu
from tests.support.replicas import a_pod_of, a_work

if TYPE_CHECKING:
    from llmos_operator.actuators.outcomes import Retire
    from llmos_operator.state.types import Claim, Pod

HANDLE = Handle("gpu.nvidia.com", "n1", "gpu-0")
KEY = "team/chat-0-abc"


class Look:
    """A Claiming on one node with one device, and what it asked for."""

    def __init__(self, *namespaces: str, enabled: bool = True) -> None:
        self.store = Store((), claims_devices=True)
        ClusterBuilder(self.store).add(a_node("n1").with_gpus(1))
        self.store.apply_slice(Slice("s1", "n1", "n1", devices=(SliceDevice("gpu-0", gpu("n1", 0)),)))
        self.done: list[str] = []
        self.retired: list[Retire] = []
        self.took = 0.0  # seconds that doing anything takes
        self.clock = FakeClock()
        self.claiming = Claiming(
            self.store,
            self,  # type: ignore[arg-type]
            self.clock,
            self._retire,
            enabled=enabled,
            namespaces=namespaces,
        )
        pod = a_pod_of(a_work(), uid="uid-pod")
        assert pod.claim is not None
        claim = replace(pod.claim, devices=(gpu("n1", 0),), resource_claim="chat-0-abc")
        self.pod = replace(pod, claim=claim)

    def _retire(self, retire: Retire) -> bool:
        self.retired.append(retire)
        return True

    def release(self, one: Allocation) -> None:
        self.done.append(f"release {one.key}")
        self.clock.advance(self.took)

    def mend(self, pod: Pod, claim: Claim) -> None:
        self.done.append(f"mend {pod.namespace}/{claim.resource_claim}")

    def others(self, claim: Claim) -> list[str]:
        return sorted(self.store.takers(claim.node, claim.devices) - {KEY})

    def with_pod(self, **changes: object) -> Look:
        self.store.apply_pod(replace(self.pod, **changes))  # type: ignore[arg-type]
        return self

    def with_claim(self, *users: str, handles: tuple[Handle, ...] = (HANDLE,), key: str = KEY) -> Look:
        self.store.apply_allocation(Allocation(key, handles, pod=self.pod.key, users=users))
        return self

    def __call__(self) -> list[str]:
        self.done.clear()
        self.claiming.turn()
        return self.done


def test_what_is_right_is_left_alone() -> None:
    look = Look().with_pod().with_claim("uid-pod")
    assert look() == []
    assert look.retired == []


def test_a_pod_without_its_claim_its_device_or_its_reservation_gets_it() -> None:
    mended = [f"mend {KEY}"]
    assert Look().with_pod()() == mended
    assert Look().with_pod().with_claim(handles=())() == mended
    assert Look().with_pod().with_claim("uid-former-pod")() == mended


def test_a_pod_that_is_leaving_gets_nothing_and_keeps_its_claim() -> None:
    look = Look().with_pod(phase=PodPhase.TERMINATING)
    assert look() == []
    assert look.with_claim()() == []


def test_a_claim_goes_when_its_pod_has_ended_was_never_made_or_has_another() -> None:
    released = [f"release {KEY}"]
    assert Look().with_claim()() == released
    assert Look().with_pod(phase=PodPhase.FINISHED).with_claim("uid-pod")() == released
    look = Look().with_pod().with_claim("uid-pod").with_claim("uid-former", key="team/chat-0-old", handles=())
    assert look() == ["release team/chat-0-old"]


def test_a_claim_whose_pod_lost_its_annotation_stays_until_that_pod_has_ended() -> None:
    # Of such a pod nothing is believed: it counts by its requests, as anybody's.
    assert Look().with_pod(claim=None).with_claim("uid-pod")() == [], "it is reserved for that pod"
    named = Look().with_pod(claim=None, resource_claim="chat-0-abc")
    assert named.with_claim()() == [], "the pod's spec names it"
    named.store.delete_pod(named.pod.key)
    assert named() == [f"release {KEY}"]
    assert Look().with_pod(claim=None).with_claim("uid-former")() == [f"release {KEY}"]


def test_a_claim_of_a_bind_that_is_under_way_stays() -> None:
    look = Look()
    assert look.pod.claim is not None
    look.store.assume(replace(look.pod.claim, cpu_milli=0, memory_bytes=0))
    assert look.with_claim()() == []


def test_claims_of_others_are_left_alone() -> None:
    look = Look()
    look.store.apply_allocation(Allocation("team/theirs", (HANDLE,)))
    assert look() == []


def test_a_pod_whose_device_another_claim_has_is_taken_away() -> None:
    look = Look().with_pod().with_claim("uid-pod")
    look.store.apply_allocation(Allocation("other/rival", (HANDLE,)))
    assert look() == []
    (retire,) = look.retired
    assert (retire.pod, retire.pod_uid, retire.reason) == (look.pod.key, "uid-pod", "DeviceClaimed")
    assert "other/rival" in retire.message


def test_where_it_is_not_enabled_nothing_is_done() -> None:
    assert Look(enabled=False).with_claim()() == []


def test_claims_of_another_operators_namespaces_are_its_own_affair() -> None:
    assert Look("research").with_claim()() == []
    assert Look("research").with_pod()() == []
    assert Look("research", "team").with_claim()() == [f"release {KEY}"]


def test_looks_that_take_long_are_rare() -> None:
    look = Look().with_claim()
    look.took = 0.1
    assert look()
    assert look() == []
    look.clock.advance(2.0)
    assert look()
