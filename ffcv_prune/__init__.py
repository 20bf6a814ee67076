"""Dynamic data pruning for FFCV: train, between checkpoints, only on a selected share of the data.

The names below are imported when they are first asked for (PEP 562): a command that only reads its arguments does
not wait for torch, numba and FFCV.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ffcv_prune.loading.loader import PrunedLoader
    from ffcv_prune.methods import policies
    from ffcv_prune.methods.distributed_topk import distributed_top_k
    from ffcv_prune.methods.phases import Schedule
    from ffcv_prune.methods.table import ScoreTable
    from ffcv_prune.pruner import Checkpoint, Pruner
    from ffcv_prune.scoring.forward import score_dataset

__all__ = [
    "Checkpoint",
    "PrunedLoader",
    "Pruner",
    "Schedule",
    "ScoreTable",
    "distributed_top_k",
    "policies",
    "score_dataset",
]

_MODULES = {
    "Checkpoint": "pruner",
    "PrunedLoader": "loading.loader",
    "Pruner": "pruner",
    "Schedule": "methods.phases",
    "ScoreTable": "methods.table",
    "distributed_top_k": "methods.distributed_topk",
    "policies": "methods.policies",
    "score_dataset": "scoring.forward",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f"{__name__}.{_MODULES[name]}")
    globals()[name] = module if name == "policies" else getattr(module, name)  # the next time it is simply there
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
