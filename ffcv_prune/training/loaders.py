"""The loaders that serve the data of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor, nn

from ffcv_prune.config import Config
from ffcv_prune.data.beton import BetonInfo
from ffcv_prune.errors import UserError
from ffcv_prune.loading.arguments import usable_cores
from ffcv_prune.loading.augment import CropDecoder
from ffcv_prune.loading.loader import PrunedLoader
from ffcv_prune.loading.pipelines import score_pipelines, train_pipelines
from ffcv_prune.models import build_model, whiten
from ffcv_prune.models.dry_run import check_network
from ffcv_prune.sections import Data
from ffcv_prune.training.dataset import check_score_side, open_dataset, score_side
from ffcv_prune.training.world import World, choose_device

RAMP_STEP = 32


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

    def resize(self, epoch: int, epochs: int) -> bool:
        """Give the training images the side of this epoch, where data.size_ramp has them grow; those of a proxy too.

        Returns whether it is another one than before.
        """
        if not self._data.size_ramp:
            return False
        side, changed = ramp_side(self._data.size_ramp, epoch, epochs), False
        for loader in filter(None, (self._train, self._proxy)):
            for _, decoder in loader.graph.operations_of(CropDecoder):
                changed |= decoder.output_size != (side, side)
                decoder.output_size = (side, side)
        return changed

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
