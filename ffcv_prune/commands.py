"""The commands, under the names that pip installs. The scripts at the root of a clone call the same."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ffcv_prune import config, strict_args
from ffcv_prune.data.recipe import FLAGS, OPTIONS, Recipe, load_recipe, recipe_names
from ffcv_prune.errors import WRITE, UserError, run_command

WRITE_USAGE = f"""\
usage: {WRITE} --dataset NAME [--data-dir D] [--out-dir O] [--workers N] [--force] [--skip-broken]
       [--key=value ...]
       {WRITE} --verify FILE

  --dataset    path of a recipe (.yaml), or one of: {" ".join(recipe_names())}
  --data-dir   folder of the source images; default data
  --out-dir    folder to write NAME/SPLIT.beton and NAME/SPLIT.json into; default betons
  --workers    processes that read and encode images; default -1: one per core available
  --force      replace a data set of that name that was made from another source or by another recipe
  --skip-broken  leave out images that cannot be read, and list them
  --verify     a .beton to read instead of writing one: names the samples that are not as they were written

The other keys are those of the recipe:"""


def write() -> None:
    """``ffcv-prune-write``, ``python write_datasets.py``: compile a data set to ``.beton`` files."""
    run_command(_write)


def train() -> None:
    """``ffcv-prune-train``, ``python train_imagenet.py``: train what a config says."""
    run_command(_train)


def report() -> None:
    """``ffcv-prune-report``, ``python -m ffcv_prune.analysis``: one HTML page about run folders."""
    from ffcv_prune.analysis.__main__ import main

    run_command(main)


def scores() -> None:
    """``ffcv-prune-scores``, ``python -m ffcv_prune.static_scores``: the scores of a static method."""
    from ffcv_prune.static_scores import main

    run_command(main)


def _write() -> None:
    options, overrides = strict_args.parse_command_line(sys.argv[1:], OPTIONS, FLAGS)
    if "help" in options:
        print(WRITE_USAGE, strict_args.help_text(Recipe), sep="\n")
        return
    if "verify" in options:
        if len(options) > 1 or overrides:
            raise UserError(f"--verify={options['verify']} only reads that file; leave out the other options")
        from ffcv_prune.data.checksums import verify  # imports FFCV

        verify(options["verify"])
        return
    if "dataset" not in options:
        raise UserError(f"no data set; add --dataset NAME, one of {', '.join(recipe_names())}")
    recipe = load_recipe(options["dataset"], overrides)
    try:
        workers = int(options.get("workers", "-1"))
    except ValueError:
        raise UserError(f"--workers={options['workers']}: expected an integer") from None
    data_dir, out_dir = options.get("data-dir", "data"), options.get("out-dir", "betons")
    from ffcv_prune.data.writer import write_dataset  # seconds of imports, which a bad option need not wait for

    write_dataset(recipe, Path(data_dir), Path(out_dir), workers, "force" in options, "skip-broken" in options)


def _train() -> None:
    settings, resume = config.read_command(sys.argv[1:])
    from ffcv_prune.training.trainer import train  # seconds of imports, which a bad option need not wait for

    result = train(settings, resume=resume)
    if os.environ.get("RANK", "0") == "0":  # one of several processes that torchrun started
        headline, value = next(iter(result.metrics.items()))
        total, tests = (result.seconds[name] for name in ("total", "eval"))
        print(f"test {headline} {value:.4f} after {total - tests:.1f} s without tests; run folder {result.folder}")
