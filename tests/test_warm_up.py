"""After the warm-up, which a trainer makes in its set-up, selections compile nothing more."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.betons import Beton, write_run

# Trains with each method, alone and guarded, and fails where a kernel gets another signature after the set-up. In a
# process of its own, where no other test has called any, and with an empty cache of numba's.
SCRIPT = """
import sys
from numba.core.dispatcher import Dispatcher
from ffcv_prune import config
from ffcv_prune.training.loaders import Loaders
from ffcv_prune.training.loop import Trainer
from ffcv_prune.training.stop import StopSignals

loaders, compiled = None, {}

def kernels():
    return {
        f"{name}.{attribute}": len(value.signatures)
        for name, module in sys.modules.items() if name.startswith("ffcv_prune.methods")
        for attribute, value in vars(module).items() if isinstance(value, Dispatcher)
    }

for arguments in METHODS:
    settings = config.load(["--config", sys.argv[1], *arguments])
    loaders = loaders or Loaders(settings)
    trainer = Trainer(settings, loaders)
    compiled = compiled or kernels()
    with StopSignals(announce=False) as stop:
        trainer.run(None, stop)
    assert kernels() == compiled, (arguments, kernels(), compiled)
print(sum(compiled.values()))
"""
GUARDS = ["--prune.class_floor=0.5", "--prune.loss_cap=0.1", "--prune.random_share=0.2"]
METHODS = [
    *([f"--prune.method={name}"] for name in ("ema", "uncertainty", "epsilon_greedy", "ucb", "random")),
    *([f"--prune.method={name}", *GUARDS] for name in ("ema", "uncertainty", "epsilon_greedy", "ucb", "random")),
    ["--prune.method=infobatch"],
    ["--prune.method=ucb", "--prune.score_source=both"],
    ["--prune.method=ucb", "--prune.class_floor=0.5", "--prune.score_budget=0.5"],
]


def test_selections_compile_nothing_after_the_set_up(tmp_path: Path, beton: Beton) -> None:
    path = write_run(tmp_path / "small.yaml", beton, epochs=2, prune="period: 1, keep: 0.5")
    script = SCRIPT.replace("METHODS", repr(METHODS))
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "numba")}
    done = subprocess.run([sys.executable, "-c", script, path], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) > 10
