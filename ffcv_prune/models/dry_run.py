"""What a network cannot take is said before anything is written: two images of zeros go through it as in training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ffcv_prune.errors import UserError, first_line

REFUSALS = (AssertionError, RuntimeError, ValueError)  # what networks raise for images of another size


def check_network(model: nn.Module, name: str, side: tuple[int, int], key: str) -> None:
    """UserError unless the network, in training mode, makes one tensor of images of this height and width.

    Weights, buffers and random numbers are as before.

    Args:
        model: takes uint8[B, 3, H, W].
        name: of the network, as the message calls it.
        key: that sets the side of the images.
    """
    device = next(model.parameters()).device
    kept = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
            outputs = model(torch.zeros(2, 3, *side, dtype=torch.uint8, device=device))
    except torch.OutOfMemoryError:
        raise
    except REFUSALS as error:
        raise UserError(
            f"{name} cannot take images of {side[0]} x {side[1]} ({first_line(error)}): set {key}"
        ) from error
    finally:
        for buffer, before in kept:
            buffer.copy_(before)
    if not isinstance(outputs, Tensor):
        raise UserError(f"{name} returns a {type(outputs).__name__} in training, not a tensor: take another network")
