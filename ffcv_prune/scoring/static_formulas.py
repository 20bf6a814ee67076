"""Scores that rank the samples once, before the training that they prune (paper, section 4; its references).

The formulas only: `ffcv_prune.training.static_scores` trains the models that they need.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

# Floats that the per-sample gradients of one chunk may take, 1 GiB, and its largest number of samples.
_CHUNK_FLOATS, _CHUNK_SAMPLES = 2**28, 128


def el2n(logits: Tensor, labels: Tensor) -> Tensor:
    """Return float[B]: ‖softmax(logits) − onehot(label)‖₂, in [0, √2] (Paul et al. 2021, definition 2.5).

    `logits` is float[B, C], `labels` int64[B] below C.
    """
    errors = logits.softmax(dim=1) - F.one_hot(labels, logits.shape[1])
    return torch.linalg.vector_norm(errors, dim=1)


def grand(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Return float32[B]: ‖∇_θ cross entropy(model(image), label)‖₂ over all parameters (Paul et al. 2021, 2.1).

    One forward and one backward pass a sample, in chunks. The gradients of a chunk are all in memory, and each is as
    large as the model. The model must be in evaluation mode: batch statistics would mix the gradients of the samples.
    `images` is [B, 3, H, W], `labels` int64[B].
    """
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def loss(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        logits = torch.func.functional_call(model, (parameters, buffers), (image[None],))  # [1, C]
        return F.cross_entropy(logits, label[None])

    def norm(image: Tensor, label: Tensor) -> Tensor:
        gradients = torch.func.grad(loss)(parameters, image, label)
        return torch.stack([gradient.square().sum() for gradient in gradients.values()]).sum().sqrt()

    size = sum(value.numel() for value in parameters.values())
    chunk = max(1, min(_CHUNK_SAMPLES, _CHUNK_FLOATS // size))
    return torch.vmap(norm, chunk_size=chunk)(images, labels)


class ForgetCounts:
    """How often each of n samples was forgotten: right at one presentation, wrong at its next (Toneva et al. 2019).

    Attributes:
        counts: int32[n], forgetting events; `learned`: bool[n], whether it was ever right.
    """

    def __init__(self, n: int, device: torch.device | str = "cpu") -> None:
        self.counts = torch.zeros(n, dtype=torch.int32, device=device)
        self.learned = torch.zeros(n, dtype=torch.bool, device=device)
        self._was_right = torch.zeros(n, dtype=torch.bool, device=device)

    def update(self, ids: Tensor, right: Tensor) -> None:
        """Take in one presentation of the samples `ids` int64[B], all different, with `right` bool[B]."""
        self.counts[ids] += self._was_right[ids] & ~right
        self.learned[ids] |= right
        self._was_right[ids] = right

    def scores(self, epochs: int) -> NDArray[np.float32]:
        """Return float32[n]: the counts, and `epochs`, more than any count, for samples that were never right."""
        return torch.where(self.learned, self.counts, epochs).float().numpy(force=True)
