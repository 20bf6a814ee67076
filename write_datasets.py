"""Compile a data set to .beton files: python write_datasets.py --dataset NAME (see --help)."""

from __future__ import annotations

import sys
from pathlib import Path

from ffcv_prune import strict_args
from ffcv_prune.data.recipe import FLAGS, OPTIONS, Recipe, load_recipe, recipe_names
from ffcv_prune.errors import UserError, run_command

USAGE = f"""\
usage: python write_datasets.py --dataset NAME [--data-dir D] [--out-dir O] [--workers N] [--force] [--skip-broken]
       [--key=value ...]

  --dataset    path of a recipe (.yaml), or one of: {" ".join(recipe_names())}
  --data-dir   folder of the source images; default data
  --out-dir    folder to write NAME/SPLIT.beton and NAME/SPLIT.json into; default betons
  --workers    processes that read and encode images; default -1: one per core available
  --force      replace a data set of that name that was made from another source or by another recipe
  --skip-broken  leave out images that cannot be read, and list them

The other keys are those of the recipe:"""


def main() -> None:
    options, overrides = strict_args.parse_command_line(sys.argv[1:], OPTIONS, FLAGS)
    if "help" in options:
        print(USAGE, strict_args.help_text(Recipe), sep="\n")
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


if __name__ == "__main__":
    run_command(main)
