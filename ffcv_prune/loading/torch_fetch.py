"""What torch's workers run for a `TorchLoader`, and what a data set says of itself."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, SequentialSampler, Subset
from torch.utils.data.distributed import DistributedSampler

from ffcv_prune.errors import UserError


class Request(NamedTuple):
    """A batch to fetch: its dataset positions, int64[B], and what its augmentations are drawn from."""

    ids: NDArray[np.int64]
    entropy: tuple[int, ...]


class Requests:
    """The sampler of torch's loader: says what to fetch in the epoch that begins."""

    def __init__(self) -> None:
        self._next: Iterator[Request] = iter(())

    def set(self, order: NDArray[np.int64], batch_size: int, first: int, entropy: tuple[int, ...]) -> None:
        """Of the order, from batch `first` on."""
        starts = range(first * batch_size, len(order), batch_size)
        self._next = (Request(order[start : start + batch_size], (*entropy, start // batch_size)) for start in starts)

    def __iter__(self) -> Iterator[Request]:
        return self._next


class Fetcher(Dataset[tuple[Tensor, Any]]):
    """The data set by batches, each with its ids. Runs in the workers."""

    def __init__(self, dataset: Dataset[Any], collate: Callable[[list[Any]], Any]) -> None:
        self.dataset, self.collate = dataset, collate

    def __getitem__(self, request: Request) -> tuple[Tensor, Any]:
        ids = request.ids.tolist()
        fetch = getattr(self.dataset, "__getitems__", None)  # as torch's own fetcher does
        with _drawing_from(request.entropy):
            batch = self.collate(fetch(ids) if fetch else [self.dataset[i] for i in ids])
        return torch.from_numpy(request.ids.copy()), batch


@contextmanager
def _drawing_from(entropy: tuple[int, ...]) -> Iterator[None]:
    """Seed the global generators, and restore them: without workers, they are those of the training.

    Nor is what the data set keeps to bear the mark of a scoring pass, inference mode or autocast.
    """
    words = np.random.SeedSequence(entropy).generate_state(4)
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002 - the user's may use it
    seed = int(words.view(np.uint64)[0])
    random.seed(seed)
    np.random.seed(words)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)
    try:
        with torch.inference_mode(False), torch.autocast("cpu", enabled=False):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])


def as_it_is(batch: Any) -> Any:
    return batch


def order_of_loader(loader: DataLoader[Any]) -> dict[str, Any]:
    """How torch's loader orders the samples, as arguments of a `TorchLoader`."""
    sampler: Any = loader.sampler
    kind = type(sampler)
    if loader.batch_sampler is None:
        raise UserError("the DataLoader makes no batches: give it a batch_size")
    if loader.batch_size is None:  # a batch sampler of the user's own
        kind = type(loader.batch_sampler)
    n = length_of(loader.dataset)  # a sampler of fewer leaves samples out
    if kind is DistributedSampler and len(sampler.dataset) == n:
        return {"shuffle": sampler.shuffle, "distributed": True}
    if kind is SequentialSampler and len(sampler.data_source) == n:
        return {"shuffle": False}
    if kind is RandomSampler and not sampler.replacement and sampler.num_samples == len(sampler.data_source) == n:
        return {"shuffle": True}
    raise UserError(
        f"the DataLoader draws from a {kind.__name__}, and a TorchLoader has an order of its own: build it without"
    )


def length_of(dataset: Any) -> int:
    kind = type(dataset).__name__
    if isinstance(dataset, str | os.PathLike):
        raise UserError(f"{dataset} is a path: TorchLoader takes a data set, PrunedLoader the path of a .beton")
    if isinstance(dataset, DataLoader):
        raise UserError("this is a DataLoader, which has a data set and an order: use TorchLoader.like(loader)")
    if isinstance(dataset, IterableDataset):
        raise UserError(
            f"{kind} is iterable, and serves no sample by its position: read it into a map-style data set, "
            "or write it to a .beton"
        )
    if not hasattr(dataset, "__getitem__"):
        raise UserError(f"{kind} has no __getitem__: pass a map-style data set, which serves a sample by its position")
    try:
        length = len(dataset)
    except (TypeError, NotImplementedError):
        raise UserError(f"{kind} has no length: give it __len__, the number of its samples") from None
    if length < 1:
        raise UserError(f"{kind} is empty: pass one with samples")
    return length


def stated_labels(dataset: Any) -> NDArray[np.int64] | None:
    """int64[n]: the classes that the data set states; None if it does not, or serves others."""
    if isinstance(dataset, Subset):
        labels = stated_labels(dataset.dataset)
        return None if labels is None else labels[np.asarray(dataset.indices)]
    if getattr(dataset, "target_transform", None) is not None:
        return None
    targets = getattr(dataset, "targets", ())
    try:
        targets = np.asarray(targets.cpu() if isinstance(targets, Tensor) else targets)
    except (ValueError, TypeError, RuntimeError):  # lists of different lengths, tensors of which numpy makes no array
        return None
    are_classes = targets.ndim == 1 and targets.dtype.kind in "iu" and len(targets) == len(dataset)
    return targets.astype(np.int64) if are_classes else None


def are_classes(targets: Any) -> bool:
    return isinstance(targets, Tensor) and targets.dtype == torch.int64 and targets.ndim == 1
