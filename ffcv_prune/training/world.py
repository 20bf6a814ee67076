"""The processes that train one model together, started by torchrun; or the one process that trains alone."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from ffcv_prune import collectives
from ffcv_prune.errors import Terminated, UserError
from ffcv_prune.training.watch import LOST_RANK, Watch

T = TypeVar("T")

# A rank that has died is noticed at once, by its closed connection; one whose machine has vanished, after this.
SILENCE = timedelta(seconds=60)
CUDA_SILENCE = timedelta(minutes=5)  # where a loader may stall on a slow disk, and a restart costs more
# What ranks do at their own pace: one opens files or compiles, on a slower machine, or writes to a slow disk.
PATIENCE = timedelta(minutes=10)
# A lost rank in the words of gloo and NCCL, which have no exception of its own for it.
BACKEND = re.compile("gloo|nccl|monitoredBarrier", re.IGNORECASE)
LOST = re.compile("closed|reset by peer|broken pipe|timed? ?out|monitoredBarrier|remote process", re.IGNORECASE)


@dataclass(frozen=True)
class World:
    """This process among all that train together.

    Everything here goes over the CPU (gloo), also when the gradients travel by NCCL: to ask the other ranks
    never waits for a device.

    Attributes:
        rank: 0 for the main process, the only one that writes and prints.
        size: number of processes.
        local_rank, local_size: the same on this machine.
        device: what this process computes on.
        group: of all ranks, over gloo; None where there is one.
    """

    device: torch.device
    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    group: Any = field(default=None, compare=False)
    _patient_group: Any = field(default=None, compare=False)
    _watch: Watch | None = field(default=None, compare=False)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def gather(self, own: T) -> list[T]:
        """What each rank passed, by rank. All ranks must call."""
        return [own] if self.size == 1 else collectives.gather(own, self.group)

    def share(self, main: T) -> T:
        """What the main rank passed. All ranks must call."""
        return main if self.size == 1 else collectives.share(main, self.group)

    def agree(self, number: int) -> int:
        """The largest number that a rank passed. All ranks must call."""
        return number if self.size == 1 else int(collectives.maximum(torch.tensor(number), self.group))

    def check_same(self, what: str, own: Any) -> None:
        """UserError on all ranks, naming those that differ from rank 0, unless all passed the same."""
        if self.size > 1:
            complaint = f"rank {{}} has another {what} than rank 0; start all ranks alike"
            collectives.check_same(own, complaint, self.group)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Raise on all ranks the `UserError` that any of them raises in this block: none is left waiting.

        Whoever comes first waits for the last as long as `PATIENCE`: a slow disk is no lost rank.
        """
        error: UserError | None = None
        try:
            yield
        except UserError as caught:
            error = caught
        if self.size > 1:
            # Both the wait of rank 0 for the others and theirs for rank 0 are bounded by the timeout of the group.
            dist.monitored_barrier(self._patient_group)
            messages = self.gather(None if error is None else str(error))
            for rank, message in enumerate(messages):
                if message is not None and error is None:
                    error = UserError(message if rank == 0 else f"rank {rank}: {message}")
        if error is not None:
            error.agreed = self.size > 1
            raise error

    @contextmanager
    def naming_lost_ranks(self) -> Iterator[None]:
        """UserError in place of what gloo, NCCL and CUDA raise when another rank has ended or fallen silent."""
        try:
            yield
        except RuntimeError as error:
            if self.size > 1 and ((self._watch is not None and self._watch.lost) or tells_of_a_lost_rank(error)):
                raise UserError(LOST_RANK) from error
            raise

    def last_act(self, act: Callable[[], None]) -> None:
        """What to do before this process is ended because another rank is gone and it waits for that."""
        if self._watch is not None:
            self._watch.last_act = act


def tells_of_a_lost_rank(error: RuntimeError) -> bool:
    """Whether this is gloo's or NCCL's complaint about another rank, or one of set-up about a rank that never came."""
    of_backend = isinstance(error, dist.DistError) or BACKEND.search(str(error)) is not None
    return of_backend and LOST.search(str(error)) is not None


@contextmanager
def join(device: str) -> Iterator[World]:
    """Join the processes that torchrun started, or train alone where it did not start this one.

    Args:
        device: train.device.

    Raises:
        UserError: a device that is not there, or fewer GPUs on this machine than processes.
    """
    rank, local_rank, local_size = 0, 0, 1
    try:
        size = int(os.environ.get("WORLD_SIZE", 1))
        if size != 1:
            names = ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
            rank, local_rank, local_size = (int(os.environ[name]) for name in names)
    except KeyError as missing:
        raise UserError(f"WORLD_SIZE is set but {missing} is not; start several processes with torchrun") from None
    except ValueError as error:
        raise UserError(f"a variable that torchrun sets is not a number: {error}") from None
    own = choose_device(device, local_rank, local_size)
    prepare(own)
    if size == 1:
        yield World(own)
        return
    silence = CUDA_SILENCE if own.type == "cuda" else SILENCE
    agreed, watch, world = False, None, World(own, rank, size, local_rank, local_size)
    try:
        with world.naming_lost_ranks():
            if own.type == "cuda":
                # It kills a process that waits longer, as it may for one that scores more slowly. With its device it
                # connects now, so that what is wrong with NCCL shows in set-up.
                dist.init_process_group("nccl", timeout=PATIENCE, device_id=own)
            else:
                dist.init_process_group("gloo", timeout=silence)
            group, patient, watched = (
                dist.new_group(backend="gloo", timeout=timeout) for timeout in (silence, PATIENCE, silence)
            )
            watch = Watch(watched)
            world = replace(world, group=group, _patient_group=patient, _watch=watch)
            watch.start()
        with world.naming_lost_ranks():
            yield world
        agreed = True
    except Terminated:
        agreed = True
        raise
    except UserError as error:
        agreed, error.alone = error.agreed, not error.agreed
        raise
    finally:
        if watch is not None:
            watch.end(agreed)
        if agreed:  # otherwise other ranks may be gone, and NCCL would wait for them
            dist.destroy_process_group()


def prepare(device: torch.device) -> None:
    """Make `device` this process's own, and let cuDNN try out its algorithms where it is a GPU.

    The batches of training all have one shape; `machine.untuned` is for those that have another.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = True


def choose_device(name: str, local_rank: int = 0, local_size: int = 1) -> torch.device:
    """The device of train.device for one of `local_size` processes on this machine: "auto" is a GPU if there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cpu":
        return device
    count = torch.cuda.device_count()
    if local_size > 1:
        if device.index is not None:
            raise UserError(f"train.device={name}: each of several processes takes a GPU of its own; use cuda")
        if local_size > count:
            raise UserError(f"{local_size} processes on a machine with {count} CUDA devices; lower --nproc_per_node")
        return torch.device("cuda", local_rank)
    if (device.index or 0) >= count:
        raise UserError(f"train.device={name}: this machine has {count} CUDA devices; use cpu")
    return torch.device("cuda", device.index or 0)
