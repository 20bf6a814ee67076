"""A task of one's own whose outputs are maps: images are channels_last, and so are the gradients of a convolution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from ffcv_prune import Pruner, TorchLoader, score_dataset, tasks

N = 40


@dataclass(frozen=True, kw_only=True)
class Maps(tasks.Task):
    """A probability for each of C maps at each pixel, [B, C, H, W]."""

    metrics = ("loss",)

    def losses(self, outputs: Any, targets: Tensor) -> Tensor:
        found = self.tensor(outputs).float()
        return F.binary_cross_entropy_with_logits(found, targets, reduction="none").mean((1, 2, 3))

    def counts(self, outputs: Any, targets: Tensor) -> Tensor:
        return self.losses(outputs, targets).sum().double()[None]


@dataclass(frozen=True, kw_only=True)
class OneNumber(tasks.Task):
    metrics = ("loss",)

    def losses(self, outputs: Any, targets: Tensor) -> Tensor:
        return (self.tensor(outputs) - targets).square()

    def counts(self, outputs: Any, targets: Tensor) -> Tensor:
        return self.losses(outputs, targets).sum().double()[None]


def maps(seed: int) -> Tensor:
    return torch.rand(N, 5, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_the_gradient_norms_of_maps_are_the_same_in_any_memory_format() -> None:
    outputs, targets = maps(0), maps(1)
    by_hand = ((outputs.sigmoid() - targets) / targets[0].numel()).flatten(1).norm(dim=1)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        found = Maps().gradient_norms(outputs.to(memory_format=memory_format), targets)
        torch.testing.assert_close(found, by_hand)


def test_the_gradient_norms_of_one_number_a_sample() -> None:
    outputs, targets = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.0, 0.0, 0.5])
    assert OneNumber().gradient_norms(outputs, targets).tolist() == [2.0, 4.0, 0.0]


@pytest.mark.parametrize("method", ["uncertainty", "ucb"])
def test_a_convolution_is_scored_by_its_maps(method: str) -> None:
    images = torch.randn(N, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    dataset = TensorDataset(images, maps(1))
    torch.manual_seed(0)
    model = nn.Conv2d(3, 5, 3, padding=1)
    loaders = [TorchLoader(dataset, 20, 0, shuffle=shuffle, drop_last=shuffle) for shuffle in (True, False)]
    pruner = Pruner(*loaders, method, epochs=2, keep=0.5, task=Maps(), amp_dtype=None)
    made = pruner.begin_epoch(0, model)
    assert made is not None and len(made.ids) == N // 2
    losses = score_dataset(model, loaders[1], task=Maps(), amp_dtype=None)
    assert np.array_equal(made.ids, np.sort(np.argsort(-losses)[: N // 2]))
