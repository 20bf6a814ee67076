"""Compiles what selections are made of, before a run's clock starts."""

from __future__ import annotations

import numpy as np

from ffcv_prune.methods.budget import urgency
from ffcv_prune.methods.kernels.samples import difference, group_by_label, ucb_scores
from ffcv_prune.methods.kernels.topk import top_k
from ffcv_prune.methods.table import ScoreTable


def warm_up() -> None:
    """Call every kernel of a selection once, on two samples.

    Numba compiles a kernel at its first call, or reads it from its cache on the disk. In a fresh clone that takes
    seconds, which would count as the first selection's.
    """
    table, losses, ids = ScoreTable(2), np.ones(2, np.float32), np.arange(2)
    table.update(losses)
    table.update(losses, ids)
    top_k(table.mean, 1)
    top_k(table.mean, 1, var=table.var, c=1.0)
    ucb_scores(table.mean, table.var, 1.0)
    difference(ids, ids[:1])
    group_by_label(ids, ids)
    urgency(table, table.mean, table.mean)
