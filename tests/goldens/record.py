"""Record what the policies of commit b30004f selected. It runs there, on the code before methods were values:

    git worktree add old b30004f
    PYTHONPATH=old:. python tests/goldens/record.py tests/goldens/selections.json

Each case is driven as `Pruner.begin_epoch` did: a pass, or the losses of training, enter the table before a selection.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
import cases as golden
from ffcv_prune.pruning import policies
from ffcv_prune.pruning.guards import ClassQuota, LossCap
from ffcv_prune.pruning.schedule import Schedule, infobatch_final
from ffcv_prune.pruning.score_budget import ScoreBudget
from ffcv_prune.pruning.scores import ScoreTable


def policy_of(parameters: dict[str, Any]) -> policies.Policy:
    name, trials = parameters["name"], golden.static_scores()
    own = {
        "static": {"scores": trials[0]},
        "static_epsilon_greedy": {"scores": trials[0]},
        "static_ucb": {"trials": trials},
        "static_random": {"n": golden.N, "seed": parameters["seed"]},
        "infobatch": {word: parameters.get(word) for word in ("ratio", "unbiased")},
    }.get(name, {})
    policy = policies.build(name, **own)
    if "random_share" in parameters:
        policy = policies.WithRandom(policy, parameters["random_share"])
    if "loss_cap" in parameters:
        policy = LossCap(policy, parameters["loss_cap"])
    if "class_floor" in parameters:
        policy = ClassQuota(policy, golden.LABELS, parameters["class_floor"])
    return policy


def run(parameters: dict[str, Any]) -> list[str]:
    """One text a selection: the digest of what was asked for, of the ids and of the weights."""
    policy, table = policy_of(parameters), ScoreTable(golden.N)
    if parameters["name"] == "infobatch":
        final = infobatch_final(golden.EPOCHS, parameters["delta"])
        schedule = Schedule(golden.EPOCHS, 1, keep=1.0, final=final, final_mode="full")
        source = "training"
    else:
        phases = {word: parameters[word] for word in ("warmup", "warmup_mode", "final") if word in parameters}
        schedule = Schedule(golden.EPOCHS, parameters["period"], keep=parameters["keep"], **phases)
        source = parameters.get("score_source", "pass")
    budget = ScoreBudget(parameters.get("score_budget", 1.0), parameters.get("score_revisit", 10))
    k, selection, found = schedule.kept(golden.N), None, []
    for epoch in range(golden.EPOCHS):
        if not schedule.is_checkpoint(epoch):
            continue
        phase, losses, trained, asked = schedule.phase(epoch), golden.losses_of(epoch), np.empty(0, np.int64), None
        if policy.needs_scores:
            if source != "pass" and selection is not None:
                trained = selection
                table.update(losses[trained], trained)
            if source != "training" and phase == "policy":
                asked = budget.choose(table, policy, k, np.setdiff1d(np.arange(golden.N), trained))
                asked = asked if asked.size else None
                if asked is not None:
                    table.update(losses[asked], asked)
        rng = np.random.default_rng([parameters["seed"], epoch, 1])
        selection = np.arange(golden.N)
        if phase != "full":
            selection = (policy if phase == "policy" else policies.Random()).select(table, k, rng)
        weights = policy.weights(table, selection) if phase == "policy" else None
        found.append(golden.digest(asked, selection, weights))
    return found


if __name__ == "__main__":
    recorded = {name: run(parameters) for name, parameters in golden.cases()}
    Path(sys.argv[1]).write_text(json.dumps(recorded, indent=0) + "\n")
