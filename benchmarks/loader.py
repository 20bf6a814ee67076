"""The loader, measured: python -m benchmarks.loader COMMAND (--help says what it shows and how to read it)

throughput    images/s and CPU time an image on changing subsets, against other loaders
swap          what exchanging the selection costs, against building a new FFCV loader
cold          data that is not in the page cache
"""

from __future__ import annotations

import argparse
import importlib
import sys
from importlib.util import find_spec

from ffcv_prune.errors import UserError, nearest, run_command

# Each is a module benchmarks/loader_NAME.py with `add_arguments(parser)` and `run(args)`.
COMMANDS = [name for name in ("throughput", "swap", "cold") if find_spec(f"benchmarks.loader_{name}")]


def main() -> None:
    command = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if command in ("-h", "--help"):
        print(__doc__)
        return
    if command not in COMMANDS:
        raise UserError(f'no command "{command}"{nearest(command, COMMANDS)}')
    module = importlib.import_module(f"benchmarks.loader_{command}")  # only the one: each imports much
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.loader {command}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    module.run(parser.parse_args(sys.argv[2:]))


if __name__ == "__main__":
    run_command(main)
