"""The scoring pass: the loss of every sample under the current model (paper, Eq. 1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ffcv_prune.errors import UserError
from ffcv_prune.loading.loader import PrunedLoader
from ffcv_prune.loading.order import validate_ids
from ffcv_prune.machine import default_amp_dtype
from ffcv_prune.scoring.folding import agrees, fold_batch_norm
from ffcv_prune.tasks import Classification, Task

AmpDtype = torch.dtype | None | Literal["auto"]
Criterion = Callable[[Any, Tensor], Tensor]  # float32 outputs, targets -> float32[B]


def score_dataset(
    model: nn.Module,
    score_loader: PrunedLoader,
    device: torch.device | str | None = None,
    amp_dtype: AmpDtype = "auto",
    criterion: Criterion | None = None,
    task: Task = Classification(),  # noqa: B008 - a frozen value
    ids: NDArray[np.int64] | None = None,
) -> NDArray[np.float32]:
    """Return float32[n]: each sample's loss by the `task`, or another `criterion`, by dataset position.

    The model is in evaluation mode during the pass and as before after it; no gradients, channels_last,
    mixed precision, batch norms folded into convolutions where that can be done (`fold_batch_norm`). Losses gather
    in one buffer on the device, without synchronisation after the first batch, and are copied back once. With a
    `distributed` loader each rank scores its share and every rank returns all losses.

    Args:
        model: maps the loader's images [B, 3, H, W] to what the task compares with the targets: logits [B, C].
        score_loader: a loader with `shuffle=False, drop_last=False` whose first outputs are images and
            targets, from a deterministic pipeline.
        device: where to compute; None for the model's device.
        amp_dtype: torch.float16, torch.bfloat16, None for float32, or "auto" for what the device does natively.
        criterion: from the model's outputs, in float32 where they are one tensor, and the targets to float32[B].
        task: what the model is trained for; its loss is the score, unless there is a criterion.
        ids: int64[k]: score these samples only; None for the loader's selection. The others score NaN.

    Raises:
        UserError: a loader that shuffles or drops, outputs or targets that do not fit the task, a criterion that does
            not return one score a sample, or memory that does not suffice for a single sample.
    """
    order = score_loader.traversal_order
    if order.shuffle or order.drop_last:
        raise UserError(
            "the scoring loader must serve every sample in order: build it with shuffle=False, drop_last=False"
        )
    device = torch.device(device) if device is not None else next(model.parameters()).device
    dtype = default_amp_dtype(device) if amp_dtype == "auto" else amp_dtype
    plain = _unwrap(model)
    scorer: _Scorer | None = None
    position = 0
    ids = None if ids is None else validate_ids(ids, score_loader.num_samples)
    scored = score_loader.selection if ids is None else ids
    share = len(scored[order.rank :: order.world_size])  # of this rank
    losses = torch.empty(share, dtype=torch.float32, device=device)
    with (
        _evaluating(model),
        torch.inference_mode(),
        nullcontext(fold_batch_norm(plain)) as folded,  # before the loader's thread runs, which may hold modules
        _batches(score_loader, ids) as batches,
        torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None),
    ):
        for images, targets, *_ in batches:
            # A loader that delivers elsewhere than to `device` does not know when these copies end, and would
            # overwrite its ring under a non-blocking one. On the same device nothing is copied here.
            images = images.to(device, memory_format=torch.channels_last)
            targets = targets.to(device)
            if scorer is None:
                chosen = folded if folded is not None and agrees(folded, plain, images) else plain
                scorer = _Scorer(chosen, score_loader.labels, task, criterion)
            scorer.score(images, targets, losses[position : position + len(images)])
            position += len(images)
    result = np.full(score_loader.num_samples, np.nan, dtype=np.float32)
    result[scored] = _gather(losses, len(scored), order.world_size)
    return result


@contextmanager
def _batches(loader: PrunedLoader, ids: NDArray[np.int64] | None) -> Iterator[Iterator[Any]]:
    """The batches of the samples `ids`, or of the selection, which is afterwards as it was."""
    selection = None if loader.traversal_order.selects_all else loader.selection
    if ids is not None:
        loader.set_selection(ids)
    try:
        with closing(iter(loader)) as batches:
            yield batches
    finally:
        if ids is not None:
            loader.set_selection(selection)


class _Scorer:
    """Scores batches, in smaller pieces once a batch did not fit into the device's memory."""

    def __init__(
        self, model: nn.Module, labels: NDArray[np.int64] | None, task: Task, criterion: Criterion | None
    ) -> None:
        self.model = model
        self.task, self.criterion = task, criterion
        self.label_range = None if labels is None else (int(labels.min()), int(labels.max()))
        self.piece: int | None = None  # samples a forward pass; None for the whole batch

    def score(self, images: Tensor, targets: Tensor, out: Tensor) -> None:
        """Write the scores of images [B, 3, H, W] with targets [B, ...] to out, float32[B]."""
        while True:
            piece = min(self.piece or len(images), len(images))
            try:
                for i in range(0, len(images), piece):
                    part = slice(i, i + piece)
                    out[part] = self._scores(self.model(images[part]), targets[part])
                return
            except (MemoryError, RuntimeError) as error:
                if not _is_out_of_memory(error):
                    raise
                if piece == 1:
                    raise UserError(
                        "scoring runs out of memory with a single sample: use smaller images or free the device"
                    ) from None
                self.piece = piece // 2
            torch.cuda.empty_cache()  # here the error, whose traceback holds the activations, is gone

    def _scores(self, outputs: Any, targets: Tensor) -> Tensor:
        if self.criterion is None:
            self.task.check(outputs, targets, self.label_range)
            return self.task.losses(outputs, targets)
        scores = self.criterion(outputs.float() if isinstance(outputs, Tensor) else outputs, targets)
        if scores.shape != (len(targets),):
            raise UserError(
                f"the criterion returned {list(scores.shape)} for {len(targets)} samples: "
                'return one score a sample (reduction="none")'
            )
        return scores


def _is_out_of_memory(error: Exception) -> bool:
    # The CPU's allocator has no exception of its own, nor have the workspaces of cuBLAS and cuDNN.
    words = ("can't allocate memory", "_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(word in str(error) for word in words)


def _unwrap(model: nn.Module) -> nn.Module:
    # DistributedDataParallel's forward may synchronise buffers, and ranks may score different numbers of batches.
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def _gather(share: Tensor, total: int, world_size: int) -> NDArray[np.float32]:
    """float32[total], in the loader's order, from the shares of all ranks (rank r has every w-th, from the r-th)."""
    if world_size > 1:
        if torch.distributed.get_backend() != "nccl":
            share = share.cpu()
        longest = -(-total // world_size)
        padded = share.new_zeros(longest)
        padded[: len(share)] = share
        parts = [torch.empty_like(padded) for _ in range(world_size)]
        torch.distributed.all_gather(parts, padded)
        share = torch.stack(parts, dim=1).flatten()[:total]  # [longest, w] read row by row
    return share.cpu().numpy()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, then each module's own mode again (a frozen batch norm stays frozen)."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
