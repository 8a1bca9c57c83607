"""bf16 products are the same whichever way this CPU makes them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from llmos_operator.runtime.backends import products
from llmos_operator.runtime.backends.products import Linear, product, widens


@pytest.fixture(params=[True, False], ids=["bf16 is slow", "bf16 is fast"])
def slow(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    slow: bool = request.param
    monkeypatch.setattr(products, "bf16_is_slow", lambda: slow)
    return slow


def _near(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.dtype is torch.bfloat16
    torch.testing.assert_close(found.double(), expected, rtol=2e-2, atol=2e-2)


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("rows", [1, 15, 16, 300])
@pytest.mark.parametrize(("out", "width"), [(96, 64), (3000, 768)], ids=["one slice", "several slices"])
def test_a_product_is_what_float64_says(rows: int, out: int, width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, width, generator=generator).bfloat16()
    weight = (torch.randn(out, width, generator=generator) / width**0.5).bfloat16()
    _near(product(x, weight), x.double() @ weight.double().t())
    columns = weight.t().contiguous().t()  # the same matrix, laid out by columns
    _near(product(x, columns), x.double() @ weight.double().t())


@pytest.mark.parametrize("rows", [1, 5])
def test_logits_are_float32_and_not_rounded_where_they_need_not_be(slow: bool, rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 64, generator=generator).bfloat16()
    weight = torch.randn(3000, 64, generator=generator).bfloat16()
    found = products.logits(x, weight)
    assert found.dtype is torch.float32
    assert torch.equal(found, found.bfloat16().float()) is not slow
    bound = 1e-3 if slow else 0.3
    torch.testing.assert_close(found.double(), x.double() @ weight.double().t(), rtol=0, atol=bound)


@pytest.mark.usefixtures("slow")
def test_int8_weights_are_exact_in_both() -> None:
    x = torch.eye(16, 32, dtype=torch.bfloat16)
    weight = torch.arange(-128, 128, dtype=torch.int16).to(torch.int8).view(8, 32)
    assert torch.equal(product(x, weight), weight[:, :16].t().to(torch.bfloat16))


@pytest.mark.usefixtures("slow")
def test_a_layer_keeps_its_parameters_shape_and_bias() -> None:
    original = nn.Linear(64, 48, dtype=torch.bfloat16)
    layer = Linear.of(original)
    assert layer.weight is original.weight
    assert layer.bias is original.bias
    x = torch.randn(2, 5, 64).bfloat16()
    with torch.inference_mode():
        _near(layer(x), x.double() @ original.weight.double().t() + original.bias.double())


def test_only_several_rows_of_bf16_are_widened(slow: bool) -> None:
    assert widens(torch.zeros(1, products.WIDE_ROWS, 8, dtype=torch.bfloat16)) is slow
    assert not widens(torch.zeros(products.WIDE_ROWS - 1, 8, dtype=torch.bfloat16))
    assert not widens(torch.zeros(64, 8))
