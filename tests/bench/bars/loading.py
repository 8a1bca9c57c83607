"""What a load takes: its stages at each format, and a file of 2.3 GB from the disk and from memory, against `dd`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llmos_operator.runtime.ipc import Load
from tests.bench.bars import processes
from tests.bench.engines import load_model
from tests.bench.report import Table

if TYPE_CHECKING:
    from pathlib import Path

    from llmos_operator.runtime.ipc import EngineClient, EngineMemory
    from llmos_operator.runtime.ipc.client import EngineStatus

FORMATS = ("bf16", "int8", "int4")
_WRITABLE = 6 << 30  # bytes that must be free for the large model
LAYERS = 22
# 1.17 billion parameters, with 22 layers, in the shape of the Llama family: 2.34 GB at bf16.
_LARGE: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "torch_dtype": "bfloat16",
    "vocab_size": 49152,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
    "eos_token_id": 2,
    "bos_token_id": 1,
}


@dataclass(frozen=True, slots=True)
class Loaded:
    """One load: seconds by stage and from the order to ready, and what is known of the model then."""

    stages: dict[str, float]
    seconds: float
    memory: EngineMemory
    kl_micro: int | None
    loss_milli: int | None
    private_bytes: int
    read_bytes: int

    @property
    def staged(self) -> float:
        """Seconds of all stages: without the end of the engine before and the start of this one's process."""
        return sum(self.stages.values())


@dataclass(slots=True)
class Large:
    """The large model, one value a round; ``why`` it was not measured."""

    size: int = 0
    dd: list[float] = field(default_factory=list)  # GB/s
    cold: list[float] = field(
        default_factory=list
    )  # GB/s of what the disk delivered, in the time a warm load does not take
    warm: list[float] = field(default_factory=list)  # seconds
    private_mib: list[float] = field(default_factory=list)
    why: str = ""

    @property
    def ratios(self) -> list[float]:
        """Cold load against `dd`, round by round."""
        return [a / b for a, b in zip(self.cold, self.dd, strict=True)]


async def formats(client: EngineClient, folder: Path, cache: Path) -> dict[str, tuple[Loaded, Loaded]]:
    """Return for each format a load with nothing converted yet, and one from the cache."""
    found = {}
    for name in FORMATS:
        wanted = Load(str(folder), format=name, cache_dir=str(cache), allow_file=True, threads=1)
        found[name] = (await _load(client, wanted), await _load(client, wanted))
    return found


async def large(client: EngineClient, place: Path, rounds: int, base_private: int, layers: int) -> Large:
    """Load a large model from the disk and from memory, in turn with `dd`.

    ``base_private``: private memory of an engine with a small model, whose difference is the large one's.
    """
    free = shutil.disk_usage(place).free
    if free < _WRITABLE:
        return Large(why=f"{free >> 30} GiB are free for the file and its like, {_WRITABLE >> 30} are needed")
    file = write_large(place / "large", layers)
    found = Large(size=file.stat().st_size)
    wanted = Load(str(file.parent), cache_dir=str(place / "cache"), allow_file=True, threads=1)
    await _load(client, wanted)  # its digest is known from here on, as on a node that keeps the model
    for _ in range(rounds):
        await client.unload()
        forget(file)
        if (rate := _dd(file)) is None:
            return Large(why="`dd` cannot read directly from this file system")
        forget(file)
        cold = await _load(client, wanted)
        warm = await _load(client, wanted)
        found.dd.append(rate)
        found.cold.append(cold.read_bytes / 1e9 / max(cold.staged - warm.staged, 1e-3))
        found.warm.append(warm.staged - warm.stages.get("Warming", 0.0))
        found.private_mib.append((warm.private_bytes - base_private) / 2**20)
    await client.unload()
    shutil.rmtree(file.parent)
    return found


def write_large(folder: Path, layers: int) -> Path:
    """Write the large model, of so many layers, with random weights; return its file."""
    import torch  # noqa: PLC0415 - seconds
    from safetensors.torch import save_file  # noqa: PLC0415

    hidden, inner = _LARGE["hidden_size"], _LARGE["intermediate_size"]
    keys = _LARGE["num_key_value_heads"] * _LARGE["head_dim"]
    shapes = {"model.embed_tokens": (_LARGE["vocab_size"], hidden), "lm_head": (_LARGE["vocab_size"], hidden)}
    shapes["model.norm"] = (hidden,)
    for layer in range(layers):
        at = f"model.layers.{layer}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{at}.{norm}"] = (hidden,)
        for part, rows in (("q", hidden), ("k", keys), ("v", keys), ("o", hidden)):
            shapes[f"{at}.self_attn.{part}_proj"] = (rows, hidden)
        for part, shape in (("gate", (inner, hidden)), ("up", (inner, hidden)), ("down", (hidden, inner))):
            shapes[f"{at}.mlp.{part}_proj"] = shape
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(_LARGE | {"num_hidden_layers": layers}), encoding="utf-8")
    torch.manual_seed(0)
    tensors = {
        f"{name}.weight": torch.empty(shape, dtype=torch.bfloat16).uniform_(-0.02, 0.02)
        for name, shape in shapes.items()
    }
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    return folder / "model.safetensors"


def forget(file: Path) -> None:
    """Take a file's pages out of memory."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _dd(file: Path) -> float | None:
    """Return GB/s of reading a file past the page cache, None where that cannot be."""
    began = time.perf_counter()
    done = subprocess.run(
        ["dd", f"if={file}", "of=/dev/null", "bs=16M", "iflag=direct"], capture_output=True, check=False
    )
    return file.stat().st_size / 1e9 / (time.perf_counter() - began) if done.returncode == 0 else None


async def _load(client: EngineClient, wanted: Load) -> Loaded:
    status, seconds = await load_model(client, wanted)
    return _loaded(status, seconds)


def _loaded(status: EngineStatus, seconds: float) -> Loaded:
    info, pid = status.info, status.pid
    if info is None or pid is None:
        raise RuntimeError("an engine that is ready says nothing of its model")
    return Loaded(
        stages=dict(info.stage_seconds),
        seconds=seconds,
        memory=status.memory,
        kl_micro=info.quality_kl_micro,
        loss_milli=info.quality_loss_milli,
        private_bytes=processes.private_bytes(pid),
        read_bytes=processes.read_bytes(pid),
    )


def table(found: dict[str, tuple[Loaded, Loaded]]) -> Table:
    """Return load times by stage."""
    names = max((list(one.stages) for pair in found.values() for one in pair), key=len)
    rows = []
    for name, pair in found.items():
        for path, one in zip(("cold", "warm"), pair, strict=True):
            parts = [f"{one.stages[stage]:.2f}" if stage in one.stages else "" for stage in names]
            memory = f"{one.memory.peak_bytes / 2**20:.0f} MiB"
            rows.append([name, path, f"{one.seconds - one.staged:.2f}", *parts, f"{one.seconds:.2f}", memory])
    note = (
        "The packaged chat model of 135 M parameters; seconds from the order to ready, its files on the local disk. Cold: "
        "nothing converted yet, so a quantised format is made and judged against the source (within warming); warm: from the "
        "cache. Process: what no stage claims, the end of the engine before and the start of this one; the very first one also "
        "waits until torch is imported. Peak memory is that of engine and template process."
    )
    columns = ["format", "load", "process", *(stage.lower() for stage in names), "together", "peak memory"]
    return Table("Load time by stage, s", columns, rows, note)
