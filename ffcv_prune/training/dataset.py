"""What a run knows of its data: its files are checked before anything is written or compiled."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ffcv_prune.data.beton import BetonInfo, check_beton, require_labels
from ffcv_prune.data.fingerprint import fingerprint
from ffcv_prune.data.manifest import Manifest, manifest_path
from ffcv_prune.errors import UserError
from ffcv_prune.loading.targets import CLASSIFICATION, Target, find_target
from ffcv_prune.sections import Data

IMAGENET_MEAN = [0.485, 0.456, 0.406]
IMAGENET_STD = [0.229, 0.224, 0.225]


@dataclass(frozen=True)
class Dataset:
    """What a run knows of its data. n samples to train on, C classes; C is 0 unless it is a classification.

    Attributes:
        train, test: what `check_beton` found in the files.
        score: the same of the file that is read in scoring: that of `train`, or a smaller one of the same samples.
        target: field of the targets, and the task that they make.
        labels: int64[n] of the training set; without classes all 0.
        classes: names of the C classes.
        class_counts: int64[C], training samples of each class.
        mean, std: of each channel, in units of 0..1.
    """

    train: BetonInfo
    test: BetonInfo
    score: BetonInfo
    target: Target
    labels: NDArray[np.int64]
    classes: list[str]
    class_counts: NDArray[np.int64]
    mean: list[float]
    std: list[float]

    @property
    def outputs(self) -> int:
        """How many outputs a model needs."""
        return self.target.outputs or len(self.classes)

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """By these a resumed run knows its data, wherever the files are now."""
        smaller = {} if self.score is self.train else {"score": fingerprint(self.score)}
        return {"train": fingerprint(self.train), "test": fingerprint(self.test), **smaller}


def open_dataset(data: Data, model_classes: int, task: str = "auto") -> Dataset:
    """Check the files of a run and read what stands in their manifests. `task` is that of train.task.

    A .beton without a manifest (somebody's own) has as many classes as `model_classes` says, or if that is 0, its
    labels. It is normalised with ImageNet's mean and standard deviation.

    Raises:
        UserError: a missing or damaged file, no labels or other targets, labels outside the classes, classes that
            disagree between the two files or with `model_classes`, a data.score of other samples.
    """
    train, test = check_beton(data.train), check_beton(data.test)
    target = find_target(train, task)
    if find_target(test, task) != target:
        raise UserError(f"{data.train} and {data.test} have different targets; name files of one data set")
    manifests = [Manifest.load(info.path) if manifest_path(info.path).exists() else None for info in (train, test)]
    if target.task == CLASSIFICATION:
        train_labels, test_labels = (require_labels(info)[1] for info in (train, test))
        classes = _classes(data, manifests, model_classes, int(max(train_labels.max(), test_labels.max())) + 1)
        for info, labels in ((train, train_labels), (test, test_labels)):
            if labels.min() < 0 or labels.max() >= len(classes):
                raise UserError(
                    f"{info.path} has labels from {labels.min()} to {labels.max()}, "
                    f"but there are {len(classes)} classes; set model.classes or write the data set again"
                )
        counts = np.bincount(train_labels, minlength=len(classes))
    else:
        if model_classes or data.score:
            name = "model.classes" if model_classes else "data.score"
            raise UserError(f"{name} goes with classes, and the targets of {data.train} are none; leave it out")
        classes, train_labels, counts = [], np.zeros(train.num_samples, np.int64), np.zeros(0, np.int64)
    mean, std = IMAGENET_MEAN, IMAGENET_STD
    if manifests[0] is not None:
        mean, std = manifests[0].mean, manifests[0].std
    else:
        found = f"{len(classes)} classes by the labels" if classes else f'targets in the field "{target.field}"'
        print(
            f"notice: {manifest_path(train.path)} does not exist: {found}, ImageNet's mean and standard deviation",
            file=sys.stderr,
        )
    score = _open_score(data.score, train, train_labels) if data.score else train
    return Dataset(train, test, score, target, train_labels, classes, counts, mean, std)


def _classes(data: Data, manifests: Sequence[Manifest | None], model_classes: int, by_labels: int) -> list[str]:
    """Their names: by the manifests of training and test set, or else 0, 1, 2 and so on."""
    train, test = manifests
    if train is None:
        return [str(label) for label in range(model_classes or by_labels)]
    if model_classes not in (0, len(train.classes)):
        raise UserError(
            f"model.classes={model_classes}, but {data.train} has {len(train.classes)} classes; "
            f"set model.classes={len(train.classes)}, or 0 to take it from the data"
        )
    if test is not None and test.classes != train.classes:
        raise UserError(f"{data.train} and {data.test} have different classes; name files of one data set")
    return train.classes


def _open_score(path: str, train: BetonInfo, labels: NDArray[np.int64]) -> BetonInfo:
    """Check the file of data.score: a sample is known by its position, so that the labels must agree one by one."""
    info = check_beton(path)
    _, own = require_labels(info)
    if not np.array_equal(own, labels):
        reason = (
            f"{own.size} samples, not {labels.size}" if own.size != labels.size else "other labels, or another order"
        )
        raise UserError(
            f"data.score={path} has {reason}, against {train.path}: write it from the same images in the same order, "
            "with a recipe that differs in section image only"
        )
    return info


def score_side(data: Data) -> int:
    """Side in pixels of the images that are scored; 0: as stored."""
    return data.score_size or (0 if data.score else data.size)


def check_score_side(data: Data, dataset: Dataset) -> None:
    """Refuse stored images of different sizes where they are scored as they are: before anything is compiled."""
    heights, widths = dataset.score.image_heights, dataset.score.image_widths
    if data.score and score_side(data) == 0 and (heights.min() != heights.max() or (heights != widths).any()):
        raise UserError(f"the images of data.score={data.score} differ in size: set data.score_size")


def image_sides(data: Data, dataset: Dataset) -> dict[tuple[int, int], str]:
    """The heights and widths that the network is to take beside those of a ramp, each with the key that sets it."""
    tested = {side_of(dataset.test, data.test_size or data.size): "data.test_size"}
    scored = {side_of(dataset.score, score_side(data)): "data.score_size"}
    return tested | scored | {side_of(dataset.train, data.size): "data.size"}


def side_of(info: BetonInfo, size: int) -> tuple[int, int]:
    """Height and width of images that are cut to `size`; 0: as they are stored."""
    return (size, size) if size else (int(info.image_heights[0]), int(info.image_widths[0]))
