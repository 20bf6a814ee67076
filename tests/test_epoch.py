"""The training step: the loss of the task, and what its observers see."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tqdm import tqdm

from ffcv_prune import PrunedLoader, config, tasks
from ffcv_prune.data.beton import check_beton
from ffcv_prune.errors import UserError
from ffcv_prune.loading.pipelines import score_pipelines
from ffcv_prune.protocols import Step
from ffcv_prune.training.epoch import Stepper, mean_loss
from ffcv_prune.training.run_folder import RunFolder
from tests.betons import Beton
from tests.nets import SmallNet

SETTINGS = config.Train(epochs=1, lr=0.01, label_smoothing=0.1)


@pytest.fixture(scope="module")
def loader(beton: Beton) -> PrunedLoader:
    return PrunedLoader(beton.path, 32, pipelines=score_pipelines(check_beton(beton.path)), shuffle=True, with_ids=True)


def train(stepper: Stepper, loader: PrunedLoader) -> float:
    loader.set_epoch(0)
    with tqdm(disable=True) as bar:
        return stepper.train_epoch(loader, 0, mean_loss, bar, lambda: None)


def test_observers_see_each_step_whole(loader: PrunedLoader, beton: Beton) -> None:
    seen, losses = [], []

    def observe(step: Step) -> None:
        seen.append(step.ids.clone())
        losses.append(step.losses.detach().mean().item())
        assert torch.equal(step.targets, torch.from_numpy(beton.labels)[step.ids])
        assert torch.equal(step.inputs.permute(0, 2, 3, 1), torch.from_numpy(beton.images)[step.ids])
        assert step.outputs.requires_grad
        expected = F.cross_entropy(step.outputs, step.targets, reduction="none", label_smoothing=0.1)
        assert torch.equal(step.losses, expected)

    stepper = Stepper(SmallNet(), SETTINGS, None)
    plain = Stepper(SmallNet(), SETTINGS, None)
    stepper.observers.append(observe)
    assert train(stepper, loader) == pytest.approx(np.mean(losses))
    loader.set_epoch(0)
    assert torch.equal(torch.cat(seen), torch.from_numpy(loader.next_traversal_order())[: 6 * 32])
    train(plain, loader)  # to watch changes nothing
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, stepper.model.state_dict()[name])


class Pair(SmallNet):
    def forward(self, images: torch.Tensor) -> Any:
        return super().forward(images), images


def test_a_model_that_returns_a_tuple_trains_where_the_task_says_how(loader: PrunedLoader) -> None:
    with pytest.raises(UserError, match=r"returns a tuple.*Classification\(output=0\)"):
        train(Stepper(Pair(), SETTINGS, None), loader)
    told = Stepper(Pair(), SETTINGS, None, tasks.Classification(0.1, output=0))
    assert train(told, loader) == train(Stepper(SmallNet(), SETTINGS, None), loader)


def test_weights_are_saved_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever device they were trained on: who loads them may have no such device."""
    moved, cpu = [], torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: (moved.append(tensor.data_ptr()), cpu(tensor))[1])
    model = SmallNet()
    with closing(RunFolder.create(tmp_path, "run")) as folder:
        folder.save_weights(model)
        saved = torch.load(folder.path / "weights.pt", weights_only=True)
    assert moved == [value.data_ptr() for value in model.state_dict().values()]
    assert saved.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(saved[name], value)


@pytest.mark.cuda
def test_weights_of_a_gpu_are_saved_on_the_cpu(tmp_path: Path) -> None:
    with closing(RunFolder.create(tmp_path, "run")) as folder:
        folder.save_weights(SmallNet().to("cuda"))
        saved = torch.load(folder.path / "weights.pt", weights_only=True)
    assert all(value.device.type == "cpu" for value in saved.values())
