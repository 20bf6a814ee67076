"""The scoring pass: the cross-entropy loss of every sample under the current model (paper, Eq. 1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ffcv_prune.errors import UserError
from ffcv_prune.loading.loader import PrunedLoader
from ffcv_prune.machine import default_amp_dtype
from ffcv_prune.scoring.folding import agrees, fold_batch_norm

AmpDtype = torch.dtype | None | Literal["auto"]
Criterion = Callable[[Tensor, Tensor], Tensor]  # float32[B, C] logits, int64[B] labels -> float32[B]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return float32[B], the loss of each sample in nats (paper, Eq. 1)."""
    return F.cross_entropy(logits, labels, reduction="none")


def score_dataset(
    model: nn.Module,
    score_loader: PrunedLoader,
    device: torch.device | str | None = None,
    amp_dtype: AmpDtype = "auto",
    criterion: Criterion = cross_entropy,
) -> NDArray[np.float32]:
    """Return float32[n]: each sample's cross-entropy loss (nats), or another `criterion`, by dataset position.

    The model is in evaluation mode during the pass and as before after it; no gradients, channels_last,
    mixed precision, batch norms folded into convolutions where that can be done (`fold_batch_norm`). Losses gather
    in one buffer on the device, without synchronisation after the first batch, and are copied back once. With a
    `distributed` loader each rank scores its share and every rank returns all losses.

    Args:
        model: maps the loader's images [B, 3, H, W] to logits [B, C].
        score_loader: a loader with `shuffle=False, drop_last=False` whose first outputs are images and
            int64[B] labels, from a deterministic pipeline. Samples outside its selection score NaN.
        device: where to compute; None for the model's device.
        amp_dtype: torch.float16, torch.bfloat16, None for float32, or "auto" for what the device does natively.
        criterion: from float32[B, C] logits and int64[B] labels to float32[B] scores.

    Raises:
        UserError: a loader that shuffles or drops, labels outside the model's classes, logits of a wrong
            shape, or memory that does not suffice for a single sample.
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
    losses = torch.empty(order.num_served, dtype=torch.float32, device=device)  # [m], this rank's share
    position = 0
    with (
        _evaluating(model),
        torch.inference_mode(),
        nullcontext(fold_batch_norm(plain)) as folded,  # before the loader's thread runs, which may hold modules
        closing(iter(score_loader)) as epoch,
        torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None),
    ):
        for images, labels, *_ in epoch:
            # A loader that delivers elsewhere than to `device` does not know when these copies end, and would
            # overwrite its ring under a non-blocking one. On the same device nothing is copied here.
            images = images.to(device, memory_format=torch.channels_last)
            labels = labels.to(device)
            if scorer is None:
                chosen = folded if folded is not None and agrees(folded, plain, images) else plain
                scorer = _Scorer(chosen, score_loader.labels, criterion)
            scorer.score(images, labels, losses[position : position + len(images)])
            position += len(images)
    result = np.full(score_loader.num_samples, np.nan, dtype=np.float32)
    result[order.selection] = _gather(losses, order.num_selected, order.world_size)
    return result


class _Scorer:
    """Scores batches, in smaller pieces once a batch did not fit into the device's memory."""

    def __init__(self, model: nn.Module, labels: NDArray[np.int64] | None, criterion: Criterion) -> None:
        self.model = model
        self.criterion = criterion
        self.label_range = None if labels is None else (int(labels.min()), int(labels.max()))
        self.piece: int | None = None  # samples a forward pass; None for the whole batch

    def score(self, images: Tensor, labels: Tensor, out: Tensor) -> None:
        """Write the losses of images [B, 3, H, W] with labels [B] to out, float32[B]."""
        while True:
            piece = min(self.piece or len(images), len(images))
            try:
                for i in range(0, len(images), piece):
                    logits = self.model(images[i : i + piece])  # [b, C]
                    self._check(logits, len(images[i : i + piece]))
                    out[i : i + piece] = self.criterion(logits.float(), labels[i : i + piece])
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

    def _check(self, logits: Tensor, samples: int) -> None:
        # Host-side facts only: nothing here waits for the device.
        if logits.ndim != 2 or logits.shape[0] != samples:
            raise UserError(
                f"the model returned {list(logits.shape)} for {samples} images: scoring needs logits [B, classes]"
            )
        if self.label_range is not None and not 0 <= self.label_range[0] <= self.label_range[1] < logits.shape[1]:
            low, high = self.label_range
            raise UserError(
                f"the labels run from {low} to {high}, but the model has {logits.shape[1]} classes: set model.classes"
            )


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
