"""The moving mean of a model's weights over the steps of a run: train.ema."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


class MovingMean:
    """mean ← decay · mean + (1 − decay) · weights, of floating-point buffers too; the first update takes the weights.

    Other buffers, which count, are copied. No update waits for the device: torch's AveragedModel sends its own count
    there in each, from memory that is not pinned. The names of the state are those of AveragedModel.

    Attributes:
        module: a model with the mean.
        updates: number of them so far.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(model)
        self.updates = 0
        self._decay = decay
        pairs = [
            (own.detach(), other.detach())  # of the same memory, which nothing but a copy in place changes
            for own, other in zip(_tensors(self.module), _tensors(model), strict=True)
        ]
        self._mean = [pair for pair in pairs if pair[0].is_floating_point()]
        self._copied = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights that the model has now."""
        weight = 1 - self._decay if self.updates else 1.0
        own, other = zip(*self._mean, strict=True)
        torch._foreach_lerp_(own, other, weight)
        for mine, theirs in self._copied:
            mine.copy_(theirs)
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        return {"n_averaged": torch.tensor(self.updates), **self.module.state_dict(prefix="module.")}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.updates = int(state["n_averaged"])
        self.module.load_state_dict(
            {name.removeprefix("module."): value for name, value in state.items() if name != "n_averaged"}
        )


def _tensors(model: nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]
