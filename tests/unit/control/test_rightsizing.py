"""What running a workload teaches of its own memory, through its status and back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from llmos_operator.api.runtime.messages import MemoryReport, RequestStats, RuntimeState, RuntimeStatus
from llmos_operator.control import rightsizing
from llmos_operator.manifests import status as manifest
from llmos_operator.manifests.observed import Observed
from llmos_operator.scheduler.policy import Policy
from llmos_operator.scheduler.sizing import sizes
from llmos_operator.state.convert import workload as convert
from llmos_operator.state.types import Learned, Workload, WorkloadKind
from tests.support.builders import GIB, NOW
from tests.support.replicas import a_claim_of, a_work

MIB = 1 << 20


def asking(memory: str, **status: Any) -> Workload:
    work = a_work(resources={"memory": memory})
    meta = {"name": work.name, "namespace": work.namespace, "uid": work.uid}
    return convert({"metadata": meta, "spec": work.spec, "status": status})


def served(needed: int, finished: int = 25) -> RuntimeStatus:
    return RuntimeStatus(
        state=RuntimeState.READY,
        memory=MemoryReport(needed_bytes=needed),
        requests=RequestStats(finished=finished),
    )


def reserved(work: Workload, learned: Learned) -> int:
    """Return what the next start reserves, when the status has been to the API and back."""
    status = manifest.to_json(manifest.build(Observed(work, NOW, learned=rightsizing.known(learned, work))))
    meta = {"name": work.name, "namespace": work.namespace, "uid": work.uid}
    back = convert({"metadata": meta, "spec": work.spec, "status": status})
    return sizes(back, None, Policy()).sizes[0].bytes_per_device


def test_a_request_ten_times_too_large_is_corrected_and_said() -> None:
    work = asking("10Gi")
    claim = a_claim_of(work, bytes_per_device=10 * GIB)
    found = rightsizing.after_service(work, claim, served(GIB), Learned())
    assert found is not None
    learned, note = found
    assert (
        "resources.memory asks for 10.0 GiB of each device; in 25 requests the replica needed 1.0 GiB" in note
    )
    assert reserved(work, learned) == GIB + GIB // 8
    assert rightsizing.after_service(work, claim, served(GIB + MIB), learned) is None  # said once


def test_a_need_that_grows_is_learned_anew_and_one_that_falls_is_not() -> None:
    work = asking("10Gi")
    learned = Learned(needed=GIB, spec_hash=work.template_hash)
    claim = a_claim_of(work, bytes_per_device=GIB + GIB // 8)
    assert rightsizing.after_service(work, claim, served(GIB // 2), learned) is None
    found = rightsizing.after_service(work, claim, served(6 * GIB), learned)
    assert found is not None
    assert "reserves the 10.0 GiB of resources.memory" in found[1]
    assert reserved(work, found[0]) == 10 * GIB


def test_a_request_half_as_large_as_needed_is_corrected_within_two_tries() -> None:
    work = asking("1Gi")
    learned = rightsizing.after_shortage(Learned(), work, GIB)
    second = reserved(work, learned)
    third = reserved(work, rightsizing.after_shortage(learned, work, second))
    assert (second, third) == (GIB * 3 // 2, GIB * 9 // 4)
    assert (
        rightsizing.after_service(work, a_claim_of(work, bytes_per_device=third), served(GIB), learned)
        is None
    )


def test_a_changed_spec_is_believed_anew() -> None:
    work = asking("1Gi")
    learned = rightsizing.after_shortage(Learned(), work, GIB)
    changed = asking("3Gi")
    assert changed.template_hash != work.template_hash
    assert rightsizing.known(learned, changed) == Learned()
    assert reserved(changed, learned) == 3 * GIB


def test_only_what_is_a_workloads_own_is_learned_alone() -> None:
    work = a_work()
    assert not rightsizing.learns_alone(work)
    assert rightsizing.learns_alone(asking("1Gi"))
    assert rightsizing.learns_alone(replace(work, kind=WorkloadKind.FINE_TUNE))
    claim = a_claim_of(work, bytes_per_device=80 * GIB)  # a whole device, of which nobody asked for so much
    assert rightsizing.after_service(work, claim, served(GIB), Learned()) is None
