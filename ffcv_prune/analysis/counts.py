"""How often each sample was selected, read from the selections that a run folder holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ffcv_prune.errors import UserError
from ffcv_prune.loading.order import validate_ids


def selection_files(run: Path) -> list[Path]:
    """The run's selections, one file each, in the order of the epochs."""
    return sorted((run / "selections").glob("epoch_*.npy"), key=lambda path: int(path.stem.split("_")[1]))


def method_selections(run: Path, rows: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Those of `selection_files` that the method made, by the rows of the run's log.

    What a warm-up or a final phase draws at random says nothing about the samples.
    """
    by_method = {row["epoch"] for row in rows if row["phase"] == "method"}
    return [path for path in selection_files(run) if int(path.stem.split("_")[1]) in by_method]


def selection_counts(files: Sequence[Path], num_samples: int) -> NDArray[np.int64]:
    """Count in how many of the selections each sample is.

    Args:
        files: .npy files of int64[k] unique dataset positions.
        num_samples: n, samples of the training set.

    Returns:
        int64[n]; each entry is between 0 and ``len(files)``.

    Raises:
        UserError: a file that is damaged, or of other samples.
    """
    counts = np.zeros(num_samples, dtype=np.int64)
    for file in files:
        try:
            counts[validate_ids(np.load(file), num_samples)] += 1
        except (OSError, ValueError, TypeError) as error:
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise UserError(f"cannot read the selection {file}: {reason}; remove the file to leave it out") from None
    return counts


def class_fractions(
    ids: NDArray[np.int64], labels: NDArray[np.int64], class_counts: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Share of each class that a selection keeps.

    Args:
        ids: int64[k], the selected dataset positions.
        labels: int64[n], the label of each position.
        class_counts: int64[C], samples of each class.

    Returns:
        float64[C]: selected samples over samples of the class; NaN for a class without samples.
    """
    kept = np.bincount(labels[ids], minlength=len(class_counts))
    with np.errstate(invalid="ignore"):
        return kept / class_counts
