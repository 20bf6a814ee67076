"""The pruner of a run: the method of its configuration on its loaders."""

from __future__ import annotations

import torch

from ffcv_prune.config import Config
from ffcv_prune.errors import UserError
from ffcv_prune.pruner import Pruner
from ffcv_prune.tasks import Task
from ffcv_prune.training.loaders import Loaders
from ffcv_prune.training.score_file import with_static_scores


def build_pruner(config: Config, loaders: Loaders, amp_dtype: torch.dtype | None, task: Task) -> tuple[Pruner, float]:
    """The pruner, and the seconds that its static scores cost."""
    check_batches(config, loaders.dataset.train.num_samples)
    method, scores, seconds = with_static_scores(config, loaders.dataset)
    pruner = Pruner(
        loaders.train(config.run.seed),
        loaders.score if method.makes_passes else None,
        method,
        epochs=config.train.epochs,
        seed=config.run.seed,
        task=task,
        amp_dtype=amp_dtype,
        scores=scores,
        class_names=loaders.dataset.classes or None,
    )
    return pruner, seconds


def check_batches(config: Config, num_samples: int) -> None:
    """Refuse a selection that does not fill one batch: training leaves out a last batch that is not whole."""
    method, batch_size, epochs = config.prune, config.train.batch_size, config.train.epochs
    smallest = min(method.kept(num_samples, epoch, epochs) for epoch in range(epochs))
    least = method.selector.least(smallest, num_samples)
    if least < batch_size:
        cause, remedy = f"method {method.name} possibly", "let it drop fewer"
        if method.selector.has_fixed_size and "keep" in method.values:
            cause, remedy = f"prune.keep={method.phases.share}", "raise prune.keep"
        raise UserError(
            f"{cause} keeps {least} of {num_samples} samples, less than one batch of {batch_size}; "
            f"{remedy} or lower train.batch_size"
        )
