"""The demo as a client: a streamed chat answer and embeddings, both through the gateway."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

from llmos_operator.cli import chat, reach

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from demo.lab import Lab

SENTENCES = (
    "A cat sits on the mat.",
    "There is a kitten on the rug.",
    "Interest rates rose by half a percent.",
)


def ask(url: str, model: str, question: str, show: Callable[[str], None]) -> chat.Answer:
    """Ask a model and hand out the answer as it streams."""
    talk = chat.Talk(model=model, max_tokens=48, temperature=0.0)
    return asyncio.run(chat.ask(reach.Direct(url), talk, question, show))


def similarities(lab: Lab, url: str, model: str) -> tuple[float, float]:
    """Return how alike the first sentence is to the second (same meaning) and to the third (another one)."""
    answer = lab.post(f"{url}/v1/embeddings", {"model": model, "input": list(SENTENCES)})
    first, second, third = (
        item["embedding"] for item in sorted(answer["data"], key=lambda item: item["index"])
    )
    return cosine(first, second), cosine(first, third)


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the cosine of the angle between two vectors."""
    dot = sum(a * b for a, b in zip(one, other, strict=True))
    return dot / (math.hypot(*one) * math.hypot(*other))
