"""A small net that trains on the images of the epoch to come, and whose losses say which of them are selected."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ffcv_prune import collectives
from ffcv_prune.errors import UserError
from ffcv_prune.machine import AmpDtype, amp_dtype_of, autocast
from ffcv_prune.protocols import SampleLoader
from ffcv_prune.scoring.forward import device_of, on_device
from ffcv_prune.tasks import Classification, Task

_DROPOUT_STREAM = 2  # keeps these random numbers apart from those of the order and the selection


class Proxy:
    """The proxy net of method `proxy_batch`, with its optimiser.

    Args:
        model: the net, on its device; channels_last where its inputs are images.
        optimizer: of its parameters. A step minimises the mean loss of the highest losses of a window.
        lr: from the epoch, the window and the windows of the epoch to the learning rate; None: the optimiser's own.
            It is asked for at every window, whether the proxy steps there or not.
        size: side in pixels to which images are reduced for the proxy; 0: as they are.
        task: as of a `Pruner`.
        amp_dtype: as of a `Pruner`.

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
        device = device_of(model)
        self.amp_dtype = amp_dtype_of(device, amp_dtype)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.amp_dtype is torch.float16)
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
        group: Any = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Go through all samples as `epoch` will serve them, and train on the way.

        With several ranks, which must all call, the main one does so, and the others wait for what it found, as long
        as it lives. They do so in `group`, None: the default one.

        Returns:
            ids int64[n], in the order of the windows, and their losses float32[n].
        """
        found = torch.zeros(2, loader.num_samples, dtype=torch.float64)
        arguments = loader, epoch, keep, window, stride
        if world_size == 1:
            found[0], found[1] = self._train(*arguments, lambda: None)
        else:
            with collectives.work_of_main("the pass of the proxy net", group) as still_working:
                if rank == 0:
                    found[0], found[1] = self._train(*arguments, still_working)
            found = collectives.total(found)  # the others' are 0
        return found[0].long().numpy(), found[1].float().numpy()

    def _train(
        self,
        loader: SampleLoader,
        epoch: int,
        keep: float,
        window: int,
        stride: int,
        after_window: Callable[[], None],
    ) -> tuple[Tensor, Tensor]:
        device = device_of(self.model)
        windows = -(-loader.num_samples // window)
        self.model.train()
        ids, losses = [], []
        with _drawing(loader.seed, epoch, device), closing(loader.batches(epoch)) as batches:
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
                kept = round(keep * len(own))
                if steps and kept:
                    self._step(own.topk(kept).values.mean())
                self.windows += 1
                self.forwards += len(own)
                ids.append(batch.ids.clone())
                losses.append(own.detach())
                after_window()
        return torch.cat(ids), torch.cat(losses).cpu()

    def _step(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps += 1

    def _reduced(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] with a longer side of `size`, by area, of the same dtype; smaller ones as they are."""
        if images.ndim != 4:
            return images
        side = reduced_side((images.shape[2], images.shape[3]), self.size)
        if side == images.shape[2:]:
            return images
        reduced = F.interpolate(images.float(), side, mode="area")
        if not images.is_floating_point():
            reduced.round_()
        return reduced.to(images.dtype, memory_format=torch.channels_last)

    @contextmanager
    def whole_or_not_at_all(self) -> Iterator[None]:
        """Take back what was trained and counted inside if an exception leaves it."""
        before = copy.deepcopy(self.state_dict())
        try:
            yield
        except BaseException:
            self.optimizer.zero_grad(set_to_none=True)
            self.load_state_dict(before)
            raise

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rule": type(self.optimizer).__name__,
            "scaler": self.scaler.state_dict(),
            "counts": [self.windows, self.steps, self.forwards],
        }

    def check_state(self, state: Mapping[str, Any]) -> None:
        """UserError for the state of another net or optimiser, of which torch would take up a part."""
        own, wrong = self.state_dict(), None
        if _shapes(state["model"]) != _shapes(own["model"]):
            wrong = f"net than this {type(self.model).__name__}"
        elif state["rule"] != own["rule"] or _group_sizes(state["optimizer"]) != _group_sizes(own["optimizer"]):
            wrong = f"optimiser than this {own['rule']}"
        if wrong:
            raise UserError(f"the pruner's state is of another proxy {wrong}: give the one that the run began with")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:  # empty where the run was saved by a machine that does without
            self.scaler.load_state_dict(state["scaler"])
        self.windows, self.steps, self.forwards = state["counts"]


def reduced_side(side: tuple[int, int], longer: int) -> tuple[int, int]:
    """Height and width of an image of this `side` whose longer one is reduced to `longer`; 0: as it is."""
    if not longer or max(side) <= longer:
        return side
    height, width = (max(1, round(pixels * longer / max(side))) for pixels in side)
    return height, width


def _shapes(state: Mapping[str, Any]) -> dict[str, Any]:
    return {name: getattr(value, "shape", None) for name, value in state.items()}


def _group_sizes(state: Mapping[str, Any]) -> list[int]:
    return [len(group["params"]) for group in state["param_groups"]]


@contextmanager
def _drawing(seed: int, epoch: int, device: torch.device) -> Iterator[None]:
    """What a net draws inside (dropout) follows from seed and epoch, and changes nothing of what others draw."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(int(np.random.SeedSequence([seed, epoch, _DROPOUT_STREAM]).generate_state(1)[0]))
        yield


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
