"""What ranks exchange over `torch.distributed`'s default group. Every rank must call each function equally often.

One rule for the device: NCCL moves tensors of the current CUDA device, gloo those of the CPU. The result is where the
argument was. `training.world` makes the group, and has its own for what must never wait for a device.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn


def rank_and_world_size() -> tuple[int, int]:
    """This process's rank and the number of ranks; (0, 1) without a group."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def total(tensor: Tensor) -> Tensor:
    """The elementwise sum over the ranks."""
    return _reduced(tensor, dist.ReduceOp.SUM)


def maximum(tensor: Tensor) -> Tensor:
    """The elementwise maximum over the ranks."""
    return _reduced(tensor, dist.ReduceOp.MAX)


def interleaved(share: Tensor, size: int) -> Tensor:
    """The [size] elements of which each rank r of w has every w-th, from the r-th on."""
    _, world_size = rank_and_world_size()
    padded = share.new_zeros(-(-size // world_size), device=_device())
    padded[: len(share)] = share
    parts = [torch.empty_like(padded) for _ in range(world_size)]
    dist.all_gather(parts, padded)
    return torch.stack(parts, dim=1).flatten()[:size].to(share.device)  # [longest, w] read row by row


def texts(own: str) -> list[str]:
    """What each rank passed, by rank."""
    every = [""] * dist.get_world_size()
    dist.all_gather_object(every, own)
    return every


def share_buffers(model: nn.Module) -> None:
    """Give every rank the main rank's buffers, in place."""
    for buffer in model.buffers():
        dist.broadcast(buffer, src=0)


def _device() -> torch.device:
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")


def _reduced(tensor: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
    reduced = tensor.to(_device(), copy=True)
    dist.all_reduce(reduced, operation)
    return reduced.to(tensor.device)
