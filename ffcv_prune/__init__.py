"""Dynamic data pruning for FFCV: train, between checkpoints, only on a selected share of the data.

The names below are imported when they are first asked for (PEP 562): a command that only reads its arguments does
not wait for torch, numba and FFCV.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ffcv_prune.loading.loader import PrunedLoader
    from ffcv_prune.pruning import policies
    from ffcv_prune.pruning.distributed_topk import distributed_top_k
    from ffcv_prune.pruning.pruner import Checkpoint, Pruner
    from ffcv_prune.pruning.schedule import Schedule
    from ffcv_prune.pruning.scores import ScoreTable
    from ffcv_prune.pruning.scoring import score_dataset

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
    "Checkpoint": "pruning.pruner",
    "PrunedLoader": "loading.loader",
    "Pruner": "pruning.pruner",
    "Schedule": "pruning.schedule",
    "ScoreTable": "pruning.scores",
    "distributed_top_k": "pruning.distributed_topk",
    "policies": "pruning.policies",
    "score_dataset": "pruning.scoring",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f"{__name__}.{_MODULES[name]}")
    globals()[name] = module if name == "policies" else getattr(module, name)  # the next time it is simply there
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
