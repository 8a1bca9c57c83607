"""A runtime front without a test framework in it: loads a model, fills the KV cache, prints what memory it took.

Run as a program: ``python -m tests.support.memoryprobe FOLDER CACHE FORMAT…``; prints a JSON object by format. The test process
itself would not do: it has torch loaded, and shares (and so distorts) pages with the engine.
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import asdict

from llmos_operator.api.runtime.messages import RuntimeState
from llmos_operator.runtime.ipc import EngineClient, Load, SamplingParams, Submit, Zygote

ROWS, TOKENS, CONTEXT = 8, 368, 384


async def probe(folder: str, cache: str, formats: list[str]) -> dict[str, dict[str, int]]:
    """Return the memory report of each format."""
    zygote = Zygote()
    await zygote.start()
    reports = {fmt: await report(EngineClient(zygote=zygote), folder, fmt, cache) for fmt in formats}
    await zygote.close()
    return reports


async def report(client: EngineClient, folder: str, fmt: str, cache: str) -> dict[str, int]:
    """Return the engine's memory report after every row has been filled."""
    limit = 2 << 30
    await client.load(
        Load(
            folder,
            format=fmt,
            cache_dir=cache,
            memory_limit_bytes=limit,
            max_model_len=CONTEXT,
            max_num_seqs=ROWS,
            allow_file=True,
            threads=1,
        )
    )
    status = await client.wait(RuntimeState.READY, RuntimeState.FAILED)
    if status.failure is not None:
        raise SystemExit(status.failure.message)

    async def fill(row: int) -> None:
        prompt = tuple((row * 131 + i * 7) % 4000 + 3 for i in range(TOKENS))
        sampling = SamplingParams(max_tokens=3, temperature=0.0, ignore_eos=True)
        async with client.generate(Submit(f"row-{row}", prompt, sampling)) as outputs:
            async for _ in outputs:
                pass

    await asyncio.gather(*(fill(row) for row in range(ROWS)))
    client.set_budget(limit)  # an order to measure now
    while client.status().stats.running or client.status().memory == status.memory:
        await asyncio.sleep(0.05)
    memory = asdict(client.status().memory)
    await client.close()
    return memory


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asyncio.run(probe(sys.argv[1], sys.argv[2], sys.argv[3:]))) + "\n")
