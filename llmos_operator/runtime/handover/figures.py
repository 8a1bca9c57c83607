"""vLLM's own figures: passed on as they are, and read for what the operator asks.

Names of vLLM V1: https://docs.vllm.ai/en/latest/design/metrics/. Only families that begin with `vllm:` are passed on;
the rest (`process_*`, `python_*`, `http_*`) would stand twice beside the runtime's own.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from llmos_operator.runtime.ipc.messages import Stats

PREFIX = b"vllm:"
_COMMENT = re.compile(rb"# (?:HELP|TYPE) vllm:")
_SAMPLE = re.compile(r"(vllm:[A-Za-z0-9_:]+)(?:\{([^}]*)\})? ([0-9.eE+-]+)")
_FIRST = "vllm:time_to_first_token_seconds"
_REASON = re.compile(r'finished_reason="([^"]*)"')


@dataclass(frozen=True, slots=True)
class Figures:
    """What vLLM's metrics say now; counters since its start."""

    running: int = 0
    waiting: int = 0
    finished: int = 0
    aborted: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    kv_usage_milli: int = 0  # 0..1000 of the KV cache
    first_tokens: int = 0  # requests that have got one
    first_token_millis: int = 0  # they waited for it, added up

    def stats(self) -> Stats:
        """Return the counts admission goes by."""
        return Stats(running=self.running, waiting=self.waiting)


def own_families(text: bytes) -> bytes:
    """Return the lines of an exposition that are vLLM's own."""
    kept = [line for line in text.splitlines() if line.startswith(PREFIX) or _COMMENT.match(line)]
    return b"\n".join(kept) + b"\n" if kept else b""


def read(text: bytes) -> Figures:
    """Return the figures of an exposition. Several engines behind one server add up; of the KV caches the fullest counts."""
    sums: dict[str, float] = {}
    ended: dict[str, float] = {}
    usage = 0.0
    for name, labels, value in _samples(text):
        sums[name] = sums.get(name, 0.0) + value
        if name == "vllm:kv_cache_usage_perc":
            usage = max(usage, value)
        if name == "vllm:request_success_total" and (found := _REASON.search(labels)):
            ended[found.group(1)] = ended.get(found.group(1), 0.0) + value
    return Figures(
        running=int(sums.get("vllm:num_requests_running", 0)),
        waiting=int(sums.get("vllm:num_requests_waiting", 0)),
        finished=int(sum(ended.values())),
        aborted=int(ended.get("abort", 0)),
        prompt_tokens=int(sums.get("vllm:prompt_tokens_total", 0)),
        generation_tokens=int(sums.get("vllm:generation_tokens_total", 0)),
        kv_usage_milli=round(1000 * min(1.0, max(0.0, usage))),
        first_tokens=max(0, int(sums.get(f"{_FIRST}_count", 0))),
        first_token_millis=max(0, round(1000 * sums.get(f"{_FIRST}_sum", 0))),
    )


def _samples(text: bytes) -> list[tuple[str, str, float]]:
    lines = text.decode(errors="replace").splitlines()
    found = (_SAMPLE.match(line) for line in lines if line.startswith("vllm:") and "_bucket{" not in line)
    return [(one.group(1), one.group(2) or "", _number(one.group(3))) for one in found if one is not None]


def _number(text: str) -> float:
    """Return a sample's value; 0 for what is none: an image of a tenant's says what it likes."""
    try:
        value = float(text)
    except ValueError:
        return 0.0
    return value if math.isfinite(value) else 0.0
