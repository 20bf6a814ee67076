"""Normalisation as the first layer of every model, so that images travel to the device as uint8."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ffcv_prune.errors import UserError

CHANNELS = 3


class Normalize(nn.Module):
    """uint8 ``[B, 3, H, W]`` -> float32 ``[B, 3, H, W]``: ``(images / 255 - mean) / std`` by channel.

    `mean` and `std` are in units of 0 to 1. They are folded once into the float32 buffers `scale` and `shift`
    ``[1, 3, 1, 1]``. So a batch costs one conversion and one multiply-add on its own device, without synchronising,
    and saved weights contain their normalisation. The memory format of the images is kept.

    Raises `UserError` for statistics that cannot normalise, and `TypeError` for any other images than uint8
    ``[B, 3, H, W]``: floating-point images would be normalised twice.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != CHANNELS or len(std) != CHANNELS:
            raise UserError(f"mean {list(mean)} and std {list(std)} need {CHANNELS} values each")
        # In float64 until the end: the folded constants are then correctly rounded.
        mean64 = torch.tensor(mean, dtype=torch.float64).view(1, CHANNELS, 1, 1)
        std64 = torch.tensor(std, dtype=torch.float64).view(1, CHANNELS, 1, 1)
        if not (mean64.isfinite().all() and std64.isfinite().all() and (std64 > 0).all()):
            raise UserError(f"mean {list(mean)} must be finite and std {list(std)} of the images above 0")
        self.register_buffer("scale", (1 / (255 * std64)).float())
        self.register_buffer("shift", (-mean64 / std64).float())

    def forward(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != CHANNELS:
            raise TypeError(
                f"images must be uint8 [B, {CHANNELS}, H, W], not {images.dtype} {list(images.shape)}: "
                "the model normalises them itself"
            )
        return torch.addcmul(self.shift, images, self.scale)  # in float32, without a float32 copy of the images
