"""How layers are laid over stages, and what a stage weighs."""

from dataclasses import replace

import pytest

from llmos_operator.api.runtime.memory import kv_bytes_per_token, weights_bytes
from llmos_operator.api.runtime.staging import not_stageable, stage_layers, stage_shapes
from tests.support.builders import LARGE_MODEL, SMALL_MODEL


@pytest.mark.parametrize("shape", [SMALL_MODEL, LARGE_MODEL])
@pytest.mark.parametrize("stages", [2, 3, 4, 7])
@pytest.mark.parametrize("fmt", ["bf16", "int8", "int4"])
def test_every_layer_is_somewhere_and_no_other_cut_is_lighter(shape, stages, fmt):
    counts = stage_layers(shape, fmt, stages)
    assert sum(counts) == shape.layers
    assert min(counts) >= 1
    sizes = [weights_bytes(one, fmt) for one in stage_shapes(shape, fmt, stages)]
    layer = weights_bytes(replace(shape, embedding_parameters=0), fmt) // shape.layers
    heaviest = max(range(stages), key=sizes.__getitem__)
    if counts[heaviest] > 1:  # a layer less there would be one more on a stage that is as heavy then
        assert min(sizes) + layer >= sizes[heaviest] - 2 * shape.layers


def test_a_large_table_leaves_the_ends_fewer_layers():
    wide = replace(SMALL_MODEL, vocab=8 * SMALL_MODEL.vocab)
    first, middle, last = stage_layers(wide, "bf16", 3)
    assert first < middle
    assert last < middle


def test_a_stage_keeps_keys_and_values_of_its_own_layers():
    shapes = stage_shapes(LARGE_MODEL, "bf16", 4)
    assert sum(kv_bytes_per_token(one) for one in shapes) == kv_bytes_per_token(LARGE_MODEL)
    assert stage_shapes(LARGE_MODEL, "bf16", 1) == (LARGE_MODEL,)
    assert [one.embedding_parameters > 0 for one in shapes] == [True, False, False, True]


def test_a_refusal_names_the_field_and_the_number():
    assert not_stageable(SMALL_MODEL, 1) == ""
    assert not_stageable(SMALL_MODEL, SMALL_MODEL.layers) == ""
    why = not_stageable(SMALL_MODEL, SMALL_MODEL.layers + 1)
    assert f"{SMALL_MODEL.layers} layers" in why
    assert f"spec.parallelism.pipeline to at most {SMALL_MODEL.layers}" in why
    assert "spec.parallelism.tensor or spec.parallelism.pipeline to 1" in not_stageable(SMALL_MODEL, 2, 2)
    assert "Phi3ForCausalLM" in not_stageable(replace(LARGE_MODEL, architecture="Phi3ForCausalLM"), 2)
