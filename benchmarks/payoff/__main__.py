"""python -m benchmarks.payoff: `referee.py` beside this says what it does."""

from benchmarks.harness.rows import benchmark
from benchmarks.payoff import referee
from ffcv_prune.errors import run_command

if __name__ == "__main__":
    run_command(lambda: benchmark(referee, prog="python -m benchmarks.payoff"))
