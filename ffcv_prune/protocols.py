"""The types at the seams between the rooms: no code of its own runs here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch of a loader, B samples.

    Attributes:
        ids: int64[B], the dataset positions of its rows, on the CPU; pinned where the loader delivers to a CUDA device.
        inputs: what the model takes.
        targets: what the task compares the model's outputs with; None where the data have none.
        outputs: all that the loader delivers, in the order its user sees; `inputs` and `targets` are among them.
    """

    ids: Tensor
    inputs: Any
    targets: Any
    outputs: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """What a training step knows of its batch of B samples, between the forward and the backward pass.

    Attributes:
        ids: int64[B], the dataset positions, on the CPU.
        inputs, targets: as the loader delivered them: views, clone what outlives the step.
        outputs: what the model returned, with its graph.
        losses: float32[B], of each sample, with its graph.
    """

    ids: Tensor
    inputs: Any
    targets: Any
    outputs: Any
    losses: Tensor


class BatchIterator(Iterator[Batch], Protocol):
    """The batches of one epoch. `close` ends what works ahead for it; it may be called more than once."""

    def close(self) -> None: ...


class SampleLoader(Protocol):
    """What a `Pruner` and a scoring pass ask of a loader: each batch knows its samples.

    Attributes:
        num_samples: n, of the data set.
        batch_size: samples a batch, on each rank.
        seed: of the order and the augmentations.
        with_ids: whether what it serves ends with the int64 positions of the samples.
        labels: int64[n], the class of each sample; None where there are no classes. May cost a pass over the data.
        label_range: the lowest and the highest of them; None where they are not known without such a pass.
        rank, world_size: of the ranks that share an epoch; 0 and 1 in a process of its own.
        shuffle, drop_last: as given to the constructor.
        next_epoch: the epoch that the next `iter()` starts.
        first_batch: the batch it starts with, not 0 when resuming in the middle of an epoch.
        selection: int64[k], sorted, read-only: the samples of the next epoch.
        serves_all: whether a selection may hold every sample: nothing is left out for good.
        on_epoch: a weak reference to what is to be called with the number of each epoch that `iter()` starts, or None.
    """

    num_samples: int
    batch_size: int
    seed: int
    with_ids: bool
    next_epoch: int
    first_batch: int
    on_epoch: Callable[[], Callable[[int], None] | None] | None

    @property
    def labels(self) -> NDArray[np.int64] | None: ...
    @property
    def label_range(self) -> tuple[int, int] | None: ...
    @property
    def rank(self) -> int: ...
    @property
    def world_size(self) -> int: ...
    @property
    def shuffle(self) -> bool: ...
    @property
    def drop_last(self) -> bool: ...
    @property
    def selection(self) -> NDArray[np.int64]: ...
    @property
    def serves_all(self) -> bool: ...

    def batches(self, epoch: int, ids: NDArray[np.int64] | None = None, first: int = 0) -> BatchIterator:
        """The batches of `epoch` from batch `first` on, of the samples `ids` (int64[k], sorted; None: all).

        The result depends only on the arguments and on the loader's constructor. The call neither reads nor changes
        the selection, the next epoch or the first batch. Rank r of w serves every w-th id of the epoch's order, from
        the r-th on.
        """
        ...

    def num_batches(self, samples: int) -> int:
        """How many batches of this rank an epoch of so many samples has."""
        ...

    def set_selection(self, ids: ArrayLike | None) -> None: ...
    def set_epoch(self, epoch: int, first_batch: int = 0) -> None: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Any]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...
