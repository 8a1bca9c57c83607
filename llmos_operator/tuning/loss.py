"""The loss of a language model without the logits of all tokens at once.

Only tokens that are learned meet the head, and they meet it in chunks: each chunk's logits, loss and gradient are done
before the next one's begin. Logits of 1,024 tokens over a vocabulary of 128 thousand would be half a gigabyte, three
times over; of a chunk they are a few dozen megabytes. (The idea is that of fused linear cross-entropy, arXiv:2410.10989.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

CHUNK_ROWS = 128


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, targets: Tensor, head: Callable[[Tensor], Tensor], *learned: Tensor
    ) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        gradient = torch.empty_like(hidden)
        sums = [torch.zeros_like(one) for one in learned]
        for begin in range(0, hidden.shape[0], CHUNK_ROWS):
            rows = slice(begin, begin + CHUNK_ROWS)
            with torch.enable_grad():
                piece = hidden[rows].detach().requires_grad_()
                loss = functional.cross_entropy(head(piece).float(), targets[rows], reduction="sum")
                found = torch.autograd.grad(loss, (piece, *learned))
            gradient[rows] = found[0]
            for place, one in enumerate(found[1:]):
                sums[place] += one
            total += loss.detach().double().cpu()
        ctx.save_for_backward(gradient, *sums)
        return total.to(hidden.device, torch.float32)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gradient, *sums = ctx.saved_tensors
        return (gradient * grad.to(gradient.dtype), None, None, *(one * grad for one in sums))


def summed_loss(
    hidden: Tensor, targets: Tensor, head: Callable[[Tensor], Tensor], learned: Sequence[Tensor] = ()
) -> Tensor:
    """Return the summed cross-entropy of ``targets`` [rows] under head(hidden [rows, width]), in nats.

    ``learned`` are the head's own parameters that learn; they get their gradients, too.
    """
    if torch.is_grad_enabled() and (hidden.requires_grad or learned):
        out: Tensor = _Chunked.apply(hidden, targets, head, *learned)  # type: ignore[no-untyped-call]
        return out
    total = torch.zeros((), device=hidden.device)
    for begin in range(0, hidden.shape[0], CHUNK_ROWS):
        rows = slice(begin, begin + CHUNK_ROWS)
        total += functional.cross_entropy(head(hidden[rows]).float(), targets[rows], reduction="sum")
    return total
