"""Residual networks: torchvision's ResNet-18/34 with a stem for small images, and two small ones of the same blocks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models import ResNet, resnet18, resnet34
from torchvision.models.resnet import BasicBlock, conv1x1, conv3x3

from ffcv_prune.models.init import init_convolutions


def resnet18_cifar(num_classes: int) -> nn.Module:
    """torchvision's ResNet-18 with a stem for 32x32 (`_with_cifar_stem`); 11.2 M parameters at 10 classes."""
    return _with_cifar_stem(resnet18(num_classes=num_classes))


def resnet34_cifar(num_classes: int) -> nn.Module:
    """torchvision's ResNet-34 with a stem for 32x32 (`_with_cifar_stem`); 21.3 M parameters at 10 classes."""
    return _with_cifar_stem(resnet34(num_classes=num_classes))


def _with_cifar_stem(network: ResNet) -> ResNet:
    """Replace the stem in place: 3x3, stride 1, no max-pooling, so that 32x32 images reach `layer1` whole."""
    network.conv1 = conv3x3(3, network.conv1.out_channels)
    init_convolutions(network.conv1)
    network.maxpool = nn.Identity()
    return network


def resnet_tiny(num_classes: int) -> nn.Module:
    """Two blocks for 28x28 on a CPU: maps of 14, 7 and 4 pixels; 73,370 parameters at 10 classes."""
    return _small_resnet(num_classes, stem_width=16, stem_stride=2, widths=(32, 64))


def resnet_small(num_classes: int) -> nn.Module:
    """Three blocks for 32x32 on a CPU: maps of 32, 16, 8 and 4 pixels; 309,738 parameters at 10 classes."""
    return _small_resnet(num_classes, stem_width=32, stem_stride=1, widths=(32, 64, 128))


def _small_resnet(num_classes: int, stem_width: int, stem_stride: int, widths: Sequence[int]) -> nn.Module:
    """3x3 stem, one basic block for each of `widths` (each halves the map), average pooling, linear head.

    The last batch norm of each block starts at 0: the block starts as its shortcut (arXiv:1706.02677).
    """
    layers: list[nn.Module] = [
        conv3x3(3, stem_width, stem_stride),
        nn.BatchNorm2d(stem_width),
        nn.ReLU(inplace=True),
    ]
    channels = stem_width
    for width in widths:
        shortcut = nn.Sequential(conv1x1(channels, width, stride=2), nn.BatchNorm2d(width))
        block = BasicBlock(channels, width, stride=2, downsample=shortcut)
        nn.init.zeros_(block.bn2.weight)
        layers.append(block)
        channels = width
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))
    init_convolutions(network)
    return network


class BlurredConv(nn.Module):
    """A convolution with a stride above 1 behind a fixed 3x3 binomial blur, which keeps it from aliasing.

    Zhang, "Making Convolutional Networks Shift-Invariant Again", arXiv:1904.11486, in the place that ffcv-imagenet
    gives it: before the convolution.
    """

    blur: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        row = torch.tensor([1.0, 2.0, 1.0])
        self.register_buffer("blur", (row[:, None] * row / 16).expand(conv.in_channels, 1, 3, 3).clone())
        self.conv = conv

    def forward(self, maps: Tensor) -> Tensor:
        blurred = nn.functional.conv2d(maps, self.blur.to(maps.dtype), padding=1, groups=self.conv.in_channels)
        return self.conv(blurred)


def resnet18_blurpool(num_classes: int) -> nn.Module:
    """torchvision's ResNet-18 with a blur before each strided convolution but the first, as ffcv-imagenet has it."""
    network = resnet18(num_classes=num_classes)
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Conv2d) and max(child.stride) > 1 and child.in_channels >= 16:
                setattr(module, name, BlurredConv(child))
    return network
