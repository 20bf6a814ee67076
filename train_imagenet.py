"""Train any recipe: python train_imagenet.py --config rn_configs/rn18_ucb.yaml [--section.key=value ...]"""

from __future__ import annotations

import sys

from ffcv_prune import config
from ffcv_prune.errors import run_command
from ffcv_prune.training.trainer import train


def main() -> None:
    result = train(config.load(sys.argv[1:]))
    seconds = result.seconds["total"]
    print(f"test accuracy {result.accuracy:.4f} after {seconds:.1f} s; run folder {result.folder}")


if __name__ == "__main__":
    run_command(main)
