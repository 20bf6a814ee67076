"""A small net that trains on the images of the epoch to come, and whose losses say which of them are selected."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ffcv_prune import collectives
from ffcv_prune.errors import UserError
from ffcv_prune.machine import AmpDtype, autocast
from ffcv_prune.protocols import SampleLoader
from ffcv_prune.scoring.forward import device_of, on_device
from ffcv_prune.tasks import Classification, Task


class Proxy:
    """The proxy net of method `proxy_batch`, with its optimiser.

    Args:
        model: the net, on its device; channels_last where its inputs are images.
        optimizer: of its parameters. A step minimises the mean loss of the highest losses of a window.
        lr: from the epoch, the window and the windows of the epoch to the learning rate; None: the optimiser's own.
            It is asked for at every window, whether the proxy steps there or not.
        size: side in pixels to which images are reduced for the proxy; 0: as they are.
        task, amp_dtype: as of a `Pruner`.

    Attributes:
        windows, steps, forwards: windows seen, steps taken, samples that went through the net, so far.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        lr: Callable[[int, int, int], float] | None = None,
        size: int = 0,
        task: Task | None = None,
        amp_dtype: AmpDtype = "auto",
    ) -> None:
        self.model, self.optimizer, self.lr, self.size = model, optimizer, lr, size
        self.task = Classification() if task is None else task
        self.amp_dtype = amp_dtype
        self.windows = self.steps = self.forwards = 0

    def run(
        self,
        loader: SampleLoader,
        epoch: int,
        keep: float,
        window: int,
        stride: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Go through all samples as `epoch` will serve them, and train on the way.

        With several ranks, which must all call, the main one does so, and the others wait for what it found.

        Returns:
            ids int64[n], in the order of the windows, and their losses float32[n].
        """
        found = torch.zeros(2, loader.num_samples, dtype=torch.float64)
        if rank == 0:
            found[0], found[1] = self._train(loader, epoch, keep, window, stride)
        if world_size > 1:
            found = collectives.total(found)  # the others' are 0
        return found[0].long().numpy(), found[1].float().numpy()

    def _train(self, loader: SampleLoader, epoch: int, keep: float, window: int, stride: int) -> tuple[Tensor, Tensor]:
        device = device_of(self.model)
        windows = -(-loader.num_samples // window)
        self.model.train()
        ids, losses = [], []
        with closing(loader.batches(epoch)) as batches:
            for number, batch in enumerate(batches):
                if self.lr is not None:
                    for group in self.optimizer.param_groups:
                        group["lr"] = self.lr(epoch, number, windows)
                steps = self.windows % stride == 0
                with torch.set_grad_enabled(steps), autocast(device, self.amp_dtype):
                    outputs = self.model(self._reduced(on_device(device, batch.inputs)))
                targets = batch.targets.to(device)
                self.task.check(outputs, targets)
                own = self.task.losses(outputs, targets)
                if steps:
                    kept = round(keep * len(own))
                    own.topk(kept).values.mean().backward() if kept else None
                    self.optimizer.step()
                    self.optimizer.zero_grad(set_to_none=True)
                    self.steps += 1
                self.windows += 1
                self.forwards += len(own)
                ids.append(batch.ids.clone())
                losses.append(own.detach())
        return torch.cat(ids), torch.cat(losses).cpu()

    def _reduced(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] with a longer side of `size`, by area; smaller ones stay as they are."""
        if not self.size or images.ndim != 4 or max(images.shape[2:]) <= self.size:
            return images
        height, width = (max(1, round(side * self.size / max(images.shape[2:]))) for side in images.shape[2:])
        return F.interpolate(images.float(), (height, width), mode="area").to(memory_format=torch.channels_last)

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "counts": [self.windows, self.steps, self.forwards],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.windows, self.steps, self.forwards = state["counts"]


def check_proxy_loader(loader: Any, train_loader: Any, window: int) -> None:
    """UserError for a loader that does not serve what the training loader will, window by window."""
    wrong = None
    if loader.batch_size != window:
        wrong = f"batches of {loader.batch_size}, the window is {window}: give it batch_size={window}"
    elif not loader.shuffle or loader.seed != train_loader.seed:
        wrong = "another order than the training loader: shuffle, and give both the same seed"
    elif loader.drop_last or loader.world_size > 1:
        wrong = "a part of the samples only: give it drop_last=False, distributed=False"
    if wrong:
        raise UserError(f"the loader of the proxy serves {wrong}")
