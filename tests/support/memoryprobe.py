"""A runtime front without a test framework in it: loads models, keeps them as busy as they may be, prints what memory it took.

Run as a program: ``python -m tests.support.memoryprobe CACHE``, with a JSON list of `Run`s as input; prints the engine's
memory report of each. The test process itself would not do: it has torch loaded, and shares (and so distorts) pages with
the engine.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

from llmos_operator.api.runtime.messages import RuntimeState
from llmos_operator.runtime.ipc import Embed, EngineClient, Load, SamplingParams, Submit, Zygote
from tests.support.ownmemory import Steady

LIMIT = 2 << 30
_ANSWER = 3  # tokens
_SPARE = 16  # tokens of the context that stay free
_TOUCHED = ("libtorch_cpu.so", "libtorch_python.so", "libc10.so")  # where an engine's shared pages are


@dataclass(frozen=True, slots=True)
class Run:
    """One load of a model, with ``rows`` sequences that each fill ``context`` tokens."""

    folder: str
    format: str
    rows: int
    context: int
    generative: bool = True


async def probe(cache: str, runs: list[Run]) -> list[dict[str, int]]:
    """Return the memory report of each run, made one after the other; `steady_bytes` is the peak as `ownmemory` has it."""
    zygote = Zygote()
    await zygote.start()
    reports = [await _report(EngineClient(zygote=zygote), run, cache) for run in runs]
    await zygote.close()
    return reports


async def _report(client: EngineClient, run: Run, cache: str) -> dict[str, int]:
    steady = Steady((str(Path(cache).parent),), (cache, run.folder))
    watching = asyncio.create_task(_watch(client, steady))
    await client.load(
        Load(
            run.folder,
            format=run.format,
            cache_dir=cache,
            memory_limit_bytes=LIMIT,
            max_model_len=run.context,
            max_num_seqs=run.rows,
            allow_file=True,
            threads=1,
            max_quality_loss_milli=-1,
        )
    )
    status = await client.wait(RuntimeState.READY, RuntimeState.FAILED)
    if status.failure is not None:
        raise SystemExit(status.failure.message)
    if not steady.shared:
        steady.begin()
    steady.most = 0  # a conversion maps both files, whose pages the machine takes back when it needs them
    prompts = [
        tuple((row * 131 + i * 7) % 300 + 3 for i in range(run.context - _SPARE)) for row in range(run.rows)
    ]
    if run.generative:
        await asyncio.gather(*(_generate(client, prompt) for prompt in prompts))
    else:
        await client.embed(Embed("rows", tuple(prompts)))
    client.set_budget(LIMIT)  # an order to measure now
    while client.status().stats.running or client.status().memory == status.memory:
        await asyncio.sleep(0.05)
    memory = asdict(client.status().memory)
    watching.cancel()
    steady.look()  # a quick run is over between two looks
    await client.close()
    return memory | {"steady_bytes": steady.peak}


async def _watch(client: EngineClient, steady: Steady) -> None:
    """Measure from when the engine has measured its base, which is the first it does of a load."""
    while client.status().state is RuntimeState.STARTING:
        await asyncio.sleep(0.02)
    steady.begin()
    await steady.watch()


async def _generate(client: EngineClient, prompt: tuple[int, ...]) -> None:
    sampling = SamplingParams(max_tokens=_ANSWER, temperature=0.0, ignore_eos=True)
    async with client.generate(Submit(f"row-{prompt[0]}", prompt, sampling)) as outputs:
        async for _ in outputs:
            pass


def alone(folder: Path, runs: list[Run]) -> list[dict[str, int]]:
    """Make ``runs`` in processes that share what they touch of torch with nobody; what is made in between stays in ``folder``.

    The CPU's part of torch is copied, so that what a model touches of it is counted; of what else is shared with processes
    of others see `ownmemory`.
    """
    copied = _copy_of_torch(folder / "modules")
    command = [sys.executable, "-m", "tests.support.memoryprobe", str(folder / "cache")]
    path = f"{copied}:{Path.cwd()}"
    done = subprocess.run(
        ["/usr/bin/env", f"PYTHONPATH={path}", *command],
        input=json.dumps([asdict(run) for run in runs]),
        stdout=subprocess.PIPE,
        check=True,
        text=True,
        timeout=1200,
    )
    reports: list[dict[str, int]] = json.loads(done.stdout.splitlines()[-1])
    return reports


def _copy_of_torch(folder: Path) -> Path:
    """Copy torch below ``folder``: of its libraries those that are touched, links to the rest (a gigabyte of CUDA)."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        raise SystemExit("torch is not installed: make venv")

    def copy(source: str, target: str) -> None:
        name = Path(source).name
        if ".so" in name and name not in _TOUCHED:
            Path(target).symlink_to(source)
        else:
            shutil.copyfile(source, target)

    if not folder.exists():
        shutil.copytree(Path(spec.origin).parent, folder / "torch", copy_function=copy)
    return folder


if __name__ == "__main__":
    sys.stdout.write(
        json.dumps(asyncio.run(probe(sys.argv[1], [Run(**one) for one in json.load(sys.stdin)]))) + "\n"
    )
