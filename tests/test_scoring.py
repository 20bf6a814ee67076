from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ffcv.transforms import ToTorchImage
from torch import Tensor, nn

from ffcv_prune import PrunedLoader, score_dataset
from ffcv_prune.data.beton import check_beton
from ffcv_prune.errors import UserError
from ffcv_prune.loading.pipelines import score_pipelines
from tests.betons import Beton
from tests.nets import SmallNet


def make_score_loader(beton: Beton, **options: Any) -> PrunedLoader:
    options = {"batch_size": 64, "shuffle": False, "drop_last": False} | options
    return PrunedLoader(beton.path, pipelines=score_pipelines(check_beton(beton.path)), **options)


@pytest.fixture(scope="module")
def score_loader(beton: Beton) -> PrunedLoader:
    return make_score_loader(beton)


def plain_losses(model: nn.Module, beton: Beton) -> np.ndarray:
    """What everybody would write first: one image after the other, float32, contiguous."""
    model.eval()
    losses = []
    with torch.no_grad():
        for image, label in zip(beton.images, beton.labels, strict=True):
            logits = model(torch.from_numpy(image.transpose(2, 0, 1).copy())[None])
            losses.append(F.cross_entropy(logits, torch.tensor([label])).item())
    return np.array(losses, dtype=np.float32)


def test_equals_a_plain_loop(score_loader: PrunedLoader, beton: Beton) -> None:
    model = SmallNet()
    losses = score_dataset(model, score_loader, amp_dtype=None)
    assert losses.dtype == np.float32
    assert losses.shape == (len(beton),)
    np.testing.assert_allclose(losses, plain_losses(SmallNet(), beton), rtol=1e-5, atol=1e-6)


def test_mixed_precision_stays_near(score_loader: PrunedLoader) -> None:
    model = SmallNet()
    exact = score_dataset(model, score_loader, amp_dtype=None)
    np.testing.assert_allclose(score_dataset(model, score_loader, amp_dtype=torch.bfloat16), exact, atol=0.1)
    np.testing.assert_allclose(score_dataset(model, score_loader), exact, atol=0.1)


def test_repeats_bit_by_bit_and_leaves_the_model_alone(score_loader: PrunedLoader) -> None:
    model = SmallNet().train()
    model.norm.eval()  # a frozen batch norm
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first = score_dataset(model, score_loader)
    np.testing.assert_array_equal(score_dataset(model, score_loader), first)
    assert model.training
    assert not model.norm.training
    assert model.head.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(parameter.grad is None for parameter in model.parameters())


def test_only_the_selection_is_scored(score_loader: PrunedLoader, beton: Beton) -> None:
    model = SmallNet()
    everything = score_dataset(model, score_loader, amp_dtype=None)
    some = np.arange(3, len(beton), 7)
    score_loader.set_selection(some)
    try:
        losses = score_dataset(model, score_loader, amp_dtype=None)
    finally:
        score_loader.set_selection(None)
    np.testing.assert_allclose(losses[some], everything[some], rtol=1e-6)
    assert np.isnan(np.delete(losses, some)).all()


def test_a_loader_that_shuffles_or_drops_is_refused(beton: Beton) -> None:
    for options in ({"shuffle": True}, {"drop_last": True}):
        with pytest.raises(UserError, match="shuffle=False, drop_last=False"):
            score_dataset(SmallNet(), make_score_loader(beton, **options))


def test_labels_outside_the_model(score_loader: PrunedLoader) -> None:
    with pytest.raises(UserError, match="labels run from 0 to 9, but the model has 7 classes") as caught:
        score_dataset(SmallNet(classes=7), score_loader)
    # `caught` holds the pass's frames and with them its iterator: the thread must have ended all the same.
    assert caught.tb is not None
    assert not [thread for thread in threading.enumerate() if thread.name == "ffcv_prune-loader"]


def test_a_fresh_loader_whose_operations_write_into_tensors(beton: Beton) -> None:
    """The thread cannot write into buffers made in inference mode, which it is not in; ToDevice would on a GPU."""
    pipelines = score_pipelines(check_beton(beton.path))
    pipelines["image"][-1] = ToTorchImage(channels_last=False)  # copies into a buffer of torch's
    loader = PrunedLoader(beton.path, 64, pipelines, shuffle=False, drop_last=False)
    np.testing.assert_allclose(
        score_dataset(SmallNet(), loader, amp_dtype=None), plain_losses(SmallNet(), beton), rtol=1e-5, atol=1e-6
    )


class WrongShape(SmallNet):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images)[None]


def test_logits_of_a_wrong_shape(score_loader: PrunedLoader) -> None:
    with pytest.raises(UserError, match=r"returned \[1, 64, 10\] for 64 images"):
        score_dataset(WrongShape(), score_loader)


class Greedy(SmallNet):
    """Runs out of memory above `limit` samples."""

    limit = 20
    largest = 0

    def forward(self, images: Tensor) -> Tensor:
        if len(images) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        self.largest = max(self.largest, len(images))
        return super().forward(images)


def test_out_of_memory_tries_smaller_batches(score_loader: PrunedLoader) -> None:
    model = Greedy()
    losses = score_dataset(model, score_loader, amp_dtype=None)
    assert model.largest == 16
    np.testing.assert_allclose(losses, score_dataset(SmallNet(), score_loader, amp_dtype=None), rtol=1e-5)
    model.limit = 0
    with pytest.raises(UserError, match="out of memory with a single sample"):
        score_dataset(model, score_loader)


@pytest.mark.cuda
@pytest.mark.parametrize("delivered_to", ["cpu", "cuda"])
def test_cuda_equals_the_cpu(beton: Beton, delivered_to: str) -> None:
    pipelines = score_pipelines(check_beton(beton.path), device=delivered_to)
    loader = PrunedLoader(beton.path, 4, pipelines, shuffle=False, drop_last=False)  # laps the ring ten times
    torch.cuda._sleep(100_000_000)  # the device lags behind: a buffer overwritten too early would show
    losses = score_dataset(SmallNet().to("cuda"), loader, amp_dtype=None)
    np.testing.assert_allclose(losses, plain_losses(SmallNet(), beton), rtol=1e-4, atol=1e-5)
