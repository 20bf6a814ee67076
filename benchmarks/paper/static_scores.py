"""Static scores of a grid: made once, when the first run needs them, and shared by all that prune by them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.paper.grid import Run
from ffcv_prune.errors import UserError
from ffcv_prune.training import score_file
from ffcv_prune.training.loaders import Loaders
from ffcv_prune.training.run_folder import provenance
from ffcv_prune.training.static_scores import compute


def make_scores(run: Run, loaders: Loaders, selections: Path) -> None:
    """Write the file that the run's prune.scores names, if it is not there yet."""
    path = Path(run.config.prune.values.get("scores", ""))
    if run.scoring is not None:
        compute(run.scoring, loaders)
    elif run.source is not None and not path.with_suffix(".json").exists():
        _from_selections(run.source, path, loaders, selections)


def _from_selections(source: Run, path: Path, loaders: Loaders, selections: Path) -> None:
    """Rank the samples by the last selection of a run, then by how often it selected them (paper, Tab. 1).

    Its top k is the last selection itself: "the top 30% of samples according to the scores from the final
    checkpoint".
    """
    counts = selections / f"{source.key}.npz"
    if not counts.exists():
        raise UserError(f"{counts} does not exist: remove the row {source.key} of the CSV to repeat that run")
    made = np.load(counts)
    scores = made["counts"].astype(np.float32)
    if path.name.startswith("last"):
        scores[made["last"]] += made["selections"] + 1
    description = {
        "method": f"selections of {source.method}",
        "model": source.config.model.name,
        "samples": scores.size,
        "data": loaders.dataset.fingerprints["train"],
        "seconds": {"total": float(made["seconds"])},
        "recipe": {"key": source.key},
        "machine": provenance(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    score_file.save(path, scores[None], description)
