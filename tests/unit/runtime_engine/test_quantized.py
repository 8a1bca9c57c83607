"""The contract of ATen's private kernels, and of the layers and files built on them."""

import pytest
import torch

from llmos_operator.errors import Permanent
from llmos_operator.runtime.backends.quantized import Int4Linear, Int8Embedding, Int8Linear
from llmos_operator.runtime.formats.grids import pack_int4, quantize_int4, quantize_int8
from llmos_operator.runtime.formats.quantize import Unit, convert
from llmos_operator.runtime.formats.safetensors_file import ALIGNMENT, read_header
from tests.support.models import save_tensors, write_random

torch.set_num_threads(1)


def an_int8(rows, width):
    layer = Int8Linear(width, rows)
    weight = torch.randn(rows, width)
    layer.weight, layer.scale = quantize_int8(weight)
    return layer, layer.weight.float() * layer.scale.float()[:, None]


def an_int4(rows, width):
    layer = Int4Linear(width, rows)
    values, grid = quantize_int4(torch.randn(rows, width))
    layer.weight, layer.grid = pack_int4(values), grid.transpose(0, 1).contiguous()
    groups = (values.view(rows, -1, 32) - 8) * grid[..., :1].float() + grid[..., 1:].float()
    return layer, groups.view(rows, width)


@pytest.mark.parametrize("make", [an_int8, an_int4])
@pytest.mark.parametrize(("rows", "width"), [(64, 32), (192, 576), (960, 64), (48, 96)])
@pytest.mark.parametrize("batch", [1, 2, 5, 7, 13, 40])
def test_packed_and_unpacked_products_are_the_dequantised_product(make, rows, width, batch):
    layer, weight = make(rows, width)
    x = torch.randn(batch, width).bfloat16()
    expected = x.float() @ weight.t()
    scale = expected.abs().max()
    for product in (layer.packed(x), layer.unpacked(x)):
        assert (product.float() - expected).abs().max() / scale < 0.02


def test_the_row_count_chooses_the_kernel():
    layer, _ = an_int8(64, 32)
    layer.crossover_rows = 4
    used = []
    layer.packed = lambda x: used.append("packed") or torch.zeros(x.shape[0], 64)
    layer.unpacked = lambda x: used.append("unpacked") or torch.zeros(x.shape[0], 64)
    for rows in (4, 5):
        layer(torch.zeros(1, rows, 32, dtype=torch.bfloat16))
    assert used == ["packed", "unpacked"]


def test_a_bias_is_added():
    layer, weight = an_int8(64, 32)
    layer.bias = torch.arange(64).bfloat16()
    x = torch.randn(3, 32).bfloat16()
    assert torch.allclose(layer(x).float(), x.float() @ weight.t() + torch.arange(64), atol=0.3)


def test_weights_that_lie_on_a_4_bit_grid_are_found_again():
    levels = torch.randint(0, 16, (64, 4, 32))
    levels[..., 0], levels[..., 1] = 0, 15  # a Q4_1 block spans its own minimum and maximum
    scale = torch.rand(64, 4, 1) + 0.1
    low = torch.randn(64, 4, 1)
    weight = (levels * scale + low).bfloat16().float().view(64, 128)
    values, _ = quantize_int4(weight)
    assert torch.equal(values.view(64, 4, 32), levels.to(torch.int32))


def test_int8_rounds_to_half_a_step():
    weight = torch.randn(32, 256)
    values, scale = quantize_int8(weight)
    error = (values * scale.float()[:, None] - weight).abs()
    assert (error <= scale.float()[:, None] * 0.51).all()


def test_a_row_of_zeros_stays_zero():
    weight = torch.zeros(64, 64)
    values, scale = quantize_int8(weight)
    assert (values.float() * scale.float()[:, None]).abs().max() == 0
    levels, grid = quantize_int4(weight)
    assert ((levels.view(64, 2, 32) - 8) * grid[..., :1].float() + grid[..., 1:].float()).abs().max() < 1e-9


def test_an_embedding_gives_the_rows_its_tied_head_multiplies_by():
    table = Int8Embedding(100, 32)
    table.weight, table.scale = quantize_int8(torch.randn(100, 32))
    head = Int8Linear(32, 100)
    head.share(table)
    assert head.weight is table.weight
    x = torch.randn(1, 32).bfloat16()
    rows = table(torch.arange(100)).float()
    assert torch.allclose(head(x).float(), x.float() @ rows.t(), atol=0.2)


def test_conversion_by_chunks_is_conversion_as_a_whole(tmp_path, monkeypatch):
    parts = {
        "a": torch.randn(192, 64),
        "b": torch.randn(96, 64),
        "c": torch.randn(70, 64),
        "n": torch.randn(64),
    }
    save_tensors(tmp_path / "source.safetensors", parts)
    entries = {
        t.name: (tmp_path / "source.safetensors", t)
        for t in read_header(tmp_path / "source.safetensors").tensors
    }
    units = [
        Unit("x", "int4", ("a", "b"), (288, 64)),
        Unit("y", "int8", ("a", "c"), (262, 64)),
        Unit("norm.weight", "plain", ("n",), (64,)),
    ]
    files = []
    for size in (1, 16 << 20):
        monkeypatch.setattr("llmos_operator.runtime.formats.quantize.CHUNK_BYTES", size)
        convert(units, entries, tmp_path / f"{size}.safetensors", {}, lambda _: None)
        files.append((tmp_path / f"{size}.safetensors").read_bytes())
    assert files[0] == files[1]
    header = read_header(tmp_path / "1.safetensors")
    assert all(
        tensor.begin % ALIGNMENT == 0 for tensor in header.tensors if not tensor.name.startswith("_pad.")
    )


def test_a_converted_file_has_what_the_model_asks_for(driver, tmp_path):
    write_random(tmp_path / "m", "qwen2")
    model = driver(tmp_path / "m", "int8", tmp=tmp_path)
    attention = model.empty.model.model.layers[0].self_attn
    assert isinstance(attention.qkv_proj, Int8Linear)
    assert attention.qkv_proj.bias is not None
    with pytest.raises(Permanent, match="lacks"):
        build_without(tmp_path, driver)


def build_without(tmp_path, driver):
    """Load a converted file of another model."""
    from llmos_operator.runtime.backends import build  # noqa: PLC0415

    empty = driver(tmp_path / "m").empty
    other = build.prepare(empty.config, _checkpoint(tmp_path / "m"))
    other.fuse("int8")
    build.load_weights(other, "int8", {}, torch.device("cpu"), lambda _: None)


def _checkpoint(folder):
    from llmos_operator.runtime.formats.checkpoint import open_checkpoint  # noqa: PLC0415

    return open_checkpoint(folder)
