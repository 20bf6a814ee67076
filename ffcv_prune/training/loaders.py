"""The data of a run: checked before anything is written or compiled, then the loaders that serve it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from ffcv_prune.config import Config
from ffcv_prune.data.beton import BetonInfo, check_beton, fingerprint, require_labels
from ffcv_prune.data.manifest import Manifest, manifest_path
from ffcv_prune.errors import UserError
from ffcv_prune.loading.arguments import usable_cores
from ffcv_prune.loading.augment import CropDecoder
from ffcv_prune.loading.loader import PrunedLoader
from ffcv_prune.loading.pipelines import score_pipelines, train_pipelines
from ffcv_prune.loading.targets import CLASSIFICATION, Target, find_target
from ffcv_prune.models import build_model, whiten
from ffcv_prune.models.dry_run import check_network
from ffcv_prune.sections import Data
from ffcv_prune.training.world import World, choose_device

RAMP_STEP = 32
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

    A .beton without a manifest (somebody's own) has as many classes as its labels say, or as `model_classes`
    says if that is not 0, and is normalised with ImageNet's mean and standard deviation.

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


class Loaders:
    """The loaders of a run. One process can pass them from run to run, since compiling one takes seconds.

    Each loader is compiled when it is first asked for: a run that needs no scores has no scoring loader.
    Without a `world` they are those of a process that trains alone.
    """

    def __init__(self, config: Config, world: World | None = None) -> None:
        self.settings = settings_of(config, world or World(choose_device(config.train.device)))
        self.dataset = open_dataset(config.data, config.model.classes, config.train.task)
        check_score_side(config.data, self.dataset)
        self._data, self._batch_size, self._score_batch_size, self.world, _ = self.settings
        self._train: PrunedLoader | None = None
        self._proxy: PrunedLoader | None = None

    def train(self, seed: int) -> PrunedLoader:
        """The training loader at epoch 0, serving all samples."""
        if self._train is None:
            self._train = self._augmented(self._batch_size, distributed=self.world.size > 1, with_ids=True)
        self._train.seed, self._train.on_epoch = seed, None
        self._train.set_selection(None)
        self._train.set_epoch(0)
        return self._train

    def proxy(self, seed: int, window: int) -> PrunedLoader:
        """What `train` serves when it serves all, in one process, in batches of `window`; the last may be smaller."""
        if self._proxy is None or self._proxy.batch_size != window:
            self._proxy = self._augmented(window, drop_last=False)
        self._proxy.seed = seed
        return self._proxy

    def build_model(self, name: str, seed: int, sides: Mapping[tuple[int, int], str]) -> nn.Sequential:
        """A network for these data on the device, with random weights; see `models.build_model` and `whiten`.

        UserError if it cannot take images of one of `sides`, height and width, each with the key that sets it.
        """
        data = self.dataset
        model = build_model(name, data.outputs, data.mean, data.std)
        for side, key in sides.items():
            check_network(model, name, side, key)
        model = model.to(self.world.device)
        whiten(model, self._training_images(seed))
        return model

    def _training_images(self, seed: int) -> Iterator[Tensor]:
        with closing(self.train(seed).batches(0)) as batches:
            for batch in batches:
                yield batch.inputs

    def resize(self, epoch: int, epochs: int) -> None:
        """Give the training images the side of this epoch, where data.size_ramp has them grow; those of a proxy too."""
        if not self._data.size_ramp:
            return
        side = ramp_side(self._data.size_ramp, epoch, epochs)
        for loader in filter(None, (self._train, self._proxy)):
            for _, decoder in loader.graph.operations_of(CropDecoder):
                decoder.output_size = (side, side)

    def _augmented(self, batch_size: int, **options: Any) -> PrunedLoader:
        red, green, blue = (round(255 * channel) for channel in self.dataset.mean)
        pipelines = train_pipelines(
            self.dataset.train,
            self._data.augment,
            self._data.size,
            self.world.device,
            fill=(red, green, blue),
            target=self.dataset.target.field,
            padding=self._data.padding,
            flip=self._data.flip,
        )
        path, threads = self.dataset.train.path, self._num_workers()
        return _compiled(PrunedLoader(path, batch_size, threads, pipelines=pipelines, shuffle=True, **options))

    @cached_property
    def score(self) -> PrunedLoader:
        """Serves the training set in the order of the file, without augmentation; maybe from a smaller file."""
        # A side of its own is asked for to save time: JPEG images are then decoded no larger than it needs.
        return self._in_order(self.dataset.score, score_side(self._data), scaled=self._data.score_size > 0)

    @cached_property
    def test(self) -> PrunedLoader:
        """Serves the test set, each sample once."""
        return self._in_order(self.dataset.test, self._data.test_size or self._data.size)

    def _in_order(self, info: BetonInfo, size: int, scaled: bool = False) -> PrunedLoader:
        ratio, target = self._data.test_ratio, self.dataset.target.field
        pipelines = score_pipelines(info, size, self.world.device, ratio, target, scaled)
        return _compiled(
            PrunedLoader(
                info.path,
                self._score_batch_size,
                self._num_workers(),
                pipelines=pipelines,
                drop_last=False,
                distributed=self.world.size > 1,
            )
        )

    def _num_workers(self) -> int:
        """All cores, shared by the processes on this machine, unless data.num_workers says otherwise.

        With a GPU one less: what submits its work needs a core too.
        """
        if self._data.num_workers == -1:
            spare = 1 if self.world.device.type == "cuda" else 0
            return max(1, usable_cores() // self.world.local_size - spare)
        return self._data.num_workers

    def close(self) -> None:
        """End the threads of epochs that are still running."""
        built = [self._train, self._proxy, *(self.__dict__.get(name) for name in ("score", "test"))]
        for loader in built:
            if loader is not None:
                loader.close()


def ramp_side(ramp: Sequence[float], epoch: int, epochs: int) -> int:
    """Side in pixels of the training images of an epoch, see data.size_ramp; a multiple of 32, as ffcv-imagenet's."""
    first, last, start, end = ramp
    grown = float(np.interp(epoch / epochs, [start, end], [first, last]))
    return max(1, round(grown / RAMP_STEP)) * RAMP_STEP


def score_side(data: Data) -> int:
    """Side in pixels of the images that are scored; 0: as stored."""
    return data.score_size or (0 if data.score else data.size)


def check_score_side(data: Data, dataset: Dataset) -> None:
    """Refuse stored images of different sizes where they are scored as they are: before anything is compiled."""
    heights, widths = dataset.score.image_heights, dataset.score.image_widths
    if data.score and score_side(data) == 0 and (heights.min() != heights.max() or (heights != widths).any()):
        raise UserError(f"the images of data.score={data.score} differ in size: set data.score_size")


def image_sides(data: Data, dataset: Dataset) -> dict[tuple[int, int], str]:
    """The heights and widths that the network is to take, each with the key that sets it."""
    ramp = {(int(side), int(side)): "data.size_ramp" for side in data.size_ramp[:2]}
    tested = {side_of(dataset.test, data.test_size or data.size): "data.test_size"}
    scored = {side_of(dataset.score, score_side(data)): "data.score_size"}
    return ramp | tested | scored | {side_of(dataset.train, data.size): "data.size"}


def side_of(info: BetonInfo, size: int) -> tuple[int, int]:
    """Height and width of images that are cut to `size`; 0: as they are stored."""
    return (size, size) if size else (int(info.image_heights[0]), int(info.image_widths[0]))


def settings_of(config: Config, world: World) -> tuple[Data, int, int, World, str]:
    """What the loaders of a run depend on, besides its seed: runs that agree in it can share loaders.

    The batch sizes among it are those of one rank: the configuration's are over all ranks.
    """
    share, rest = divmod(config.train.batch_size, world.size)
    if rest:
        raise UserError(
            f"train.batch_size={config.train.batch_size} is over all processes and does not divide by {world.size}; "
            f"use {max(1, share) * world.size}, or another number of processes"
        )
    score_batch_size = config.data.score_batch_size or 2 * config.train.batch_size
    return config.data, share, -(-score_batch_size // world.size), world, config.train.task


def _compiled(loader: PrunedLoader) -> PrunedLoader:
    """Serve one batch, so that numba compiles now and not in the first measured epoch."""
    next(iter(loader), None)  # of a test set smaller than the number of ranks, a rank may have nothing
    loader.close()
    loader.set_epoch(0)
    return loader
