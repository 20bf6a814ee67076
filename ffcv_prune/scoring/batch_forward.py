"""The samples of a batch that are worth a backward pass, by a forward pass of it; and the queue of those that wait."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ffcv_prune.errors import UserError
from ffcv_prune.machine import AmpDtype, autocast
from ffcv_prune.methods import State
from ffcv_prune.scoring.forward import device_of, evaluating, unwrap
from ffcv_prune.tasks import Task

Chosen = tuple[Tensor, Tensor, Tensor]  # inputs, targets, ids


class BatchChooser:
    """Chooses for a method that chooses in batches.

    Attributes:
        forwards: samples that went through the model for it, on all ranks.
        chosen: samples that this process was given to train on; not part of the state.
    """

    def __init__(self, state: State, task: Task, amp_dtype: AmpDtype, world_size: int) -> None:
        self._queues = state.method.selector.fills_batches
        if self._queues and world_size > 1:
            raise UserError(
                f"method {state.method.name} with form=jiang fills batches from a queue, which processes cannot share: "
                "train with one process, or set form=composer"
            )
        self.state, self.task, self.amp_dtype, self.world_size = state, task, amp_dtype, world_size
        self.forwards = self.chosen = 0
        self._queue: Chosen | None = None

    def is_due(self, epoch: int, batches: range) -> bool:
        """Whether there are samples to choose in one of these batches of the epoch."""
        phases, epochs = self.state.method.phases, self.state.epochs
        return any(phases.chooses(epoch, number, epochs) for number in batches)

    def choose(self, model: nn.Module, batch: Chosen, epoch: int, number: int) -> Chosen | None:
        """Return what to train on now, out of batch `number` of `epoch`; None: too few wait for a batch yet."""
        chosen = self._chosen_of(model, batch, epoch, number)
        self.chosen += 0 if chosen is None else len(chosen[2])
        return chosen

    def _chosen_of(self, model: nn.Module, batch: Chosen, epoch: int, number: int) -> Chosen | None:
        inputs, targets, ids = batch
        if not self.state.method.phases.chooses(epoch, number, self.state.epochs) and not self._records(epoch):
            return batch
        rows = self.state.choose(ids.numpy(), self._losses(model, inputs, targets), epoch=epoch, batch=number)
        if len(rows) == len(ids):
            chosen = batch
        else:
            own = torch.from_numpy(rows)
            there = own.to(inputs.device)
            chosen = inputs[there], targets[there], ids[own]
        return self._full_batch(chosen, len(ids)) if self._queues else chosen if len(chosen[2]) else None

    def _records(self, epoch: int) -> bool:
        """Whether losses of whole batches are of use: as history, in the epochs before those that choose."""
        return self._queues and self.state.phase(min(epoch + 1, self.state.epochs - 1)) == "method"

    def _losses(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Any:
        """float32[B] on the CPU. Batch norms go by their running statistics, and change none. Waits for the device."""
        device = device_of(model)
        with evaluating(model), torch.no_grad(), autocast(device, self.amp_dtype):
            outputs = unwrap(model)(inputs)
        self.task.check(outputs, targets)
        self.forwards += len(inputs) * self.world_size  # the batches of the ranks are equally large
        return self.task.losses(outputs, targets).float().cpu().numpy()

    def _full_batch(self, chosen: Chosen, size: int) -> Chosen | None:
        """Add what was chosen to the queue; return its first `size` samples once it holds as many."""
        # After a resume what waits is on the CPU.
        waits = [] if self._queue is None else [tuple(a.to(b.device) for a, b in zip(self._queue, chosen, strict=True))]
        waiting = [*waits, chosen]
        if len({tuple(part.shape[1:] for part in batch) for batch in waiting}) > 1:
            raise UserError("batches of different sizes cannot wait in one queue: set form=composer")
        inputs, targets, ids = (torch.cat(parts) for parts in zip(*waiting, strict=True))  # copies: batches are views
        full = len(ids) >= size
        rest = slice(size, None) if full else slice(None)
        left = inputs[rest].clone(), targets[rest].clone(), ids[rest].clone()
        self._queue = left if len(left[2]) else None
        return (inputs[:size], targets[:size], ids[:size]) if full else None

    def state_dict(self) -> dict[str, Any]:
        return {"queue": self._queue, "forwards": self.forwards}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._queue, self.forwards = state["queue"], state["forwards"]
