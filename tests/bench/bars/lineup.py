"""Who takes part: the runtime at each format, and the peers that can be had here, each with what it is asked to do."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llmos_operator.errors import Permanent
from llmos_operator.runtime.formats.prepare import MODELS, find_source
from scripts.peers import llama_peer, python_peer
from tests.bench.bars.contenders import Contender, Program, Server, Worker, free_port
from tests.bench.report import ROOT
from tests.support.models import CHAT

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from tests.bench.bars.work import Codec

BF16, INT8, INT4 = "llmos bf16", "llmos int8", "llmos int4"
STATIC, CONTINUOUS, SERVE, VLLM, LLAMA = (
    "transformers generate",
    "transformers continuous batching",
    "transformers serve",
    "vLLM",
    "llama.cpp Q4_1",
)
OURS = (BF16, INT8, INT4)
MOST_STREAMS = 32
CONTEXT = 2048
# Which jobs are whose; in a round each job goes through all of its contenders before the next one begins.
TAKES: dict[str, tuple[str, ...]] = {
    "1": (STATIC, LLAMA, BF16, INT8, INT4),
    "8": (STATIC, VLLM, BF16, INT8, INT4),
    "32": (STATIC, CONTINUOUS, SERVE, VLLM, BF16, INT8, INT4),
    "prompt": (BF16, INT8, INT4),
    "cold": (BF16, INT8, INT4),
    "hit": (BF16, INT8, INT4),
    "mixed": (SERVE, VLLM, BF16, INT8),
    "copy": (STATIC, BF16, INT8),
}
VLLM_ON_GPU = "LLMOS_BENCH_VLLM"  # folder with a `vllm` program made for the GPU


@dataclass(slots=True)
class Lineup:
    """Those who take part, in the order they start, and why others do not."""

    contenders: list[Contender] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)


def lineup(folder: Path, place: Path, codec: Codec, *, gpu: bool) -> Lineup:
    """Return everybody who can be had here; nothing is started yet. ``place`` is for caches and logs."""
    found = Lineup([_ours(name, folder, place, gpu=gpu) for name in OURS])
    makers: dict[str, Callable[[], Contender]] = {
        STATIC: lambda: _transformers(STATIC, "static", folder, place, codec),
        CONTINUOUS: lambda: _transformers(CONTINUOUS, "continuous", folder, place, codec),
        SERVE: lambda: _serve(folder, place, gpu=gpu),
        VLLM: lambda: _vllm(folder, place, gpu=gpu),
        LLAMA: lambda: _llama(place, codec, gpu=gpu),
    }
    for name, make in makers.items():
        try:
            found.contenders.append(make())
        except Permanent as error:
            found.missing[name] = str(error)
    return found


def runtime_environment(folder: Path, place: Path, fmt: str, port: int, *, gpu: bool) -> dict[str, str]:
    """Return what a runtime is told that serves the model of ``folder`` on loopback."""
    found = {
        "LLMOS_MODEL_URI": f"file://{folder}",
        "LLMOS_MODEL_NAME": "m",
        "LLMOS_ALLOW_FILE": "true",
        "LLMOS_FORMAT": fmt,
        "LLMOS_HOST": "127.0.0.1",
        "LLMOS_PORT": str(port),
        "LLMOS_CONTROL_PORT": str(free_port()),
        "LLMOS_CACHE_DIR": str(place / "cache"),
        "LLMOS_MAX_NUM_SEQS": str(MOST_STREAMS),
        "LLMOS_MAX_MODEL_LEN": str(CONTEXT),
        "LLMOS_MAX_WAIT_SECONDS": "3600",
        "LLMOS_LOG__LEVEL": "warning",
    }
    return found if gpu else found | {"NVIDIA_VISIBLE_DEVICES": "void"}


def runtime(name: str, fmt: str, folder: Path, place: Path, *, gpu: bool) -> Server:
    """Return a runtime that is not started yet."""
    port = free_port()
    program = Program(
        [sys.executable, "-m", "llmos_operator", "runtime"],
        place / f"{name.replace(' ', '-')}.log",
        runtime_environment(folder, place, fmt, port, gpu=gpu),
    )
    # Its front takes an engine that was silent for minutes for one that hangs.
    return Server(name, program, f"http://127.0.0.1:{port}", "/readyz", _endless, rests=False)


def _ours(name: str, folder: Path, place: Path, *, gpu: bool) -> Server:
    return runtime(name, name.rsplit(" ", 1)[-1], folder, place, gpu=gpu)


def _endless(prompt: str, tokens: int) -> dict[str, Any]:
    """Return a request as ours and vLLM understand it: greedy, past the end of a text."""
    return {
        "model": "m",
        "prompt": prompt,
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def _transformers(name: str, kind: str, folder: Path, place: Path, codec: Codec) -> Worker:
    python = python_peer("transformers") / "bin/python"
    script = ROOT / "tests/bench/bars/transformers_worker.py"
    program = Program([str(python), str(script), kind, str(folder)], place / f"{kind}.log")
    return Worker(name, program, codec)


def _serve(folder: Path, place: Path, *, gpu: bool) -> Server:
    port = free_port()
    device = (
        ["--device", "cuda"]
        if gpu
        else ["--device", "cpu", "--cb-num-blocks", "64", "--cb-max-batch-tokens", "512"]
    )
    command = [
        str(python_peer("transformers") / "bin/transformers"),
        *("serve", str(folder), "--continuous-batching", "--dtype", "bfloat16", *device),
        *("--host", "127.0.0.1", "--port", str(port)),
    ]
    hub = place / "hub"  # its list of models fails without the folder
    (hub / "hub").mkdir(parents=True, exist_ok=True)

    def body(prompt: str, tokens: int) -> dict[str, Any]:
        endless = f'{{"eos_token_id": -1, "do_sample": false, "max_new_tokens": {tokens}}}'
        return {
            "model": str(folder),
            "prompt": prompt,
            "max_tokens": tokens,
            "stream": True,
            "generation_config": endless,
        }

    program = Program(command, place / "serve.log", {"HF_HOME": str(hub)})
    return Server(SERVE, program, f"http://127.0.0.1:{port}", "/health", body)


def _vllm(folder: Path, place: Path, *, gpu: bool) -> Server:
    port = free_port()
    command = [
        _vllm_program(gpu=gpu),
        *("serve", str(folder), "--served-model-name", "m", "--dtype", "bfloat16"),
        *("--max-model-len", str(CONTEXT), "--max-num-seqs", str(MOST_STREAMS)),
        *(() if gpu else ("--enforce-eager",)),
        *("--host", "127.0.0.1", "--port", str(port)),
    ]
    environment: Mapping[str, str] = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
    }
    program = Program(command, place / "vllm.log", environment)
    return Server(VLLM, program, f"http://127.0.0.1:{port}", "/health", _endless)


def _vllm_program(*, gpu: bool) -> str:
    """Return the program. Raises Permanent(reason=NoPeer): its wheel for GPUs is of gigabytes, and nobody's lock holds it."""
    if not gpu:
        return str(python_peer("vllm") / "bin/vllm")
    found = shutil.which("vllm", path=os.environ.get(VLLM_ON_GPU) or None)
    if found is None:
        raise Permanent(
            f"vLLM cannot be had: set {VLLM_ON_GPU} to the folder of a `vllm` for this GPU", reason="NoPeer"
        )
    return found


def _llama(place: Path, codec: Codec, *, gpu: bool) -> Worker:
    if gpu:
        raise Permanent(
            "llama.cpp is not compared on a GPU: its package's binary is for CPUs", reason="NoPeer"
        )
    folder = llama_peer()
    model = find_source(next(one for one in MODELS if one.repository == CHAT))
    node = shutil.which("node") or "node"
    command = [node, str(folder / "generate.mjs"), str(model), "1", str(CONTEXT)]
    return Worker(LLAMA, Program(command, place / "llama.log"), codec)
