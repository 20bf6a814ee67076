"""timm's own loader, prefetcher and mixup, with a TorchLoader inside."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ffcv_prune import Pruner, TorchLoader
from ffcv_prune.errors import UserError
from tests.plain_loop import BATCH, EPOCHS, LENGTHS, UCB
from tests.torch_data import Coloured, N

timm = pytest.importorskip("timm", reason="needs timm")

from timm.data import FastCollateMixup, create_loader  # noqa: E402
from timm.optim import create_optimizer_v2  # noqa: E402

SIZE = (3, 8, 8)


class Images:
    """PIL images with the transform that timm sets. A sample's label is its position, so that batches tell theirs."""

    def __init__(self) -> None:
        self.images = Coloured().images.permute(0, 2, 3, 1).numpy()
        self.transform: Any = None

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> Any:
        return self.transform(Image.fromarray(self.images[i])), i


def make(workers: int = 0, **options: Any) -> Any:
    """timm's training loader, as its train.py makes it, with ours inside: line 1."""
    options = {"is_training": True, "scale": (0.5, 1.0), "re_prob": 0.5, "num_workers": workers} | options
    loader = create_loader(Images(), SIZE, BATCH, device=torch.device("cpu"), **options)
    loader.loader = TorchLoader.like(loader.loader)
    return loader


def score_loader() -> TorchLoader:
    """Line 2: normalised by its transform, for there is no prefetcher to do it."""
    return TorchLoader.like(create_loader(Images(), SIZE, 64, use_prefetcher=False, num_workers=0))


def set_loader_epoch(loader: Any, epoch: int) -> None:
    """As timm's train.py does before each epoch."""
    if hasattr(loader.dataset, "set_epoch"):
        loader.dataset.set_epoch(epoch)
    if hasattr(loader.batch_sampler, "set_epoch"):
        loader.batch_sampler.set_epoch(epoch)
    elif hasattr(loader.sampler, "set_epoch"):
        loader.sampler.set_epoch(epoch)


def epochs(method: str, workers: int, **parameters: Any) -> Iterator[tuple[Pruner, int, list[Tensor]]]:
    """Train; yields, after each epoch, its length beforehand and the positions of each step."""
    loader = make(workers)
    pruner = Pruner(loader.loader, score_loader(), method, epochs=EPOCHS, amp_dtype=None, **parameters)
    model = timm.create_model("resnet10t", num_classes=N)
    optimizer = create_optimizer_v2(model, "sgd", lr=0.01)
    for epoch in range(EPOCHS):
        set_loader_epoch(loader, epoch)
        pruner.begin_epoch(epoch, model)  # line 3
        model.train()
        length, steps = len(loader), []
        for images, positions in loader:
            assert images.shape == (BATCH, *SIZE) and images.dtype == torch.float32
            F.cross_entropy(model(images), positions).backward()
            optimizer.step()
            optimizer.zero_grad()
            steps.append(positions)
        yield pruner, length, steps


@pytest.mark.parametrize("workers", [0, 2])
def test_each_step_of_timms_loader_is_of_the_selection(workers: int) -> None:
    alone = TorchLoader(Coloured(), BATCH, num_workers=0, with_ids=True)
    for epoch, (pruner, length, steps) in enumerate(epochs("ucb", workers, **UCB)):
        alone.set_epoch(epoch)
        alone.set_selection(pruner.loader.selection)
        assert [step.tolist() for step in steps] == [ids.tolist() for _, _, ids in alone]
        assert length == len(steps) == LENGTHS[epoch]


def test_mixup_in_the_collate_function_can_be_switched() -> None:
    mixup = FastCollateMixup(mixup_alpha=1.0, num_classes=N, label_smoothing=0.0)
    loader = make(collate_fn=mixup)
    assert loader.mixup_enabled
    _, mixed = next(iter(loader))
    loader.mixup_enabled = False
    _, plain = next(iter(loader))
    assert (np.count_nonzero(mixed, axis=1) == 2).any() and (np.count_nonzero(plain, axis=1) == 1).all()


def test_a_loader_whose_batches_differ_in_size_is_refused() -> None:
    with pytest.raises(UserError, match="draws from a ScheduledBatchSampler"):
        make(input_size_choices=[8, 16])
