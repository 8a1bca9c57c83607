"""What the scheduler knows of engines that are not its own: what they serve, need, and can give up."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llmos_operator.api.runtime import memory
from llmos_operator.scheduler.claims import request_of
from llmos_operator.scheduler.policy import Policy
from llmos_operator.scheduler.precision import formats
from llmos_operator.scheduler.shrinking import may_shrink
from llmos_operator.scheduler.sizing import sizes
from llmos_operator.scheduler.sleeping import asleep_as, may_be_put_to_sleep
from llmos_operator.state.types import DisruptionStep, FormatProfile, Sharing
from tests.support.builders import SMALL_MODEL, a_profile, a_workload
from tests.support.replicas import a_claim_of, a_pod_of, a_work

POLICY = Policy()
URI = "hf://org/m"
ORDER = tuple(DisruptionStep(step) for step in ("Shrink", "Sleep", "Evict"))


def served(engine: str, **changes: Any) -> Any:
    return a_workload("w").serving(URI).with_(engine=engine, **changes)


@pytest.mark.parametrize(("engine", "shrinks", "sleeps"), [("builtin", True, True), ("vllm", False, True)])
def test_a_vllm_is_asked_to_sleep_and_never_to_shrink(engine: str, shrinks: bool, sleeps: bool) -> None:
    workload = replace(a_work(engine={"name": engine, "image": "v"}), disruption_order=ORDER)
    claim = a_claim_of(workload, sharing=Sharing.SHARED, min_runtime=0.0)
    pod = a_pod_of(workload, ready=True)
    assert may_shrink(pod, claim, workload, POLICY, 2e9) is shrinks
    assert may_be_put_to_sleep(pod, claim, workload, POLICY, 2e9) is sleeps


def test_of_the_default_formats_vllm_makes_bf16_alone() -> None:
    assert formats(served("vllm").at("Auto").value, None, POLICY).allowed == ("bf16",)
    wanted = served("vllm").at("Auto", allowed=("nf4", "fp8", "int8")).value
    assert formats(wanted, None, POLICY).allowed == ("fp8", "nf4")


def test_a_vllm_is_sized_with_its_own_base_and_not_by_what_the_runtimes_engine_measured() -> None:
    measured = FormatProfile("bf16", measured_peak_bytes=9 << 30, estimated_peak_bytes=1 << 30)
    profile = a_profile(URI, SMALL_MODEL, measured, base_bytes=700 * memory.MIB)
    own = sizes(served("builtin").value, a_profile(URI, SMALL_MODEL), POLICY).sizes[0]
    vllm = sizes(served("vllm").value, profile, POLICY).sizes[0]
    extra = POLICY.sizing.vllm_base_bytes - POLICY.sizing.base_bytes
    assert vllm.bytes_per_device - own.bytes_per_device == extra


def test_what_a_vllm_ran_out_of_memory_with_is_not_tried_again() -> None:
    known = FormatProfile("bf16", oom_floor_bytes=40 << 30)
    size = sizes(served("vllm").value, a_profile(URI, SMALL_MODEL, known), POLICY).sizes[0]
    assert size.bytes_per_device > 40 << 30


def test_a_sleeping_vllm_keeps_its_base_on_the_device() -> None:
    workload = a_work(engine={"name": "vllm", "image": "v"})
    claim = a_claim_of(workload, sharing=Sharing.SHARED, bytes_per_device=20 << 30, max_model_len=2048)
    sleeping = asleep_as(claim, workload, a_profile("hf://acme/tiny", SMALL_MODEL), POLICY, 0.0)
    assert sleeping is not None
    assert POLICY.sizing.vllm_base_bytes < sleeping.bytes_per_device < claim.bytes_per_device


def test_a_vllm_asks_for_more_of_the_host() -> None:
    asked = {}
    for engine in ("builtin", "vllm"):
        workload = served(engine).value
        size = sizes(workload, a_profile(URI, SMALL_MODEL), POLICY).sizes[0]
        asked[engine] = request_of(workload, size, POLICY, "").memory_bytes
    sizing = POLICY.sizing
    assert (asked["builtin"], asked["vllm"]) == (sizing.runtime_memory_bytes, sizing.vllm_memory_bytes)
