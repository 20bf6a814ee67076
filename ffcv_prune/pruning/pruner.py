"""Dynamic data pruning (paper, Algorithm 1): at each checkpoint score, select, and swap the loader's order."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import nn

from ffcv_prune.errors import UserError
from ffcv_prune.loading.loader import PrunedLoader
from ffcv_prune.pruning.policies import Policy, Random
from ffcv_prune.pruning.schedule import Schedule
from ffcv_prune.pruning.scores import ScoreTable
from ffcv_prune.pruning.scoring import AmpDtype, score_dataset

_SELECTION_STREAM = 1  # keeps the selection's random numbers apart from the order's, which share seed and epoch


@dataclass(frozen=True)
class Checkpoint:
    """What happened at a checkpoint.

    Attributes:
        epoch: the epoch that it precedes.
        phase: "full", "random" or "policy".
        ids: int64[k], sorted: the selection.
        nonfinite: losses that were not finite and did not enter the table.
        score_seconds, select_seconds, swap_seconds: wall-clock time of its parts.
    """

    epoch: int
    phase: str
    ids: NDArray[np.int64]
    nonfinite: int
    score_seconds: float
    select_seconds: float
    swap_seconds: float


class Pruner:
    """Keeps a training loader on the samples that a policy selects.

    Args:
        loader: the training loader; its selection is exchanged in place.
        score_loader: serves the same file in order through a deterministic pipeline (`score_dataset`); may be
            None for a policy that needs no scores.
        policy: picks the samples (`ffcv_prune.policies`).
        keep: fraction of the samples kept, in (0, 1]; k = round(keep n).
        period: epochs between checkpoints (T_p).
        epochs: epochs of the whole run.
        seed: of the random selections; a checkpoint's are drawn from (seed, epoch) alone.
        alpha: weight of the new loss in the statistics (paper: 0.8).
        schedule: in place of keep, period and epochs, one with a warm-up or a final phase.
        amp_dtype: precision of the scoring pass, see `score_dataset`.

    Attributes:
        table: the `ScoreTable` with each sample's statistics.
    """

    def __init__(
        self,
        loader: PrunedLoader,
        score_loader: PrunedLoader | None,
        policy: Policy,
        keep: float = 0.3,
        period: int = 10,
        epochs: int = 200,
        seed: int = 0,
        alpha: float = 0.8,
        schedule: Schedule | None = None,
        amp_dtype: AmpDtype = "auto",
    ) -> None:
        self.loader = loader
        self.score_loader = score_loader
        self.policy = policy
        self.schedule = schedule or Schedule(epochs=epochs, period=period, keep=keep)
        self.seed = seed
        self.amp_dtype = amp_dtype
        self.table = ScoreTable(loader.num_samples, alpha=alpha)
        self._last_checkpoint = -1  # epoch of the last checkpoint done
        if policy.needs_scores:
            if score_loader is None:
                raise UserError(f"policy {policy.name} scores the samples: give a score_loader")
            if score_loader.num_samples != loader.num_samples:
                raise UserError(
                    f"the scoring loader has {score_loader.num_samples} samples, the training loader "
                    f"{loader.num_samples}: both must read the same data set"
                )

    def begin_epoch(self, epoch: int, model: nn.Module) -> Checkpoint | None:
        """Call before each epoch, in order. Scores, selects and swaps at a checkpoint; otherwise does nothing.

        Returns:
            What was done, or None between checkpoints.

        Raises:
            UserError: see `score_dataset` and `ScoreTable.update`; the loader's selection is then as before.
        """
        if self.loader.next_epoch != epoch:
            self.loader.set_epoch(epoch)
        if epoch == self._last_checkpoint or not self.schedule.is_checkpoint(epoch):
            return None
        phase = self.schedule.phase(epoch)
        start = _now(model)
        nonfinite = self._score(model) if phase == "policy" and self.policy.needs_scores else 0
        scored = _now(model)
        ids = self._select(epoch, phase)
        if self.loader.world_size > 1:
            _check_ranks_agree(epoch, ids)
        selected = time.perf_counter()
        self.loader.set_selection(ids)
        swapped = time.perf_counter()
        self._last_checkpoint = epoch
        return Checkpoint(
            epoch=epoch,
            phase=phase,
            ids=self.loader.selection,
            nonfinite=nonfinite,
            score_seconds=scored - start,
            select_seconds=selected - scored,
            swap_seconds=swapped - selected,
        )

    def _score(self, model: nn.Module) -> int:
        assert self.score_loader is not None  # the constructor's check
        losses = score_dataset(model, self.score_loader, amp_dtype=self.amp_dtype)
        if self.score_loader.traversal_order.selects_all:
            return self.table.update(losses)
        ids = self.score_loader.selection
        return self.table.update(losses[ids], ids)

    def _select(self, epoch: int, phase: str) -> NDArray[np.int64] | None:
        if phase == "full":
            return None
        rng = np.random.default_rng([self.seed, epoch, _SELECTION_STREAM])
        policy = self.policy if phase == "policy" else Random()
        return policy.select(self.table, self.schedule.kept(self.loader.num_samples), rng)

    def state_dict(self) -> dict[str, Any]:
        """The statistics, the last checkpoint, and the loader's selection and position."""
        return {
            "seed": self.seed,
            "last_checkpoint": self._last_checkpoint,
            "table": self.table.state_dict(),
            "loader": self.loader.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`; the loader's selection and position are restored with it."""
        if state["seed"] != self.seed:
            raise UserError(f"the pruner's state has seed {state['seed']}, but this run has seed {self.seed}")
        self.table.load_state_dict(state["table"])
        self.loader.load_state_dict(state["loader"])
        self._last_checkpoint = state["last_checkpoint"]


def _check_ranks_agree(epoch: int, ids: NDArray[np.int64] | None) -> None:
    """UserError on all ranks unless they selected the same; otherwise each would train on other data in silence."""
    digests: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(digests, hashlib.blake2b(b"" if ids is None else ids.tobytes()).hexdigest())
    different = [str(rank) for rank, digest in enumerate(digests) if digest != digests[0]]
    if different:
        raise UserError(
            f"at the checkpoint of epoch {epoch}, rank {', '.join(different)} selected other samples than rank 0: "
            "give all ranks the same data, policy and seed"
        )


def _now(model: nn.Module) -> float:
    """perf_counter after the device's work is done: twice a checkpoint, so that its parts are charged rightly."""
    if next(model.parameters()).is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter()
