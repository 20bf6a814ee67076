"""Lightning's own Trainer, held against a loop without it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ffcv_prune import TorchLoader
from ffcv_prune.errors import UserError
from tests.nets import SmallNet
from tests.plain_loop import (
    EPOCHS,
    LENGTHS,
    assert_same_weights,
    losses_of,
    make_optimizer,
    make_pruner,
    plain_run,
    run_ranks,
)
from tests.torch_data import Coloured

lightning = pytest.importorskip("lightning.pytorch", reason="needs lightning")

from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: E402

from ffcv_prune.adapters.lightning import PrunedDataModule  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice on workers, logging and deprecations


class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
    def __init__(self) -> None:
        super().__init__()
        self.net = SmallNet()
        self.steps: list[list[int]] = []

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)

    def training_step(self, batch: Any, number: int) -> Tensor:
        images, labels, ids = batch
        self.steps.append(ids.tolist())
        return self.trainer.datamodule.pruner.batch_loss(losses_of(self(images), labels), ids)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return make_optimizer(self)

    def validation_step(self, batch: Any, number: int) -> None:
        assert len(batch) == 2


class Estimating(Module):
    """Has Lightning ask for the training data before it has restored the epoch."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        assert self.trainer.estimated_stepping_batches
        return make_optimizer(self)


def make_trainer(folder: Path, **options: Any) -> Any:
    options = {"max_epochs": EPOCHS, "reload_dataloaders_every_n_epochs": 1} | options
    return lightning.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **options,
    )


def fit(data: Any, folder: Path, resume: Path | None = None, kind: type[Module] = Module, **options: Any) -> Module:
    module = kind()
    make_trainer(folder, **options).fit(module, datamodule=data, ckpt_path=resume)
    return module


def validation_loader() -> TorchLoader:
    return TorchLoader(Coloured(), 64, num_workers=0, shuffle=False, drop_last=False)


@pytest.mark.parametrize("method", ["ucb", "infobatch"])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_fit_is_the_plain_loop_step_by_step(method: str, workers: int, tmp_path: Path) -> None:
    steps, weights = plain_run(make_pruner(method))
    data = PrunedDataModule(lambda: make_pruner(method, workers), validation_loader())
    module = fit(data, tmp_path, enable_checkpointing=False)
    assert module.steps == steps
    assert_same_weights(module.net.state_dict(), weights)
    if method == "ucb":
        assert len(steps) == sum(LENGTHS)  # the last epoch, of all data, is not cut to the length of the first


@pytest.mark.parametrize("kind", [Module, Estimating])
@pytest.mark.parametrize("every", [{"every_n_train_steps": 7}, {"every_n_epochs": 1, "save_on_train_epoch_end": True}])
def test_a_fit_goes_on_from_lightnings_own_file(kind: type[Module], every: dict[str, Any], tmp_path: Path) -> None:
    steps, weights = plain_run(make_pruner())
    saved = ModelCheckpoint(tmp_path, save_top_k=-1, **every)
    fit(PrunedDataModule(make_pruner()), tmp_path, kind=kind, callbacks=[saved])
    files = sorted(tmp_path.glob("*.ckpt"))
    assert len(files) >= 4
    for file in files:
        done = torch.load(file, weights_only=True)["global_step"]
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*not resumable.*")
            module = fit(PrunedDataModule(make_pruner()), tmp_path, file, kind, enable_checkpointing=False)
        assert module.steps == steps[done:], file
        assert_same_weights(module.net.state_dict(), weights)


def test_validation_from_lightnings_own_file_leaves_the_pruner_alone(tmp_path: Path) -> None:
    """There is none before a fit; and after it, the file of an earlier step does not set it back."""
    fitted, fresh = (PrunedDataModule(make_pruner, validation_loader()) for _ in range(2))
    fit(fitted, tmp_path, callbacks=[ModelCheckpoint(tmp_path, save_top_k=-1, every_n_train_steps=7)])
    file = min(tmp_path.glob("*.ckpt"), key=lambda path: torch.load(path, weights_only=True)["global_step"])
    for data in (fresh, fitted):
        trainer = make_trainer(tmp_path, enable_checkpointing=False)
        trainer.validate(Module(), datamodule=data, ckpt_path=file, verbose=False)
        trainer.save_checkpoint(tmp_path / "validated.ckpt")
    assert fitted.pruner.loader.next_epoch == EPOCHS


def test_the_positions_stay_on_the_cpu(tmp_path: Path) -> None:
    data = PrunedDataModule(make_pruner())
    moved = []

    class Watched(Module):
        def on_train_batch_start(self, batch: Any, number: int) -> None:
            meta = torch.device("meta")
            moved.append(data.transfer_batch_to_device(batch, meta, 0))
            images, _, ids = batch
            moved.append(data.transfer_batch_to_device({"images": images, "ids": ids}, meta, 0))

    fit(data, tmp_path, kind=Watched, max_steps=1, enable_checkpointing=False)
    of_tuple, of_mapping = moved
    assert [part.device.type for part in of_tuple] == ["meta", "meta", "cpu"]
    assert of_mapping["images"].device.type == "meta" and of_mapping["ids"].device.type == "cpu"


def test_a_trainer_that_would_select_once_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="pass it reload_dataloaders_every_n_epochs=1"):
        fit(PrunedDataModule(make_pruner()), tmp_path, reload_dataloaders_every_n_epochs=0, enable_checkpointing=False)


def test_a_fit_that_ends_before_the_plan_is_warned_of(tmp_path: Path) -> None:
    """No error: another fit may go on."""
    message = rf"max_epochs=3 ends the fit before the {EPOCHS} epochs of the pruner: build it with epochs=3, unless"
    module, data, trainer = Module(), PrunedDataModule(make_pruner()), make_trainer(tmp_path, max_epochs=3)
    with pytest.warns(UserWarning, match=message) as caught:
        trainer.fit(module, datamodule=data)
    assert sum("of the pruner" in str(warning.message) for warning in caught) == 1
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*of the pruner.*")
        trainer.fit_loop.max_epochs = EPOCHS
        trainer.fit(module, datamodule=data)
        fit(PrunedDataModule(make_pruner()), tmp_path, max_epochs=-1, max_steps=2)
    assert len(module.steps) == sum(LENGTHS)


@pytest.mark.parametrize(("accumulated", "needed"), [(1, sum(LENGTHS)), (2, sum(-(-n // 2) for n in LENGTHS))])
def test_a_schedule_that_would_run_out_of_steps_is_refused(accumulated: int, needed: int, tmp_path: Path) -> None:
    class Scheduled(Module):
        total = needed

        def configure_optimizers(self) -> Any:
            optimizer = make_optimizer(self)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=self.total)
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    class Short(Scheduled):
        total = needed - 1

    options = {"accumulate_grad_batches": accumulated, "enable_checkpointing": False}
    fit(PrunedDataModule(make_pruner()), tmp_path, kind=Scheduled, **options)
    message = rf"OneCycleLR ends after {needed - 1} steps, and the run has {needed}: build it with total_steps={needed}"
    with pytest.raises(UserError, match=message):
        fit(PrunedDataModule(make_pruner()), tmp_path, kind=Short, **options)


RANK = """
import json, sys, warnings
from pathlib import Path
import lightning.pytorch
from ffcv_prune.adapters.lightning import PrunedDataModule
from tests.plain_loop import make_pruner
from tests.test_adapter_lightning import fit

data = PrunedDataModule(lambda: make_pruner("random", keep=0.4, distributed=True))
module = fit(data, Path(sys.argv[1]), devices=2, strategy="ddp", enable_checkpointing=False)
(Path(sys.argv[1]) / f"{module.global_rank}.json").write_text(json.dumps(module.steps))
"""


@pytest.mark.slow
def test_two_processes_share_each_step(tmp_path: Path) -> None:
    shares = run_ranks(RANK, tmp_path)
    expected, _ = plain_run(make_pruner("random", keep=0.4))
    assert [sorted(a + b) for a, b in zip(*shares, strict=True)] == [sorted(step) for step in expected]


@pytest.mark.slow
def test_a_loader_that_is_not_shared_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="2 processes train, and 1 share the loader"):
        run_ranks(RANK.replace(", distributed=True", ""), tmp_path)
