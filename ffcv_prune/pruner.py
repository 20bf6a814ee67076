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
from torch import Tensor, nn

from ffcv_prune.errors import UserError
from ffcv_prune.loading.loader import PrunedLoader
from ffcv_prune.methods.budget import ScoreBudget
from ffcv_prune.methods.phases import Schedule, infobatch_final
from ffcv_prune.methods.policies import InfoBatch, Policy, Random
from ffcv_prune.methods.table import ScoreTable
from ffcv_prune.scoring.forward import AmpDtype
from ffcv_prune.scoring.source import LossSource, ScoreSource

_SELECTION_STREAM = 1  # keeps the selection's random numbers apart from the order's, which share seed and epoch


@dataclass(frozen=True)
class Checkpoint:
    """What happened at a checkpoint.

    Attributes:
        epoch: the epoch that it precedes.
        phase: "full", "random" or "policy".
        ids: int64[k], sorted, read-only: the selection.
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

        pruner = Pruner(loader, score_loader, policies.UCB(), keep=0.3, period=10, epochs=200)
        for epoch in range(200):
            pruner.begin_epoch(epoch, model)
            for images, labels in loader: ...  # your loop

    Two things need the loss of each sample of a batch, and hence `batch_loss` in the loop: weights (InfoBatch)
    and scores that are training losses. The loader must then be one `with_ids=True`:

        pruner = Pruner.infobatch(loader, epochs=200)
        for epoch in range(200):
            pruner.begin_epoch(epoch, model)
            for images, labels, ids in loader:
                losses = F.cross_entropy(model(images).float(), labels, reduction="none")
                loss = pruner.batch_loss(losses, ids)  # a weighted mean; remembers the losses as scores
                loss.backward() ...

    Args:
        loader: the training loader; its selection is exchanged in place.
        score_loader: serves the same file in order through a deterministic pipeline (`score_dataset`); may be
            None where no scoring pass is made: a policy that needs no scores, or score_source="training".
        policy: picks the samples (`ffcv_prune.policies`).
        keep: fraction of the samples kept, in (0, 1]; k = round(keep n).
        period: epochs between checkpoints (T_p).
        epochs: epochs of the whole run.
        seed: of the random selections; a checkpoint's are drawn from (seed, epoch) alone.
        alpha: weight of the new loss in the statistics (paper: 0.8).
        schedule: in place of keep, period and epochs, one with a warm-up or a final phase.
        amp_dtype: precision of the scoring pass, see `score_dataset`.
        score_source: "pass", "training" or "both": where the losses come from that enter the table, see
            `LossSource`. With "training", a policy of fixed size needs a first loss of every sample, from a full
            warm-up.
        score_budget, score_revisit: share of the samples that a scoring pass may score, 1 for all, and within how many
            passes each is scored at least once, see `ScoreBudget`.

    Attributes:
        table: the `ScoreTable` with each sample's statistics.
        mean_weight: of the losses of the current selection; 1.0 for a policy without weights.
        nonfinite: losses that the last checkpoint left out because they were not finite.
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
        score_source: ScoreSource = "pass",
        score_budget: float = 1.0,
        score_revisit: int = 10,
    ) -> None:
        self.loader = loader
        self.policy = policy
        self.schedule = schedule or Schedule(epochs=epochs, period=period, keep=keep)
        self.seed = seed
        self.table = ScoreTable(loader.num_samples, alpha=alpha)
        self._last_checkpoint = -1  # epoch of the last checkpoint done
        self._check(score_source)
        self._source: LossSource | None = None
        budget = ScoreBudget(score_budget, score_revisit)
        if policy.needs_scores:
            kept = self.schedule.kept(loader.num_samples)
            self._source = LossSource(score_source, self.table, loader, score_loader, amp_dtype, policy, kept, budget)
        elif score_budget < 1:
            raise UserError(f"policy {policy.name} needs no scoring pass that could be budgeted: set score_budget=1")
        self._weights: Tensor | None = None  # float32[n], by dataset position; None: all 1
        self.mean_weight = 1.0
        self.nonfinite = 0

    @classmethod
    def infobatch(
        cls,
        loader: PrunedLoader,
        epochs: int,
        ratio: float = 0.5,
        delta: float = 0.875,
        unbiased: bool = False,
        seed: int = 0,
    ) -> Pruner:
        """InfoBatch of these parts (`policies.InfoBatch`): a selection each epoch, by training losses, all data at
        the end. `delta` is where the end begins, see `infobatch_final`."""
        schedule = Schedule(epochs, period=1, keep=1.0, final=infobatch_final(epochs, delta), final_mode="full")
        policy = InfoBatch(ratio, unbiased)
        return cls(loader, None, policy, seed=seed, schedule=schedule, score_source="training")

    def _check(self, score_source: ScoreSource) -> None:
        policy, schedule = self.policy, self.schedule
        if not policy.fixed_size and schedule.keep != 1:
            raise UserError(f"policy {policy.name} decides itself how many samples it keeps: set keep=1")
        full_first = schedule.warmup > 0 and schedule.warmup_mode == "full"
        if policy.needs_scores and policy.fixed_size and score_source == "training" and not full_first:
            raise UserError(
                f"policy {policy.name} with score_source=training needs a loss of every sample before its first "
                "selection: set warmup=1 or more and warmup_mode=full, or score_source=both"
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
        nonfinite = 0
        if self._source is not None:
            nonfinite = self._source.update(model, phase == "policy", first=self._last_checkpoint < 0)
        scored = _now(model)
        ids = self._select(epoch, phase)
        if self.loader.world_size > 1:
            _check_ranks_agree(epoch, ids)
        selected = time.perf_counter()
        self.loader.set_selection(ids)
        self._last_checkpoint, self.nonfinite = epoch, nonfinite
        self._set_weights(ids)
        swapped = time.perf_counter()
        return Checkpoint(
            epoch=epoch,
            phase=phase,
            ids=self.loader.selection,
            nonfinite=nonfinite,
            score_seconds=scored - start,
            select_seconds=selected - scored,
            swap_seconds=swapped - selected,
        )

    def batch_loss(self, losses: Tensor, ids: Tensor) -> Tensor:
        """Return the weighted mean of a batch's losses, a float32 scalar to call `backward` on.

        Remembers the losses where the score source is (also) training. Does not wait for a CUDA device.

        Args:
            losses: [B], of each sample (``reduction="none"``).
            ids: int64[B], its dataset positions: the last output of a loader with `with_ids`, on the CPU, in pinned
                memory where the loader delivers to a CUDA device.
        """
        if losses.ndim != 1 or losses.shape != ids.shape or ids.dtype != torch.int64:
            raise UserError(
                f"losses {list(losses.shape)} with ids {list(ids.shape)}, {ids.dtype}: hand over one loss a sample "
                '(reduction="none") and the ids of the batch as the loader gave them'
            )
        losses = losses.float()
        if self._source is not None:
            self._source.record(losses.detach(), ids)
        if self._weights is None:
            return losses.mean()
        self._weights = self._weights.to(losses.device)  # moves once a checkpoint
        return (losses * self._weights[ids.to(losses.device, non_blocking=True)]).mean()

    def _set_weights(self, ids: NDArray[np.int64] | None) -> None:
        """Weigh the last checkpoint's selection: a function of it and of the table, as they are until the next one."""
        self._weights, self.mean_weight = None, 1.0
        ids = np.arange(self.loader.num_samples) if ids is None else ids
        in_policy = self._last_checkpoint >= 0 and self.schedule.phase(self._last_checkpoint) == "policy"
        weights = self.policy.weights(self.table, ids) if in_policy else None
        if weights is not None:
            self._weights = torch.ones(self.loader.num_samples)
            self._weights[torch.from_numpy(ids)] = torch.from_numpy(weights)
            self.mean_weight = float(weights.mean(dtype=np.float64))

    def _select(self, epoch: int, phase: str) -> NDArray[np.int64] | None:
        if phase == "full":
            return None
        rng = np.random.default_rng([self.seed, epoch, _SELECTION_STREAM])
        policy = self.policy if phase == "policy" else Random()
        return policy.select(self.table, self.schedule.kept(self.loader.num_samples), rng)

    def state_dict(self) -> dict[str, Any]:
        """The statistics, the last checkpoint, the losses since, and the loader's selection and position.

        With training losses and a distributed loader, all ranks must call.
        """
        return {
            "seed": self.seed,
            "last_checkpoint": self._last_checkpoint,
            "nonfinite": self.nonfinite,
            "table": self.table.state_dict(),
            "source": None if self._source is None else self._source.state_dict(),
            "loader": self.loader.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`; the loader's selection and position are restored with it.

        Raises UserError for a state of another run; then nothing has changed, in the loader neither.
        """
        if state["seed"] != self.seed:
            raise UserError(f"the pruner's state has seed {state['seed']}, but this run has seed {self.seed}")
        if (state["source"] is None) != (self._source is None or not self._source.records):
            raise UserError("the pruner's state is of a run with another score source: set score_source as it was")
        ScoreTable(self.table.n, self.table.alpha).load_state_dict(state["table"])  # refuses before the loader moves
        self.loader.load_state_dict(state["loader"])
        self.table.load_state_dict(state["table"])
        self._last_checkpoint, self.nonfinite = state["last_checkpoint"], state["nonfinite"]
        if self._source is not None:
            self._source.load_state_dict(state["source"])
        selection = state["loader"]["next_selection"]
        self._set_weights(None if selection is None else selection.numpy())


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
    device = next(model.parameters()).device
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
