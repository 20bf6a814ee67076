"""Where the losses come from that enter the table at a checkpoint: a scoring pass, training, or both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from ffcv_prune.errors import UserError, nearest
from ffcv_prune.loading.loader import PrunedLoader
from ffcv_prune.methods.budget import ScoreBudget, thresholds_of
from ffcv_prune.methods.policies import Policy
from ffcv_prune.methods.table import ScoreTable
from ffcv_prune.scoring.forward import AmpDtype, score_dataset
from ffcv_prune.scoring.training_losses import TrainingLosses

ScoreSource = Literal["pass", "training", "both"]


class LossSource:
    """Brings a table up to date at each checkpoint.

    Args:
        source: "pass": a pass over all samples with the model as it is (the paper). "training": the latest loss
            of each sample trained on since the last checkpoint, which costs nothing: under augmentation, in
            training mode, up to a period old; what is not trained on keeps its old statistics. "both": these,
            and a pass over the other samples only.
        loader: the training loader.
        score_loader: for a pass; of the same samples. May be None without one.
        amp_dtype: precision of a pass.
        policy, k: who selects by the table, and how many. With a `budget`, a pass scores what could change that.
    """

    def __init__(
        self,
        source: ScoreSource,
        table: ScoreTable,
        loader: PrunedLoader,
        score_loader: PrunedLoader | None,
        amp_dtype: AmpDtype,
        policy: Policy,
        k: int,
        budget: ScoreBudget,
    ) -> None:
        if source not in get_args(ScoreSource):
            raise UserError(f'unknown score source "{source}"{nearest(source, get_args(ScoreSource))}')
        self.table = table
        self.amp_dtype = amp_dtype
        self.policy, self.k, self.budget = policy, k, budget
        self.score_loader = None if source == "training" else score_loader
        self._recorded = None if source == "pass" else TrainingLosses(table.n, loader.world_size > 1)
        if self._recorded is not None and not loader.with_ids:
            raise UserError("training losses go by sample: build the training loader with with_ids=True")
        if budget.share < 1:
            if source == "training":
                raise UserError(
                    "score_source=training makes no scoring pass that could be budgeted: set score_budget=1"
                )
            thresholds_of(policy, table, k)  # refuses a policy without
        if source == "training":
            return
        if score_loader is None:
            raise UserError(f"score_source={source} scores the samples in a pass: give a score_loader")
        if score_loader.num_samples != table.n:
            raise UserError(
                f"the scoring loader has {score_loader.num_samples} samples, the training loader "
                f"{table.n}: both must read the same data set"
            )

    @property
    def records(self) -> bool:
        """Whether training losses are (among) its source."""
        return self._recorded is not None

    def record(self, losses: Tensor, ids: Tensor) -> None:
        """Take in the training losses of a batch, if they are a source; see `TrainingLosses.record`."""
        if self._recorded is not None:
            self._recorded.record(losses, ids)

    def update(self, model: nn.Module, scored_selection: bool, first: bool) -> int:
        """Take in training losses, at every checkpoint but the `first`, and a pass before a `scored_selection`.

        Returns how many losses were not finite. Raises `UserError` as `ScoreTable.update` and `score_dataset`
        do, and when no training losses came back.
        """
        nonfinite, trained = 0, np.empty(0, np.int64)
        if self._recorded is not None and not first:
            trained, losses = self._recorded.take()
            if not trained.size:
                raise UserError("no training losses came back since the last checkpoint: use batch_loss in your loop")
            nonfinite = self.table.update(losses, trained)
        if self.score_loader is not None and scored_selection:
            nonfinite += self._pass(model, self.score_loader, trained)
        return nonfinite

    def _pass(self, model: nn.Module, loader: PrunedLoader, trained: NDArray[np.int64]) -> int:
        """Score what the scoring loader serves but for the samples `trained`, which have their losses."""
        served = None if loader.traversal_order.selects_all else loader.selection
        ids = np.setdiff1d(loader.selection, trained, assume_unique=True) if trained.size else loader.selection
        if ids.size:
            ids = self.budget.choose(self.table, self.policy, self.k, ids)
        if not ids.size:
            return 0
        if ids.size == self.table.n:
            return self.table.update(score_dataset(model, loader, amp_dtype=self.amp_dtype))
        loader.set_selection(ids)
        try:
            losses = score_dataset(model, loader, amp_dtype=self.amp_dtype)
        finally:
            loader.set_selection(served)
        return self.table.update(losses[ids], ids)

    def state_dict(self) -> dict[str, Any] | None:
        """The training losses since the last checkpoint; with a distributed loader, all ranks must call."""
        return None if self._recorded is None else self._recorded.state_dict()

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Take up the state of a source that `records` as this one does."""
        if self._recorded is not None and state is not None:
            self._recorded.load_state_dict(state)
