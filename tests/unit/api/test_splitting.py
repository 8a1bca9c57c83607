"""Which models several devices can share, and what the refusal says."""

from dataclasses import replace

import pytest

from llmos_operator.api.runtime.splitting import not_splittable
from tests.support.builders import LARGE_MODEL, SMALL_MODEL


@pytest.mark.parametrize(
    ("shape", "ways"), [(SMALL_MODEL, 1), (SMALL_MODEL, 3), (LARGE_MODEL, 2), (LARGE_MODEL, 8)]
)
@pytest.mark.parametrize("fmt", ["bf16", "int8", "int4"])
def test_heads_that_come_out_even_can_be_shared(shape, ways, fmt):
    assert not_splittable(shape, fmt, ways) == ""


def test_a_refusal_names_the_heads_and_the_numbers_that_would_do():
    why = not_splittable(SMALL_MODEL, "bf16", 2)
    assert "3 key-value heads" in why
    assert "spec.resources.accelerators and spec.parallelism.tensor to 1 or 3" in why
    many = replace(SMALL_MODEL, kv_heads=9)
    assert "1536 MLP columns" in not_splittable(many, "bf16", 9)


def test_int4_needs_whole_blocks_of_its_packing():
    narrow = replace(LARGE_MODEL, head_dim=32)
    assert not_splittable(narrow, "int8", 8) == ""
    why = not_splittable(narrow, "int4", 8)
    assert "would get 32 of a layer's" in why
    assert "use bf16 or int8" in why
    assert why.endswith("to 1 or 2 or 4")


def test_only_known_blocks_are_cut():
    assert "BertModel cannot be split" in not_splittable(
        replace(SMALL_MODEL, architecture="BertModel", generative=False), "bf16", 3
    )
    assert "Phi3ForCausalLM" in not_splittable(
        replace(LARGE_MODEL, architecture="Phi3ForCausalLM"), "bf16", 2
    )
    gguf = replace(LARGE_MODEL, architecture="llama")  # as general.architecture of a GGUF file says
    assert not_splittable(gguf, "bf16", 2) == ""
