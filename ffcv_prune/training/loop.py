"""A run in memory: the loop over its epochs, and all that moves from step to step."""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from tqdm import tqdm

from ffcv_prune.config import Config
from ffcv_prune.errors import UserError
from ffcv_prune.methods.warm_up import warm_up
from ffcv_prune.models import load_weights
from ffcv_prune.pruner import Swap
from ffcv_prune.training import checkpoint
from ffcv_prune.training.clock import Clock
from ffcv_prune.training.dataset import image_sides
from ffcv_prune.training.epoch import Stepper, choose_amp_dtype, evaluate, or_amp_off
from ffcv_prune.training.loaders import Loaders
from ffcv_prune.training.pace import measure
from ffcv_prune.training.plan import Plan, Scale
from ffcv_prune.training.pruning import build_pruner, training_sides
from ffcv_prune.training.run_folder import RunFolder
from ffcv_prune.training.run_log import epoch_line, pruning_facts, scores_of, shares
from ffcv_prune.training.stop import SAVE, BrokenOff, StopSignals, stopped
from ffcv_prune.training.trackers import Tracker

CUDA_ASKS = 8  # steps from one question to the other ranks to the next: over the CPU it is long beside a short step


def check_converges(loss: float, amp_dtype: torch.dtype | None) -> None:
    if not math.isfinite(loss):
        raise UserError(
            f"the training loss is {loss}, the model diverged; begin a new run with a lower train.lr"
            f"{or_amp_off(amp_dtype)}"
        )


class Trainer:
    """A run in memory: all that moves from step to step, and the loop that moves it.

    Its state between two steps is `state_dict`, tensors and plain containers. A run that goes on from there
    ends as if it had never stopped: bit by bit on the CPU.
    """

    def __init__(self, config: Config, loaders: Loaders) -> None:
        self.config = config
        self.loaders = loaders
        self.world = loaders.world
        self.dataset = loaders.dataset
        amp_dtype = choose_amp_dtype(config.train.amp, self.world.device)
        torch.manual_seed(config.run.seed)
        sides = training_sides(config, self.dataset, config.train.epochs) | image_sides(config.data, self.dataset)
        model = loaders.build_model(config.model.name, config.run.seed, sides)
        if self.world.rank > 0:  # dropout differs from rank to rank, the initial weights do not
            torch.manual_seed(config.run.seed + self.world.rank)
        task = self.dataset.target.build_task(config.train)
        self.stepper = Stepper(model, config.train, amp_dtype, task)
        self.loader, self.test_loader = loaders.train(config.run.seed), loaders.test
        self._ready = time.perf_counter()  # a run on all data needs no more
        self.pruner, self.static_seconds = build_pruner(config, loaders, amp_dtype, self.stepper.task)
        if self.pruner.method.prunes:
            warm_up()
        self.plan: Plan | None = None  # of a run with prune.save
        self.clock = Clock()
        self._waited = self.loader.wait_seconds
        self.tracker: Tracker | None = None  # of the main rank
        self._saved = 0.0  # when, by perf_counter
        self._asked = 0  # steps of this process
        self._ask_every = CUDA_ASKS if self.world.device.type == "cuda" else 1
        self._told_little = False  # that there is little headroom

    @property
    def epoch(self) -> int:
        """The epoch to train next, or to go on with."""
        return self.loader.next_epoch

    @property
    def followed(self) -> Config:
        """The configuration with the parameters that prune.save was solved by."""
        prune = self.config.prune
        return self.config if self.plan is None else replace(self.config, prune=prune.replace(**self.plan.values))

    def load_weights(self, run: str) -> None:
        """Begin from the weights that a run ended with; a run on all data would load them, too."""
        begun = time.perf_counter()
        load_weights(self.stepper.model, run)
        self._ready += time.perf_counter() - begun

    def make_plan(self, started: float) -> None:
        """Solve for what prune.save asks, and go on with that. `started`: when the set-up began, by perf_counter."""
        config = self.config
        self._refuse_many_ranks("leave it out, or start")
        self.loaders.resize(0, config.train.epochs)
        pace = measure(config, self.stepper, self.pruner, self.test_loader)
        scale = Scale(
            n=self.loader.num_samples,
            batch_size=config.train.batch_size,
            epochs=config.train.epochs,
            eval_every=config.train.eval_every,
            setup=time.perf_counter() - started,
            full_setup=self._ready - started + pace.compilation,
        )
        self.plan = Plan.make(config.save, self.pruner.method, pace, scale)
        self.pruner.state.change(**self.plan.method.values)
        print(self.plan.in_words(), flush=True)

    def _refuse_many_ranks(self, remedy: str) -> None:
        if self.world.size > 1:
            raise UserError(f"prune.save measures and plans one process: {remedy} without torchrun")

    def run(self, folder: RunFolder | None, stop: StopSignals) -> None:
        """Train, test, log and save epoch by epoch. `folder` is None on all ranks but the main one."""
        if self.world.size > 1:
            self.stepper.distribute()
        self.loaders.resize(self.epoch, self.config.train.epochs)
        self._compile()
        begun = time.perf_counter()
        self._save(folder)  # from here on there is a checkpoint, and the disk has room for one
        if self.plan is not None and self.epoch == 0:
            self.plan.pace = replace(self.plan.pace, first_checkpoint=time.perf_counter() - begun)
        epochs = self.config.train.epochs
        for epoch in range(self.epoch, epochs):
            self._save_if_asked(folder, stop)
            if self.plan is not None and folder is not None and self.plan.is_due(epoch):
                print(self.plan.correct(folder.rows), flush=True)
                self.pruner.state.change(**self.plan.method.values)
            if self.loaders.resize(epoch, epochs):
                self.clock.lap()
                self._compile()
            loss, steps = self._train_epoch(epoch, folder, stop)
            if loss is not None:
                check_converges(loss, self.stepper.amp_dtype)
            elif self.world.is_main:
                warnings.warn(
                    f"epoch {epoch} made no step: of its {steps} batches, method {self.pruner.method.name} chose fewer "
                    "samples than a step takes; let it choose more of each batch",
                    stacklevel=2,
                )
            metrics, by_class = dict[str, float](), list[float | None]()
            if (epoch + 1) % self.config.train.eval_every == 0 or epoch + 1 == epochs:
                stepper = self.stepper
                classes = len(self.dataset.classes)
                metrics, by_class = evaluate(
                    stepper.tested,
                    self.test_loader,
                    stepper.task,
                    stepper.amp_dtype,
                    classes,
                    self.config.data.test_flip,
                )
            self.clock.lap("eval")
            with self.world.together():
                if folder is not None:
                    row = self._row(epoch, loss, steps, metrics, by_class, folder)
                    if self.plan is not None:
                        row["saving"] = self.plan.facts([*folder.rows, row])
                    folder.log(row)
                    if self.tracker is not None:
                        self.tracker.log(row, scores_of(self.pruner.state, epoch))
                    print(epoch_line(row, epochs, self.stepper.task.metrics[0]), flush=True)
                    self._tell_headroom(epoch)
            self.clock.lap()  # the log is in no phase
        self._save(folder)

    def _compile(self) -> None:
        """Compile the step for the images of the epoch to come, and charge that to no epoch."""
        self.stepper.compile_now(self.loader)
        self._waited = self.loader.wait_seconds
        self.clock.start()

    def _tell_headroom(self, epoch: int) -> None:
        """One line where pruning cannot pay yet, once until it can."""
        found = self.pruner.values.headroom_at(epoch)
        if found is None:
            return
        if found.is_little and not self._told_little:
            print(found.in_words(), flush=True)
        self._told_little = found.is_little

    def _row(
        self,
        epoch: int,
        loss: float | None,
        steps: int,
        metrics: Mapping[str, float],
        by_class: list[float | None],
        folder: RunFolder,
    ) -> dict[str, Any]:
        """The log's line about an epoch that has ended, which is not yet in the folder."""
        rows = folder.rows
        seen = rows[-1]["samples_seen"] if rows else 0
        dataset = self.dataset
        facts = pruning_facts(self.pruner, epoch, folder, dataset.labels, dataset.class_counts, dataset.classes)
        return {
            **facts,
            "nonfinite_losses": self.pruner.state.nonfinite if facts["selected"] else 0,
            **self._chosen_share(steps),
            "samples_seen": seen + self.stepper.trained,
            "steps": steps,
            "cost": self.pruner.values.costs,
            "lr": self.stepper.lr(epoch, steps - 1, steps, self.pruner.lr_factor),
            "train_loss": loss,
            **{f"test_{name}": metrics.get(name) for name in ("accuracy", "top5", *self.stepper.task.metrics)},
            "class_accuracy": dict(zip(dataset.classes, by_class, strict=False)),
            "seconds": self.clock.take(),
        }

    def _chosen_share(self, steps: int) -> dict[str, float]:
        """The shares of an epoch in which samples were chosen in batches: of what was served."""
        if self.pruner.values.chooser is None:
            return {}
        return shares(self.stepper.trained / (steps * self.config.train.batch_size))

    def _train_epoch(self, epoch: int, folder: RunFolder | None, stop: StopSignals) -> tuple[float | None, int]:
        """Select if it is due, then train on the selection: returns the mean loss, and how many batches there were."""
        description = f"epoch {epoch} ({epoch + 1}/{self.config.train.epochs})"
        disable = None if folder is not None else True  # None: where there is no terminal
        with tqdm(desc=description, total=0, unit="img", leave=False, disable=disable) as bar:
            made = self._begin_epoch(epoch, folder, stop)
            if made is not None:
                with self.world.together():
                    if folder is not None:
                        folder.save_selection(epoch, made.ids)
                self.clock.lap(score=made.score_seconds, select=made.select_seconds, swap=made.swap_seconds)
            done, steps = self.loader.first_batch, self.loader.first_batch + len(self.loader)  # after the swap
            bar.reset(total=steps * self.config.train.batch_size)
            bar.update(done * self.config.train.batch_size)
            loss = self.stepper.train_epoch(
                self.loader,
                epoch,
                self.pruner.batch_loss,
                bar,
                lambda: self._save_if_asked(folder, stop, training=True),
                self.pruner.lr_factor,
                None if self.pruner.values.chooser is None else partial(self.pruner.choose, self.stepper.model),
            )
            self._lap_training()
        return loss, steps

    def _begin_epoch(self, epoch: int, folder: RunFolder | None, stop: StopSignals) -> Swap | None:
        """Score and select if it is due. One process breaks off at a signal: a resumed run repeats this."""
        if self.world.size > 1 or not self.pruner.state.is_due(epoch):
            return self.pruner.begin_epoch(epoch, self.stepper.model)
        before = self.state_dict()
        before["pruning"] = copy.deepcopy(before["pruning"])  # a selection changes it; the model it leaves alone
        try:
            with stop.at_once():
                return self.pruner.begin_epoch(epoch, self.stepper.model)
        except BrokenOff:
            self._save(folder, before)
            raise stopped(stop.requested, folder) from None

    def _save_if_asked(self, folder: RunFolder | None, stop: StopSignals, training: bool = False) -> None:
        """Save if it is time, or if a signal came on any rank, and then end; `training`: between two steps."""
        self._asked += training
        if training and self.world.size > 1 and self._asked % self._ask_every:
            return
        late = self.world.is_main and time.perf_counter() - self._saved >= self.config.run.save_every
        request = self.world.agree(stop.requested or (SAVE if late else 0))
        if request and training:
            self._lap_training()
        if request:
            self._save(folder)
        if request > SAVE:
            raise stopped(request, folder)

    def _lap_training(self) -> None:
        waited = self.loader.wait_seconds - self._waited
        self._waited = self.loader.wait_seconds
        self.clock.lap("train", load=waited)

    def _save(self, folder: RunFolder | None, state: dict[str, Any] | None = None) -> None:
        """Write a checkpoint of `state`, None: that of now. All ranks must call."""
        state = self.state_dict() if state is None else state
        losses = sum(own["loss_sum"] for own in state["ranks"])
        check_converges(losses, self.stepper.amp_dtype)  # keep the checkpoint before
        with self.world.together():
            if folder is not None:
                checkpoint.save(folder.path, self.config, self.dataset.fingerprints, state)
        self.clock.lap("save")
        self._saved = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain containers. All ranks must call."""
        device = self.stepper.device
        own = {
            "loss_sum": self.stepper.loss_sum.item(),
            "steps": self.stepper.steps,
            "samples": self.stepper.samples,
            "cpu_random": torch.get_rng_state(),
            "cuda_random": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        }
        return {
            "stepper": self.stepper.state_dict(),
            "pruning": self.pruner.state_dict(),  # and the loader's
            "seconds": dict(self.clock.seconds),
            "ranks": self.world.gather(own),
            "plan": None if self.plan is None else self.plan.state_dict(),
            "told_little": self._told_little,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`. With another number of ranks, the random states of dropout are not the same."""
        device, rank, size = self.stepper.device, self.world.rank, self.world.size
        if state["plan"] is not None:
            self._refuse_many_ranks("resume it")
            self.plan = Plan.of_state(state["plan"], self.pruner.method)
            self.pruner.state.change(**self.plan.method.values)
        self._told_little = state["told_little"]
        self.stepper.load_state_dict(state["stepper"])
        self.pruner.load_state_dict(state["pruning"])
        self.clock.seconds.update(state["seconds"])
        ranks = state["ranks"]
        self.stepper.loss_sum.fill_(sum(other["loss_sum"] for other in ranks[rank::size]) * (size / len(ranks)))
        self.stepper.steps = ranks[0]["steps"]
        self.stepper.samples = ranks[0]["samples"] * len(ranks) // size
        if rank < len(ranks):
            torch.set_rng_state(ranks[rank]["cpu_random"])
            if device.type == "cuda" and ranks[rank]["cuda_random"] is not None:
                torch.cuda.set_rng_state(ranks[rank]["cuda_random"], device)
