"""What ranks exchange over `torch.distributed`. Every rank must call each function equally often.

A `group` of None is the default one. One rule for the device: NCCL moves tensors of the current CUDA device, gloo those
of the CPU. The result is where the argument was. Objects travel as pickles, and so by gloo wherever speed counts.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ffcv_prune.errors import UserError

T = TypeVar("T")


def total(tensor: Tensor) -> Tensor:
    """The elementwise sum over the ranks."""
    return _reduced(tensor, dist.ReduceOp.SUM, None)


def maximum(tensor: Tensor, group: Any = None) -> Tensor:
    """The elementwise maximum over the ranks."""
    return _reduced(tensor, dist.ReduceOp.MAX, group)


def interleaved(share: Tensor, size: int) -> Tensor:
    """The [size] elements of which each rank r of w has every w-th, from the r-th on."""
    world_size = dist.get_world_size()
    padded = share.new_zeros(-(-size // world_size), device=_device(None))
    padded[: len(share)] = share
    parts = [torch.empty_like(padded) for _ in range(world_size)]
    dist.all_gather(parts, padded)
    return torch.stack(parts, dim=1).flatten()[:size].to(share.device)  # [longest, w] read row by row


def gather(own: T, group: Any = None) -> list[T]:
    """What each rank passed, by rank."""
    every: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(every, own, group=group)
    return every


def share(main: T, group: Any = None) -> T:
    """What the main rank passed."""
    shared = [main]
    dist.broadcast_object_list(shared, src=0, group=group)
    return shared[0]


def share_buffers(model: nn.Module) -> None:
    """Give every rank the main rank's buffers, in place."""
    for buffer in model.buffers():
        dist.broadcast(buffer, src=0)


def check_same(own: Any, complaint: str, group: Any = None) -> None:
    """UserError on all ranks unless all passed the same; {} in the complaint are those that differ from rank 0."""
    every = gather(own, group)
    different = [str(rank) for rank, other in enumerate(every) if other != every[0]]
    if different:
        raise UserError(complaint.format(", ".join(different)), agreed=True)


def _device(group: Any) -> torch.device:
    return torch.device("cuda" if dist.get_backend(group) == "nccl" else "cpu")


def _reduced(tensor: Tensor, operation: dist.ReduceOp.RedOpType, group: Any) -> Tensor:
    reduced = tensor.to(_device(group), copy=True)
    dist.all_reduce(reduced, operation, group)
    return reduced.to(tensor.device)
