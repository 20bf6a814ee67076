"""A network small enough for tests."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SmallNet(nn.Module):
    """uint8[B, 3, H, W] images to logits [B, classes]; batch norm, so that the mode matters."""

    def __init__(self, classes: int = 10, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(3, 8, 3, stride=2)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = (images.float() - 128) / 64
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))


def in_a_step(module: nn.Module) -> bool:
    """Whether the module runs in a step of training, and not on the zeros that try it before a run begins."""
    return module.training and torch.is_grad_enabled()
