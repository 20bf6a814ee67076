"""An FFCV loader whose samples can be exchanged between epochs. All contact with FFCV's internals is in this folder."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import ffcv_prune.ffcv_import  # noqa: F401 - before FFCV  # isort: skip
import numba
import numpy as np
import torch
from ffcv.fields.base import Field
from ffcv.loader import Loader, OrderOption
from ffcv.pipeline import PipelineSpec
from ffcv.pipeline.compiler import Compiler
from ffcv.pipeline.graph import DecoderNode, TransformNode
from ffcv.pipeline.operation import Operation
from numpy.typing import ArrayLike, NDArray

from ffcv_prune.errors import UserError, nearest
from ffcv_prune.loading.epoch import Batches, Epoch, Ring
from ffcv_prune.loading.open_file import ffcv_constructor, open_file
from ffcv_prune.loading.order import PrunedOrder, validate_ids

Pipeline: TypeAlias = Sequence[Any] | PipelineSpec | None
Kind = TypeVar("Kind", bound=Operation)


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
        wait_seconds: total time the consumer has waited for batches.

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
        shuffle = _shuffles(order, shuffle)
        if not os_cache:
            raise UserError(
                "os_cache=False, a cache in the process, is not supported: leave os_cache out, or pass True"
            )
        if order_kwargs:
            raise UserError("order_kwargs belong to a TraversalOrder, which is not supported: use set_selection")
        self.path = Path(fname)
        self.file = open_file(self.path)
        info = self.file.info
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}: it must be at least 1")
        if seed < 0:
            raise UserError(f"seed is {seed}: it must be at least 0")
        self.num_samples = info.num_samples
        self._all = None if indices is None else validate_ids(_whole(indices), self.num_samples)  # what None selects
        self.labels: NDArray[np.int64] | None = info.labels
        self.with_ids = with_ids
        self.read_ahead = read_ahead
        self.wait_seconds = 0.0
        self.first_batch = 0
        self._after_resumed: list[NDArray[np.int64] | None] = []  # at most one selection, see load_state_dict
        self._epoch: weakref.ref[Epoch] | None = None
        self._ring: Ring | None = None
        for name, pipeline in (pipelines or {}).items():
            source = pipeline.source if isinstance(pipeline, PipelineSpec) else name
            if source not in info.fields:
                raise UserError(f'pipelines names "{source}", no field of {self.path}{nearest(source, info.fields)}')
        # FFCV pops the decoder from the list it is given: copy, so that the user's pipelines stay as they are.
        copies = {name: _copied(pipeline) for name, pipeline in (pipelines or {}).items()}
        with ffcv_constructor(self.file):
            super().__init__(
                str(fname),
                batch_size,
                num_workers=_usable_workers(num_workers),
                seed=seed,
                indices=np.empty(0, dtype=np.int64),  # in place of all positions, which nothing of ours reads
                pipelines=copies,
                drop_last=drop_last,
                distributed=False,  # FFCV's own sharding pads the selection; PrunedOrder shards
                batches_ahead=batches_ahead,
                recompile=recompile,
            )
        rank, world_size = _rank_and_world_size() if distributed else (0, 1)
        self.distributed = distributed
        self.traversal_order = PrunedOrder(self, self.num_samples, shuffle, drop_last, rank, world_size)
        self.traversal_order.select(self._all)
        self._check_length(self.traversal_order.num_selected)

    def set_selection(self, ids: ArrayLike | None) -> None:
        """Serve only these samples from the next epoch on. A running epoch goes on unchanged.

        Args:
            ids: int64[k] dataset positions in any order, or None for all samples (or `indices`). They are copied.

        Raises:
            UserError: wrong dtype or shape, out of range, negative or duplicate ids, or so few that
                `drop_last` would leave no batch. The selection stays as it was.
        """
        checked = self._all if ids is None else validate_ids(ids, self.num_samples)
        self._check_length(self.num_samples if checked is None else len(checked))
        self.traversal_order.select(checked)
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
        checked = None if ids is None else validate_ids(ids, self.num_samples)
        self._check_length(self.num_samples if checked is None else len(checked))
        self.close()
        return Batches(self._start(epoch, checked, first), *self._places)

    def _start(self, epoch: int, ids: NDArray[np.int64] | None, first: int) -> Epoch:
        if self.recompile:
            with ffcv_constructor(self.file):
                Compiler.set_num_threads(self.num_workers)
                self.generate_code()
        order = self.traversal_order.order_of(epoch, ids)
        if self.drop_last:
            order = order[: len(order) // self.batch_size * self.batch_size]
        iterator = Epoch(self, epoch, order, first, ids)
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
            if state[key] != own:
                raise UserError(f"the loader's state has {key} {state[key]}, but {self.path} is loaded with {own}")
        stored = (state["selection"], state["next_selection"])
        now, after = (None if ids is None else validate_ids(ids.numpy(), self.num_samples) for ids in stored)
        for ids in (now, after):
            self._check_length(self.num_samples if ids is None else len(ids))
        self.close()
        self.set_epoch(state["epoch"], state["batch"])
        self.traversal_order.select(now)
        self._after_resumed = [after]

    def _settings(self) -> dict[str, Any]:
        """What a position depends on."""
        order = self.traversal_order
        return {
            "num_samples": self.num_samples,
            "seed": self.seed,
            "batch_size": self.batch_size * order.world_size,
            "shuffle": order.shuffle,
            "drop_last": order.drop_last,
        }

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
        if self._ring is None or self._ring.output_sizes != self.output_sizes:
            # Whatever mode the consumer is in: the loader's thread writes into the buffers outside inference mode.
            with torch.inference_mode(False):
                self._ring = Ring(self)
        return self._ring

    @property
    def output_sizes(self) -> tuple[tuple[int, int] | None, ...]:
        """What each operation's `output_size` is now; None for one that has none."""
        sizes = (getattr(operation, "output_size", None) for _, operation in self._operations())
        return tuple(None if size is None else tuple(size) for size in sizes)

    @property
    def cuda_device(self) -> torch.device | None:
        """The CUDA device that the pipelines deliver to, None if they stay on the CPU."""
        for _, operation in self._operations():
            device = getattr(operation, "device", None)
            if device is not None and torch.device(device).type == "cuda":
                device = torch.device(device)
                return torch.device("cuda", torch.cuda.current_device()) if device.index is None else device
        return None

    def operations_of(self, kind: type[Kind]) -> Iterator[tuple[int, Kind]]:
        """The operations of a kind, with their nodes in FFCV's graph."""
        return ((node, op) for node, op in self._operations() if isinstance(op, kind))

    @property
    def _places(self) -> tuple[int | None, int | None]:
        """Which of the outputs are images and labels; for another file the first one, and the next after it."""
        sources = [spec.source for spec in self.pipeline_specs.values()]
        info = self.file.info
        inputs = sources.index(info.image_field) if info.image_field in sources else 0
        if info.label_field in sources:
            return inputs, sources.index(info.label_field)
        return inputs, next((place for place in range(len(sources)) if place != inputs), None)

    @property
    def decoded_fields(self) -> list[str]:
        """Names of the file's fields that the pipelines read."""
        return [node.field_name for node in self.graph.nodes if isinstance(node, DecoderNode)]

    def _operations(self) -> Iterator[tuple[int, Operation]]:
        for node in self.graph.nodes:
            if isinstance(node, DecoderNode):
                yield node.id, node.decoder
            elif isinstance(node, TransformNode):
                yield node.id, node.operation

    def _running_epoch(self) -> Epoch | None:
        epoch = self._epoch() if self._epoch is not None else None
        return epoch if epoch is not None and epoch.running else None

    def _check_length(self, samples: int) -> None:
        ranks = self.traversal_order.world_size
        if self.drop_last and samples // ranks < self.batch_size:
            raise UserError(
                f"{samples} samples{f' over {ranks} ranks' if ranks > 1 else ''} do not fill one batch of "
                f"{self.batch_size}: use a smaller batch_size, a larger keep, or drop_last=False"
            )


def _shuffles(order: Any, shuffle: bool | None) -> bool:
    if order is None:
        return bool(shuffle)
    if order is not OrderOption.RANDOM and order is not OrderOption.SEQUENTIAL:
        name = order if isinstance(order, OrderOption) else getattr(order, "__name__", repr(order))
        raise UserError(
            f"order {name} is not supported: use OrderOption.RANDOM, OrderOption.SEQUENTIAL or set_selection"
        )
    if shuffle not in (None, order is OrderOption.RANDOM):
        raise UserError(f"shuffle={shuffle} contradicts order={order}: pass one of them")
    return order is OrderOption.RANDOM


def _whole(indices: ArrayLike) -> ArrayLike:
    """As int64 where FFCV takes any integers."""
    array = np.asarray(indices)
    return array.astype(np.int64) if array.dtype.kind in "iu" else array


def _copied(pipeline: Pipeline) -> Pipeline:
    if isinstance(pipeline, PipelineSpec):
        return PipelineSpec(pipeline.source, pipeline.decoder, list(pipeline.transforms))
    return None if pipeline is None else list(pipeline)


def usable_cores() -> int:
    """Cores that this process may use, for its loader's threads too."""
    return min(len(os.sched_getaffinity(0)), numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]


def _usable_workers(num_workers: int) -> int:
    cores = usable_cores()
    if num_workers > cores:
        raise UserError(
            f"num_workers is {num_workers}, but this process may use {cores} cores: pass -1 for all of them"
        )
    return num_workers if num_workers > 0 else cores


def _rank_and_world_size() -> tuple[int, int]:
    if not torch.distributed.is_initialized():
        raise UserError("distributed=True needs torch.distributed.init_process_group first: start with torchrun")
    return torch.distributed.get_rank(), torch.distributed.get_world_size()
