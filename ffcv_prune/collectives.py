"""What ranks exchange over `torch.distributed`. Every rank must call each function equally often.

A `group` of None is the default one. One rule for the device: NCCL moves tensors of the current CUDA device, gloo those
of the CPU. The result is where the argument was. Objects travel as pickles, and so by gloo wherever speed counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ffcv_prune.errors import UserError

if dist.is_available():
    # Default arguments in it are the process group at its import. If DistributedDataParallel imports it first, they
    # hold the group until Python exits. Its threads may abort the exit: "terminate called without an active exception".
    import torch.distributed.nn

T = TypeVar("T")

BEAT = 10.0  # seconds from one sign of life to the next: below the timeout of any group
_DONE, _WORKING, _FAILED = 0, 1, 2


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


@contextmanager
def work_of_main(what: str, group: Any = None) -> Iterator[Callable[[], None]]:
    """In this block the main rank alone works; at its end the others wait, however long that takes.

    The main rank calls what the block gets, every few seconds or more often. It then tells the others every `BEAT`
    seconds that it still works, so that no wait of theirs reaches the timeout of the group.

    Raises:
        UserError: on the others, where the main rank failed.
    """
    if dist.get_rank(group) > 0:
        yield lambda: None
        word = _WORKING
        while word == _WORKING:
            word = int(maximum(torch.tensor(_DONE), group))
        if word == _FAILED:
            raise UserError(f"rank 0 failed in {what}: see its output")
        return
    told = time.perf_counter()

    def still_working() -> None:
        nonlocal told
        if time.perf_counter() - told >= BEAT:
            maximum(torch.tensor(_WORKING), group)
            told = time.perf_counter()

    try:
        yield still_working
    except Exception:
        maximum(torch.tensor(_FAILED), group)
        raise
    maximum(torch.tensor(_DONE), group)


def _device(group: Any) -> torch.device:
    return torch.device("cuda" if dist.get_backend(group) == "nccl" else "cpu")


def _reduced(tensor: Tensor, operation: dist.ReduceOp.RedOpType, group: Any) -> Tensor:
    reduced = tensor.to(_device(group), copy=True)
    dist.all_reduce(reduced, operation, group)
    return reduced.to(tensor.device)
