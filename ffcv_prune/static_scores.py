"""Compute static scores: python -m ffcv_prune.static_scores --config rn_configs/cifar10_el2n.yaml [--key=value ...]

Section `static` of the configuration says what to compute, prune.scores where to; train_imagenet.py with the
same configuration then prunes by it.
"""

from __future__ import annotations

import sys

from ffcv_prune import config
from ffcv_prune.errors import SCORES, UserError, run_command

USAGE = f"usage: {SCORES} --config FILE [--section.key=value ...]"


def main() -> None:
    settings, resume = config.read_command(sys.argv[1:], USAGE)
    if resume is not None:
        raise UserError("static scores are not resumed; give --config")
    from ffcv_prune.training.static_scores import compute  # seconds of imports, not needed before

    made = compute(settings)
    print(f"static scores {made.path}: {made.method} by {made.model}, computed in {made.seconds['total']:.1f} s")


if __name__ == "__main__":
    run_command(main)
