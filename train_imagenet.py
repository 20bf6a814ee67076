"""Train any recipe: python train_imagenet.py --config rn_configs/rn18_ucb.yaml [--section.key=value ...]

Go on with a run that was interrupted: python train_imagenet.py --resume runs/rn18_ucb
"""

from __future__ import annotations

import os
import sys

from ffcv_prune import config
from ffcv_prune.errors import run_command


def main() -> None:
    settings, resume = config.read_command(sys.argv[1:])
    from ffcv_prune.training.trainer import train  # seconds of imports, which a bad option need not wait for

    result = train(settings, resume=resume)
    if os.environ.get("RANK", "0") == "0":  # one of several processes that torchrun started
        headline, value = next(iter(result.metrics.items()))
        total, tests = (result.seconds[name] for name in ("total", "eval"))
        print(f"test {headline} {value:.4f} after {total - tests:.1f} s without tests; run folder {result.folder}")


if __name__ == "__main__":
    run_command(main)
