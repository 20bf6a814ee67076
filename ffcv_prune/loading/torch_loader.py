"""Any map-style torch data set behind the façade of `PrunedLoader`, on the public parts of torch's `DataLoader`.

A `DataLoader` asks its sampler what to fetch, when an epoch begins. Ours answers with the batches of that epoch's
selection; the workers stay. The positions travel through the workers with the samples: a consumer that reads ahead
still gets those of the batch that it holds.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from ffcv_prune.errors import UserError, nearest, wrong_kind
from ffcv_prune.extras import require
from ffcv_prune.loading.order import PrunedOrder
from ffcv_prune.loading.selectable import Position, SelectableLoader, ranks_that_share, whole
from ffcv_prune.loading.torch_fetch import (
    Fetcher,
    Requests,
    are_classes,
    as_it_is,
    length_of,
    order_of_loader,
    stated_labels,
)
from ffcv_prune.protocols import Batch

Kind = TypeVar("Kind", bound="TorchEpoch")
OPTIONS = (
    "pin_memory",
    "timeout",
    "worker_init_fn",
    "multiprocessing_context",
    "prefetch_factor",
    "persistent_workers",
)
WORKERS = min(8, len(os.sched_getaffinity(0)))
OF_WORKERS = ("timeout", "multiprocessing_context", "prefetch_factor", "persistent_workers")
REFUSED = {
    "sampler": "the loader has an order of its own: leave it out, and use set_selection",
    "batch_sampler": "the loader has an order of its own: leave it out, and use set_selection",
    "generator": "the order and the augmentations are drawn from the seed: pass seed",
    "in_order": "batches come in the order of the epoch: leave it out",
}


class TorchLoader(SelectableLoader):
    """A torch `DataLoader` that serves a selection of its samples, exchanged between epochs.

    The same seed gives the same order as a `PrunedLoader` has, on any number of workers. It gives the same
    augmentations too, if they draw from `torch`, `random` or `numpy.random`: these are seeded for each batch from
    (seed, epoch, rank, batch). A generator that the data set keeps for itself is beyond the loader.

    Args:
        dataset: has `__len__` and `__getitem__`, as torch's map-style data sets have. Its `targets`, one integer for
            each sample, are the classes. Without `targets`, `class_fraction` is empty in the log and in trackers, and
            a `Pruner` does not warn of starved classes.
        batch_size: samples a batch, on each rank.
        num_workers: processes that fetch; 0: this one. The default is one for each core, and 8 at most.
        seed: of the order and the augmentations.
        shuffle: a new permutation each epoch, or the order of the data set.
        drop_last: leave out the last batch when it is not whole.
        with_ids: add the int64[B] dataset positions of each batch as last output; of a mapping, as its "ids".
        distributed: shard over the ranks of `torch.distributed`, by the rule that `PrunedOrder` states.
        collate_fn: makes a batch of a list of samples, as torch's does: first the inputs, then the targets. It must
            keep each sample.
        options: of `torch.utils.data.DataLoader`: pin_memory, timeout, worker_init_fn, multiprocessing_context,
            prefetch_factor, persistent_workers (True where there are workers).

    Attributes:
        num_samples: n = len(dataset).
        seed: may be set between epochs.
        next_epoch: number of the epoch that the next `iter()` starts.
        first_batch: the batch it starts with, not 0 when resuming in the middle of an epoch.

    Raises:
        UserError: a data set without length or positions, an option that contradicts the loader's own order.
    """

    sampler = batch_sampler = None  # where training scripts look for a `set_epoch` of torch's loaders

    def __init__(
        self,
        dataset: Dataset[Any],
        batch_size: int = 128,
        num_workers: int = WORKERS,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = True,
        with_ids: bool = False,
        distributed: bool = False,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        **options: Any,
    ) -> None:
        self.num_samples = length_of(dataset)
        batch_size, num_workers = whole("batch_size", batch_size, 1), whole("num_workers", num_workers, 0)
        seed = whole("seed", seed, 0)
        for option in options:
            if option in REFUSED:
                raise UserError(f"{option}: {REFUSED[option]}")
            if option not in OPTIONS:
                raise UserError(f'TorchLoader has no option "{option}"{nearest(option, OPTIONS)}')
            # What changes nothing may be stated; torch refuses a prefetch_factor of 0, too.
            given = options[option] is not None if option == "prefetch_factor" else options[option]
            if option in OF_WORKERS and given and not num_workers:
                raise UserError(f"{option} needs workers: give num_workers of 1 or more, or leave {option} out")
        self.dataset, self.batch_size, self.seed, self.with_ids = dataset, batch_size, seed, with_ids
        self.collate_fn = collate_fn or default_collate
        self._fetcher = Fetcher(dataset, self.collate_fn)
        self.num_workers = num_workers
        self._options = {"num_workers": num_workers, "persistent_workers": num_workers > 0} | options
        self._loader: DataLoader[Any] | None = None
        self._requests = Requests()
        # A proxy: in a circle, the workers' queues are closed before they are told to end, which takes them 5 s then.
        own = weakref.proxy(self)
        self._select_first(PrunedOrder(own, self.num_samples, shuffle, drop_last, *ranks_that_share(distributed)))

    @classmethod
    def like(cls, loader: DataLoader[Any], **changes: Any) -> TorchLoader:
        """Build one that fetches the samples as a torch `DataLoader` does, but for arguments that are given here.

        The workers stay from epoch to epoch, whatever those of `loader` do.

        Raises:
            UserError: the loader draws from a sampler of the user's own, whose order could not be kept. Or it is a
                loader of a timm that is too old.
        """
        if not isinstance(loader, DataLoader):
            raise wrong_kind("loader", loader, "a torch DataLoader, or a data set to TorchLoader itself")
        if getattr(getattr(loader.worker_init_fn, "func", None), "__module__", "") == "timm.data.loader":
            require("timm")
        arguments = {name: getattr(loader, name) for name in ("batch_size", "num_workers", "collate_fn", "drop_last")}
        without = OF_WORKERS if changes.get("num_workers", loader.num_workers) == 0 else ("persistent_workers",)
        arguments |= {name: getattr(loader, name) for name in OPTIONS if name not in without}
        return cls(loader.dataset, **arguments | order_of_loader(loader) | changes)

    @property
    def name(self) -> str:
        return f"the {type(self.dataset).__name__}"

    @cached_property
    def labels(self) -> NDArray[np.int64] | None:
        """int64[n], the class of each sample; None where the targets are not classes.

        They come from the data set's `targets`, where it has them. Otherwise one pass over all samples reads them, by
        workers of its own: an epoch may be running.
        """
        if self._stated_labels is not None:
            return self._stated_labels
        own = TorchLoader(
            self.dataset,
            self.batch_size,
            seed=self.seed,
            shuffle=False,
            drop_last=False,
            collate_fn=self.collate_fn,
            **self._options,
        )
        labels = np.empty(self.num_samples, np.int64)
        try:
            for batch in own.batches(0):
                if not are_classes(batch.targets):
                    return None
                labels[batch.ids.numpy()] = batch.targets.numpy()
        finally:
            own.end_workers()
        return labels

    @cached_property
    def _stated_labels(self) -> NDArray[np.int64] | None:
        return stated_labels(self.dataset)

    @property
    def label_range(self) -> tuple[int, int] | None:
        """The lowest and the highest label, where the data set states them."""
        labels = self._stated_labels
        return None if labels is None else (int(labels.min()), int(labels.max()))

    def __iter__(self) -> TorchEpoch:
        with self._begin() as start:
            return self._start(TorchEpoch, start, self._whole_order(start.epoch, start.selection))

    def batches(self, epoch: int, ids: NDArray[np.int64] | None = None, first: int = 0) -> TorchBatches:
        """The batches of `epoch` from batch `first` on, of the samples `ids`, int64[k] (None: all), see `SampleLoader`.

        The same workers serve them: a running epoch is ended.
        """
        start = Position(epoch, first, self._checked(ids))
        return self._start(TorchBatches, start, self._whole_order(epoch, start.selection))

    def _start(self, kind: type[Kind], start: Position, order: NDArray[np.int64]) -> Kind:
        self.close()
        if self._loader is None:
            # Each item of the sampler is a whole batch: torch is to collate nothing. Its generator is not the global
            # one, from which each epoch would take a number that a resumed run does not take.
            self._loader = DataLoader(
                self._fetcher,
                batch_size=None,
                sampler=self._requests,
                collate_fn=as_it_is,
                generator=torch.Generator(),
                **self._options,
            )
        self._requests.set(order, self.batch_size, start.served, (self.seed, start.epoch, self.rank))
        try:
            fetched = iter(self._loader)
        except BaseException:
            self.end_workers()  # one of them is dead, say: the next epoch would find it so, too
            raise
        epoch = kind(self, start, fetched)
        self._epoch = weakref.ref(epoch)
        return epoch

    def end_workers(self) -> None:
        """End the running epoch and the workers; the next epoch starts new ones."""
        self.close()
        self._loader = None


class TorchEpoch:
    """Iterator over the batches of one epoch, as the user sees them."""

    def __init__(self, loader: TorchLoader, start: Position, fetched: Iterator[tuple[Tensor, Any]]) -> None:
        self.position = start
        self._loader = loader
        self._fetched: Iterator[tuple[Tensor, Any]] | None = fetched
        self._closed = False

    def __iter__(self) -> TorchEpoch:
        return self

    def __next__(self) -> Any:
        ids, batch = self._next()
        return _with_ids(batch, ids) if self._loader.with_ids else batch

    def _next(self) -> tuple[Tensor, Any]:
        """(ids int64[B], what the collate function made): the next batch."""
        if self._closed:
            raise RuntimeError("this epoch was closed, by close() or by the beginning of a newer one")
        if self._fetched is None:
            raise StopIteration
        try:
            ids, batch = next(self._fetched)
        except StopIteration:
            self._fetched = None
            self.position.ended = True
            raise
        except BaseException as error:
            self._loader.end_workers()  # what they are still to deliver belongs to no epoch any more
            if self._loader.num_workers:
                # The message has the worker's traceback. Torch's own frames hold its queues, in a circle.
                raise error.with_traceback(None)  # noqa: B904 - the same error
            raise
        _check_rows(batch, len(ids))
        self.position.served += 1
        return ids, tuple(batch) if type(batch) is list else batch

    @property
    def running(self) -> bool:
        """True until the last batch was asked for, an error was raised, or the epoch was closed."""
        return self._fetched is not None

    def close(self) -> None:
        """End the epoch; what its workers have fetched already is dropped."""
        self._closed = self._closed or self.running
        self._fetched = None


class TorchBatches(TorchEpoch):
    """The same, each batch with the ids of its rows and with inputs and targets told apart."""

    def __next__(self) -> Batch:
        ids, batch = self._next()
        outputs = batch if isinstance(batch, tuple) else (batch,)
        inputs, targets = (*outputs, None)[:2]
        if self._loader.with_ids:
            served = _with_ids(batch, ids)
            outputs = served if isinstance(served, tuple) else (served,)
        return Batch(ids, inputs, targets, outputs)


def _with_ids(batch: Any, ids: Tensor) -> Any:
    if not isinstance(batch, Mapping):
        return (*batch, ids) if isinstance(batch, tuple) else (batch, ids)
    if "ids" in batch:
        raise UserError('the batches have an entry "ids" of their own: rename it, or leave out with_ids')
    return {**batch, "ids": ids}


def _check_rows(batch: Any, samples: int) -> None:
    """UserError if a batch whose first part is a tensor cannot have a row for each sample.

    One part that has them is enough: another may be a sequence of steps, or concatenated. Where no part is a plain row
    of numbers, the steps may come first in all of them, and the samples second.
    """
    parts = batch if isinstance(batch, tuple | list) else [batch]
    if isinstance(batch, Mapping):
        parts = list(batch.values())
    if not parts or not isinstance(parts[0], Tensor) or not parts[0].ndim:
        return
    shapes = [part.shape for part in parts if isinstance(part, Tensor) and part.ndim]
    axes = 1 if any(len(shape) == 1 for shape in shapes) else 2
    if not any(samples in shape[:axes] for shape in shapes):
        raise UserError(f"collate_fn made {len(parts[0])} rows of {samples} samples: it must keep each, in their order")
