"""FFCV's own tests of its loader, with `PrunedLoader` in the place of `ffcv.loader.Loader`.

    git clone https://github.com/libffcv/ffcv CHECKOUT && pip install assertpy
    python -m tests.ffcv_suite CHECKOUT [options of pytest]

Those that need no network (CIFAR) and, where there is none, no GPU. Exit code and summary are those of pytest.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import ffcv
import ffcv.loader
import pytest
import torch

from ffcv_prune import PrunedLoader
from ffcv_prune.loading.arguments import usable_cores

PARTS = ("basic_pipeline", "partial_batches", "partial_pipeline", "array_field", "json_field", "custom_field")
PARTS += ("image_normalization", "rrc", "image_pipeline")


def ours(fname: str, batch_size: int, num_workers: int = -1, *more: Any, **options: Any) -> PrunedLoader:
    """The loader that the tests get. They ask for five workers, which loaders refuse where there are fewer cores."""
    return PrunedLoader(fname, batch_size, min(num_workers, usable_cores()), *more, **options)


def main(checkout: Path, *options: str) -> int:
    files = [checkout / "tests" / f"test_{part}.py" for part in PARTS]
    lacking = [str(file) for file in files if not file.exists()]
    if lacking:
        sys.exit(f"{lacking[0]} does not exist: name a checkout of FFCV")
    ffcv.Loader = ffcv.loader.Loader = ours
    sys.path.insert(0, str(checkout / "tests"))  # they import one another
    chosen = ["-k", "not cifar" if torch.cuda.is_available() else "not cifar and not gpu"]
    apart = ["-c", os.devnull, f"--rootdir={checkout}", "-p", "no:cacheprovider", "--import-mode=importlib"]
    return pytest.main([*apart, "--timeout=300", *chosen, *map(str, files), *options])


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(main(Path(sys.argv[1]).resolve(), *sys.argv[2:]))
