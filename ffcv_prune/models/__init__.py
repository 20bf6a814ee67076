"""The networks by name, each with its normalisation inside.

================  =========================================================  ==============
name              network                                                    made for
================  =========================================================  ==============
resnet18          torchvision's ResNet-18                                    224x224
resnet34          torchvision's ResNet-34                                    224x224
resnet18_cifar    ResNet-18, 3x3 stem with stride 1, no max-pooling          32x32
resnet34_cifar    ResNet-34, 3x3 stem with stride 1, no max-pooling          32x32
vgg16             VGG16 with batch norm, one linear layer as head            32x32
basic_cnn         2 convolutions, 2 fully connected layers                   28x28, 32x32
resnet_small      3x3 stem with stride 1, 3 basic blocks, 32/64/128 wide     32x32, CPU
resnet_tiny       3x3 stem with stride 2, 2 basic blocks, 32/64 wide         28x28, CPU
================  =========================================================  ==============
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import nn

from ffcv_prune.errors import UserError, nearest
from ffcv_prune.models.basic_cnn import basic_cnn
from ffcv_prune.models.normalize import Normalize
from ffcv_prune.models.resnet import (
    resnet18,
    resnet18_cifar,
    resnet34,
    resnet34_cifar,
    resnet_small,
    resnet_tiny,
)
from ffcv_prune.models.vgg import vgg16

MODELS: dict[str, Callable[[int], nn.Module]] = {
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet18_cifar": resnet18_cifar,
    "resnet34_cifar": resnet34_cifar,
    "vgg16": vgg16,
    "basic_cnn": basic_cnn,
    "resnet_small": resnet_small,
    "resnet_tiny": resnet_tiny,
}

MIN_SIDES = {"vgg16": 32, "basic_cnn": 14}  # pixels; the others take images of any side


def build_model(name: str, num_classes: int, mean: Sequence[float], std: Sequence[float]) -> nn.Sequential:
    """Build the model `name` with random weights, all parameters in the channels_last memory format.

    Args:
        name: a key of `MODELS`.
        num_classes: width of the output, at least 1.
        mean, std: of each of the 3 channels of the training images, in units of 0 to 1 (a manifest has them).

    Returns:
        A module that takes uint8 images ``[B, 3, H, W]`` (channels_last is fast, contiguous works) and
        returns logits ``[B, num_classes]``, float32 or the dtype of the surrounding autocast. Its children
        are `normalize` (see `Normalize`) and `network`.

    Raises:
        UserError: unknown name, no classes, or statistics that cannot normalise.
    """
    if name not in MODELS:
        raise UserError(f'model.name is "{name}"{nearest(name, MODELS)}')
    if num_classes < 1:
        raise UserError(f"model.classes is {num_classes}; a model needs at least 1 class")
    layers = OrderedDict(normalize=Normalize(mean, std), network=MODELS[name](num_classes))
    return nn.Sequential(layers).to(memory_format=torch.channels_last)
