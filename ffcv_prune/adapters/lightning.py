"""Lightning: a data module that prunes.

Lightning asks a data module for its training data at the beginning of a fit, and again before each epoch if it is told
so. There the selection is made. A callback would come too late: by `on_train_epoch_start` the length of the epoch is
fixed, and its first batches may be on their way.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from ffcv_prune.errors import UserError
from ffcv_prune.extras import require
from ffcv_prune.protocols import SampleLoader
from ffcv_prune.pruner import Pruner

require("lightning")

from lightning.pytorch import LightningDataModule  # noqa: E402


class PrunedDataModule(LightningDataModule):
    """The selections of a pruner for a Lightning `Trainer(reload_dataloaders_every_n_epochs=1)`.

    `training_step` gets the batches of the pruner's loader. The module's `forward` maps inputs to what the pruner's
    task expects: a scoring pass calls it. Lightning's checkpoint file holds the pruner's state, and a fit that goes on
    from it goes on with the next batch. Where `max_epochs` ends a fit before the pruner's plan, there is a warning.

    Args:
        pruner: or a function that makes one. In a fit on several processes it must be a function: a loader with
            `distributed=True` can be built only after Lightning has joined them.
        val_dataloaders: as Lightning takes them; None: no validation.

    Raises:
        UserError: at the beginning of the fit. Lightning would not ask again before each epoch; or other processes
            share the loader than train; or a schedule of steps would end before the plan.
    """

    def __init__(self, pruner: Pruner | Callable[[], Pruner], val_dataloaders: Any = None) -> None:
        super().__init__()
        self._make = pruner
        self._val_dataloaders = [] if val_dataloaders is None else val_dataloaders

    def setup(self, stage: str) -> None:
        if stage == "fit":
            self.pruner = self._make if isinstance(self._make, Pruner) else self._make()
            last, planned = self.trainer.max_epochs, self.pruner.state.epochs
            if last not in (None, -1) and last < planned and self.trainer.is_global_zero:
                warnings.warn(  # no error: fits in a row may go on with one plan
                    f"max_epochs={last} ends the fit before the {planned} epochs of the pruner: build it with "
                    f"epochs={last}, unless another fit goes on",
                    stacklevel=2,
                )

    def train_dataloader(self) -> _Epoch:
        if self.trainer.reload_dataloaders_every_n_epochs != 1:
            raise UserError(
                "Lightning would ask for the first selection only: pass it reload_dataloaders_every_n_epochs=1"
            )
        loader = self.pruner.loader
        if loader.world_size != self.trainer.world_size:
            raise UserError(
                f"{self.trainer.world_size} processes train, and {loader.world_size} share the loader: hand over a "
                "function that builds it with distributed=True"
            )
        for config in self.trainer.lr_scheduler_configs:
            if config.interval == "step" and config.frequency == 1:
                self.pruner.check_schedule(config.scheduler, self.total_steps())
        epoch, resumes = self.trainer.current_epoch, self.trainer.ckpt_path is not None
        # `estimated_stepping_batches` asks before Lightning has restored the epoch, but after the pruner was restored.
        # An epoch begun there would set the pruner back. Lightning asks again, with the epoch to go on with.
        if not (resumes and epoch < loader.next_epoch):
            self.pruner.begin_epoch(epoch, self.trainer.lightning_module)
        return _Epoch(loader)

    def total_steps(self) -> int:
        """Steps of the optimizer over the whole plan: Lightning also makes one of what an epoch leaves of a step."""
        state, together = self.pruner.state, self.trainer.accumulate_grad_batches
        samples = (self.pruner.method.samples_in(epoch, state.epochs, state.n) for epoch in range(state.epochs))
        return sum(-(-self.pruner.loader.num_batches(count) // together) for count in samples)

    def val_dataloader(self) -> Any:
        return self._val_dataloaders

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move all but the positions, which `Pruner.batch_loss` takes from the CPU."""
        if not (self.trainer.training and self.pruner.loader.with_ids):
            return super().transfer_batch_to_device(batch, device, dataloader_idx)
        if isinstance(batch, Mapping):
            moved = super().transfer_batch_to_device({**batch, "ids": None}, device, dataloader_idx)
            return {**moved, "ids": batch["ids"]}
        *rest, ids = batch
        return (*super().transfer_batch_to_device(tuple(rest), device, dataloader_idx), ids)

    def state_dict(self) -> dict[str, Any]:
        """Nothing where there was no fit: only a fit needs the pruner."""
        return self.pruner.state_dict() if hasattr(self, "pruner") else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it up for a fit. Lightning hands it over for validation, too, which must not set a pruner back."""
        if self.trainer.training:
            self.pruner.load_state_dict(state_dict)


class _Epoch:
    """One epoch of the loader. Lightning may begin it several times before it takes the first batch."""

    def __init__(self, loader: SampleLoader) -> None:
        self._loader, self._epoch, self._first = loader, loader.next_epoch, loader.first_batch
        self._batches = loader.first_batch + len(loader)  # a resumed epoch counts from its beginning, in Lightning too

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[Any]:
        if (self._loader.next_epoch, self._loader.first_batch) != (self._epoch, self._first):
            self._loader.set_epoch(self._epoch, self._first)
        yield from self._loader

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the data module has it. That there is one tells Lightning that an epoch can be resumed."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...
