"""Tests that run on the CPU everywhere and on a GPU where there is one, and what only a GPU can be asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ffcv_prune import PrunedLoader
from ffcv_prune.loading.ring import Ring
from ffcv_prune.protocols import Batch

BOTH = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
LATE = 3_000_000  # clock cycles, a millisecond or two: many times what a small batch needs


def lag(device: str, cycles: int = LATE) -> None:
    """Give the current stream something to do, so that the host runs ahead of it."""
    if device == "cuda":
        torch.cuda._sleep(cycles)


def finish(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def side_stream(device: str) -> Any:
    """A context in which work goes to another stream than the usual one, and begins when that is through."""
    if device == "cpu":
        return nullcontext()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    return torch.cuda.stream(stream)


@contextmanager
def never_waiting(device: str) -> Iterator[None]:
    """An error where the host waits for a GPU."""
    if device == "cpu":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


class Unread(TorchDispatchMode):
    """An error where the host asks for the value of a tensor, which would make it wait for a GPU."""

    READS = ("_local_scalar_dense", "item", "is_nonzero", "nonzero", "equal")  # the second and third in inference mode

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in self.READS:
            raise RuntimeError(f"{func} would be a synchronizing operation")
        return func(*args, **(kwargs or {}))


class Unwaited:
    """A loader, with an error where the host waits for a GPU from the second batch to the last.

    On the CPU, with one where it asks for a value.
    """

    def __init__(self, loader: PrunedLoader, device: str) -> None:
        self._loader, self._device = loader, device

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def batches(self, *arguments: Any) -> Iterator[Batch]:
        with closing(self._loader.batches(*arguments)) as batches:
            yield next(batches)
            with Unread() if self._device == "cpu" else never_waiting(self._device):
                yield from batches


class MoreThanOne(int):
    """1, and above 1."""

    def __gt__(self, other: object) -> bool:
        return True


class OneOfMany:
    """A loader of the one rank of a group: it serves all, and the rank does what several do together."""

    world_size = MoreThanOne(1)

    def __init__(self, loader: PrunedLoader) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


@contextmanager
def without_tf32() -> Iterator[None]:
    """cuDNN's convolutions in all bits of float32, by algorithms that repeat."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.backends.cudnn, "allow_tf32", False)
        patch.setattr(torch.backends.cudnn, "deterministic", True)
        yield


def nothing(*_: Any, **__: Any) -> None:
    """In place of what orders a device's work."""


# What keeps the loader's batches whole on a GPU.
BATCH_WAITS = "a batch waits for its copies"
RING_GUARDS: dict[str, tuple[type, str, Callable[..., None]]] = {
    "the host waits until a slot was copied": (torch.cuda.Event, "synchronize", nothing),
    "copies wait until a slot was used": (torch.cuda.Stream, "wait_event", nothing),
    "what was used is told": (Ring, "take_back", nothing),
}
GUARDS = RING_GUARDS | {BATCH_WAITS: (torch.cuda.Stream, "wait_stream", nothing)}


def leave_out(guard: str, patch: pytest.MonkeyPatch) -> None:
    """Leave this guard out, and no other: PyTorch's `wait_stream` calls `wait_event`."""
    patch.setattr(torch.cuda.Stream, "wait_stream", lambda own, other: other.record_event().wait(own))
    patch.setattr(*GUARDS[guard])
