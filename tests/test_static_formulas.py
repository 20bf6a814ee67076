"""The formulas of static scores against plain loops."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ffcv_prune.models import build_model
from ffcv_prune.scoring import static_formulas as formulas
from tests.betons import Beton
from tests.nets import SmallNet


def as_tensor(beton: Beton) -> torch.Tensor:
    """uint8[n, 3, H, W]"""
    return torch.from_numpy(beton.images).permute(0, 3, 1, 2)


def test_el2n_against_numpy() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(0, 5, (50, 7)).astype(np.float32), rng.integers(0, 7, 50)
    logits[0], labels[0] = [1e4, 0, 0, 0, 0, 0, 0], 1  # sure and wrong: √2, the largest
    logits[1], labels[1] = [1e4, 0, 0, 0, 0, 0, 0], 0
    expected = []
    for row, label in zip(logits.astype(np.float64), labels, strict=True):
        probability = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
        expected.append(np.sqrt(sum((p - (c == label)) ** 2 for c, p in enumerate(probability))))
    scores = formulas.el2n(torch.from_numpy(logits), torch.from_numpy(labels)).numpy()
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-6)
    assert scores[0] == pytest.approx(np.sqrt(2))
    assert scores[1] == 0


def naive_grand(model: nn.Module, images: torch.Tensor, labels: np.ndarray) -> list[float]:
    norms = []
    for image, label in zip(images, labels, strict=True):
        model.zero_grad()
        F.cross_entropy(model(image[None]), torch.tensor([label])).backward()
        norms.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm().item())
    return norms


@pytest.mark.parametrize("chunk", [1, 3, 100])
@pytest.mark.parametrize("name", ["small", "basic_cnn", "resnet_tiny"])
def test_grand_against_one_backward_pass_a_sample(
    name: str, chunk: int, beton: Beton, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formulas, "_CHUNK_SAMPLES", chunk)
    torch.manual_seed(0)
    model = SmallNet() if name == "small" else build_model(name, 10, [0.5] * 3, [0.25] * 3)
    model.eval()
    images, labels = as_tensor(beton)[:10], beton.labels[:10]
    scores = formulas.grand(model, images, torch.from_numpy(labels))
    np.testing.assert_allclose(scores, naive_grand(model, images, labels), rtol=1e-4)


def test_grand_keeps_the_gradients_of_large_models_within_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formulas, "_CHUNK_FLOATS", 700)
    chunks = []
    vmap = torch.vmap

    def note(function: Any, chunk_size: int) -> Any:
        chunks.append(chunk_size)
        return vmap(function, chunk_size=chunk_size)

    monkeypatch.setattr(torch, "vmap", note)
    model = SmallNet().eval()  # 330 parameters
    formulas.grand(model, torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64))
    assert sum(p.numel() for p in model.parameters()) == 330
    assert chunks == [2]


def naive_forget_scores(n: int, presentations: list[tuple[int, bool]], epochs: int) -> list[float]:
    """`presentations` are (sample, right) in the order of training."""
    scores = []
    for sample in range(n):
        history = [right for seen, right in presentations if seen == sample]
        forgotten = sum(before and not after for before, after in pairwise(history))
        scores.append(float(forgotten if any(history) else epochs))
    return scores


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 8), st.integers(0, 1000))
def test_forget_counts_against_each_samples_history(n: int, epochs: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts, presentations = formulas.ForgetCounts(n), []
    for _ in range(epochs):
        order = rng.permutation(n)[: rng.integers(1, n + 1)]  # some are left out: the last batch is not whole
        for ids in np.array_split(order, 2):
            right = rng.random(len(ids)) < 0.5
            counts.update(torch.from_numpy(ids), torch.from_numpy(right))
            presentations += list(zip(ids.tolist(), right.tolist(), strict=True))
    assert counts.scores(epochs).tolist() == naive_forget_scores(n, presentations, epochs)


def test_samples_never_learned_rank_above_all_others() -> None:
    counts, epochs = formulas.ForgetCounts(2), 7
    for epoch in range(epochs):
        counts.update(torch.tensor([0, 1]), torch.tensor([epoch % 2 == 0, False]))
    assert counts.scores(epochs).tolist() == [3, 7]
