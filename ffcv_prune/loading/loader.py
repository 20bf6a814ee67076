"""An FFCV loader whose samples can be exchanged between epochs. All contact with FFCV's internals is in this folder."""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping
from functools import partial
from typing import Any

import ffcv_prune.ffcv_import  # noqa: F401 - before FFCV  # isort: skip
import numpy as np
import torch
from ffcv.fields.base import Field
from ffcv.loader import Loader, OrderOption
from ffcv.pipeline.compiler import Compiler
from numpy.typing import ArrayLike, NDArray

from ffcv_prune.loading.arguments import (
    Pipeline,
    check_custom_fields,
    check_flags,
    copied_pipelines,
    file_path,
    positions,
    refuse_unsupported,
    shuffles,
    usable_workers,
)
from ffcv_prune.loading.epoch import Batches, Epoch, Waiting
from ffcv_prune.loading.open_file import ffcv_constructor, open_file
from ffcv_prune.loading.order import PrunedOrder
from ffcv_prune.loading.ring import Decoding, Ring
from ffcv_prune.loading.selectable import Position, SelectableLoader, ranks_that_share, whole


class PrunedLoader(SelectableLoader, Loader):
    """An FFCV `Loader` that serves a selection of its samples, exchanged in place between epochs.

    Its arguments up to `order_kwargs` are FFCV's, in FFCV's order; FFCV 1.0.2 ends with `recompile`. What differs, or
    is added:

    Args:
        fname: path of a `.beton` file; it is checked before native code reads it.
        batch_size: samples a batch, on each rank; 512 where FFCV has no default.
        num_workers: threads that decode; -1 for all cores this process may use.
        os_cache: True; FFCV's cache in the process is not built.
        order: `OrderOption.SEQUENTIAL`, which None means too, or `OrderOption.RANDOM`.
        distributed: shard over the ranks of `torch.distributed`, by the rule that `PrunedOrder` states.
        seed: of the order and of the keyed augmentations (`ffcv_prune.loading.augment`). The default is 0, not FFCV's
            None, which draws a seed: set another one for each repetition of a run.
        indices: whole numbers, the positions that are served at all: a selection lies within them, None is all of them.
            `OrderOption.SEQUENTIAL` keeps their order.
        pipelines: None for FFCV's default of every field.
        custom_fields: the `Field` class of each field whose type is not FFCV's own.
        order_kwargs: of a TraversalOrder, hence none.
        shuffle: True for `OrderOption.RANDOM`, False for `OrderOption.SEQUENTIAL`.
        with_ids: add the int64[B] dataset positions of each batch as last output, on the CPU.
        read_ahead: fetch from the disk what the coming batches need and is not in memory (`loading.read_ahead`).

    Attributes:
        num_samples: number of samples in the file.
        seed: may be set between epochs; nothing is compiled anew.
        labels: int64[num_samples], of the field that `BetonInfo` takes for them; None if there is none.
        next_epoch: number of the epoch that the next `iter()` starts.
        first_batch: the batch it starts with, not 0 when resuming in the middle of an epoch.

    Raises:
        UserError: a missing or damaged file, an argument that cannot be honoured, an operation where it cannot work.
    """

    def __init__(
        self,
        fname: str | os.PathLike[str],
        batch_size: int = 512,
        num_workers: int = -1,
        os_cache: bool = True,
        order: OrderOption | None = None,
        distributed: bool = False,
        seed: int | None = 0,
        indices: ArrayLike | None = None,
        pipelines: Mapping[str, Pipeline] | None = None,
        custom_fields: Mapping[str, type[Field]] | None = None,
        drop_last: bool = True,
        batches_ahead: int = 3,
        recompile: bool = False,
        order_kwargs: Mapping[str, Any] | None = None,
        *,
        shuffle: bool | None = None,
        with_ids: bool = False,
        read_ahead: bool = True,
    ) -> None:
        self.path = file_path(fname)
        check_flags(distributed=distributed, drop_last=drop_last, recompile=recompile)
        check_flags(with_ids=with_ids, read_ahead=read_ahead)
        refuse_unsupported(os_cache, order_kwargs)
        shuffle = shuffles(order, shuffle)
        ranks = ranks_that_share(distributed)
        if seed is None and distributed:
            seed = 0  # as in FFCV: all ranks need the same one
        self.file = open_file(self.path, check_custom_fields(custom_fields))
        info = self.file.info
        self.num_samples = info.num_samples
        self.labels: NDArray[np.int64] | None = info.labels
        self.with_ids = with_ids
        self.read_ahead = read_ahead
        self._waiting = Waiting()
        self._ring: Ring | None = None
        served = positions(indices, self.num_samples)
        with ffcv_constructor(self.file):
            super().__init__(
                str(self.path),
                whole("batch_size", batch_size, 1),
                num_workers=num_workers,
                seed=None if seed is None else whole("seed", seed, 0),
                indices=served,
                pipelines=copied_pipelines(pipelines, info),
                drop_last=drop_last,
                distributed=False,  # FFCV's own sharding pads the selection; PrunedOrder shards
                batches_ahead=whole("batches_ahead", batches_ahead, 1),
                recompile=recompile,
            )
        self.distributed = distributed
        self._select_first(PrunedOrder(self, self.num_samples, shuffle, drop_last, *ranks, indices=served))

    @property
    def name(self) -> str:
        return str(self.path)

    @property
    def num_workers(self) -> int:
        """Threads that decode, at least one; may be set between epochs."""
        return self._num_workers

    @num_workers.setter
    def num_workers(self, asked: int) -> None:
        self._num_workers = usable_workers(asked)

    @property
    def label_range(self) -> tuple[int, int] | None:
        """The lowest and the highest label; None without labels."""
        return None if self.labels is None else (int(self.labels.min()), int(self.labels.max()))

    def __iter__(self) -> Epoch:
        self.file.check_unchanged()
        with self._begin() as start:
            return self._start(start)

    def batches(self, epoch: int, ids: NDArray[np.int64] | None = None, first: int = 0) -> Batches:
        """The batches of `epoch` from batch `first` on, of the samples `ids`, int64[k] (None: all), see `SampleLoader`.

        They are served from the loader's one ring: a running epoch is ended.
        """
        self.file.check_unchanged()
        start = Position(epoch, first, self._checked(ids))
        self.close()
        return Batches(self._start(start), *self.graph.places(self.file.info))

    def _start(self, start: Position) -> Epoch:
        if self.recompile:
            with ffcv_constructor(self.file):
                Compiler.set_num_threads(self.num_workers)
                self.generate_code()
        order = self._whole_order(start.epoch, start.selection)
        draw_ahead = partial(self.traversal_order.draw_ahead, start.epoch + 1)
        epoch = Epoch(self._decoding, self.ring, start, order, self._waiting, draw_ahead)
        self._epoch = weakref.ref(epoch)
        return epoch

    def filter(self, field_name: str, condition: Any) -> Loader:
        """Not offered: FFCV's `filter` would build a second loader that ignores the selection."""
        raise NotImplementedError("PrunedLoader has no filter: pass the positions to set_selection")

    @property
    def ring(self) -> Ring:
        """The buffers and their workers, made at the first epoch, and anew where their size or number was set since.

        The compiled code takes the size from the buffers, so that nothing is compiled.
        """
        ring = self._ring
        decoding = self._decoding
        if ring is None or (ring.size, ring.process) != (Ring.size_of(decoding), os.getpid()):
            # Whatever mode the consumer is in: the loader's thread writes into the buffers outside inference mode.
            with torch.inference_mode(False):
                ring = self._ring = Ring(decoding)
        return ring

    @property
    def _decoding(self) -> Decoding:
        own = (self.batch_size, self.batches_ahead, self.num_workers, self.read_ahead, self.seed, self.with_ids)
        return Decoding(self.file, self.graph, self.code, *own)

    @property
    def wait_seconds(self) -> float:
        """Total time the consumer has waited for batches."""
        return self._waiting.seconds
