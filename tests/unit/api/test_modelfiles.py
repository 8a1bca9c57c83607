from __future__ import annotations

import json
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmos_operator.api.runtime import gguf, modelfiles
from llmos_operator.errors import LlmosError, Permanent
from tests.support.tinymodels import config, safetensors


def parsed(raw: bytes) -> tuple[modelfiles.Tensor, ...]:
    length = modelfiles.header_length(raw[:8], len(raw), "m")
    return modelfiles.parse_header(raw[8 : 8 + length], len(raw) - 8 - length, "m")


def test_a_header_gives_names_types_and_shapes() -> None:
    (tensor,) = parsed(safetensors({"a.weight": (3, 4)}))
    assert (tensor.name, tensor.dtype, tensor.shape, tensor.elements) == ("a.weight", "BF16", (3, 4), 12)


@pytest.mark.parametrize("key", modelfiles.CODE_KEYS)
def test_a_config_that_asks_for_code_is_refused(key: str) -> None:
    with pytest.raises(Permanent, match=key) as caught:
        modelfiles.parse_config(json.dumps(config(**{key: "x"})).encode())
    assert caught.value.reason == "UnsafeConfig"


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": 0},
        {"hidden_size": -1},
        {"hidden_size": 1 << 40},
        {"num_hidden_layers": "many"},
        {"vocab_size": True},
        {"num_attention_heads": 1.5},
    ],
)
def test_numbers_that_cannot_be_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(Permanent) as caught:
        modelfiles.parse_config(json.dumps(config(**changes)).encode())
    assert caught.value.reason == "Corrupted"


@pytest.mark.parametrize("raw", [b"", b"[]", b"{", b"null", b"[" * 100_000, b"\xff\xfe"])
def test_a_config_that_is_none_is_refused(raw: bytes) -> None:
    with pytest.raises(Permanent) as caught:
        modelfiles.parse_config(raw)
    assert caught.value.reason == "Corrupted"


def test_a_truncated_file_is_noticed_from_its_size() -> None:
    with pytest.raises(Permanent, match="truncated"):
        parsed(safetensors({"a": (64, 64)}, cut=10))


@pytest.mark.parametrize("head", [b"PK\x03\x04", b"\x80\x02", b"\x80\x04", b"\x80\x05"])
def test_a_pickle_under_another_name_is_refused(head: bytes) -> None:
    with pytest.raises(Permanent) as caught:
        modelfiles.header_length(head.ljust(8, b"\0"), 1 << 30, "model.safetensors")
    assert caught.value.reason == "UnsafeFormat"


def test_a_header_that_claims_more_than_there_is_costs_nothing() -> None:
    with pytest.raises(Permanent, match="claims"):
        modelfiles.header_length(struct.pack("<Q", 1 << 60), 1000, "m")


@pytest.mark.parametrize(
    "entry",
    [
        {},
        {"dtype": "BF16", "shape": [2], "data_offsets": [0]},
        {"dtype": "BF16", "shape": [2], "data_offsets": [0, 5]},
        {"dtype": "WEIRD", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "BF16", "shape": [-2], "data_offsets": [0, 4]},
        {"dtype": "BF16", "shape": [1 << 60], "data_offsets": [0, 1 << 61]},
        {"dtype": "BF16", "shape": "x", "data_offsets": [0, 4]},
        [],
    ],
)
def test_entries_that_lie_are_refused(entry: object) -> None:
    with pytest.raises(Permanent) as caught:
        modelfiles.parse_header(json.dumps({"t": entry}).encode(), None, "m")
    assert caught.value.reason == "Corrupted"


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "a/b.safetensors", ".hidden.safetensors", "x.bin", "a\\b.safetensors"]
)
def test_an_index_cannot_lead_out_of_its_folder(name: str) -> None:
    with pytest.raises(Permanent):
        modelfiles.parse_index(json.dumps({"weight_map": {"t": name}}).encode())


def test_encoders_keep_no_cache() -> None:
    tensors = parsed(
        safetensors({"encoder.layer.0.q.weight": (8, 8), "embeddings.word_embeddings.weight": (9, 8)})
    )
    shape = modelfiles.shape_of(config(architectures=["BertModel"]), tensors)
    assert not shape.generative
    assert (shape.linear_parameters, shape.embedding_parameters) == (64, 72)


@pytest.mark.parametrize(
    ("scheme", "stored", "fmt"),
    [
        (
            {"quant_method": "gptq", "bits": 4, "group_size": 32},
            {
                "qweight": ("I32", (8, 16)),
                "qzeros": ("I32", (2, 2)),
                "scales": ("F16", (2, 16)),
                "g_idx": ("I32", (64,)),
            },
            "int4",
        ),
        (
            {"quant_method": "gptq", "bits": 8, "group_size": -1},
            {"qweight": ("I32", (16, 16)), "scales": ("F16", (1, 16))},
            "int8",
        ),
        (
            {"quant_method": "awq", "bits": 4, "group_size": 32},
            {"qweight": ("I32", (64, 2)), "qzeros": ("I32", (2, 2)), "scales": ("F16", (2, 16))},
            "int4",
        ),
        (
            {"quant_method": "fp8", "weight_block_size": [16, 16]},
            {"weight": ("F8_E4M3", (16, 64)), "weight_scale_inv": ("F32", (1, 4))},
            "int8",
        ),
    ],
)
def test_quantised_layers_count_as_what_they_hold(scheme: dict[str, Any], stored: Any, fmt: str) -> None:
    tensors = [
        modelfiles.Tensor(f"layers.0.up.{part}", dtype, shape) for part, (dtype, shape) in stored.items()
    ]
    tensors += [
        modelfiles.Tensor("embed_tokens.weight", "F16", (9, 64)),
        modelfiles.Tensor("norm.weight", "F16", (64,)),
    ]
    shape = modelfiles.shape_of(config(quantization_config=scheme), tensors)
    assert (shape.linear_parameters, shape.embedding_parameters, shape.other_parameters) == (
        16 * 64,
        9 * 64,
        64,
    )
    assert (shape.quantized, modelfiles.source_format(shape), shape.source_bits) == (
        fmt,
        fmt,
        scheme.get("bits", 8),
    )


def test_a_speech_models_sizes_are_its_decoders() -> None:
    values = {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        "d_model": 8,
        "encoder_layers": 5,
        "num_hidden_layers": 5,
        "decoder_layers": 3,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 2,
        "decoder_ffn_dim": 32,
        "max_source_positions": 1500,
        "max_target_positions": 448,
        "vocab_size": 9,
    }
    tensors = parsed(safetensors({"model.decoder.layers.0.fc1.weight": (32, 8)}))
    shape = modelfiles.shape_of(modelfiles.parse_config(json.dumps(values).encode()), tensors)
    assert (shape.layers, shape.hidden, shape.heads, shape.kv_heads, shape.head_dim) == (3, 8, 2, 2, 4)
    assert (shape.max_positions, shape.cross_tokens, shape.generative) == (448, 1500, True)
    with pytest.raises(Permanent, match="cross_tokens is '99999999'"):
        modelfiles.parse_config(json.dumps(values | {"max_source_positions": 99_999_999}).encode())


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_make_the_parsers_fail_otherwise_than_they_promise(raw: bytes) -> None:
    for parse in (
        modelfiles.parse_config,
        modelfiles.parse_index,
        lambda data: modelfiles.parse_header(data, None, "m"),
        lambda data: modelfiles.header_length(data[:8], len(data), "m"),
        lambda data: gguf.parse_header(b"GGUF" + data, "m"),
    ):
        try:
            parse(raw)
        except LlmosError:
            continue


# -- GGUF -----------------------------------------------------------------------------------------------------


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def number(key: str, value: int) -> bytes:
    return text(key) + struct.pack("<II", 4, value)


def a_gguf() -> bytes:
    keys = [
        text("general.architecture") + struct.pack("<I", 8) + text("llama"),
        number("llama.embedding_length", 64),
        number("llama.block_count", 2),
        number("llama.attention.head_count", 4),
        number("llama.attention.head_count_kv", 2),
        number("llama.context_length", 4096),
        text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 3) + text("a") + text("b") + text("c"),
    ]
    tensors = [
        text("token_embd.weight")
        + struct.pack("<I", 2)
        + struct.pack("<QQ", 64, 3)
        + struct.pack("<IQ", 1, 0),
        text("blk.0.attn_q.weight")
        + struct.pack("<I", 2)
        + struct.pack("<QQ", 64, 64)
        + struct.pack("<IQ", 3, 0),
        text("blk.0.attn_norm.weight")
        + struct.pack("<I", 1)
        + struct.pack("<Q", 64)
        + struct.pack("<IQ", 0, 0),
    ]
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys))
    return head + b"".join(keys) + b"".join(tensors)


def test_a_gguf_header_gives_the_sizes_of_the_model() -> None:
    shape = gguf.parse_header(a_gguf(), "m.gguf")
    assert (shape.layers, shape.hidden, shape.heads, shape.kv_heads, shape.head_dim) == (2, 64, 4, 2, 16)
    assert (shape.embedding_parameters, shape.linear_parameters, shape.other_parameters) == (192, 4096, 64)
    assert (shape.vocab, shape.max_positions) == (3, 4096)


def test_a_gguf_header_that_goes_on_asks_for_more_at_every_cut() -> None:
    whole = a_gguf()
    for end in range(4, len(whole)):
        with pytest.raises(gguf.NeedMore):
            gguf.parse_header(whole[:end], "m.gguf")


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"NOPE" + bytes(40), "Corrupted"),
        (b"GGUF" + struct.pack("<IQQ", 99, 0, 0), "Unsupported"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "Corrupted"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "Corrupted"),
    ],
)
def test_gguf_headers_that_lie_are_refused(raw: bytes, reason: str) -> None:
    with pytest.raises(Permanent) as caught:
        gguf.parse_header(raw, "m.gguf")
    assert caught.value.reason == reason
