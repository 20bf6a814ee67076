"""The loader, measured: python -m benchmarks.loading COMMAND (--help says what it shows and how to read it)

throughput    images/s and CPU time an image on changing subsets, against other loaders
swap          what exchanging the selection costs, against building a new FFCV loader
cold          data that is not in the page cache
writer        images/s and bytes of writing a data set, against FFCV's writer and a folder of files
startup       what the loaders compile, and what imports and commands cost
"""

from __future__ import annotations

import importlib
import sys

from benchmarks.harness.rows import benchmark
from ffcv_prune.errors import UserError, nearest, run_command

COMMANDS = ("throughput", "swap", "cold", "writer", "startup")


def main() -> None:
    command = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if command in ("-h", "--help"):
        print(__doc__)
        return
    if command not in COMMANDS:
        raise UserError(f'no command "{command}"{nearest(command, COMMANDS)}')
    module = importlib.import_module(f"benchmarks.loading.{command}")  # only the one: each imports much
    benchmark(module, f"python -m benchmarks.loading {command}", sys.argv[2:])


if __name__ == "__main__":
    run_command(main)
