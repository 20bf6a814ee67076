"""A training script on FFCV's loader with the methods and settings of ffcv-imagenet's, for the CPU.

It does not know ffcv_prune: test_ffcv_imagenet.py applies the diff of docs/ffcv_imagenet.md to it.
"""

import json
from argparse import ArgumentParser
from pathlib import Path

import numpy as np
import torch
from fastargs import Param, Section, get_current_config
from fastargs.decorators import param
from ffcv.fields.basics import IntDecoder
from ffcv.fields.rgb_image import CenterCropRGBImageDecoder, RandomResizedCropRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.transforms import NormalizeImage, RandomHorizontalFlip, Squeeze, ToDevice, ToTensor, ToTorchImage

Section("resolution").params(min_res=Param(int, default=32), max_res=Param(int, default=64), end_ramp=Param(int))
Section("data").params(train_dataset=Param(str), val_dataset=Param(str), in_memory=Param(int, default=1))
Section("lr").params(lr=Param(float, default=0.1), lr_peak_epoch=Param(int, default=2))
Section("logging").params(folder=Param(str))
Section("validation").params(batch_size=Param(int, default=16), resolution=Param(int, default=48))
Section("training").params(
    batch_size=Param(int, default=10),
    momentum=Param(float, default=0.9),
    weight_decay=Param(float, default=4e-5),
    epochs=Param(int),
    label_smoothing=Param(float, default=0.1),
    distributed=Param(int, default=0),
)

MEAN, STD = np.array([0.485, 0.456, 0.406]) * 255, np.array([0.229, 0.224, 0.225]) * 255
DEVICE = torch.device("cpu")


def pipelines(*image):
    to_torch = [NormalizeImage(MEAN, STD, np.float32), ToTensor(), ToDevice(DEVICE, non_blocking=True), ToTorchImage()]
    label = [IntDecoder(), ToTensor(), Squeeze(), ToDevice(DEVICE, non_blocking=True)]
    return {"image": [*image, *to_torch], "label": label}


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3, stride=2, bias=False)
        self.bn = torch.nn.BatchNorm2d(8)
        self.fc = torch.nn.Linear(8, 10)

    def forward(self, images):
        return self.fc(torch.relu(self.bn(self.conv(images))).mean(dim=(2, 3)))


class ImageNetTrainer:
    def __init__(self):
        self.all_params = get_current_config()
        self.train_loader = self.create_train_loader()
        self.val_loader = self.create_val_loader()
        self.model, self.scaler = self.create_model_and_scaler()
        self.create_optimizer()
        self.initialize_logger()

    @param("lr.lr")
    @param("lr.lr_peak_epoch")
    @param("training.epochs")
    def get_lr(self, epoch, lr, lr_peak_epoch, epochs):
        return float(np.interp(epoch, [0, lr_peak_epoch, epochs], [lr * 1e-4, lr, 0]))

    @param("resolution.min_res")
    @param("resolution.max_res")
    @param("resolution.end_ramp")
    def get_resolution(self, epoch, min_res, max_res, end_ramp):
        return 32 * round(np.interp(epoch, [0, end_ramp], [min_res, max_res]) / 32)

    @param("training.momentum")
    @param("training.weight_decay")
    @param("training.label_smoothing")
    def create_optimizer(self, momentum, weight_decay, label_smoothing):
        norms, others = {"params": [], "weight_decay": 0.0}, {"params": [], "weight_decay": weight_decay}
        for name, parameter in self.model.named_parameters():
            (norms if "bn" in name else others)["params"].append(parameter)
        self.optimizer = torch.optim.SGD([norms, others], lr=1, momentum=momentum)
        self.loss = torch.nn.CrossEntropyLoss(label_smoothing=label_smoothing)

    @param("data.train_dataset")
    @param("data.in_memory")
    @param("training.batch_size")
    @param("training.distributed")
    def create_train_loader(self, train_dataset, in_memory, batch_size, distributed):
        res = self.get_resolution(epoch=0)
        self.decoder = RandomResizedCropRGBImageDecoder((res, res))
        order = OrderOption.RANDOM if distributed else OrderOption.QUASI_RANDOM
        return Loader(
            train_dataset,
            batch_size=batch_size,
            num_workers=1,
            order=order,
            os_cache=in_memory,
            drop_last=True,
            pipelines=pipelines(self.decoder, RandomHorizontalFlip()),
            distributed=distributed,
        )

    @param("data.val_dataset")
    @param("validation.batch_size")
    @param("validation.resolution")
    @param("training.distributed")
    def create_val_loader(self, val_dataset, batch_size, resolution, distributed):
        return Loader(
            val_dataset,
            batch_size=batch_size,
            num_workers=1,
            order=OrderOption.SEQUENTIAL,
            drop_last=False,
            pipelines=pipelines(CenterCropRGBImageDecoder((resolution, resolution), ratio=224 / 256)),
            distributed=distributed,
        )

    def create_model_and_scaler(self):
        torch.manual_seed(0)
        scaler = torch.amp.GradScaler(DEVICE.type, enabled=DEVICE.type == "cuda")
        return Net().to(DEVICE, memory_format=torch.channels_last), scaler

    @param("training.epochs")
    def train(self, epochs):
        for epoch in range(epochs):
            res = self.get_resolution(epoch)
            self.decoder.output_size = (res, res)
            train_loss = self.train_loop(epoch)
            self.log({"train_loss": train_loss, "lrs": self.lrs, "shapes": self.shapes, **self.val_loop()})

    def train_loop(self, epoch):
        self.model.train()
        iters = len(self.train_loader)
        lrs = np.interp(np.arange(iters), [0, iters], [self.get_lr(epoch), self.get_lr(epoch + 1)])
        losses, self.lrs, self.shapes = [], [], []
        for ix, (images, target) in enumerate(self.train_loader):
            for group in self.optimizer.param_groups:
                group["lr"] = lrs[ix]
            self.optimizer.zero_grad(set_to_none=True)
            with torch.autocast(DEVICE.type):
                loss = self.loss(self.model(images), target)
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            losses.append(loss.item())
            self.lrs.append(lrs[ix])
            self.shapes.append(images.shape)
        return np.mean(losses)

    def val_loop(self):
        self.model.eval()
        hits = []
        with torch.no_grad(), torch.autocast(DEVICE.type):
            for images, target in self.val_loader:
                output = self.model(images) + self.model(images.flip(3))
                hits.append(output.topk(5).indices == target[:, None])
        hits = torch.cat(hits).float()
        return {"top_1": hits[:, 0].mean().item(), "top_5": hits.sum(1).mean().item(), "validated": len(hits)}

    @param("logging.folder")
    def initialize_logger(self, folder):
        self.log_file = Path(folder) / "log"

    def log(self, content):
        with self.log_file.open("a") as file:
            file.write(json.dumps(content) + "\n")


if __name__ == "__main__":
    config = get_current_config()
    parser = ArgumentParser()
    config.augment_argparse(parser)
    config.collect_argparse_args(parser)
    config.validate(mode="stderr")
    trainer = ImageNetTrainer()
    trainer.train()
