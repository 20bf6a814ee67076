"""Compile a data set to .beton files: python write_datasets.py --dataset NAME (see --help)."""

from ffcv_prune.commands import write

if __name__ == "__main__":
    write()
