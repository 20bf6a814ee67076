"""Dynamic data pruning for FFCV: train, between checkpoints, only on a selected share of the data."""

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
