"""How large all is: as on ImageNet, or small enough for a test on a CPU."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

import torch

from ffcv_prune.loading.arguments import usable_cores


@dataclass(frozen=True)
class Scale:
    """Nets, sides in pixels, batches, samples and seconds of a measurement."""

    model: str
    side: int
    batch: int
    stored: int  # longer side in the file
    samples: int
    jpeg_samples: int
    score_side: int
    score_stored: int
    cifar_model: str
    cifar_batch: int
    cifar_samples: int
    cifar_epochs: int
    accuracy: float  # that the pruned CIFAR run must pass
    seconds: float


FULL = Scale("resnet18", 224, 1024, 400, 30_000, 100_000, 80, 128, "resnet18_cifar", 128, 50_000, 20, 0.5, 3.0)
SMALL = Scale("resnet_tiny", 32, 32, 48, 256, 256, 24, 28, "resnet_tiny", 16, 320, 4, 0.15, 0.05)


@dataclass(frozen=True)
class Setting:
    """What all parts share."""

    scale: Scale
    device: torch.device
    out: Path
    photographs: Path
    cifar: Path

    @property
    def small(self) -> bool:
        return self.scale is SMALL

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def expects(self) -> bool:
        """Whether what is expected of a card and of a processor holds: on a GPU, and at full size."""
        return self.cuda and not self.small

    @property
    def test_samples(self) -> int:
        return max(1, self.scale.samples // 20)

    @property
    def workers(self) -> list[int]:
        """Threads of a loader to try."""
        return sorted({count for count in (8, 12) if count <= usable_cores()} | {*self.nearly_all})

    @property
    def nearly_all(self) -> list[int]:
        """All cores, and one and two fewer."""
        cores = usable_cores()
        return [count for count in (cores - 2, cores - 1, cores) if count > 0]

    @property
    def spare(self) -> int:
        """As many as a run takes by itself."""
        return max(1, usable_cores() - self.cuda)


def setting_of(args: Namespace, device: torch.device) -> Setting:
    scale = SMALL if args.small else FULL
    return Setting(scale, device, args.out.absolute(), args.photographs.absolute(), args.cifar.absolute())
