"""Checkpoints whose linear weights are stored quantised: what their config.json and tensor names say.

Pure, for the operator's sizing and for the runtime alike. Layouts, of a layer of [out, in]:

    gptq      qweight int32 [in * bits / 32, out], packed down a column; scales [groups, out]; qzeros int32
              [groups, out * bits / 32], one less than meant unless checkpoint_format is gptq_v2; g_idx [in]
    awq       qweight int32 [in, out / 8], packed along a row in the order 0 2 4 6 1 3 5 7; scales and qzeros alike
    packed    weight_packed int32 [out, in * bits / 32], half the range added; weight_scale [out, groups];
              weight_zero_point int32 [out * bits / 32, groups] where it is not symmetric (compressed-tensors)
    integers  weight int8 [out, in], weight_scale [out, 1] or one for all (compressed-tensors)
    floats    weight fp8 [out, in] with weight_scale as before, or weight_scale_inv of blocks of it

Sources: the layouts as GPTQModel, AutoAWQ and compressed-tensors write them, and as transformers 5 reads fp8 blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from llmos_operator.api.conditions import Reason
from llmos_operator.errors import Permanent

if TYPE_CHECKING:
    from collections.abc import Iterable

METHODS: Final = ("gptq", "awq", "compressed-tensors", "fp8")
WORD_BITS: Final = 32
_WIDE: Final = 8  # bits from which weights are served at int8
_SIDES: Final = 2  # of a matrix, and of a block of it
_RUN: Final = 32  # inputs that share a scale in the engine's int4 layers
# The tensor that holds a layer's weights, by layout, and what stands beside it.
_HOLDS: Final = {
    "gptq": "qweight",
    "awq": "qweight",
    "packed": "weight_packed",
    "integers": "weight",
    "floats": "weight",
}
_BESIDE: Final = {
    "gptq": ("scales", "qzeros", "g_idx"),
    "awq": ("scales", "qzeros"),
    "packed": ("weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx"),
    "integers": ("weight_scale", "weight_zero_point"),
    "floats": ("weight_scale", "weight_scale_inv"),
}
# Of the activations, which the engine keeps at bf16: what is said of them is not needed.
_OF_ACTIVATIONS: Final = (
    "input_scale",
    "input_zero_point",
    "output_scale",
    "input_global_scale",
    "k_scale",
    "v_scale",
)
_PACKED_DTYPES: Final = {
    "gptq": ("I32",),
    "awq": ("I32",),
    "packed": ("I32",),
    "integers": ("I8",),
    "floats": ("F8_E4M3",),
}


@dataclass(frozen=True, slots=True)
class Scheme:
    """How the linear weights of a checkpoint are stored."""

    method: str  # as config.json names it
    layout: str
    bits: int
    group: int = 0  # inputs that share a scale, 0: all of a row
    in_order: bool = True  # whether the inputs of a group are neighbours
    zero_offset: int = 0  # what is added to a stored zero point
    block: tuple[int, int] = (0, 0)  # rows and columns that share a scale (floats), (0, 0): by rows

    @property
    def format(self) -> str:
        """The format at which the engine serves such weights without another loss: int4 or int8."""
        runs = not self.group or self.group % _RUN == 0
        return "int4" if self.bits < _WIDE and self.in_order and runs else "int8"

    def __str__(self) -> str:
        kind = "fp8" if self.layout == "floats" else f"{self.bits} bit"
        return f"{self.method}, {kind}" + (f", groups of {self.group}" if self.group else "")


def scheme_of(config: Mapping[str, Any]) -> Scheme | None:
    """Return how a config.json says its weights are stored, None: plainly. Raises Permanent(Unsupported, Corrupted)."""
    raw = config.get("quantization_config")
    if not raw:
        return None
    if not isinstance(raw, Mapping):
        raise Permanent("config.json: quantization_config is not an object", reason=Reason.CORRUPTED)
    method = str(raw.get("quant_method"))[:40]
    read = _READERS.get(method)
    if read is None:
        raise _unsupported(f"method {method}", f"methods that are read: {', '.join(METHODS)}")
    return read(raw)


def _gptq(raw: Mapping[str, Any]) -> Scheme:
    bits = _bits(raw.get("bits"), (4, 8))
    written = str(raw.get("checkpoint_format", "gptq"))
    if written not in ("gptq", "gptq_v2"):
        raise _unsupported(f"checkpoint_format {written[:40]}", "gptq and gptq_v2 are read")
    if raw.get("dynamic"):
        raise _unsupported("other bits for some layers (dynamic)", "one number of bits for all is read")
    ordered = not raw.get("desc_act")
    return Scheme(
        "gptq", "gptq", bits, _group(raw.get("group_size")), ordered, 0 if written == "gptq_v2" else 1
    )


def _awq(raw: Mapping[str, Any]) -> Scheme:
    bits = _bits(raw.get("bits", raw.get("w_bit")), (4,))
    version = str(raw.get("version", "gemm")).lower()
    if version != "gemm":
        raise _unsupported(f"version {version[:40]}", "version gemm is read")
    return Scheme("awq", "awq", bits, _group(raw.get("group_size", raw.get("q_group_size"))))


def _compressed(raw: Mapping[str, Any]) -> Scheme:
    groups = raw.get("config_groups")
    found = (
        [one.get("weights") for one in groups.values() if isinstance(one, Mapping)]
        if isinstance(groups, Mapping)
        else []
    )
    weights = [one for one in found if isinstance(one, Mapping)]
    if not weights or any(one != weights[0] for one in weights):
        raise _unsupported("no or several schemes of weights in config_groups", "one for all layers is read")
    if isinstance(raw.get("sparsity_config"), Mapping) and raw["sparsity_config"].get("format") not in (
        None,
        "dense",
    ):
        raise _unsupported("compressed sparsity", "dense weights are read")
    one, written = weights[0], str(raw.get("format"))
    strategy, kind = str(one.get("strategy")), str(one.get("type", "int"))
    by_rows = strategy in ("channel", "tensor")
    if written == "pack-quantized" and kind == "int" and strategy in ("channel", "group"):
        bits = _bits(one.get("num_bits"), (4, 8))
        ordered = one.get("actorder") not in ("group", "dynamic", True)
        return Scheme(
            "compressed-tensors",
            "packed",
            bits,
            _group(one.get("group_size") if strategy == "group" else -1),
            ordered,
        )
    if (
        written in ("int-quantized", "naive-quantized")
        and kind == "int"
        and by_rows
        and one.get("symmetric", True)
    ):
        return Scheme("compressed-tensors", "integers", _bits(one.get("num_bits"), (8,)))
    if written in ("float-quantized", "naive-quantized") and kind == "float" and by_rows:
        return Scheme("compressed-tensors", "floats", _bits(one.get("num_bits"), (8,)))
    raise _unsupported(
        f"format {written[:40]} of {kind[:20]} by {strategy[:20]}",
        "pack-quantized (int by channel or group), int-quantized and float-quantized (by channel or tensor) are read",
    )


def _fp8(raw: Mapping[str, Any]) -> Scheme:
    size = raw.get("weight_block_size")
    if str(raw.get("fmt", "e4m3")) != "e4m3":
        raise _unsupported(f"fmt {str(raw.get('fmt'))[:20]}", "e4m3 is read")
    if size is None:
        return Scheme("fp8", "floats", 8)
    if not (
        isinstance(size, list)
        and len(size) == _SIDES
        and all(type(one) is int and 0 < one <= 1 << 14 for one in size)
    ):
        raise Permanent(
            f"config.json: weight_block_size is {str(size)[:40]}, not two numbers", reason=Reason.CORRUPTED
        )
    return Scheme("fp8", "floats", 8, block=(size[0], size[1]))


_READERS: Final = {"gptq": _gptq, "awq": _awq, "compressed-tensors": _compressed, "fp8": _fp8}


def _bits(value: object, known: tuple[int, ...]) -> int:
    if type(value) is not int or value not in known:
        raise _unsupported(f"{str(value)[:20]} bits", f"{' and '.join(map(str, known))} bits are read")
    return value


def _group(value: object) -> int:
    if type(value) is not int or value == 0 or value < -1 or value > 1 << 14:
        raise Permanent(
            f"config.json: group_size is {str(value)[:20]!r}, not -1 or a number above 0",
            reason=Reason.CORRUPTED,
        )
    return max(0, value)


def _unsupported(what: str, known: str) -> Permanent:
    return Permanent(
        f"the weights are quantised with {what}, which is not served ({known}); name the model in its source precision, or "
        "serve it with engine vllm and spec.resources.memory",
        reason=Reason.UNSUPPORTED,
    )


def weight_name(scheme: Scheme, name: str, dtype: str) -> str | None:
    """Return the name of the plain tensor that a stored tensor holds, None if it holds none."""
    if name.rpartition(".")[2] == _HOLDS[scheme.layout] and dtype in _PACKED_DTYPES[scheme.layout]:
        return f"{name.rpartition('.')[0]}.weight"
    return None


def is_beside(scheme: Scheme, name: str) -> bool:
    """Return whether a stored tensor only says how others are to be read."""
    return name.rpartition(".")[2] in (*_BESIDE[scheme.layout], *_OF_ACTIVATIONS)


def plain_shape(scheme: Scheme, stored: tuple[int, ...]) -> tuple[int, ...]:
    """Return [out, in] of the tensor that holds a layer's weights. Raises Permanent(Corrupted) if it is no matrix."""
    if len(stored) != _SIDES:
        raise Permanent(
            f"quantised weights have the shape {list(stored)}, not two dimensions", reason=Reason.CORRUPTED
        )
    count = WORD_BITS // scheme.bits
    first, second = stored
    if scheme.layout == "gptq":
        return second, first * count
    if scheme.layout == "awq":
        return second * count, first
    return (first, second * count) if scheme.layout == "packed" else stored


def beside_names(scheme: Scheme, weight: str) -> Iterable[str]:
    """Return the names that the tensors beside a layer's weights may have."""
    owner = weight.rpartition(".")[0]
    return (f"{owner}.{name}" for name in _BESIDE[scheme.layout])


def holding_name(scheme: Scheme, weight: str) -> str:
    """Return the name of the stored tensor that holds a plain one."""
    return f"{weight.rpartition('.')[0]}.{_HOLDS[scheme.layout]}"
