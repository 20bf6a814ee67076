"""Selection, statistics and sets of millions of samples in numba.

The functions below are imported when they are first asked for (PEP 562): reading a configuration does not wait for
numba.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ffcv_prune.methods.kernels.samples import (
        check_ids,
        count_nonfinite,
        difference,
        group_by_label,
        random_subset,
        ucb_scores,
        update_statistics,
    )
    from ffcv_prune.methods.kernels.topk import top_k
    from ffcv_prune.methods.kernels.urgency import write_urgencies

__all__ = [
    "check_ids",
    "count_nonfinite",
    "difference",
    "group_by_label",
    "random_subset",
    "top_k",
    "ucb_scores",
    "update_statistics",
    "write_urgencies",
]

_ELSEWHERE = {"top_k": "topk", "write_urgencies": "urgency"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_ELSEWHERE.get(name, 'samples')}"), name)
