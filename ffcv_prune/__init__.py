"""Dynamic data pruning for FFCV and torch: train, between selections, only on a selected share of the data.

The names below are imported when they are first asked for (PEP 562). So a command that only reads its arguments does
not wait for torch, numba and FFCV. ``from ffcv_prune import *`` gives the names that can be imported: without FFCV,
all but `PrunedLoader` and `write`.
"""

import os
import sys
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ffcv_prune import methods, tasks
    from ffcv_prune.data.any_dataset import write
    from ffcv_prune.loading.loader import PrunedLoader
    from ffcv_prune.loading.torch_loader import TorchLoader
    from ffcv_prune.pruner import Pruner
    from ffcv_prune.scoring.forward import score_dataset
    from ffcv_prune.training.run_writer import RunWriter

    __all__ = ["PrunedLoader", "Pruner", "RunWriter", "TorchLoader", "methods", "score_dataset", "tasks", "write"]

# Torch's threads wait for each other by spinning. Where another program has one of their cores, every wait then lasts
# until that program's turn is over. They look 1,000 times before they sleep, not 300,000 times: on an idle machine that
# costs next to nothing, and OMP_WAIT_POLICY=PASSIVE a third (docs/speed.md). OpenMP reads it when torch is imported.
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "1000"
    if "torch" in sys.modules:
        from ffcv_prune.machine import warn_if_busy

        warn_if_busy()

_MODULES = {
    "PrunedLoader": "loading.loader",
    "Pruner": "pruner",
    "RunWriter": "training.run_writer",
    "TorchLoader": "loading.torch_loader",
    "methods": "methods",
    "score_dataset": "scoring.forward",
    "tasks": "tasks",
    "write": "data.any_dataset",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("ffcv_prune")
    if name == "__all__":  # of a star import, which asks for each name that stands here
        return [public for public in _MODULES if _can_be_imported(public)]
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f"{__name__}.{_MODULES[name]}")
    globals()[name] = module if name == _MODULES[name] and name != "Pruner" else getattr(module, name)
    return globals()[name]


def _can_be_imported(name: str) -> bool:
    """False where FFCV is missing or broken, for a name that needs it."""
    from ffcv_prune.errors import UserError

    try:
        __getattr__(name)
    except UserError:
        return False
    return True


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
