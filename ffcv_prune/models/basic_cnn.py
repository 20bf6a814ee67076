"""The plain network with two convolutions and two fully connected layers (paper, Appendix E)."""

from __future__ import annotations

from torch import nn

WIDTHS = (10, 20)
GRID = 4  # side of the feature map that the head sees
HIDDEN = 50


def basic_cnn(num_classes: int) -> nn.Module:
    """2 convolutions 5x5 (10, 20 wide), 2 fully connected layers (50 hidden), dropout; 22,340 parameters.

    The paper gives no sizes; these are of the "basic CNN" in the forget scores' own code
    (github.com/mtoneva/example_forgetting, run_mnist.py), with three input channels. The second pooling is
    adaptive: the same 2x2 pooling at 28x28, and larger images fit too.
    """
    return nn.Sequential(
        nn.Conv2d(3, WIDTHS[0], kernel_size=5),
        nn.MaxPool2d(2),
        nn.ReLU(inplace=True),
        nn.Conv2d(WIDTHS[0], WIDTHS[1], kernel_size=5),
        nn.Dropout2d(),
        nn.AdaptiveMaxPool2d(GRID),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(WIDTHS[1] * GRID * GRID, HIDDEN),
        nn.ReLU(inplace=True),
        nn.Dropout(),
        nn.Linear(HIDDEN, num_classes),
    )
