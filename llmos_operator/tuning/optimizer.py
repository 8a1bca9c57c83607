"""AdamW (arXiv:1711.05101) over named parameters, and its state as named tensors.

torch's own update, on state that is always there and always in the same order, so that it can be written and read
without a pickle.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

_BETAS = (0.9, 0.999)


class Optimizer:
    """Updates parameters from their gradients."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], weight_decay: float, clip: float) -> None:
        """``clip`` is the largest norm of all gradients together, 0 for none."""
        self._parameters = parameters
        self._clip = clip
        self._adam = torch.optim.AdamW(
            list(parameters.values()), lr=0.0, betas=_BETAS, weight_decay=weight_decay, foreach=False
        )
        for parameter in parameters.values():
            self._adam.state[parameter] = {
                "step": torch.zeros(()),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }

    def clear(self) -> None:
        """Forget all gradients."""
        self._adam.zero_grad(set_to_none=True)

    def step(self, rate: float) -> float:
        """Update once at a learning rate; return the norm of the gradients before they were clipped."""
        limit = self._clip or float("inf")
        norm = torch.nn.utils.clip_grad_norm_(list(self._parameters.values()), limit, foreach=False)
        for group in self._adam.param_groups:
            group["lr"] = rate
        self._adam.step()
        self.clear()
        return float(norm)

    def tensors(self) -> dict[str, Tensor]:
        """Return parameters and moments by name; the number of steps is the caller's."""
        found: dict[str, Tensor] = {}
        for name, parameter in self._parameters.items():
            state = self._adam.state[parameter]
            found |= {f"weight.{name}": parameter.data}
            found |= {f"{moment}.{name}": state[moment] for moment in ("exp_avg", "exp_avg_sq")}
        return found

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor], steps: int) -> None:
        """Take what `tensors` gave after so many steps. Raises KeyError or ValueError if it is of another model."""
        for name, parameter in self._parameters.items():
            state = self._adam.state[parameter]
            state["step"].fill_(steps)
            targets = {"weight": parameter, "exp_avg": state["exp_avg"], "exp_avg_sq": state["exp_avg_sq"]}
            for kind, target in targets.items():
                found = tensors[f"{kind}.{name}"]
                if found.shape != target.shape:
                    raise ValueError(f"{kind}.{name} has shape {list(found.shape)}, not {list(target.shape)}")
                target.copy_(found)
