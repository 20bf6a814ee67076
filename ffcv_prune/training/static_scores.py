"""Trains the models that static scores need, and scores every sample with them (paper, section 4)."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from ffcv_prune.config import Config, fixed_keys
from ffcv_prune.errors import UserError
from ffcv_prune.loading.loader import PrunedLoader
from ffcv_prune.loading.targets import CLASSIFICATION
from ffcv_prune.protocols import Step
from ffcv_prune.scoring.forward import score_dataset
from ffcv_prune.scoring.static_formulas import ForgetCounts, el2n, grand
from ffcv_prune.training import score_file
from ffcv_prune.training.clock import Clock
from ffcv_prune.training.dataset import side_of
from ffcv_prune.training.epoch import Stepper, choose_amp_dtype, mean_loss, or_amp_off
from ffcv_prune.training.loaders import Loaders, settings_of
from ffcv_prune.training.pruning import training_sides
from ffcv_prune.training.run_folder import provenance
from ffcv_prune.training.score_file import NoScores, ScoreFile
from ffcv_prune.training.world import prepare

# Keys that decide the scores, besides the network: not how runs prune with them, nor what is only reported.
_RECIPE_SECTIONS = ("data", "train", "static")
_NOT_IN_RECIPE = ("train.eval_every", "static.model")
_PHASES = ("load", "train", "score", "total")


def compute(config: Config, loaders: Loaders | None = None) -> ScoreFile:
    """Compute the scores that `config.static` asks for, write them to `prune.scores`, and return them.

    Where that file already holds what would be computed, nothing is done. A damaged one is computed anew. Nothing is
    written before the end.

    Args:
        config: from `ffcv_prune.config.load`.
        loaders: of a run with the same data settings, to save their compilation.

    Raises:
        UserError: whatever is wrong with data or configuration, before anything is computed; a file that holds
            other scores; or a diverged model or full disk.
    """
    start = time.perf_counter()
    _check(config)
    path = Path(config.prune.values["scores"])
    with ExitStack() as stack:
        if loaders is None:
            loaders = stack.enter_context(closing(Loaders(config)))
        elif loaders.settings != settings_of(config, loaders.world):
            raise ValueError("these loaders were made for other data settings")
        prepare(loaders.world.device)
        if loaders.dataset.target.task != CLASSIFICATION:
            raise UserError(f"static scores are made of classes, and the targets of {config.data.train} are none")
        data = loaders.dataset.fingerprints["train"]
        recipe = _recipe(config)
        found = _computed(path, data, recipe)
        if found is not None:
            return found
        scorer = _Scorer(config, loaders)
        scorer.prepare()
        _make_folder(path.parent)
        setup_seconds = time.perf_counter() - start
        seeds = [_seed(config.run.seed, number) for number in range(config.static.models)]
        scores, seconds = scorer.score_all(seeds)
    made = {
        "method": config.static.method,
        "model": recipe["model.name"],
        "samples": scores.shape[1],
        "data": data,
        "seconds": seconds | {"setup": setup_seconds},
        "seeds": seeds,
        "recipe": recipe,
        "machine": provenance(),
    }
    score_file.save(path, scores, made)
    return score_file.load(path, data)


class _Scorer:
    """Trains and scores one model after the other on the same loaders."""

    def __init__(self, config: Config, loaders: Loaders) -> None:
        self.config = config
        self.formula = FORMULAS[config.static.method]
        self.loaders = loaders
        self.dataset = loaders.dataset
        self.device = loaders.world.device
        self.amp_dtype = choose_amp_dtype(config.train.amp, self.device)
        self.clock = Clock()

    def prepare(self) -> None:
        """Build the loaders that will be needed, and refuse what cannot work, outside of the measured time."""
        self._model(0)
        if self.config.static.epochs:
            self.loaders.train(0)
        if self.formula.by_pass:
            _ = self.loaders.score

    def score_all(self, seeds: list[int]) -> tuple[NDArray[np.float32], dict[str, float]]:
        """Return float32[models, n], the scores by a model of each seed, and the seconds by phase."""
        self.clock.start()
        scores = np.stack([self._score(number, seed) for number, seed in enumerate(seeds)])
        if not np.isfinite(scores).all():
            raise UserError(
                f"some static scores are not finite: a model diverged; lower train.lr{or_amp_off(self.amp_dtype)}"
            )
        return scores, {phase: seconds for phase, seconds in self.clock.take().items() if phase in _PHASES}

    def _score(self, number: int, seed: int) -> NDArray[np.float32]:
        """Return float32[n], the scores by model `number`, counted from 0."""
        stepper = Stepper(self._model(seed), self.config.train, self.amp_dtype)
        if self.formula.by_pass is None:
            counts = ForgetCounts(self.dataset.train.num_samples, self.device)
            stepper.observers.append(lambda step: _count(counts, step))
            self._train(stepper, number, seed)
            return counts.scores(self.config.static.epochs)
        self._train(stepper, number, seed)
        scores = self.formula.by_pass(stepper.model, self.loaders.score, self.amp_dtype)
        self.clock.lap("score")
        return scores

    def _model(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        name = self.config.static.model or self.config.model.name
        trained = training_sides(self.config, self.dataset, self.config.static.epochs)
        scored = {side_of(self.dataset.train, self.config.data.size): "data.size"}
        return self.loaders.build_model(name, seed, trained | scored)

    def _train(self, stepper: Stepper, number: int, seed: int) -> None:
        epochs = self.config.static.epochs
        if not epochs:
            return
        loader = self.loaders.train(seed)
        waited = loader.wait_seconds
        for epoch in range(epochs):
            self.loaders.resize(epoch, self.config.train.epochs)  # a run's own schedule
            description = f"model {number + 1}/{self.config.static.models}, epoch {epoch + 1}/{epochs}"
            with tqdm(
                desc=description, total=len(loader) * loader.batch_size, unit="img", leave=False, disable=None
            ) as bar:
                loss = stepper.train_epoch(loader, epoch, mean_loss, bar, lambda: None)
            assert loss is not None
            if not math.isfinite(loss):
                raise UserError(
                    f"{description}: the loss is {loss}, the model diverged; lower train.lr{or_amp_off(self.amp_dtype)}"
                )
            print(f"{description}: loss {loss:.4f}", flush=True)
        self.clock.lap("train", load=loader.wait_seconds - waited)


def _count(counts: ForgetCounts, step: Step) -> None:
    """On the logits of a training step, as they are made: no pass of its own, no waiting."""
    ids = step.ids.to(counts.counts.device, non_blocking=True)
    counts.update(ids, step.outputs.detach().argmax(dim=1) == step.targets)


def grand_scores(model: nn.Module, score_loader: PrunedLoader) -> NDArray[np.float32]:
    """Return float32[n]: the gradient norm of each sample (`grand`), in float32, the model in evaluation mode."""
    model.eval()
    parts = []
    with closing(score_loader.batches(0)) as batches:
        for batch in tqdm(batches, desc="gradients", total=len(score_loader), leave=False, disable=None):
            parts.append(grand(model, batch.inputs, batch.targets))
    return torch.cat(parts).numpy(force=True)


@dataclass(frozen=True)
class Formula:
    """How a `static.method` scores.

    Attributes:
        by_pass: makes float32[n] of a trained model and the loader; None: it counts while the model trains.
        least_epochs: of training.
    """

    by_pass: Callable[[nn.Module, PrunedLoader, torch.dtype | None], NDArray[np.float32]] | None
    least_epochs: int = 0


FORMULAS = {
    "el2n": Formula(lambda model, loader, dtype: score_dataset(model, loader, amp_dtype=dtype, criterion=el2n)),
    "grand": Formula(lambda model, loader, _: grand_scores(model, loader)),
    "forget": Formula(None, least_epochs=2),
}


def _check(config: Config) -> None:
    static = config.static
    if not config.prune.values.get("scores"):
        raise UserError("no file to write: set prune.method=static and prune.scores=runs/static_scores/NAME.npy")
    if static.epochs > config.train.epochs:
        raise UserError(
            f"static.epochs={static.epochs} is more than the schedule's train.epochs={config.train.epochs}; lower it"
        )
    least = FORMULAS[static.method].least_epochs
    if static.epochs < least:
        raise UserError(
            f"static.method={static.method} counts from one epoch to the next; set static.epochs={least} or more"
        )
    if config.model.weights:
        raise UserError(
            f"static scores are made from random weights, not from model.weights={config.model.weights}; "
            "leave out --init-from, or pass --model.weights="
        )
    if config.data.score or config.data.score_size:
        raise UserError("static scores are made of data.train as it is; leave out data.score and data.score_size")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError("static scores are computed by one process; start it without torchrun")


def _recipe(config: Config) -> dict[str, Any]:
    keys = {
        name: value
        for name, value in fixed_keys(config).items()
        if name.split(".")[0] in _RECIPE_SECTIONS and name not in _NOT_IN_RECIPE
    }
    keys |= {"model.name": config.static.model or config.model.name, "run.seed": config.run.seed}
    return json.loads(json.dumps(keys))  # as it reads back: a tuple is a list


def _computed(path: Path, data: str, recipe: dict[str, Any]) -> ScoreFile | None:
    """The scores that are there; None if there are none, or damaged ones."""
    try:
        found = score_file.load(path, data)
        _check_same(found, recipe)
        found.scores()
    except NoScores:
        return None
    return found


def _check_same(found: ScoreFile, recipe: dict[str, Any]) -> None:
    for name in sorted(found.recipe.keys() | recipe.keys()):
        if found.recipe.get(name) != recipe.get(name):
            raise UserError(
                f"{found.path} holds scores made with {name}={found.recipe.get(name)}, not {recipe.get(name)}; "
                "name another prune.scores, or remove that file and its .json"
            )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot create {folder}: {error.strerror}; see prune.scores") from error
    if not os.access(folder, os.W_OK):
        raise UserError(f"cannot write in {folder}; see prune.scores")


def _seed(seed: int, number: int) -> int:
    """An independent seed for each model; a run with the same `run.seed` shares none of them."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
