"""To which format a running replica can be moved, and what that loses."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmos_operator.scheduler.narrowing import narrow_cost, narrowed
from llmos_operator.scheduler.policy import Policy
from llmos_operator.state.types import FormatProfile, QuantizationMode
from tests.support.builders import LARGE_MODEL, a_profile, a_workload
from tests.support.replicas import a_claim_of, a_work

URI = "hf://org/large"
CLAIM = replace(a_claim_of(a_work(), format="bf16", max_model_len=4096), bytes_per_device=40 << 30)
ASKED = a_workload("chat").at(QuantizationMode.AUTO, "", ("bf16", "int8", "int4")).value
WORK = replace(ASKED, memory_bytes=None)  # sized by its model


def test_it_is_the_widest_below_its_own_and_less_than_it_holds() -> None:
    profile = a_profile(URI, LARGE_MODEL)
    found = narrowed(CLAIM, WORK, profile, Policy())
    assert found is not None
    assert found[0] == "int8"
    assert found[1] < CLAIM.bytes_per_device
    again = narrowed(replace(CLAIM, format="int8"), WORK, profile, Policy())
    assert again is not None
    assert again[0] == "int4"
    assert again[1] < found[1]


@pytest.mark.parametrize(
    ("claim", "shape"),
    [
        (replace(CLAIM, format="int4"), LARGE_MODEL),  # nothing is narrower
        (replace(CLAIM, bytes_per_device=1 << 30), LARGE_MODEL),  # nothing is won
        (CLAIM, replace(LARGE_MODEL, quantized="int8")),  # its files have one format
        (CLAIM, None),  # nobody knows its size
    ],
)
def test_there_is_none_where_nothing_would_be_won(claim, shape) -> None:  # type: ignore[no-untyped-def]
    profile = a_profile(URI, shape)
    own = replace(claim, format="int8") if shape is not None and shape.quantized else claim
    assert narrowed(own, WORK, profile, Policy()) is None


def test_what_its_owner_set_aside_stays() -> None:
    assert (
        narrowed(CLAIM, replace(WORK, memory_bytes=40 << 30), a_profile(URI, LARGE_MODEL), Policy()) is None
    )


def test_it_loses_the_load_and_a_minute_a_percent_and_never_more_than_its_end() -> None:
    measured = a_profile(URI, LARGE_MODEL, FormatProfile("int8", quality_loss_milli=2000))
    whole = replace(CLAIM, gpu_milli=1000)
    assert narrow_cost(whole, "int8", 10.0, measured, 10**9) == 130_000
    assert narrow_cost(replace(whole, gpu_milli=500), "int8", 10.0, measured, 10**9) == 65_000
    assert narrow_cost(whole, "int8", 10.0, measured, 5_000) == 5_000
    better = a_profile(URI, LARGE_MODEL, FormatProfile("int8", quality_loss_milli=-29))
    assert narrow_cost(whole, "int8", 10.0, better, 10**9) == 10_000
