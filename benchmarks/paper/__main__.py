"""python -m benchmarks.paper: `runner.py` beside this says what it does."""

from benchmarks.paper.runner import main
from ffcv_prune.errors import run_command

if __name__ == "__main__":
    run_command(main)
