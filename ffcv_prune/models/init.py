"""Initial weights, as torchvision sets them in its ResNet and VGG."""

from __future__ import annotations

from torch import nn


def init_convolutions(network: nn.Module) -> None:
    """He initialisation (fan out, ReLU) of every convolution of `network` in place; biases become 0."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
