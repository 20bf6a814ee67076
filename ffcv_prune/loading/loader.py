"""An FFCV loader whose samples can be exchanged between epochs. All contact with FFCV's internals is in this folder."""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping
from typing import Any

import ffcv_prune.ffcv_import  # noqa: F401 - before FFCV  # isort: skip
import numpy as np
import torch
from ffcv.fields.base import Field
from ffcv.loader import Loader, OrderOption
from ffcv.pipeline.compiler import Compiler
from numpy.typing import ArrayLike, NDArray

from ffcv_prune.errors import UserError
from ffcv_prune.loading.arguments import (
    Pipeline,
    check_custom_fields,
    check_flags,
    copied_pipelines,
    file_path,
    positions,
    rank_and_world_size,
    refuse_unsupported,
    shuffles,
    usable_workers,
    whole,
)
from ffcv_prune.loading.epoch import Batches, Epoch, Waiting
from ffcv_prune.loading.open_file import ffcv_constructor, open_file
from ffcv_prune.loading.order import PrunedOrder
from ffcv_prune.loading.ring import Decoding, Ring


class PrunedLoader(Loader):
    """An FFCV `Loader` that serves a selection of its samples, exchanged in place between epochs.

    Its arguments up to `order_kwargs` are FFCV's, in FFCV's order. What differs, or is added:

    Args:
        fname: path of a `.beton` file; it is checked before native code reads it.
        batch_size: samples a batch, on each rank.
        num_workers: threads that decode; -1 for all cores this process may use.
        os_cache: True; FFCV's cache in the process is not built.
        order: `OrderOption.SEQUENTIAL`, which None means too, or `OrderOption.RANDOM`.
        distributed: shard over the ranks of `torch.distributed`, by the rule that `PrunedOrder` states.
        seed: of the order and of the keyed augmentations (`ffcv_prune.loading.augment`).
        indices: whole numbers, the positions that are served until `set_selection`, and those that None selects there.
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
        UserError: a missing or damaged file, more workers than cores, an invalid selection.
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
        ranks = rank_and_world_size(distributed)
        if seed is None and distributed:
            seed = 0  # as in FFCV: all ranks need the same one
        self.file = open_file(self.path, check_custom_fields(custom_fields))
        info = self.file.info
        self.num_samples = info.num_samples
        self.labels: NDArray[np.int64] | None = info.labels
        self.with_ids = with_ids
        self.read_ahead = read_ahead
        self.first_batch = 0
        self._waiting = Waiting()
        self._after_resumed: list[NDArray[np.int64] | None] = []  # at most one selection, see load_state_dict
        self._epoch: weakref.ref[Epoch] | None = None
        self._ring: Ring | None = None
        served = positions(indices, self.num_samples)
        with ffcv_constructor(self.file):
            super().__init__(
                str(self.path),
                whole("batch_size", batch_size, 1),
                num_workers=usable_workers(num_workers),
                seed=None if seed is None else whole("seed", seed, 0),
                indices=np.empty(0, dtype=np.int64),  # in place of all positions, which nothing of ours reads
                pipelines=copied_pipelines(pipelines, info),
                drop_last=drop_last,
                distributed=False,  # FFCV's own sharding pads the selection; PrunedOrder shards
                batches_ahead=whole("batches_ahead", batches_ahead, 1),
                recompile=recompile,
            )
        self.distributed = distributed
        self.traversal_order = PrunedOrder(self, self.num_samples, shuffle, drop_last, *ranks, indices=served)
        self._check_length(self.traversal_order.num_selected)

    def set_selection(self, ids: ArrayLike | None) -> None:
        """Serve only these samples from the next epoch on. A running epoch goes on unchanged.

        Args:
            ids: int64[k] dataset positions in any order, or None for all samples (or `indices`). They are copied.

        Raises:
            UserError: wrong dtype or shape, out of range, negative or duplicate ids, or so few that
                `drop_last` would leave no batch. The selection stays as it was.
        """
        self.traversal_order.select(self._checked(ids))
        self._after_resumed.clear()

    @property
    def label_range(self) -> tuple[int, int] | None:
        """The lowest and the highest label; None without labels."""
        return None if self.labels is None else (int(self.labels.min()), int(self.labels.max()))

    @property
    def rank(self) -> int:
        """Number of this rank among them; 0 unless distributed."""
        return self.traversal_order.rank

    @property
    def shuffle(self) -> bool:
        """True if each epoch has a permutation of its own."""
        return self.traversal_order.shuffle

    @property
    def world_size(self) -> int:
        """Number of ranks that share the selection; 1 unless distributed."""
        return self.traversal_order.world_size

    @property
    def selection(self) -> NDArray[np.int64]:
        """int64[k], sorted, read-only: the selected dataset positions."""
        view = self.traversal_order.selection.view()
        view.flags.writeable = False
        return view

    def set_epoch(self, epoch: int, first_batch: int = 0) -> None:
        """Make the next `iter()` start epoch `epoch` at batch `first_batch` (not 0 when resuming)."""
        self.next_epoch = epoch
        self.first_batch = first_batch
        while self._after_resumed:
            self.traversal_order.select(self._after_resumed.pop())

    def __len__(self) -> int:
        """Batches of the next epoch."""
        return max(0, self.num_batches(self.traversal_order.num_selected) - self.first_batch)

    def num_batches(self, samples: int) -> int:
        """Batches that this rank's epoch has of so many selected samples."""
        served = self.traversal_order.num_served(samples)
        return served // self.batch_size if self.drop_last else -(-served // self.batch_size)

    def __iter__(self) -> Epoch:
        self.file.check_unchanged()
        epoch, first, ids = self.next_epoch, self.first_batch, self.traversal_order.ids
        self.close()
        self.set_epoch(epoch + 1)
        return self._start(epoch, ids, first)

    def batches(self, epoch: int, ids: NDArray[np.int64] | None = None, first: int = 0) -> Batches:
        """The batches of `epoch` from batch `first` on, of the samples `ids`, int64[k] (None: all), see `SampleLoader`.

        They are served from the loader's one ring: a running epoch is ended.
        """
        self.file.check_unchanged()
        checked = self._checked(ids)
        self.close()
        return Batches(self._start(epoch, checked, first), *self.graph.places(self.file.info))

    def _start(self, epoch: int, ids: NDArray[np.int64] | None, first: int) -> Epoch:
        if self.recompile:
            with ffcv_constructor(self.file):
                Compiler.set_num_threads(self.num_workers)
                self.generate_code()
        order = self.traversal_order.order_of(epoch, ids)
        if self.drop_last:
            order = order[: len(order) // self.batch_size * self.batch_size]
        iterator = Epoch(self._decoding, self.ring, epoch, order, first, ids, self._waiting)
        self._epoch = weakref.ref(iterator)
        return iterator

    def close(self) -> None:
        """End the thread of a running epoch, if there is one."""
        running = self._running_epoch()
        if running is not None:
            running.close()

    def state_dict(self) -> dict[str, Any]:
        """The position, (epoch, batch) of a running epoch or the start of the next one; its selection; and the next.

        The two selections differ if the selection was exchanged while the epoch was running.
        """
        running, current = self._running_epoch(), self.traversal_order.ids
        after = self._after_resumed[0] if self._after_resumed else current
        epoch, batch, selection = self.next_epoch, self.first_batch, current
        if running is not None:
            epoch, batch, selection = running.epoch, running.served, running.selection
        return self._settings() | {
            "epoch": epoch,
            "batch": batch,
            "selection": None if selection is None else torch.from_numpy(selection.copy()),
            "next_selection": None if after is None else torch.from_numpy(after.copy()),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up position and selections of `state`; a running epoch is ended.

        Raises UserError, and changes nothing, for a state of other data, seed, batch size over all ranks,
        shuffle or drop_last: its position would mean other samples.
        """
        for key, own in self._settings().items():
            if state.get(key) != own:
                raise UserError(f"the loader's state has {key} {state.get(key)}, but {self.path} is loaded with {own}")
        stored = (state["selection"], state["next_selection"])
        now, after = (self._checked(None if ids is None else ids.numpy()) for ids in stored)
        self.close()
        self.set_epoch(state["epoch"], state["batch"])
        self.traversal_order.select(now)
        self._after_resumed = [after]

    def _settings(self) -> dict[str, Any]:
        """What a position depends on."""
        return self.traversal_order.settings() | {"batch_size": self.batch_size * self.world_size}

    def filter(self, field_name: str, condition: Any) -> Loader:
        """Not offered: FFCV's `filter` would build a second loader that ignores the selection."""
        raise NotImplementedError("PrunedLoader has no filter: pass the positions to set_selection")

    def next_traversal_order(self) -> NDArray[np.int64]:
        """int64[m]: the ids of the next epoch."""
        return self.traversal_order.sample_order(self.next_epoch)

    @property
    def ring(self) -> Ring:
        """The buffers, allocated at the first epoch, and anew where a decoder's `output_size` was set since.

        The compiled code takes the size from the buffers, so that nothing is compiled.
        """
        if self._ring is None or self._ring.output_sizes != self.graph.output_sizes:
            # Whatever mode the consumer is in: the loader's thread writes into the buffers outside inference mode.
            with torch.inference_mode(False):
                self._ring = Ring(self._decoding)
        return self._ring

    @property
    def _decoding(self) -> Decoding:
        own = (self.batch_size, self.batches_ahead, self.num_workers, self.read_ahead, self.seed, self.with_ids)
        return Decoding(self.file, self.graph, self.code, *own)

    @property
    def wait_seconds(self) -> float:
        """Total time the consumer has waited for batches."""
        return self._waiting.seconds

    def _running_epoch(self) -> Epoch | None:
        epoch = self._epoch() if self._epoch is not None else None
        return epoch if epoch is not None and epoch.running else None

    def _checked(self, ids: ArrayLike | None) -> NDArray[np.int64] | None:
        """A selection as `PrunedOrder` takes it. UserError for one that cannot be served."""
        checked = None if ids is None else self.traversal_order.checked(ids)
        self._check_length(self.traversal_order.count(checked))
        return checked

    def _check_length(self, samples: int) -> None:
        ranks = self.traversal_order.world_size
        if self.drop_last and samples // ranks < self.batch_size:
            raise UserError(
                f"{samples} samples{f' over {ranks} ranks' if ranks > 1 else ''} do not fill one batch of "
                f"{self.batch_size}: use a smaller batch_size, a larger keep, or drop_last=False"
            )
