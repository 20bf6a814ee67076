"""The optimiser of every net that a run trains: SGD with momentum and weight decay (paper, section 4)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ffcv_prune.sections import Train


def build_optimizer(model: nn.Module, settings: Train) -> torch.optim.SGD:
    """SGD on all parameters that take gradients, by `settings`.

    Fused: one kernel for all parameters of a group, and the loss scaler's check for overflow stays on the device.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [{"params": trained}]
    if not settings.norm_decay:  # biases, and scale and shift of norms: one number a channel
        flat = [parameter for parameter in trained if parameter.ndim <= 1]
        groups = [
            {"params": [parameter for parameter in trained if parameter.ndim > 1]},
            {"params": flat, "weight_decay": 0.0},
        ]
    optimizer = torch.optim.SGD(
        groups,
        lr=settings.lr,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    if settings.momentum > 0:
        # Else the fused kernel takes uninitialised memory, and keeps it if the scaler skips the first step.
        for parameter in trained:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer
