"""Bytes, precisions and contexts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llmos_operator.api.conditions import Reason
from llmos_operator.api.runtime import memory, training_memory
from llmos_operator.scheduler.claims import signature
from llmos_operator.scheduler.policy import Policy
from llmos_operator.scheduler.precision import formats
from llmos_operator.scheduler.sizing import Size, granted, sizes
from llmos_operator.state.types import FormatProfile, Learned, TrainingSpec, WorkloadKind
from tests.support.builders import GIB, LARGE_MODEL, SMALL_MODEL, a_profile, a_workload

POLICY = Policy()
URI = "hf://org/m"


def served(**changes: Any) -> Any:
    return a_workload("w").serving(URI).with_(**changes)


def test_formats_go_from_most_bits_to_least_whatever_order_they_are_listed_in() -> None:
    workload = served().at("Auto", allowed=("int4", "bf16", "int8")).value
    assert formats(workload, None, POLICY).allowed == ("bf16", "int8", "int4")


def test_of_equal_bits_the_smaller_loss_goes_first() -> None:
    workload = served(engine="custom").at("Auto", allowed=("int4", "awq")).value
    assert formats(workload, None, POLICY).allowed == ("awq", "int4")
    measured = a_profile(URI, SMALL_MODEL, FormatProfile("int4", quality_loss_milli=100))
    assert formats(workload, measured, POLICY).allowed == ("int4", "awq")


def test_a_measured_loss_overrides_the_published_one() -> None:
    workload = served().at("Auto", max_quality_loss_milli=5000).value
    assert formats(workload, None, POLICY).allowed == ("bf16", "int8", "int4")
    profile = a_profile(URI, SMALL_MODEL, FormatProfile("int4", quality_loss_milli=5001))
    assert formats(workload, profile, POLICY).allowed == ("bf16", "int8")


def test_a_fixed_format_the_engine_does_not_serve_is_said() -> None:
    got = formats(served().at("Fixed", "awq").value, None, POLICY)
    assert (got.allowed, got.reason) == ((), Reason.UNSUPPORTED)
    assert "engine builtin does not serve format awq; it serves bf16, int8, int4" in got.message


def test_a_model_whose_files_are_int4_is_sized_at_that_alone() -> None:
    profile = a_profile(URI, replace(LARGE_MODEL, quantized="int4"))
    for workload in (served().at("Auto", max_quality_loss_milli=10), served().at("None")):
        found = sizes(workload.value, profile, POLICY)
        assert {size.format for size in found.sizes} == {"int4"}, found.message


def test_a_model_whose_files_are_int4_and_that_may_not_be_is_refused_with_the_fix() -> None:
    profile = a_profile(URI, replace(LARGE_MODEL, quantized="int4"))
    for workload in (served().at("Auto", allowed=("bf16", "int8")), served().at("Fixed", "int8")):
        found = sizes(workload.value, profile, POLICY)
        assert (found.sizes, found.reason) == ((), Reason.UNSUPPORTED)
        assert "files are int4 already" in found.message
        assert "allow int4 in spec.quantization" in found.message


def test_only_qlora_trains_on_a_model_whose_files_are_quantised() -> None:
    profile = a_profile(URI, replace(LARGE_MODEL, quantized="int4"))

    def asked(method: str) -> Any:
        return served(
            kind=WorkloadKind.FINE_TUNE, training=TrainingSpec(method, 8, (), batch_size=8, max_length=512)
        ).value

    assert formats(asked("qlora"), profile, POLICY).allowed == ("int4",)
    refused = formats(asked("lora"), profile, POLICY)
    assert (refused.allowed, refused.reason) == ((), Reason.FORMAT_NOT_ALLOWED)
    assert "files are int4 already; use method qlora" in refused.message


def test_the_estimate_is_the_memory_model_the_runtime_uses() -> None:
    profile = a_profile(URI, LARGE_MODEL)
    workload = served(max_model_len=4096, max_num_seqs=4).at("Fixed", "int8").value
    (size,) = sizes(workload, profile, POLICY).sizes
    expected = memory.estimate(
        LARGE_MODEL,
        "int8",
        max_model_len=4096,
        max_num_seqs=4,
        kv_tokens=4096,
        base_bytes=POLICY.sizing.base_bytes,
    )
    assert size.bytes_per_device == expected.total_bytes
    assert (size.max_model_len, size.kv_tokens) == (4096, 4096)
    assert size.wanted_kv_tokens == 4096 + 3 * 4096 // 4


def test_resources_memory_replaces_the_estimate_and_needs_no_profile() -> None:
    got = sizes(a_workload("w").needing("3Gi").value, None, POLICY)
    assert [(s.format, s.bytes_per_device) for s in got.sizes] == [("bf16", 3 << 30)]


@pytest.mark.parametrize("profile", [None, a_profile(URI, None)])
def test_an_unknown_model_is_waited_for(profile: Any) -> None:
    got = sizes(served().value, profile, POLICY)
    assert (got.sizes, got.reason) == ((), Reason.WAITING_FOR_PROFILE)


def test_a_measured_run_moves_every_estimate_of_its_format_by_the_same_amount() -> None:
    plain = sizes(served().value, a_profile(URI), POLICY).sizes
    measured = FormatProfile("bf16", estimated_peak_bytes=1000, measured_peak_bytes=1500)
    moved = sizes(served().value, a_profile(URI, SMALL_MODEL, measured), POLICY).sizes
    for before, after in zip(plain, moved, strict=True):
        assert after.bytes_per_device - before.bytes_per_device == (500 if after.format == "bf16" else 0)


def test_running_out_of_memory_asks_for_an_eighth_more_than_was_not_enough() -> None:
    floor = FormatProfile("int8", oom_floor_bytes=8 << 30)
    got = sizes(served().at("Fixed", "int8").value, a_profile(URI, SMALL_MODEL, floor), POLICY).sizes
    assert {s.bytes_per_device for s in got} == {9 << 30}


def test_a_measured_base_replaces_the_default() -> None:
    base = POLICY.sizing.base_bytes
    plain = sizes(served().value, a_profile(URI), POLICY).sizes[0]
    measured = sizes(served().value, a_profile(URI, base_bytes=base // 2), POLICY).sizes[0]
    assert plain.bytes_per_device - measured.bytes_per_device == base - base // 2


def test_context_auto_goes_down_by_halves_to_the_least_sensible_one() -> None:
    got = sizes(served().at("Fixed", "bf16").value, a_profile(URI), POLICY).sizes
    assert [s.max_model_len for s in got] == [8192, 4096, 2048]
    bytes_asked = [s.bytes_per_device for s in got]
    assert bytes_asked == sorted(bytes_asked, reverse=True)


def test_an_encoder_has_no_cache_and_one_context() -> None:
    encoder = replace(SMALL_MODEL, generative=False, max_positions=512)
    got = sizes(served().at("Fixed", "bf16").value, a_profile(URI, encoder), POLICY).sizes
    assert [(s.max_model_len, s.kv_tokens, s.kv_token_bytes) for s in got] == [(512, 0, 0)]


SPEECH = replace(
    SMALL_MODEL, architecture="WhisperForConditionalGeneration", max_positions=448, cross_tokens=1500
)


def test_a_speech_model_has_one_context_and_room_for_what_it_hears() -> None:
    got = sizes(served().at("Fixed", "bf16").value, a_profile(URI, SPEECH), POLICY).sizes
    assert [(s.max_model_len, s.kv_tokens) for s in got] == [(448, 1948)]
    plain = sizes(
        served().at("Fixed", "bf16").value, a_profile(URI, replace(SPEECH, cross_tokens=0)), POLICY
    ).sizes[0]
    assert got[0].bytes_per_device - plain.bytes_per_device > 1500 * got[0].kv_token_bytes
    assert got[0].wanted_kv_tokens == 1948 + 63 * 1948 // 4


def test_speech_models_and_classifiers_are_proposed_unconverted_alone() -> None:
    classifier = replace(SMALL_MODEL, architecture="BertForSequenceClassification", generative=False)
    for shape in (SPEECH, classifier):
        assert {s.format for s in sizes(served().value, a_profile(URI, shape), POLICY).sizes} == {"bf16"}
        refused = sizes(served().at("Fixed", "int8").value, a_profile(URI, shape), POLICY)
        assert (refused.sizes, refused.reason) == ((), "Unsupported")
        assert "spec.quantization.mode" in refused.message


@pytest.mark.parametrize(
    ("shape", "apis", "missing"),
    [
        (SPEECH, ("transcriptions",), ""),
        (SPEECH, ("chat", "transcriptions"), "chat"),
        (SMALL_MODEL, ("chat", "completions"), ""),
        (SMALL_MODEL, ("embeddings",), "embeddings"),
        (replace(SMALL_MODEL, architecture="BertModel", generative=False), ("classify",), "classify"),
        (replace(SMALL_MODEL, architecture="BertModel", generative=False), ("embeddings", "score"), ""),
        (SMALL_MODEL, ("score",), "score"),
    ],
)
def test_a_model_is_not_placed_for_what_it_cannot_answer(
    shape: memory.ModelShape, apis: tuple[str, ...], missing: str
) -> None:
    workload = replace(served().value, apis=apis)
    found = sizes(workload, a_profile(URI, shape), POLICY)
    assert bool(found.sizes) is not bool(missing)
    if missing:
        assert found.reason == "Unsupported"
        assert (
            f"spec.serving.apis asks for {missing}, which {shape.architecture} cannot answer" in found.message
        )
    assert sizes(replace(workload, engine="vllm"), a_profile(URI, shape), POLICY).sizes, (
        "vLLM's abilities are its own"
    )


def test_a_split_halves_weights_but_not_the_base() -> None:
    whole = sizes(
        served(max_model_len=2048).at("Fixed", "bf16").value, a_profile(URI, LARGE_MODEL), POLICY
    ).sizes[0]
    split = sizes(
        served(max_model_len=2048, accelerators=2).at("Fixed", "bf16").value,
        a_profile(URI, LARGE_MODEL),
        POLICY,
    ).sizes[0]
    # Hidden states and logits of a step are whole on each device.
    rows, requests = memory.PREFILL_CHUNK_TOKENS + 64, 64
    step = rows * 2 * 4 * LARGE_MODEL.hidden + requests * LARGE_MODEL.vocab * 4
    fixed = POLICY.sizing.base_bytes + memory.SLACK_BYTES + step
    assert abs((whole.bytes_per_device - fixed) - 2 * (split.bytes_per_device - fixed)) <= 4


def test_formats_and_models_that_devices_cannot_share_are_not_proposed() -> None:
    narrow = replace(LARGE_MODEL, head_dim=32)
    asked = served(max_model_len=2048, accelerators=8).at("Auto", allowed=("bf16", "int4")).value
    assert {one.format for one in sizes(asked, a_profile(URI, narrow), POLICY).sizes} == {"bf16"}
    uneven = sizes(
        served(max_model_len=2048, accelerators=2).at("Fixed", "bf16").value,
        a_profile(URI, SMALL_MODEL),
        POLICY,
    )
    assert (uneven.sizes, uneven.reason) == ((), Reason.UNSUPPORTED)
    assert "3 key-value heads" in uneven.message
    custom = replace(asked, engine="custom")
    assert "int4" in {one.format for one in sizes(custom, a_profile(URI, narrow), POLICY).sizes}


def test_stages_are_sized_by_the_fullest_and_need_no_heads_that_divide() -> None:
    def at(**split: int) -> Any:
        asked = served(max_model_len=2048, **split).at("Fixed", "bf16").value
        return sizes(asked, a_profile(URI, SMALL_MODEL), POLICY)

    (whole, *_), (staged, *_) = at().sizes, at(accelerators=2, pipeline=2).sizes
    assert staged.bytes_per_device < whole.bytes_per_device
    assert staged.kv_token_bytes * 2 >= whole.kv_token_bytes
    spread = at(accelerators=1, stages=2, pipeline=2).sizes[0]
    assert spread.bytes_per_device == staged.bytes_per_device, "wherever the devices are"
    refused = at(accelerators=SMALL_MODEL.layers + 1, pipeline=SMALL_MODEL.layers + 1)
    assert (refused.sizes, refused.reason) == ((), Reason.UNSUPPORTED)
    assert f"at most {SMALL_MODEL.layers}" in refused.message


def test_room_on_an_exclusive_device_is_granted_to_the_cache_in_whole_blocks() -> None:
    size = Size("bf16", 1000, 64, kv_tokens=64, wanted_kv_tokens=256, kv_token_bytes=2)
    assert granted(size, 1000) == (1000, 64)
    assert granted(size, 1099) == (1096, 112)
    assert granted(size, 10**9) == (1384, 256)
    assert granted(size, 500) == (1000, 64)


def test_a_request_that_ran_out_of_memory_becomes_the_models_own_size_or_half_as_much_again() -> None:
    small = served(memory_bytes=300 << 20, max_model_len=2048, learned=Learned(out_of_memory=300 << 20))
    fixed = small.at("Fixed", "bf16").value
    own = sizes(replace(fixed, memory_bytes=None), a_profile(URI), POLICY).sizes[-1].bytes_per_device
    assert own > 450 << 20
    assert sizes(fixed, a_profile(URI), POLICY).sizes[0].bytes_per_device == own
    assert sizes(fixed, None, POLICY).sizes[0].bytes_per_device == 450 << 20
    again = replace(fixed, learned=Learned(out_of_memory=own))
    assert sizes(again, a_profile(URI), POLICY).sizes[0].bytes_per_device > own


def test_a_request_far_beyond_what_was_needed_is_corrected_with_a_floor_and_others_are_not() -> None:
    large = served(memory_bytes=40 * GIB, learned=Learned(needed=4 * GIB)).value
    assert sizes(large, a_profile(URI), POLICY).sizes[0].bytes_per_device == 4 * GIB + GIB // 2
    double = served(memory_bytes=8 * GIB, learned=Learned(needed=4 * GIB)).value
    assert sizes(double, a_profile(URI), POLICY).sizes[0].bytes_per_device == 8 * GIB


def test_a_run_that_ran_out_of_memory_reserves_a_quarter_more_next_time() -> None:
    profile = a_profile(URI, LARGE_MODEL)
    first = sizes(trained().value, profile, POLICY).sizes
    lost = first[0].bytes_per_device
    after = sizes(trained(learned=Learned(out_of_memory=lost)).value, profile, POLICY).sizes
    assert {size.bytes_per_device for size in after} == {lost * 5 // 4}


def trained(method: str = "lora", rank: int = 16, **changes: Any) -> Any:
    training = TrainingSpec(method, rank, (), batch_size=8, max_length=512)
    return served(kind=WorkloadKind.FINE_TUNE, training=training, **changes)


def test_a_training_run_has_the_formats_of_its_method() -> None:
    assert formats(trained().value, None, POLICY).allowed == ("bf16",)
    assert formats(trained("full", 0).value, None, POLICY).allowed == ("fp32",)
    assert formats(trained("qlora").value, None, POLICY).allowed == ("int8", "int4")
    narrow = trained("qlora").at("Auto", allowed=("bf16", "int4")).value
    assert formats(narrow, None, POLICY).allowed == ("int4",)
    assert formats(trained().at("Fixed", "fp32").value, None, POLICY).allowed == ("fp32",)


def test_a_training_run_that_asks_for_a_format_its_method_does_not_train_on_is_told_so() -> None:
    got = formats(trained().at("Fixed", "int4").value, None, POLICY)
    assert (got.allowed, got.reason) == ((), Reason.FORMAT_NOT_ALLOWED)
    assert "fineTune.method lora trains on bf16 or fp32, not on spec.quantization.format int4" in got.message
    got = formats(trained("qlora").at("Auto", allowed=("bf16",)).value, None, POLICY)
    assert "qlora has no format left: int8 is not in spec.quantization.allowed" in got.message


def test_a_training_run_is_sized_as_the_trainer_plans_it_quickest_first() -> None:
    profile = a_profile(URI, LARGE_MODEL)
    found = sizes(trained().value, profile, POLICY).sizes
    needed = [size.bytes_per_device for size in found]
    assert needed == sorted(needed, reverse=True)
    assert len(needed) == 3
    base = profile.base_bytes if profile.base_bytes is not None else POLICY.sizing.base_bytes
    least = training_memory.TrainingSize("bf16", 16, (), 512, recompute=True)
    assert needed[-1] == training_memory.estimate_training(LARGE_MODEL, least, base_bytes=base).total_bytes
    assert {size.kv_tokens for size in found} == {0}


def test_room_for_adapters_is_part_of_the_size() -> None:
    profile = a_profile(URI, SMALL_MODEL)
    workload = served(max_model_len=1024).at("Fixed", "bf16").value
    (without,) = sizes(workload, profile, POLICY).sizes
    (with_room,) = sizes(replace(workload, max_adapters=3, adapter_rank=16), profile, POLICY).sizes
    room = memory.adapter_bytes(SMALL_MODEL, adapters=3, rank=16)
    assert with_room.bytes_per_device == without.bytes_per_device + room
    assert room > 0


def test_the_room_of_an_adapter_is_that_of_all_seven_projections() -> None:
    # SmolLM2-135M: rank 8 in float32 is the 9.8 MB that PEFT writes.
    shape = memory.ModelShape("L", 1, 1, 1, 30, 576, 1536, 9, 3, 64, 49152, 2048)
    assert memory.adapter_bytes(shape, adapters=1, rank=8) == 30 * 8 * 10176 * 4


@pytest.mark.parametrize(
    "changes",
    [
        {"training": TrainingSpec("lora", 64, (), batch_size=8, max_length=512)},
        {"learned": Learned(out_of_memory=12 * GIB)},
        {"learned": Learned(needed=GIB)},
        {"memory_bytes": 20 * GIB},
        {"max_model_len": 4096},
        {"max_num_seqs": 3},
        {"stages": 2},
        {"pipeline": 2},
        {"engine": "vllm"},
    ],
    ids=str,
)
def test_what_decides_a_size_tells_workloads_of_one_plan_apart(changes: dict[str, Any]) -> None:
    assert signature(served().value, "") == signature(served().value, "")
    assert signature(served(**changes).value, "") != signature(served().value, "")
