"""A training script in the shape of ffcv-imagenet's, with the lines that docs/ffcv_imagenet.md changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ffcv.fields.basics import IntDecoder
from ffcv.fields.rgb_image import CenterCropRGBImageDecoder, RandomResizedCropRGBImageDecoder
from ffcv.loader import OrderOption
from ffcv.transforms import NormalizeImage, RandomHorizontalFlip, Squeeze, ToDevice, ToTensor, ToTorchImage

from ffcv_prune import PrunedLoader as Loader
from ffcv_prune import Pruner, tasks
from tests.betons import Beton, write_beton

EPOCHS, BATCH, SMOOTHING = 5, 10, 0.1
MEAN, STD = np.array([0.485, 0.456, 0.406]) * 255, np.array([0.229, 0.224, 0.225]) * 255
CPU = torch.device("cpu")


class Trainer:
    """Loaders, progressive resizing, a rate for each step by the length of the epoch, one loss a batch."""

    def __init__(self, path: str) -> None:
        self.decoder = RandomResizedCropRGBImageDecoder((32, 32))
        self.train_loader = Loader(
            path,
            batch_size=BATCH,
            num_workers=1,
            order=OrderOption.RANDOM,
            os_cache=True,
            drop_last=True,
            pipelines=self.pipelines(self.decoder, RandomHorizontalFlip()),
            distributed=0,
        )
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, stride=2),
            torch.nn.BatchNorm2d(8),
            torch.nn.ReLU(),
            torch.nn.AdaptiveAvgPool2d(1),
            torch.nn.Flatten(),
            torch.nn.Linear(8, 10),
        ).to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1, momentum=0.9)
        self.loss = torch.nn.CrossEntropyLoss(label_smoothing=SMOOTHING)
        self.pruner = Pruner(
            self.train_loader,
            self.create_val_loader(path),
            "ucb",
            keep=0.3,
            period=2,
            final=1,
            final_mode="full",
            epochs=EPOCHS,
            task=tasks.Classification(label_smoothing=SMOOTHING),
        )
        self.rates: list[list[float]] = []
        self.shapes: list[set[tuple[int, ...]]] = []

    def pipelines(self, *image: object) -> dict[str, list[object]]:
        to_torch = [NormalizeImage(MEAN, STD, np.float32), ToTensor(), ToDevice(CPU, non_blocking=True), ToTorchImage()]
        label = [IntDecoder(), ToTensor(), Squeeze(), ToDevice(CPU, non_blocking=True)]
        return {"image": [*image, *to_torch], "label": label}

    def create_val_loader(self, path: str) -> Loader:
        cropper = CenterCropRGBImageDecoder((48, 48), ratio=224 / 256)
        pipelines = self.pipelines(cropper)
        return Loader(
            path,
            batch_size=BATCH,
            num_workers=1,
            order=OrderOption.SEQUENTIAL,
            drop_last=False,
            pipelines=pipelines,
            distributed=0,
        )

    def get_lr(self, epoch: int) -> float:
        return float(np.interp([epoch], [0, 2, EPOCHS], [1e-4, 0.1, 0])[0])

    def train(self) -> None:
        for epoch in range(EPOCHS):
            res = int(np.round(np.interp([epoch], [0, 3], [32, 64])[0] / 32)) * 32
            self.decoder.output_size = (res, res)
            self.pruner.begin_epoch(epoch, self.model)
            self.train_loop(epoch)

    def train_loop(self, epoch: int) -> None:
        self.model.train()
        iters = len(self.train_loader)
        rates = np.interp(np.arange(iters), [0, iters], [self.get_lr(epoch), self.get_lr(epoch + 1)])
        self.shapes.append(set())
        for ix, (images, target) in enumerate(self.train_loader):
            for group in self.optimizer.param_groups:
                group["lr"] = rates[ix]
            self.optimizer.zero_grad(set_to_none=True)
            self.loss(self.model(images), target).backward()
            self.optimizer.step()
            self.shapes[-1].add(tuple(images.shape))
        assert ix + 1 == iters
        self.rates.append(rates.tolist())


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Beton:
    return write_beton(tmp_path_factory.mktemp("imagenet") / "train.beton", n=120, size=72, mode="jpg")


def test_its_training_loop_prunes_and_resizes(photographs: Beton) -> None:
    trainer = Trainer(str(photographs.path))
    trainer.train()
    sizes = [32, 32, 64, 64, 64]  # of 32, 42.7, 53.3 and 64, to the nearest 32
    assert trainer.shapes == [{(BATCH, 3, size, size)} for size in sizes]
    assert [len(rates) for rates in trainer.rates] == [3, 3, 3, 3, 12]
    for epoch, rates in enumerate(trainer.rates):
        assert rates[0] == pytest.approx(trainer.get_lr(epoch))
    assert trainer.pruner.state.table.updates == 2
