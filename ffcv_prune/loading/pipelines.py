"""FFCV pipelines for training and for scoring.

Of the fields of a file, images and targets are served, in the order of the file. Images leave the pipelines as
uint8[B, 3, H, W] in channels_last on the device, labels as int64[B], floats as float64[B], arrays as they are.
Normalising is the model's business (`models.normalize`): four times fewer bytes cross to the device.
"""

from __future__ import annotations

from typing import Any

import ffcv_prune.ffcv_import  # noqa: F401 - before FFCV  # isort: skip
import torch
from ffcv.fields import FloatField, NDArrayField
from ffcv.fields.decoders import FloatDecoder, NDArrayDecoder
from ffcv.transforms import Squeeze, ToDevice, ToTensor, ToTorchImage
from ffcv.types import TYPE_ID_HANDLER

from ffcv_prune.data.beton import BetonInfo, require_images, require_labels
from ffcv_prune.errors import UserError, nearest
from ffcv_prune.loading.augment import CentreCrop, Label, PadCropFlip, RandomResizedCrop, StoredImage

AUGMENTATIONS = ("none", "pad_crop_flip", "random_resized_crop")


def train_pipelines(
    info: BetonInfo,
    augment: str,
    size: int = 0,
    device: torch.device | str = "cpu",
    fill: tuple[int, int, int] = (0, 0, 0),
    target: str | None = None,
    padding: int = 4,
    flip: str = "random",
) -> dict[str, list[Any]]:
    """Pipelines of the fields of a `.beton` for training.

    Args:
        info: what `check_beton` returned for the file.
        augment: "none" (centre crop), "pad_crop_flip" (CIFAR) or "random_resized_crop" (ImageNet).
        size: side of the images in pixels; 0 for the stored one, where all images have the same square size.
        device: where the batches are delivered.
        fill: colour of the padding, for "pad_crop_flip".
        target: field of the targets: integers, floats or arrays; None for that of the labels.
        padding: pixels on each side, for "pad_crop_flip".
        flip: "random" or "alternating", for "pad_crop_flip".
    """
    if augment not in AUGMENTATIONS:
        raise UserError(f'data.augment is "{augment}"{nearest(augment, AUGMENTATIONS)}')
    if augment == "random_resized_crop":
        image = [RandomResizedCrop(size or stored_size(info))]
    else:
        image = [_centre_decoder(info, size, ratio=1.0)]
        if augment == "pad_crop_flip":
            image.append(PadCropFlip(padding, fill, alternating=flip == "alternating"))
    return _complete(info, image, device, target)


def score_pipelines(
    info: BetonInfo,
    size: int = 0,
    device: torch.device | str = "cpu",
    ratio: float = 1.0,
    target: str | None = None,
    scaled: bool = False,
) -> dict[str, list[Any]]:
    """Deterministic pipelines, for scoring and evaluation: a centre crop of `ratio` times the shorter side.

    `scaled` is that of `CentreCrop`: JPEG images may be decoded smaller, for scores at a small side.
    """
    return _complete(info, [_centre_decoder(info, size, ratio, scaled)], device, target)


def stored_size(info: BetonInfo) -> int:
    """Side of the stored images in pixels. UserError unless all are squares of one size."""
    require_images(info)
    heights, widths = info.image_heights, info.image_widths
    if heights.min() != heights.max() or (heights != widths).any():
        raise UserError(f"the images of {info.path} differ in size: set data.size, the side to crop to (ImageNet: 224)")
    return int(heights[0])


def _centre_decoder(info: BetonInfo, size: int, ratio: float, scaled: bool = False) -> Any:
    if ratio == 1.0 and (size == 0 or _all_are(info, size)):
        stored_size(info)  # refuses images that differ in size
        return StoredImage()  # a copy, nothing to crop or resize
    side = size or stored_size(info)
    return CentreCrop(side, ratio, scaled)


def _all_are(info: BetonInfo, size: int) -> bool:
    heights, widths = info.image_heights, info.image_widths
    return bool((heights == size).all() and (widths == size).all())


def _complete(
    info: BetonInfo, image: list[Any], device: torch.device | str, target: str | None
) -> dict[str, list[Any]]:
    images = require_images(info)
    target = require_labels(info)[0] if target is None else target
    device = torch.device(device)
    # On the CPU there is nothing to move, and FFCV's ToDevice would copy every batch.
    to_device = [] if device.type == "cpu" else [ToDevice(device, non_blocking=True)]
    kind = TYPE_ID_HANDLER[info.fields[target]]
    if kind is NDArrayField:
        targets = [NDArrayDecoder(), ToTensor(), *to_device]
    else:
        targets = [FloatDecoder() if kind is FloatField else Label(), ToTensor(), *to_device, Squeeze(1)]
    pipelines: dict[str, Any] = dict.fromkeys(info.fields)
    return pipelines | {images: [*image, ToTensor(), *to_device, ToTorchImage()], target: targets}
