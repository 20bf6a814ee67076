"""VGG16 with batch norm for small images (paper, Fig. 21)."""

from __future__ import annotations

from torch import nn
from torchvision.models import vgg

from ffcv_prune.models.init import init_convolutions

FEATURES = 512  # channels of the last convolution


def vgg16(num_classes: int) -> nn.Module:
    """torchvision's VGG16 features with batch norm, and a linear layer as head for 32x32; 14.7 M parameters.

    Five poolings leave 1x1 of 32x32. torchvision's own head is for 7x7 and would add 119 M parameters.
    Images need at least 32 pixels a side.
    """
    network = nn.Sequential(
        vgg.make_layers(vgg.cfgs["D"], batch_norm=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(FEATURES, num_classes),
    )
    init_convolutions(network)
    return network
