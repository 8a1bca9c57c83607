"""A worker in the environment of transformers alone: `static` batches of generate, or `continuous` batching in process.

`python transformers_worker.py static|continuous FOLDER`, then a line of JSON for each batch as `contenders.Worker` writes
them. Nothing of the project is imported here.
"""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    Answer = Callable[[list[list[int]], list[int]], tuple[int, float]]

PAGES, PAGE_TOKENS, BATCH_TOKENS = 64, 256, 512  # without them it plans for memory that a CPU's share is not
NEVER = -1  # no such token: answers go on past the end of a text


def static(model: Any) -> Answer:
    """Return what answers a batch as one: padded on the left, until the last one is complete."""

    def answer(prompts: list[list[int]], tokens: list[int]) -> tuple[int, float]:
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(one)) + one for one in prompts], device=model.device)
        mask = torch.tensor(
            [[0] * (longest - len(one)) + [1] * len(one) for one in prompts], device=model.device
        )
        out = model.generate(
            ids, attention_mask=mask, max_new_tokens=max(tokens), do_sample=False, pad_token_id=0
        )
        if out.shape[1] != longest + max(tokens):
            raise RuntimeError(f"{out.shape[1] - longest} tokens came instead of {max(tokens)}")
        return sum(tokens), 0.0  # only what was asked for counts; the first token comes with the last

    model.generation_config.eos_token_id = None
    return answer


def continuous(model: Any) -> Answer:
    """Return what answers by a manager of continuous batching that keeps running."""
    on_cpu = model.device.type == "cpu"
    config = GenerationConfig(eos_token_id=NEVER, do_sample=False, max_new_tokens=PAGE_TOKENS)
    limits = (
        {"num_blocks": PAGES, "page_size": PAGE_TOKENS, "max_batch_tokens": BATCH_TOKENS} if on_cpu else {}
    )
    manager = model.init_continuous_batching(
        generation_config=config, continuous_batching_config=ContinuousBatchingConfig(**limits)
    )
    manager.start()

    def answer(prompts: list[list[int]], tokens: list[int]) -> tuple[int, float]:
        for prompt, count in zip(prompts, tokens, strict=True):
            manager.add_request(prompt, max_new_tokens=count, eos_token_id=NEVER)
        made = left = 0
        for left in range(len(prompts), 0, -1):
            result = manager.get_result(timeout=600)
            while result is not None and not result.is_finished():
                result = manager.get_result(timeout=600)
            if result is None or result.error:
                raise RuntimeError(f"{left} answers did not come: {result and result.error}")
            made += len(result.generated_tokens)
        return made, 0.0

    return answer


def main() -> None:
    """Answer until the input ends."""
    kind, folder = sys.argv[1:3]
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    if torch.cuda.is_available():
        model = model.to("cuda")
    answer = {"static": static, "continuous": continuous}[kind](model)
    say({"ready": True})
    with torch.inference_mode():
        for line in sys.stdin:
            order = json.loads(line)
            cpu, began = time.process_time(), time.perf_counter()
            tokens, first = answer(order["prompts"], order["tokens"])
            took = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - began}
            say({"tokens": tokens, "first": first, **took})


def say(what: dict[str, Any]) -> None:
    """Write one line."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    import os

    os._exit(0)  # the manager's thread is no daemon and would keep it alive
