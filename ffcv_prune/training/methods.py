"""From the keys of `config.Prune` to the parts of a method: schedule, policy with its guards, pruner."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from ffcv_prune.config import Config, Prune
from ffcv_prune.errors import UserError
from ffcv_prune.loading.loader import PrunedLoader
from ffcv_prune.methods import policies
from ffcv_prune.methods.guards import ClassQuota, LossCap
from ffcv_prune.methods.phases import Schedule, UnscoredPhase, infobatch_final
from ffcv_prune.pruner import Pruner
from ffcv_prune.scoring.source import ScoreSource
from ffcv_prune.training.loaders import Loaders


def build_pruner(
    config: Config, loaders: Loaders, amp_dtype: torch.dtype | None, static: Mapping[str, Any]
) -> Pruner | None:
    """The method of a configuration on the run's loaders; None for all data in every epoch.

    `static`: what a static policy is made of, see `score_file.static_parameters`.
    """
    prune = config.prune
    schedule = build_schedule(config)
    check_batches(config, schedule, loaders.dataset.train.num_samples)
    policy = build_policy(prune, loaders.dataset.labels, static)
    if policy is None:
        return None
    makes_passes = policy.needs_scores and prune.score_source != "training"
    score_loader: PrunedLoader | None = loaders.score if makes_passes else None
    return Pruner(
        loaders.train(config.run.seed),
        score_loader,
        policy,
        seed=config.run.seed,
        alpha=prune.alpha,
        schedule=schedule,
        amp_dtype=amp_dtype,
        score_source=cast(ScoreSource, prune.score_source),
        score_budget=prune.score_budget,
        score_revisit=prune.score_revisit,
    )


def build_schedule(config: Config) -> Schedule:
    prune, epochs = config.prune, config.train.epochs
    final, final_mode = prune.final, prune.final_mode
    if prune.policy == "infobatch":
        final, final_mode = infobatch_final(epochs, prune.delta), "full"
    return Schedule(
        epochs,
        prune.period,
        keep=prune.keep,
        warmup=prune.warmup,
        warmup_mode=cast(UnscoredPhase, prune.warmup_mode),
        final=final,
        final_mode=cast(UnscoredPhase, final_mode),
    )


def build_policy(prune: Prune, labels: NDArray[np.int64], static: Mapping[str, Any]) -> policies.Policy | None:
    """The policy with its guards; None for "none". `labels` is int64[n].

    The quota is the outermost guard: cap and random share work within each class. Otherwise a cap would take
    whole classes, for the losses of a young model differ mostly by class.
    """
    if prune.policy == "none":
        return None
    parameters = {
        "ucb": {"c": prune.c},
        "epsilon_greedy": {"epsilon": prune.epsilon},
        "infobatch": {"ratio": prune.ratio, "unbiased": prune.unbiased},
    }.get(prune.policy, static)
    policy = policies.build(prune.policy, **parameters)
    if prune.random_share > 0:
        policy = policies.WithRandom(policy, prune.random_share)
    if prune.loss_cap > 0:
        policy = LossCap(policy, prune.loss_cap)
    if prune.class_floor > 0:
        policy = ClassQuota(policy, labels, prune.class_floor)
    return policy


def check_batches(config: Config, schedule: Schedule, num_samples: int) -> None:
    """Refuse a selection that does not fill one batch: training leaves out a last batch that is not whole."""
    batch_size = config.train.batch_size
    kept, key, remedy = schedule.kept(num_samples), f"prune.keep={schedule.keep}", "raise prune.keep"
    if config.prune.policy == "infobatch":
        ratio = config.prune.ratio
        spread = math.sqrt(num_samples * ratio * (1 - ratio))  # standard deviation, if all were below the mean
        kept = math.floor(num_samples * (1 - ratio) - 5 * spread)
        key, remedy = f"prune.ratio={ratio} possibly", "lower prune.ratio"
    if kept < batch_size:
        raise UserError(
            f"{key} keeps {max(0, kept)} of {num_samples} samples, less than one batch "
            f"of {batch_size}; {remedy} or lower train.batch_size"
        )
