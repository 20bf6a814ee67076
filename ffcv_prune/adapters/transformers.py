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

from ffcv_prune.errors import UserError, wrong_kind
from ffcv_prune.extras import require
from ffcv_prune.loading.torch_loader import TorchLoader
from ffcv_prune.methods.weights import NoWeight
from ffcv_prune.pruner import Pruner

require("transformers")
require("accelerate", "transformers")  # which the Trainer runs on

from transformers import Trainer, TrainerCallback, TrainingArguments  # noqa: E402
from transformers.trainer_utils import get_last_checkpoint  # noqa: E402

STATE_FILE = "pruner.pt"


class PrunedTrainer(Trainer):
    """A `Trainer` that trains on the selections of a pruner.

    Its `max_steps` are set to those of the pruner's plan, where schedules end. Its own "epoch" is the whole run: log,
    save and evaluate by steps. Each folder that it saves holds the pruner's state, too.

    Args:
        model: as a Trainer's.
        args: as a Trainer's; `num_train_epochs` must be the pruner's epochs.
        pruner: its loader is a `TorchLoader` of mappings, as the model takes them; its score_loader serves (inputs,
            targets). Its task names the output of the model: tasks.Classification(output="logits"). With `with_ids`,
            the loss is that of the pruner's task, by `Pruner.batch_loss`; otherwise it is the Trainer's.
        options: the other arguments of a Trainer.

    Raises:
        UserError: other epochs than the pruner's, a step limit, a loss beside the pruner's, or a method that selects
            within batches. A loader that not all processes share, or no `TorchLoader`. Accumulated gradients with a
            method that weighs samples or takes the losses of training. A schedule that would end before the plan.
    """

    def __init__(self, model: nn.Module, args: TrainingArguments, *, pruner: Pruner, **options: Any) -> None:
        _check(args, pruner, options)
        args = copy.copy(args)
        args.max_steps = pruner.total_steps() // _accumulated(args)
        pruner.check_schedule(options.get("optimizers", (None, None))[1], args.max_steps)
        args.ignore_data_skip = True  # the loader itself goes on where it was
        super().__init__(model, args, **options)
        self.pruner = pruner
        self.add_callback(_SavesState(pruner))
        self.add_callback(_MultipliesLearningRate(pruner))
        if pruner.loader.with_ids:
            self.model_accepts_loss_kwargs = False  # of our loss, the Trainer averages the steps that it accumulates

    def train(self, resume_from_checkpoint: str | bool | None = None, *arguments: Any, **options: Any) -> Any:
        """Train as a Trainer does; the pruner goes on from the state in the folder to resume from."""
        folder = resume_from_checkpoint
        if folder is True:
            folder = get_last_checkpoint(self.args.output_dir)
        if folder:  # where there is no last one, the Trainer says so
            path = Path(folder) / STATE_FILE
            if not path.exists():
                raise UserError(f"{path} is missing: resume from a folder that a PrunedTrainer saved")
            self.pruner.load_state_dict(torch.load(path, weights_only=True))
        return super().train(resume_from_checkpoint, *arguments, **options)

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


def _check(args: TrainingArguments, pruner: Pruner, options: Mapping[str, Any]) -> None:
    """Refuse what contradicts the pruner, or the Trainer."""
    if not isinstance(pruner.loader, TorchLoader):
        raise wrong_kind("loader of the pruner", pruner.loader, "a TorchLoader: the Trainer takes batches as mappings")
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
    together = _accumulated(args)
    follows_training = pruner.method.records_losses or not isinstance(pruner.method.weight, NoWeight)
    if together > 1 and follows_training:
        # The Trainer draws all batches of a step before it trains on the first of them.
        raise UserError(
            f"gradient_accumulation_steps is {together}: the Trainer would make the next selection of method "
            f"{pruner.method.name} too early, in the middle of a step: leave it out, and raise the batch_size"
        )
    if pruner.loader.with_ids:
        _check_loss(args, options)


def _accumulated(args: TrainingArguments) -> int:
    """Batches of a step. Either setting says so; of both, the Trainer refuses one."""
    more = args.accelerator_config.gradient_accumulation_kwargs or {}
    return int(more.get("num_steps", args.gradient_accumulation_steps))


def _check_loss(args: TrainingArguments, options: Mapping[str, Any]) -> None:
    """Refuse another loss than that of the pruner's task."""
    smoothing = args.label_smoothing_factor
    if smoothing:
        raise UserError(
            f"label_smoothing_factor is {smoothing:g}, and the pruner's task makes the loss: leave it out, and give "
            f'the pruner task=tasks.Classification(label_smoothing={smoothing:g}, output="logits")'
        )
    if options.get("compute_loss_func") is not None:
        raise UserError(
            "compute_loss_func is given, and the pruner's task makes the loss: leave it out, and give the pruner a "
            "task of your own, a subclass of tasks.Task"
        )


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


class _SavesState(TrainerCallback):
    """Saves the pruner's state where the Trainer saves its own."""

    def __init__(self, pruner: Pruner) -> None:
        self._pruner = pruner

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **options: Any) -> None:
        own = self._pruner.state_dict()
        if state.is_world_process_zero:
            torch.save(own, Path(args.output_dir) / f"checkpoint-{state.global_step}" / STATE_FILE)


class _MultipliesLearningRate(TrainerCallback):
    """Makes each step after the warm-up with the pruner's factor of the learning rate, of which schedule and log see
    nothing."""

    def __init__(self, pruner: Pruner) -> None:
        self._pruner = pruner
        self._scheduled: list[Any] = []

    def on_pre_optimizer_step(self, args: TrainingArguments, state: Any, control: Any, **options: Any) -> None:
        groups = options["optimizer"].param_groups
        self._scheduled = [group["lr"] for group in groups]
        if state.global_step >= args.get_warmup_steps(state.max_steps):
            for group in groups:
                group["lr"] = group["lr"] * self._pruner.lr_factor

    def on_optimizer_step(self, args: TrainingArguments, state: Any, control: Any, **options: Any) -> None:
        for group, scheduled in zip(options["optimizer"].param_groups, self._scheduled, strict=True):
            group["lr"] = scheduled
