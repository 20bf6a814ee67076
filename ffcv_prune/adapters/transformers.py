"""The Trainer of Hugging Face, pruned.

It takes the length of the first epoch for that of all, and leaves off later ones there. So it is given the epochs of
the plan as one, and the number of steps in it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ffcv_prune.errors import UserError
from ffcv_prune.extras import require
from ffcv_prune.pruner import Pruner

require("transformers")
require("accelerate", "transformers")  # which the Trainer runs on

from transformers import Trainer, TrainerCallback, TrainingArguments  # noqa: E402

STATE_FILE = "pruner.pt"


class PrunedTrainer(Trainer):
    """A `Trainer` that trains on the selections of a pruner.

    Its `max_steps` are set to those of the pruner's plan, where schedules end. Its own "epoch" is the whole run: log,
    save and evaluate by steps. Each folder that it saves holds the pruner's state, too.

    Args:
        model: as a Trainer's.
        args: as a Trainer's; `num_train_epochs` must be the pruner's epochs.
        pruner: its loader serves mappings, as the model takes them; its score_loader (inputs, targets). Its task names
            the output of the model: tasks.Classification(output="logits"). With `with_ids`, the loss is that of the
            pruner's task, by `Pruner.batch_loss`; otherwise it is the model's own.
        options: the other arguments of a Trainer.

    Raises:
        UserError: other epochs than the pruner's, a step limit, or a method that selects within batches. Also a loader
            that not all processes share, or a schedule that would end before the plan.
    """

    def __init__(self, model: nn.Module, args: TrainingArguments, *, pruner: Pruner, **options: Any) -> None:
        if args.num_train_epochs != pruner.state.epochs:
            raise UserError(
                f"num_train_epochs is {args.num_train_epochs:g} and the pruner plans {pruner.state.epochs}: "
                "give both the same"
            )
        if args.max_steps > 0:
            raise UserError(f"max_steps is {args.max_steps}: leave it out, it follows from the pruner's plan")
        if pruner.method.chooses_in_batches:
            raise UserError(
                f"method {pruner.method.name} selects within each batch, before the forward pass, which the Trainer "
                "makes itself: train in a loop of your own"
            )
        if args.world_size != pruner.loader.world_size:
            raise UserError(
                f"{args.world_size} processes train, and {pruner.loader.world_size} share the loader: build it with "
                f"distributed={args.world_size > 1}"
            )
        args = copy.copy(args)
        args.max_steps = pruner.total_steps() // args.gradient_accumulation_steps
        pruner.check_schedule(options.get("optimizers", (None, None))[1], args.max_steps)
        args.ignore_data_skip = True  # the loader itself goes on where it was
        super().__init__(model, args, **options)
        self.pruner = pruner
        self.add_callback(_KeepsState(pruner))
        self.add_callback(_MultipliesLearningRate(pruner))
        if pruner.loader.with_ids:
            self.model_accepts_loss_kwargs = False  # of our loss, the Trainer averages the steps that it accumulates

    def get_train_dataloader(self) -> Any:
        return _AllEpochs(self.pruner, self.model)

    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **options: Any) -> Any:
        if not (model.training and self.pruner.loader.with_ids):
            return super().compute_loss(model, inputs, return_outputs, **options)
        inputs = dict(inputs)
        ids, labels = torch.from_numpy(inputs.pop("ids")), inputs.pop("labels")
        outputs = model(**inputs)
        loss = self.pruner.batch_loss(self.pruner.task.losses(outputs, labels), ids, outputs, labels)
        return (loss, outputs) if return_outputs else loss


class _AllEpochs:
    """The batches of all epochs that are still to come. Each selection is made when its first batch is asked for."""

    def __init__(self, pruner: Pruner, model: nn.Module) -> None:
        self._pruner, self._model = pruner, model

    def __iter__(self) -> Iterator[Any]:
        loader = self._pruner.loader
        for epoch in range(loader.next_epoch, self._pruner.state.epochs):
            self._pruner.begin_epoch(epoch, self._model)
            for batch in loader:
                if not isinstance(batch, Mapping):
                    raise UserError(
                        "the Trainer takes mappings: let the data set or a collate_fn make a dict of a batch"
                    )
                # The Trainer moves tensors to the device, and the pruner takes the positions from the CPU.
                yield {**batch, "ids": batch["ids"].numpy()} if loader.with_ids else batch


class _KeepsState(TrainerCallback):
    """Saves the pruner's state where the Trainer saves its own, and takes it up again."""

    def __init__(self, pruner: Pruner) -> None:
        self._pruner = pruner

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **options: Any) -> None:
        own = self._pruner.state_dict()
        if state.is_world_process_zero:
            torch.save(own, _folder(args, state) / STATE_FILE)

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **options: Any) -> None:
        if state.global_step == 0:
            return
        path = _folder(args, state) / STATE_FILE
        if not path.exists():
            raise UserError(f"{path} is missing: resume from a folder that a PrunedTrainer saved, in output_dir")
        self._pruner.load_state_dict(torch.load(path, weights_only=True))


class _MultipliesLearningRate(TrainerCallback):
    """Makes each step with the pruner's factor of the learning rate, of which schedule and log see nothing."""

    def __init__(self, pruner: Pruner) -> None:
        self._pruner = pruner
        self._scheduled: list[Any] = []

    def on_pre_optimizer_step(self, args: TrainingArguments, state: Any, control: Any, **options: Any) -> None:
        groups = options["optimizer"].param_groups
        self._scheduled = [group["lr"] for group in groups]
        for group in groups:
            group["lr"] = group["lr"] * self._pruner.lr_factor

    def on_optimizer_step(self, args: TrainingArguments, state: Any, control: Any, **options: Any) -> None:
        for group, scheduled in zip(options["optimizer"].param_groups, self._scheduled, strict=True):
            group["lr"] = scheduled


def _folder(args: TrainingArguments, state: Any) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"
