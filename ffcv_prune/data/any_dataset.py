"""Any map-style torch Dataset becomes a ``.beton``."""

from __future__ import annotations

import operator
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ffcv_prune.ffcv_import  # noqa: F401 - before FFCV  # isort: skip
import numpy as np
import torch
from ffcv.fields import FloatField, IntField, NDArrayField
from ffcv.fields.base import Field
from PIL.Image import Image as Picture
from PIL.Image import fromarray
from torch.utils.data import Dataset, IterableDataset

from ffcv_prune.data.beton import check_beton
from ffcv_prune.data.encode import BrokenImages, encode_split
from ffcv_prune.data.manifest import Manifest, manifest_path, sources_path
from ffcv_prune.data.recipe import Image
from ffcv_prune.data.writer import check_workers, publish, unfinished, versions
from ffcv_prune.errors import UserError, nearest

MODES = ("raw", "jpg")
_MOST_CLASSES = 1_000_000  # labels above are numbers of something else


def write(
    dataset: Dataset[Any],
    path: str | os.PathLike[str],
    *,
    mode: str = "raw",
    max_resolution: int = 0,
    jpeg_quality: int = 90,
    classes: Sequence[str] | None = None,
    num_workers: int = -1,
    force: bool = False,
) -> Path:
    """Write a dataset of (image, target) to `path`, with its manifest; sample i of the file is ``dataset[i]``.

    An image is a PIL image of at most 8 bits a channel, or an array or tensor of 1 or 3 channels. Its values are uint8,
    or floats from 0 to 1, as from torchvision's ToTensor. Tensors are [C, H, W] or [H, W], arrays [H, W, C] or [H, W].
    All are stored as RGB.

    A target is an integer, a float or a vector. An integer is a class from 0 on, stored as int64. A float is stored as
    float64, a vector of one length as float32[L]. The first sample says which; arrays and tensors of no dimension are
    numbers.

    The dataset is read in forked processes. Sample 0 is read before that too, since it says which targets there are.
    The file appears under its name when it is whole and checked.

    Args:
        path: ends in .beton; X.json, the manifest, and X.txt, the samples' names, are written beside X.beton.
        mode: "raw" stores pixels, "jpg" stores JPEG.
        max_resolution: pixels that the longer side may have: larger images are shrunk; 0: as they are.
        jpeg_quality: of "jpg", 1 to 100.
        classes: names of the classes 0, 1, …; None: ``dataset.classes`` where there is such a list, or else numbers.
        num_workers: processes that read and encode; -1: one per core available.
        force: replace files that exist.

    Returns:
        `path`.

    Raises:
        UserError: a dataset without length or samples, a sample of another kind, an existing file, a full disk.
    """
    path = Path(path)
    check_workers(num_workers)
    if mode not in MODES:
        raise UserError(f'mode="{mode}"{nearest(mode, MODES)}')
    if not 0 <= max_resolution <= 16384 or not 1 <= jpeg_quality <= 100:
        raise UserError(
            f"max_resolution={max_resolution} must be within 0 and 16384, jpeg_quality={jpeg_quality} within 1 and 100"
        )
    if path.suffix != ".beton":
        raise UserError(f"{path} does not end in .beton: name the file X.beton")
    for file in () if force else (path, manifest_path(path), sources_path(path)):
        if file.exists():
            raise UserError(f"{file} exists; replace it with force=True, or choose another path")
    samples = _Samples(dataset)
    image = Image(mode=mode, max_resolution=max_resolution, jpeg_quality=jpeg_quality)
    with unfinished(path) as temporary:
        try:
            mean, std = encode_split(samples, temporary, image, 0, num_workers, path.name)
        except BrokenImages as error:
            raise UserError(
                f"samples that cannot be written: {error.named}; mend them, or leave them out with "
                "torch.utils.data.Subset"
            ) from None
        info = check_beton(temporary)
        names = [] if info.labels is None else _class_names(dataset, classes, int(info.labels.max()))
        counts = [] if info.labels is None else np.bincount(info.labels, minlength=len(names)).tolist()
        manifest = Manifest(
            dataset=type(dataset).__name__,
            split=path.stem,
            classes=names,
            counts=counts,
            available=counts,
            samples=len(samples),
            bytes=info.bytes,
            mean=mean,
            std=std,
            source=f"torch data set {type(dataset).__module__}.{type(dataset).__qualname__}",
            seed=0,
            recipe={"image": asdict(image)},
            versions=versions(),
        )
        publish([(temporary, path, manifest, map(samples.describe, range(len(samples))))])
    return path


class _Samples:
    """The dataset as `encode.Readable`; the first sample is read and says of what kind the targets are."""

    def __init__(self, dataset: Any) -> None:
        name = type(dataset).__name__
        if isinstance(dataset, IterableDataset):
            raise UserError(f"{name} is iterable, and serves no sample by its position: read it into a list")
        try:
            self._length = len(dataset)
        except (TypeError, NotImplementedError):
            raise UserError(
                f"{name} has no length: give a map-style dataset, with __len__ and __getitem__; "
                "a list of (image, target) is one"
            ) from None
        if not self._length:
            raise UserError(f"{name} has no samples: give at least one")
        if not hasattr(dataset, "__getitem__"):
            raise UserError(f"{name} has no __getitem__: give a map-style dataset, such as a list of (image, target)")
        self._dataset, self._name = dataset, name
        try:
            image, target = self._sample(0)
            to_picture(image)
            self.target = _field(target)
        except UserError as error:
            raise UserError(f"{self.describe(0)}: {error}") from None

    def __len__(self) -> int:
        return self._length

    def describe(self, i: int) -> str:
        return f"sample {i} of {self._name}"

    def read(self, i: int) -> tuple[Picture, Any]:
        image, target = self._sample(i)
        return to_picture(image), _encodable(target, self.target)

    def _sample(self, i: int) -> tuple[Any, Any]:
        sample = self._dataset[i]
        if not isinstance(sample, tuple | list) or len(sample) != 2:
            raise UserError(
                f"it is {_kind(sample)}, no pair: give (image, target), by a Dataset of your own around this one"
            )
        return sample[0], sample[1]


def to_picture(image: Any) -> Picture:
    """A PIL image of what `write` takes as an image. UserError for anything else."""
    if isinstance(image, Picture):
        return image
    if not isinstance(image, np.ndarray | torch.Tensor):
        raise UserError(f"its image is {_kind(image)}: give a PIL image, an array or a tensor")
    pixels = _array(image) if isinstance(image, torch.Tensor) else image
    if isinstance(image, torch.Tensor) and pixels.ndim == 3:
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if (pixels.ndim != 2 and not (pixels.ndim == 3 and pixels.shape[2] == 3)) or not pixels.size:
        raise UserError(f"its image is {_kind(image)}: give tensors [3, H, W] or [1, H, W], arrays [H, W, 3] or [H, W]")
    if pixels.dtype.kind == "f":
        if not (pixels.min() >= 0 and pixels.max() <= 1):
            raise UserError(
                f"its image has values from {pixels.min():.3g} to {pixels.max():.3g}: give 0 to 1, without Normalize"
            )
        pixels = np.round(pixels * 255).astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise UserError(f"its image is {_kind(image)}: give uint8, or floats from 0 to 1")
    return fromarray(np.ascontiguousarray(pixels))


def _array(tensor: torch.Tensor) -> np.ndarray:
    """The values of a tensor. NumPy has no bfloat16, nor floats of 8 bits."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.is_floating_point() and tensor.element_size() < 4 else tensor).numpy()


def _plain(target: Any) -> Any:
    """Numbers out of arrays and tensors without dimensions; vectors as arrays."""
    if isinstance(target, torch.Tensor):
        target = _array(target)
    if isinstance(target, list | tuple):
        target = np.asarray(target)
    return target.item() if isinstance(target, np.ndarray | np.generic) and target.ndim == 0 else target


def _field(target: Any) -> Field:
    """FFCV's field for targets like this one."""
    value = _plain(target)
    if isinstance(value, int):
        return IntField()
    if isinstance(value, float):
        return FloatField()
    if isinstance(value, np.ndarray) and value.ndim == 1 and value.size and value.dtype.kind in "biuf":
        return NDArrayField(np.dtype(np.float32), value.shape)
    raise UserError(f"its target is {_kind(target)}: give an integer, a float or a vector of numbers")


def _encodable(target: Any, field: Field) -> Any:
    """`target` as `field` takes it. UserError for one of another kind than the first."""
    value = _plain(target)
    if isinstance(field, NDArrayField):
        if not isinstance(value, np.ndarray) or value.shape != field.shape:
            raise UserError(f"its target is {_kind(target)}, the first is a vector of {field.shape[0]}: give all alike")
        return np.ascontiguousarray(value, dtype=np.float32)
    if not isinstance(value, int if isinstance(field, IntField) else int | float):
        first = "an integer" if isinstance(field, IntField) else "a float"
        raise UserError(f"its target is {_kind(target)}, the first is {first}: give all alike")
    if isinstance(field, FloatField):
        return float(value)
    if not 0 <= value < _MOST_CLASSES:
        raise UserError(f"its label is {value}: classes count from 0; give floats if it is no class")
    return operator.index(value)


def _class_names(dataset: Any, classes: Sequence[str] | None, highest: int) -> list[str]:
    own = getattr(dataset, "classes", None)
    if classes is None and isinstance(own, list | tuple) and len(own) > highest and all(type(c) is str for c in own):
        classes = own
    names = [str(label) for label in range(highest + 1)] if classes is None else list(classes)
    if len(names) <= highest:
        raise UserError(f"{len(names)} classes for labels up to {highest}: give a name for each class")
    return names


def _kind(value: Any) -> str:
    """Type and shape of something, for a message."""
    shape = getattr(value, "shape", None)
    name = type(value).__name__
    return f"{name} of {value.dtype}{list(shape)}" if shape is not None and hasattr(value, "dtype") else name
