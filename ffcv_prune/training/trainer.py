"""The training script: from a configuration to a run folder with a trained model, read top to bottom."""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Mapping
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from tqdm import tqdm

from ffcv_prune.config import Config, dotted, fixed_keys
from ffcv_prune.errors import Terminated, UserError, uninterrupted
from ffcv_prune.methods.warm_up import warm_up
from ffcv_prune.models import load_weights
from ffcv_prune.pruner import Swap
from ffcv_prune.training import checkpoint
from ffcv_prune.training.clock import Clock
from ffcv_prune.training.dataset import image_sides
from ffcv_prune.training.epoch import Stepper, choose_amp_dtype, evaluate
from ffcv_prune.training.loaders import Loaders, settings_of
from ffcv_prune.training.profile import measure_alone, report_profile
from ffcv_prune.training.pruning import build_pruner
from ffcv_prune.training.run_folder import RunFolder
from ffcv_prune.training.run_log import RunResult, epoch_line, kept_share, pruning_facts, result_row, scores_of
from ffcv_prune.training.stop import SAVE, BrokenOff, StopSignals, stopped
from ffcv_prune.training.trackers import Tracker, open_tracker, require_tracker
from ffcv_prune.training.watch import LOST_RANK
from ffcv_prune.training.world import join

CUDA_ASKS = 8  # steps from one question to the other ranks to the next: over the CPU it is long beside a short step


def train(config: Config, loaders: Loaders | None = None, resume: Path | None = None) -> RunResult:
    """Train as `config` says and write ``run.out/run.name``, or go on with the run in the folder `resume`.

    Started by torchrun, all its processes train together and return the same; rank 0 alone writes and prints.
    SIGTERM and Ctrl-C end the running step, save, and raise `Terminated` and `KeyboardInterrupt`.

    Args:
        config: from `ffcv_prune.config.load`.
        loaders: of an earlier run with the same data settings, to save their compilation.
        resume: a run folder that was interrupted; `config` is then the one it began with.

    Raises:
        UserError: whatever is wrong with the data, the configuration or how they fit together, before
            anything is written; a run that cannot be resumed; or a diverged model or full disk, during training.
    """
    start = time.perf_counter()
    with ExitStack() as stack:
        world = stack.enter_context(join(config.train.device))
        stop = stack.enter_context(StopSignals(announce=world.is_main))
        folder = state = None
        with world.together(setup=True):
            require_tracker(config.run.tracker)
            if loaders is None:
                loaders = stack.enter_context(closing(Loaders(config, world)))
            elif loaders.settings != settings_of(config, world):
                raise ValueError("these loaders were made for other data settings")
            loaders.world = world  # an earlier one's process group is gone
            if resume is not None and world.is_main:
                folder = stack.enter_context(closing(RunFolder.reopen(resume)))
                state = checkpoint.load(folder.path, config, loaders.dataset.fingerprints)
            fingerprints = loaders.dataset.fingerprints  # reads the files
        world.check_same("configuration", fixed_keys(config))
        world.check_same("data set", fingerprints)
        with world.together(setup=True):
            trainer = Trainer(config, loaders)
            if resume is None and config.model.weights:
                load_weights(trainer.stepper.model, config.model.weights)
        if resume is not None:
            trainer.load_state_dict(cast(dict[str, Any], world.share(state)))
        signal = world.agree(stop.requested)
        if signal:  # nothing is written; a run to resume is as it was
            raise stopped(signal, None)
        setup_seconds = time.perf_counter() - start
        with world.together():
            if folder is not None:
                folder.rewind(trainer.epoch)
            elif world.is_main:  # nothing is written before this
                folder = stack.enter_context(closing(RunFolder.create(config.run.out, config.run.name)))
                data = loaders.dataset
                train_samples, test_samples = data.train.num_samples, data.test.num_samples
                folder.describe(config.to_yaml(), data.classes, data.class_counts, train_samples, test_samples)
            if folder is not None:
                folder.set_status("running")
                world.last_act(partial(folder.set_status, "failed", LOST_RANK))
                tracker = open_tracker(config.run.tracker, folder.path, dotted(config.sections))
                if tracker is not None:
                    trainer.tracker = stack.enter_context(closing(tracker))
        try:
            with world.naming_lost_ranks():  # here, too, for the reason in status.json
                trainer.run(folder, stop)
                with world.together(setup=True):  # a slow disk is no lost rank
                    result = None if folder is None else _finish(trainer, folder, setup_seconds)
                result = world.share(result)
        except BaseException as error:
            interrupted = isinstance(error, KeyboardInterrupt | Terminated)
            if folder is not None:
                folder.set_status("interrupted" if interrupted else "failed", str(error))
                if config.run.profile and interrupted:
                    report_profile(folder, config, loaders.dataset, {})
            raise
        if folder is not None:  # the last act: until here, whatever ends a rank, there is a checkpoint to go on from
            with uninterrupted():
                folder.set_status("finished")
                checkpoint.remove(folder.path)
            if config.run.profile:
                alone = measure_alone(config, trainer.stepper, trainer.loader)
                report_profile(folder, config, loaders.dataset, alone)
        return cast(RunResult, result)


def _finish(trainer: Trainer, folder: RunFolder, setup_seconds: float) -> RunResult:
    """Write what came out."""
    folder.save_weights(trainer.stepper.tested)
    last = folder.rows[-1]
    saving = trainer.clock.take()  # the last save came after the last row
    seconds = {phase: saving[phase] + sum(row["seconds"][phase] for row in folder.rows) for phase in saving}
    result = RunResult(
        folder=folder.path,
        method=trainer.pruner.method.label,
        keep=kept_share(trainer.config, folder.rows),
        metrics={name: last[f"test_{name}"] for name in trainer.stepper.task.metrics},
        samples_seen=last["samples_seen"],
        cost=last["cost"],
        seconds=seconds | {"setup": setup_seconds, "static": trainer.static_seconds},
    )
    folder.write_result(result_row(trainer.config, result))
    from ffcv_prune.analysis.report import write_report  # matplotlib, which the first step need not wait for

    write_report([folder.path], folder.path / "report.html")
    return result


def check_converges(loss: float) -> None:
    if not math.isfinite(loss):
        raise UserError(
            f"the training loss is {loss}, the model diverged; "
            "begin a new run with a lower train.lr, or with train.amp=off"
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
        sides = image_sides(config.data, self.dataset)
        model = loaders.build_model(config.model.name, config.run.seed, sides)
        if self.world.rank > 0:  # dropout differs from rank to rank, the initial weights do not
            torch.manual_seed(config.run.seed + self.world.rank)
        task = self.dataset.target.build_task(config.train)
        self.stepper = Stepper(model, config.train, amp_dtype, task)
        self.pruner, self.static_seconds = build_pruner(config, loaders, amp_dtype, self.stepper.task)
        if self.pruner.method.prunes:
            warm_up()
        self.loader, self.test_loader = loaders.train(config.run.seed), loaders.test
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

    def run(self, folder: RunFolder | None, stop: StopSignals) -> None:
        """Train, test, log and save epoch by epoch. `folder` is None on all ranks but the main one."""
        if self.world.size > 1:
            self.stepper.distribute()
        self.loaders.resize(self.epoch, self.config.train.epochs)
        self.stepper.compile_now(self.loader)  # is not charged to the first epoch
        self._waited = self.loader.wait_seconds
        self.clock.start()
        self._save(folder)  # from here on there is a checkpoint, and the disk has room for one
        epochs = self.config.train.epochs
        for epoch in range(self.epoch, epochs):
            self._save_if_asked(folder, stop)
            self.loaders.resize(epoch, epochs)
            loss, steps = self._train_epoch(epoch, folder, stop)
            if loss is not None:
                check_converges(loss)
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
                    folder.log(row)
                    if self.tracker is not None:
                        self.tracker.log(row, scores_of(self.pruner.state, epoch))
                    print(epoch_line(row, epochs, self.stepper.task.metrics[0]), flush=True)
                    self._tell_headroom(epoch)
            self.clock.lap()  # the log is in no phase
        self._save(folder)

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
            "lr": self.pruner.lr_factor * self.stepper.lr_schedule(epoch, steps - 1, steps),
            "train_loss": loss,
            **{f"test_{name}": metrics.get(name) for name in ("accuracy", "top5", *self.stepper.task.metrics)},
            "class_accuracy": dict(zip(dataset.classes, by_class, strict=False)),
            "seconds": self.clock.take(),
        }

    def _chosen_share(self, steps: int) -> dict[str, float]:
        """The shares of an epoch in which samples were chosen in batches: of what was served."""
        if self.pruner.values.chooser is None:
            return {}
        keep = self.stepper.trained / (steps * self.config.train.batch_size)
        return {"keep": round(keep, 6), "pruning_rate": round(1 - keep, 6)}

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
        check_converges(sum(own["loss_sum"] for own in state["ranks"]))  # keep the checkpoint before
        with self.world.together(setup=True):  # a slow disk is no lost rank
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
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`. With another number of ranks, the random states of dropout are not the same."""
        device, rank, size = self.stepper.device, self.world.rank, self.world.size
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
