from __future__ import annotations

import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ffcv.fields import FloatField, NDArrayField
from ffcv.fields.decoders import FloatDecoder, IntDecoder, NDArrayDecoder
from ffcv.transforms import Squeeze, ToTensor, ToTorchImage
from torch import Tensor, nn

from ffcv_prune import PrunedLoader, score_dataset, tasks
from ffcv_prune.data.beton import check_beton
from ffcv_prune.errors import UserError
from ffcv_prune.loading.pipelines import score_pipelines
from ffcv_prune.training.epoch import evaluate
from tests.betons import Beton, write_label_first, write_targets
from tests.devices import BOTH, RING_GUARDS, Unwaited, lag, leave_out, without_tf32
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


@pytest.mark.parametrize("selection", [None, np.arange(100)])
def test_ids_are_scored_and_the_selection_stays(
    score_loader: PrunedLoader, beton: Beton, selection: np.ndarray | None
) -> None:
    model = SmallNet()
    everything = score_dataset(model, score_loader, amp_dtype=None)
    some = np.arange(3, len(beton), 7)
    score_loader.set_selection(selection)
    try:
        losses = score_dataset(model, score_loader, amp_dtype=None, ids=some[::-1])
        assert len(score_loader.selection) == (len(beton) if selection is None else len(selection))
        with pytest.raises(UserError, match="classes"):
            score_dataset(SmallNet(classes=7), score_loader, ids=some)
        assert len(score_loader.selection) == (len(beton) if selection is None else len(selection))
    finally:
        score_loader.set_selection(None)
    np.testing.assert_allclose(losses[some], everything[some], rtol=1e-6)
    assert np.isnan(np.delete(losses, some)).all()


@pytest.mark.parametrize("count", [50, None])
def test_a_loader_of_indices_scores_in_any_order(count: int | None, score_loader: PrunedLoader, beton: Beton) -> None:
    everything = score_dataset(SmallNet(), score_loader, amp_dtype=None)
    some = np.random.default_rng(0).permutation(len(beton))[:count]
    losses = score_dataset(SmallNet(), make_score_loader(beton, indices=some), amp_dtype=None)
    np.testing.assert_allclose(losses[some], everything[some], rtol=1e-6)
    assert np.isnan(np.delete(losses, some)).all()


def test_the_loss_is_that_of_the_task(score_loader: PrunedLoader, beton: Beton) -> None:
    model = SmallNet().eval()
    smoothed = score_dataset(model, score_loader, amp_dtype=None, task=tasks.Classification(label_smoothing=0.2))
    with torch.no_grad():
        logits = model(torch.from_numpy(beton.images).permute(0, 3, 1, 2))
    expected = F.cross_entropy(logits, torch.from_numpy(beton.labels), reduction="none", label_smoothing=0.2)
    np.testing.assert_allclose(smoothed, expected.numpy(), rtol=1e-5, atol=1e-6)


def target_loader(path: Path, decoder: Any, *transforms: Any) -> PrunedLoader:
    image = score_pipelines(check_beton(path.with_name("train.beton")))["image"]
    pipelines = {"image": image, "label": [decoder, ToTensor(), *transforms]}
    return PrunedLoader(path, 64, pipelines=pipelines, shuffle=False, drop_last=False)


def test_a_regression_is_scored(beton: Beton) -> None:
    targets = np.random.default_rng(0).normal(size=len(beton))
    path = write_targets(beton.path.with_name("float.beton"), beton, targets, FloatField())
    loader = target_loader(path, FloatDecoder(), Squeeze(1))
    model = SmallNet(classes=1).eval()
    losses = score_dataset(model, loader, amp_dtype=None, task=tasks.Regression())
    with torch.no_grad():
        outputs = model(torch.from_numpy(beton.images).permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(losses, (outputs[:, 0] - targets) ** 2, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match=r"float64 \[64\].*tasks\.Regression"):
        score_dataset(SmallNet(), loader)


def test_several_labels_are_scored(beton: Beton) -> None:
    targets = np.random.default_rng(0).integers(0, 2, (len(beton), 10)).astype(np.float32)
    path = write_targets(
        beton.path.with_name("labels.beton"), beton, targets, NDArrayField(np.dtype(np.float32), (10,))
    )
    loader = target_loader(path, NDArrayDecoder())
    losses = score_dataset(SmallNet(), loader, amp_dtype=None, task=tasks.MultiLabel())
    with torch.no_grad():
        outputs = SmallNet().eval()(torch.from_numpy(beton.images).permute(0, 3, 1, 2))
    expected = F.binary_cross_entropy_with_logits(outputs, torch.from_numpy(targets), reduction="none").mean(1)
    np.testing.assert_allclose(losses, expected.numpy(), rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match=r"float32 \[64, 10\].*tasks\.MultiLabel"):
        score_dataset(SmallNet(), loader)


def test_a_file_whose_label_stands_before_its_image_is_scored(beton: Beton) -> None:
    other = write_label_first(beton.path.with_name("label_first.beton"), beton)
    pipelines = {"number": None, "label": [IntDecoder(), ToTensor(), Squeeze(1)]}
    pipelines["image"] = score_pipelines(check_beton(beton.path))["image"]
    loader = PrunedLoader(other.path, 64, pipelines=pipelines, shuffle=False, drop_last=False)
    np.testing.assert_allclose(
        score_dataset(SmallNet(), loader, amp_dtype=None), plain_losses(SmallNet(), beton), rtol=1e-5, atol=1e-6
    )


def test_images_alone_can_be_scored_by_a_criterion_only(beton: Beton) -> None:
    pipelines = score_pipelines(check_beton(beton.path)) | {"label": None}
    loader = PrunedLoader(beton.path, 64, pipelines=pipelines, shuffle=False, drop_last=False)
    with pytest.raises(UserError, match="no targets: give the loader a pipeline"):
        score_dataset(SmallNet(), loader)
    confidence = score_dataset(SmallNet(), loader, criterion=lambda outputs, _: outputs.softmax(1).amax(1))
    assert ((confidence > 0) & (confidence < 1)).all()


class TwoHeads(SmallNet):
    def forward(self, images: Tensor) -> Any:
        logits = super().forward(images)
        return {"logits": logits, "twice": 2 * logits}


def test_a_model_that_returns_a_dict(score_loader: PrunedLoader) -> None:
    with pytest.raises(UserError, match=r'entries logits, twice.*output="logits"'):
        score_dataset(TwoHeads(), score_loader)
    losses = score_dataset(TwoHeads(), score_loader, amp_dtype=None, task=tasks.Classification(output="logits"))
    np.testing.assert_allclose(losses, score_dataset(SmallNet(), score_loader, amp_dtype=None), rtol=1e-5)


def test_a_criterion_beats_the_task_and_sees_what_the_model_returned(score_loader: PrunedLoader) -> None:
    scores = score_dataset(
        SmallNet(), score_loader, amp_dtype=torch.bfloat16, criterion=lambda outputs, _: outputs.sum(1)
    )
    assert np.isfinite(scores).all()
    twice = score_dataset(
        TwoHeads(), score_loader, amp_dtype=None, criterion=lambda outputs, _: outputs["twice"].sum(1)
    )
    np.testing.assert_allclose(scores * 2, twice, rtol=0.1, atol=0.1)
    # Labels beyond the outputs are the criterion's own business.
    score_dataset(SmallNet(classes=2), score_loader, criterion=lambda outputs, labels: outputs[:, 0])


def test_a_criterion_that_returns_a_mean_is_refused(score_loader: PrunedLoader) -> None:
    with pytest.raises(UserError, match=r'criterion returned \[\] for 64 samples.*reduction="none"'):
        score_dataset(SmallNet(), score_loader, criterion=F.cross_entropy)


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
    loader = PrunedLoader(beton.path, 64, pipelines=pipelines, shuffle=False, drop_last=False)
    np.testing.assert_allclose(
        score_dataset(SmallNet(), loader, amp_dtype=None), plain_losses(SmallNet(), beton), rtol=1e-5, atol=1e-6
    )


class WrongShape(SmallNet):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images)[None]


def test_logits_of_a_wrong_shape(score_loader: PrunedLoader) -> None:
    with pytest.raises(UserError, match=r"returned \[1, 64, 10\] for 64 samples"):
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


def test_images_that_the_model_cannot_take(score_loader: PrunedLoader) -> None:
    fixed = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 10)).eval()

    class Fixed(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return fixed(images.float())

    found = r"torch\.uint8 \[\d+, 3, 16, 16\]: the scoring loader must serve inputs as"
    with (
        pytest.warns(UserWarning, match=f"^the model fails on the first batch to score, {found}"),
        pytest.raises(RuntimeError, match="mat1 and mat2 shapes"),
    ):
        score_dataset(Fixed(), score_loader)


def test_an_error_after_the_first_batch_is_not_of_the_inputs(score_loader: PrunedLoader) -> None:
    class Failing(nn.Module):
        batches = 0

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            self.batches += 1
            if self.batches > 1:
                raise RuntimeError("a defect")
            return torch.zeros(len(images), 10)

    with warnings.catch_warnings(), pytest.raises(RuntimeError, match="a defect"):
        warnings.simplefilter("error")
        score_dataset(Failing(), score_loader)


def test_out_of_memory_tries_smaller_batches(score_loader: PrunedLoader) -> None:
    model = Greedy()
    losses = score_dataset(model, score_loader, amp_dtype=None)
    assert model.largest == 16
    np.testing.assert_allclose(losses, score_dataset(SmallNet(), score_loader, amp_dtype=None), rtol=1e-5)
    model.limit = 0
    with pytest.raises(UserError, match="out of memory with a single sample"):
        score_dataset(model, score_loader)


def late_losses(beton: Beton, device: str, delivered_to: str, fold: bool = False) -> np.ndarray:
    """Scores of batches that the device works on late, in each batch: a buffer overwritten too early would show."""
    pipelines = score_pipelines(check_beton(beton.path), device=delivered_to)
    loader = PrunedLoader(beton.path, 4, pipelines=pipelines, shuffle=False, drop_last=False)  # laps the ring ten times
    model = SmallNet().to(device)
    if not fold:  # models with hooks are not folded, and the check of a folded one waits for the device
        model.register_forward_pre_hook(lambda *_: lag(device))
    with without_tf32():
        return score_dataset(model, loader, amp_dtype=None, fold=fold)


@pytest.mark.parametrize(
    ("device", "delivered_to"),
    [
        ("cpu", "cpu"),
        pytest.param("cuda", "cpu", marks=pytest.mark.cuda),
        pytest.param("cuda", "cuda", marks=pytest.mark.cuda),
    ],
)
def test_a_lagging_device_scores_as_a_plain_loop(device: str, delivered_to: str, beton: Beton) -> None:
    expected = plain_losses(SmallNet(), beton)
    np.testing.assert_allclose(late_losses(beton, device, delivered_to), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.cuda
@pytest.mark.parametrize("guard", RING_GUARDS)
def test_without_the_guards_of_the_ring_it_does_not(guard: str, beton: Beton, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail."""
    expected = plain_losses(SmallNet(), beton)
    leave_out(guard, monkeypatch)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(late_losses(beton, "cuda", "cuda"), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("device", BOTH)
def test_a_folded_pass_scores_as_a_plain_loop(device: str, beton: Beton) -> None:
    expected = plain_losses(SmallNet(), beton)
    np.testing.assert_allclose(late_losses(beton, device, device, fold=True), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("amp_dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("device", BOTH)
def test_mixed_precision_scores_near_float32(device: str, amp_dtype: torch.dtype, beton: Beton) -> None:
    loader = PrunedLoader(
        beton.path, 64, pipelines=score_pipelines(check_beton(beton.path), device=device), drop_last=False
    )
    model = SmallNet().to(device)
    exact = score_dataset(model, loader, amp_dtype=None)
    found = score_dataset(model, loader, amp_dtype=amp_dtype)
    np.testing.assert_allclose(found, exact, atol=0.1 if amp_dtype is torch.bfloat16 else 0.02)


@pytest.mark.parametrize("device", BOTH)
def test_no_batch_of_a_pass_waits_for_the_device(device: str, beton: Beton) -> None:
    pipelines = score_pipelines(check_beton(beton.path), device=device)
    loader = PrunedLoader(beton.path, 32, pipelines=pipelines, drop_last=False)
    model = SmallNet().to(device)
    rows = {"amp_dtype": None, "certainty": True, "gradients": True}
    expected = score_dataset(model, loader, **rows)
    found = score_dataset(model, Unwaited(loader, device), **rows)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


class Looking(tasks.Classification):
    """Looks at a value in each batch."""

    def losses(self, outputs: Any, targets: Tensor) -> Tensor:
        return super().losses(outputs, targets) + 0 * outputs.sum().item()


@pytest.mark.parametrize("device", BOTH)
def test_a_pass_that_waits_would_be_found(device: str, beton: Beton) -> None:
    pipelines = score_pipelines(check_beton(beton.path), device=device)
    loader = PrunedLoader(beton.path, 32, pipelines=pipelines, drop_last=False)
    with pytest.raises(RuntimeError, match="synchroniz"):
        score_dataset(SmallNet().to(device), Unwaited(loader, device), amp_dtype=None, task=Looking())


class HungryOnDevice(SmallNet):
    """Takes a part of the device's memory for each sample: its refusal is genuine."""

    bytes_a_sample, largest = 0, 0

    def forward(self, images: Tensor) -> Tensor:
        torch.empty(len(images) * self.bytes_a_sample, dtype=torch.uint8, device=images.device)
        self.largest = max(self.largest, len(images))
        return super().forward(images)


@pytest.mark.cuda
def test_out_of_the_memory_of_a_gpu_tries_smaller_batches(beton: Beton) -> None:
    room = 1 << 30
    whole = torch.cuda.get_device_properties(0).total_memory
    loader = PrunedLoader(
        beton.path, 64, pipelines=score_pipelines(check_beton(beton.path), device="cuda"), drop_last=False
    )
    expected = score_dataset(SmallNet().to("cuda"), loader, amp_dtype=None)
    model = HungryOnDevice().to("cuda")
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(room / whole)
    try:
        model.bytes_a_sample = room // 40
        losses = score_dataset(model, loader, amp_dtype=None)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert 1 <= model.largest < 40
    np.testing.assert_allclose(losses, expected, rtol=1e-4, atol=1e-5)


class Merged(SmallNet):
    """Changes with its mode, as the layers of LoRA do that merge their weights for evaluation."""

    merged = False

    def train(self, mode: bool = True) -> Merged:
        self.merged = not mode
        return super().train(mode)


def test_a_pass_gives_a_module_its_mode_back_by_its_own_way(score_loader: PrunedLoader) -> None:
    model = Merged().train()
    frozen = next(module for module in model.modules() if module is not model)
    frozen.training = False
    score_dataset(model, score_loader)
    assert model.training and not model.merged and not frozen.training


class Keeps(SmallNet):
    """Makes what it needs at its first forward pass, as models with positions or lazy layers do."""

    scale: Tensor | None = None

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.LazyLinear(10)

    def forward(self, images: Tensor) -> Tensor:
        if self.scale is None:
            self.scale = torch.full((10,), 2.0)
        return super().forward(images) * self.scale


def test_a_model_that_keeps_tensors_can_be_trained_after_a_pass(score_loader: PrunedLoader) -> None:
    for first in (score_dataset, lambda model, loader: evaluate(model, loader, tasks.Classification(), None)):
        model = Keeps()
        first(model, score_loader)
        images = next(score_loader.batches(0)).inputs
        model.train()(images).sum().backward()
        assert model.head.weight.grad is not None
