"""The pruner of a run: the method of its configuration on its loaders."""

from __future__ import annotations

import warnings
from dataclasses import replace

import torch

from ffcv_prune.config import Config
from ffcv_prune.errors import UserError
from ffcv_prune.pruner import Pruner
from ffcv_prune.scoring.proxy import Proxy, reduced_side
from ffcv_prune.tasks import Task
from ffcv_prune.training.dataset import Dataset, side_of
from ffcv_prune.training.loaders import Loaders, ramp_side
from ffcv_prune.training.lr import LRSchedule
from ffcv_prune.training.optimizer import build_optimizer
from ffcv_prune.training.plan import sized
from ffcv_prune.training.score_file import with_static_scores


def build_pruner(config: Config, loaders: Loaders, amp_dtype: torch.dtype | None, task: Task) -> tuple[Pruner, float]:
    """The pruner, and the seconds that its static scores cost. With prune.save it keeps all samples until the plan."""
    if config.save:
        config = replace(config, prune=sized(config.prune, 1.0))
    check_batches(config, loaders.dataset.train.num_samples)
    method, scores, seconds = with_static_scores(config, loaders.dataset)
    score_loader, proxy = None, None
    if method.source.by_proxy:
        score_loader = loaders.proxy(config.run.seed, method.values["window"])
        proxy = build_proxy(config, loaders, amp_dtype, task)
    elif method.makes_passes:
        score_loader = loaders.score
    with warnings.catch_warnings():
        if config.save:
            warnings.filterwarnings("ignore", "method .* keeps all")
        pruner = Pruner(
            loaders.train(config.run.seed),
            score_loader,
            method,
            epochs=config.train.epochs,
            seed=config.run.seed,
            task=task,
            amp_dtype=amp_dtype,
            scores=scores,
            class_names=loaders.dataset.classes or None,
            proxy=proxy,
            group=loaders.world.group,
        )
    return pruner, seconds


def build_proxy(config: Config, loaders: Loaders, amp_dtype: torch.dtype | None, task: Task) -> Proxy:
    """The proxy net of a run, trained as its main net is but for the learning rate."""
    train, values = config.train, config.prune.values
    keys = "prune.proxy_size, or data.size_ramp" if config.data.size_ramp else "prune.proxy_size"
    trained = training_sides(config, loaders.dataset, train.epochs)
    sides = {reduced_side(side, values["proxy_size"]): keys for side in trained}
    model = loaders.build_model(values["proxy_model"], config.run.seed, sides)
    own = replace(train, lr=values["proxy_lr"])
    return Proxy(model, build_optimizer(model, own), LRSchedule(own), values["proxy_size"], task, amp_dtype)


def training_sides(config: Config, dataset: Dataset, epochs: int) -> dict[tuple[int, int], str]:
    """Height and width of the training images of the first `epochs` epochs of a run, each with the key that sets it."""
    ramp = config.data.size_ramp
    if not ramp:
        return {side_of(dataset.train, config.data.size): "data.size"}
    sides = (ramp_side(ramp, epoch, config.train.epochs) for epoch in range(epochs))
    return {(side, side): "data.size_ramp" for side in sides}


def check_batches(config: Config, num_samples: int) -> None:
    """Refuse a selection that does not fill one batch: training leaves out a last batch that is not whole."""
    method, batch_size, epochs = config.prune, config.train.batch_size, config.train.epochs
    pruned = (epoch for epoch in range(epochs) if method.phases.phase(epoch, epochs) != "full")
    smallest = min((method.kept(num_samples, epoch, epochs) for epoch in pruned), default=num_samples)
    least = method.selector.least(smallest, num_samples)
    if least is not None and least < batch_size:
        cause, remedy = f"method {method.name} possibly", "let it drop fewer or "
        if config.save:
            cause, remedy = f"method {method.name} at its largest size", ""
        elif method.constant_share is not None:
            cause, remedy = f"prune.keep={method.constant_share}", "raise prune.keep or "
        raise UserError(
            f"{cause} keeps {least} of {num_samples} samples, less than one batch of {batch_size}; "
            f"{remedy}lower train.batch_size"
        )
