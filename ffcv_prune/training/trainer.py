"""The training script: from a configuration to a run folder with a trained model, read top to bottom."""

from __future__ import annotations

import time
from contextlib import ExitStack, closing, suppress
from functools import partial
from pathlib import Path
from typing import Any, cast

from ffcv_prune.config import Config, dotted, fixed_keys
from ffcv_prune.errors import Terminated, uninterrupted
from ffcv_prune.training import checkpoint
from ffcv_prune.training.loaders import Loaders, settings_of
from ffcv_prune.training.loop import Trainer
from ffcv_prune.training.profile import measure_alone, report_profile
from ffcv_prune.training.run_folder import RunFolder
from ffcv_prune.training.run_log import RunResult, kept_share, result_row
from ffcv_prune.training.stop import BrokenOff, StopSignals, stopped
from ffcv_prune.training.trackers import open_tracker, require_tracker
from ffcv_prune.training.watch import LOST_RANK
from ffcv_prune.training.world import join
from ffcv_prune.words import percent


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
        with world.together():
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
        with world.together():
            trainer = Trainer(config, loaders)
            if resume is None and config.model.weights:
                trainer.load_weights(config.model.weights)
        if resume is not None:
            shared = cast(dict[str, Any], world.share(state))
            with world.together():
                trainer.load_state_dict(shared)
        elif config.save:
            with world.together(), suppress(BrokenOff), stop.at_once():
                trainer.make_plan(start)
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
                tracker = open_tracker(config.run.tracker, folder.path, dotted(trainer.followed.sections))
                if tracker is not None:
                    trainer.tracker = stack.enter_context(closing(tracker))
        try:
            with world.naming_lost_ranks():  # here, too, for the reason in status.json
                trainer.run(folder, stop)
                with world.together():
                    result = None if folder is None else _finish(trainer, folder, setup_seconds)
                result = world.share(result)
        except BaseException as error:
            interrupted = isinstance(error, KeyboardInterrupt | Terminated)
            if folder is not None:
                folder.set_status("interrupted" if interrupted else "failed", str(error))
                if config.run.profile and interrupted:
                    report_profile(folder, trainer.followed, loaders.dataset, {})
            raise
        if folder is not None:  # the last act: until here, whatever ends a rank, there is a checkpoint to go on from
            with uninterrupted():
                folder.set_status("finished")
                checkpoint.remove(folder.path)
            if config.run.profile:
                alone = measure_alone(config, trainer.stepper, trainer.loader)
                report_profile(folder, trainer.followed, loaders.dataset, alone)
        return cast(RunResult, result)


def _finish(trainer: Trainer, folder: RunFolder, setup_seconds: float) -> RunResult:
    """Write what came out."""
    folder.save_weights(trainer.stepper.tested)
    last = folder.rows[-1]
    saving = trainer.clock.take()  # the last save came after the last row
    seconds = {phase: saving[phase] + sum(row["seconds"][phase] for row in folder.rows) for phase in saving}
    plan, saved = trainer.plan, None
    if plan is not None:
        saved = plan.forecast(folder.rows, saving["total"])
        print(f"saved {percent(saved)} of a full run's seconds, {percent(plan.asked)} were asked", flush=True)
    result = RunResult(
        folder=folder.path,
        method=trainer.pruner.method.label,
        keep=kept_share(trainer.config, folder.rows),
        metrics={name: last[f"test_{name}"] for name in trainer.stepper.task.metrics},
        samples_seen=last["samples_seen"],
        cost=last["cost"],
        seconds=seconds | {"setup": setup_seconds, "static": trainer.static_seconds},
        saved=saved,
    )
    folder.write_result(result_row(trainer.followed, result))
    from ffcv_prune.analysis.report import write_report  # matplotlib, which the first step need not wait for

    write_report([folder.path], folder.path / "report.html")
    return result
