"""A network for CIFAR-10 in minutes, after that of cifar10-airbench (Jordan, arXiv:2404.00498)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

PATCH = 2  # side of the patches that are whitened
LOGIT_SCALE = 1 / 9
RIDGE = 5e-4  # added to the eigenvalues, in units of the normalised images


class Whitening(nn.Conv2d):
    """A convolution that is not trained: projects each 2x2 patch on the eigenvectors of the training patches.

    Twice as many channels as eigenvectors, each with both signs, in units of their standard deviation. Until `whiten`
    has been called, a random orthogonal basis is in its place.
    """

    def __init__(self, channels: int = 3) -> None:
        width = channels * PATCH**2
        super().__init__(channels, 2 * width, PATCH, bias=False)
        basis = nn.init.orthogonal_(torch.empty(width, width))
        self._set(basis)
        self.weight.requires_grad_(False)

    @torch.no_grad()
    def whiten(self, images: Tensor) -> None:
        """Take the eigenvectors of all patches of these images, float[N, C, H, W], normalised."""
        patches = nn.functional.unfold(images.float(), PATCH).transpose(1, 2).flatten(0, 1)  # [patches, C·2·2]
        covariance = torch.cov(patches.double().T, correction=0)
        values, vectors = torch.linalg.eigh(covariance)
        self._set((vectors / (values.clamp(min=0) + RIDGE).sqrt()).T.flip(0))

    @torch.no_grad()
    def _set(self, basis: Tensor) -> None:
        self.weight.copy_(torch.cat([basis, -basis]).view_as(self.weight))


class ScaledLogits(nn.Linear):
    """A linear layer without bias whose outputs are scaled down, so that they start small."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__(width, num_classes, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features) * LOGIT_SCALE


def cifar_fast(num_classes: int) -> nn.Module:
    """32, 128 and 128 channels: for a CPU; 0.5 M parameters."""
    return _network(num_classes, (32, 128, 128))


def cifar_fast_small(num_classes: int) -> nn.Module:
    """16, 64 and 128 channels: for many runs on a CPU."""
    return _network(num_classes, (16, 64, 128))


def cifar_fast_narrow(num_classes: int) -> nn.Module:
    """8, 32 and 32 channels, a quarter of `cifar_fast`: a proxy for it."""
    return _network(num_classes, (8, 32, 32))


def cifar_fast_wide(num_classes: int) -> nn.Module:
    """64, 256 and 256 channels, those of airbench94; 2 M parameters."""
    return _network(num_classes, (64, 256, 256))


def _network(num_classes: int, widths: Sequence[int]) -> nn.Module:
    """Whitened patches, three groups of two convolutions with a max-pooling in each, and a linear layer."""
    stem = Whitening()
    layers: list[nn.Module] = [stem, nn.GELU()]
    channels = stem.out_channels
    for width in widths:
        layers += [_conv(channels, width), nn.MaxPool2d(2), _norm(width), nn.GELU()]
        layers += [_conv(width, width), _norm(width), nn.GELU()]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), ScaledLogits(channels, num_classes))


def _conv(channels: int, width: int) -> nn.Conv2d:
    """3x3, the first channels as they come: the identity is in it from the start."""
    conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
    nn.init.dirac_(conv.weight[: min(channels, width)])
    return conv


def _norm(width: int) -> nn.BatchNorm2d:
    """Without a scale of its own."""
    norm = nn.BatchNorm2d(width, momentum=0.4)
    norm.weight.requires_grad_(False)
    return norm
