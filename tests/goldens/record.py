"""Record the selections of commit b30004f, before methods were made of parts:

git worktree add old b30004f; PYTHONPATH=old python tests/goldens/record.py tests/goldens/selections.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from cases import EPOCHS, LABELS, PASS, TRAINING, N, cases, line, losses, static_scores
from ffcv_prune.pruning import policies
from ffcv_prune.pruning.guards import ClassQuota, LossCap
from ffcv_prune.pruning.schedule import Schedule, infobatch_final
from ffcv_prune.pruning.score_budget import ScoreBudget
from ffcv_prune.pruning.scores import ScoreTable


def build(name: str, seed: int, keys: dict[str, Any]) -> policies.Policy:
    """As training/methods.py and training/score_file.py did."""
    own = {key: keys[key] for key in ("c", "epsilon", "ratio", "unbiased") if key in keys}
    scores = static_scores(name)
    if name == "static_random":
        own |= {"n": N, "seed": seed}
    elif name == "static_ucb":
        own |= {"trials": scores, "alpha": keys["alpha"]}
    elif scores is not None:
        own |= {"scores": scores}
    policy = policies.build(name, **own)
    if "random_share" in keys:
        policy = policies.WithRandom(policy, keys["random_share"])
    if "loss_cap" in keys:
        policy = LossCap(policy, keys["loss_cap"])
    if "class_floor" in keys:
        policy = ClassQuota(policy, LABELS, keys["class_floor"])
    return policy


def run(name: str, seed: int, keys: dict[str, Any]) -> list[str]:
    """As Pruner.begin_epoch and LossSource.update did."""
    policy = build(name, seed, keys)
    phases = {key: keys[key] for key in ("warmup", "warmup_mode", "final", "final_mode") if key in keys}
    source = keys.get("score_source", "pass")
    if name == "infobatch":
        phases, source = {"final": infobatch_final(EPOCHS, keys["delta"]), "final_mode": "full"}, "training"
    schedule = Schedule(EPOCHS, keys.get("period", 1), keep=keys.get("keep", 1.0), **phases)
    table = ScoreTable(N, keys.get("alpha", 0.8))
    budget = ScoreBudget(keys.get("score_budget", 1.0), keys.get("score_revisit", 10))
    k, ids, lines = schedule.kept(N), np.arange(0), []
    for epoch in range(EPOCHS):
        if not schedule.is_checkpoint(epoch):
            continue
        phase, wanted, trained = schedule.phase(epoch), None, np.arange(0)
        if policy.needs_scores and source != "pass" and ids.size:
            trained = ids
            table.update(losses(epoch - 1, TRAINING)[trained], trained)
        if policy.needs_scores and source != "training" and phase == "policy":
            wanted = budget.choose(table, policy, k, np.setdiff1d(np.arange(N), trained))
            table.update(losses(epoch, PASS)[wanted], wanted)
        rng = np.random.default_rng([seed, epoch, 1])
        chooser = policy if phase == "policy" else policies.Random()
        ids = np.arange(N) if phase == "full" else chooser.select(table, k, rng)
        lines.append(line(epoch, wanted, ids, policy.weights(table, ids) if phase == "policy" else None))
    return lines


if __name__ == "__main__":
    recorded = {case: run(name, seed, keys) for case, name, seed, keys in cases()}
    Path(sys.argv[1]).write_text(json.dumps(recorded, indent=0) + "\n")
