"""What every loader has in common: which samples its next epoch serves, from which batch on, and how that is saved."""

from __future__ import annotations

import operator
import reprlib
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ffcv_prune.errors import UserError
from ffcv_prune.loading.order import PrunedOrder


@dataclass(eq=False)
class Position:
    """Where an epoch is. Its iterator counts on; the loader holds it too, because an iterator may go before its end.

    Attributes:
        epoch: its number.
        served: its batches that were served, or skipped at the start.
        selection: int64[k], sorted; None: all.
        ended: True once a batch was asked for after the last one.
    """

    epoch: int
    served: int
    selection: NDArray[np.int64] | None
    ended: bool = False


class RunningEpoch(Protocol):
    """What a loader asks of the iterator that serves its epoch."""

    position: Position

    @property
    def running(self) -> bool: ...

    def close(self) -> None: ...


class SelectableLoader(ABC):
    """A loader whose samples can be exchanged between epochs.

    Attributes:
        num_samples: n, of the data set.
        batch_size: samples a batch, on each rank.
        seed: of the order; may be set between epochs.
        drop_last: True if a last batch that is not whole is left out.
        next_epoch: number of the epoch that the next `iter()` starts.
        first_batch: the batch it starts with, not 0 when resuming in the middle of an epoch.
        on_epoch: a weak reference to what is called with the number of each epoch that `iter()` starts, or None.
    """

    num_samples: int
    batch_size: int
    seed: int
    drop_last: bool
    next_epoch: int
    first_batch: int
    traversal_order: PrunedOrder
    on_epoch: Callable[[], Callable[[int], None] | None] | None = None
    _epoch: weakref.ref[RunningEpoch] | None = None
    _position: Position | None = None  # of the last epoch that `iter()` started, unless something was set since
    _superseded: bool = False  # by `set_epoch` while that epoch runs: its position counts as long as it does
    _after_resumed: list[NDArray[np.int64] | None]  # at most one selection, see load_state_dict

    def _select_first(self, order: PrunedOrder) -> None:
        """To be called once, by the constructor."""
        self.next_epoch = self.first_batch = 0
        self.traversal_order, self.drop_last, self._after_resumed = order, order.drop_last, []
        self._check_length(order.num_selected)

    @property
    @abstractmethod
    def name(self) -> str:
        """What messages call the data set."""

    def close(self) -> None:
        """End a running epoch, if there is one. A `TorchLoader` keeps its workers, if they are persistent."""
        running = self._running()
        if running is not None:
            running.close()

    def _running(self) -> RunningEpoch | None:
        epoch = None if self._epoch is None else self._epoch()
        return epoch if epoch is not None and epoch.running else None

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
        self._forget_left()

    @property
    def rank(self) -> int:
        """Number of this rank among them; 0 unless distributed."""
        return self.traversal_order.rank

    @property
    def world_size(self) -> int:
        """Number of ranks that share the selection; 1 unless distributed."""
        return self.traversal_order.world_size

    @property
    def serves_all(self) -> bool:
        """False if `indices` leave samples of the data set out."""
        indices = self.traversal_order.indices
        return indices is None or len(indices) == self.num_samples

    @property
    def shuffle(self) -> bool:
        """True if each epoch has a permutation of its own."""
        return self.traversal_order.shuffle

    @property
    def selection(self) -> NDArray[np.int64]:
        """int64[k], sorted, read-only: the selected dataset positions."""
        view = self.traversal_order.selection.view()
        view.flags.writeable = False
        return view

    def set_epoch(self, epoch: int, first_batch: int = 0) -> None:
        """Make the next `iter()` start epoch `epoch` at batch `first_batch` (not 0 when resuming).

        Raises UserError, and changes nothing, if one of them is no whole number or below 0.
        """
        epoch, first_batch = whole("epoch", epoch, 0), whole("first_batch", first_batch, 0)
        self.next_epoch = epoch
        self.first_batch = first_batch
        while self._after_resumed:
            self.traversal_order.select(self._after_resumed.pop())
        self._superseded = True
        self._forget_left()

    def _forget_left(self) -> None:
        """No state is to lead back into an epoch that was left before its end."""
        running = self._running()
        if running is None or running.position is not self._position:
            self._position = None

    def __len__(self) -> int:
        """Batches of the next epoch."""
        return max(0, self.num_batches(self.traversal_order.num_selected) - self.first_batch)

    def num_batches(self, samples: int) -> int:
        """Batches that this rank's epoch has of so many selected samples."""
        served = self.traversal_order.num_served(samples)
        return served // self.batch_size if self.drop_last else -(-served // self.batch_size)

    def next_traversal_order(self) -> NDArray[np.int64]:
        """int64[m]: the ids of the next epoch, of this rank."""
        return self.traversal_order.sample_order(self.next_epoch)

    @contextmanager
    def _begin(self) -> Iterator[Position]:
        """Close the running epoch, go on to the next one, and say where that starts. If it fails to, go back to it."""
        start = Position(self.next_epoch, self.first_batch, self.traversal_order.ids)
        follower = None if self.on_epoch is None else self.on_epoch()
        if follower is not None:
            follower(start.epoch)
        self.close()
        self.set_epoch(start.epoch + 1)
        self._position, self._superseded = start, False
        try:
            yield start
        except BaseException:
            self._go_to(start, self.traversal_order.ids)  # who tries again gets this epoch
            raise

    def _go_to(self, start: Position, after: NDArray[np.int64] | None) -> None:
        """Make the next `iter()` start there, and the epoch after it serve the selection `after`."""
        self.set_epoch(start.epoch, start.served)
        self.traversal_order.select(start.selection)
        self._after_resumed = [after]

    def _checked(self, ids: ArrayLike | None) -> NDArray[np.int64] | None:
        """A selection, sorted and validated."""
        checked = None if ids is None else self.traversal_order.checked(ids)
        self._check_length(self.traversal_order.count(checked))
        return checked

    def _whole_order(self, epoch: int, ids: NDArray[np.int64] | None) -> NDArray[np.int64]:
        """int64[m]: what this rank serves, without a last batch that is dropped."""
        order = self.traversal_order.order_of(epoch, ids)
        return order[: len(order) // self.batch_size * self.batch_size] if self.drop_last else order

    def state_dict(self) -> dict[str, Any]:
        """The position, (epoch, batch); its selection; and the next one.

        It is that of a running epoch, or of one that was left before its end; else it is the start of the next epoch.
        An epoch that was left is forgotten by `set_epoch` or `set_selection` afterwards. It is forgotten, too, if
        `set_epoch` was called while it was running. `set_selection` at that time only makes the two selections differ.
        """
        current = self.traversal_order.ids
        after = self._after_resumed[0] if self._after_resumed else current
        if self._superseded:
            self._forget_left()
        position = self._position
        if position is None or position.ended:
            position = Position(self.next_epoch, self.first_batch, current)
        selection = position.selection
        return self._settings() | {
            "epoch": position.epoch,
            "batch": position.served,
            "selection": None if selection is None else torch.from_numpy(selection.copy()),
            "next_selection": None if after is None else torch.from_numpy(after.copy()),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up position and selections of `state`; a running epoch is ended.

        Raises UserError, and changes nothing, for a state of other data, seed, batch size over all ranks, shuffle,
        drop_last or indices. There, its position would mean other samples.
        """
        for key, own in self._settings().items():
            if state.get(key) != own:
                raise UserError(f"the loader's state has {key} {state.get(key)}, but {self.name} is loaded with {own}")
        stored = (state["selection"], state["next_selection"])
        now, after = (self._checked(None if ids is None else ids.numpy()) for ids in stored)
        self.close()
        self._go_to(Position(state["epoch"], state["batch"], now), after)

    def _settings(self) -> dict[str, Any]:
        """What a position depends on."""
        return self.traversal_order.settings() | {"batch_size": self.batch_size * self.world_size}

    def _check_length(self, samples: int) -> None:
        ranks = self.world_size
        if self.drop_last and samples // ranks < self.batch_size:
            raise UserError(
                f"{samples} samples{f' over {ranks} ranks' if ranks > 1 else ''} do not fill one batch of "
                f"{self.batch_size}: use a smaller batch_size, a larger keep, or drop_last=False"
            )


def ranks_that_share(distributed: bool) -> tuple[int, int]:
    """(rank, world size); (0, 1) unless distributed."""
    if not distributed:
        return 0, 1
    if not torch.distributed.is_initialized():
        raise UserError("distributed=True needs torch.distributed.init_process_group first: start with torchrun")
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def whole(name: str, value: Any, least: int) -> int:
    """A whole number, `least` or more."""
    try:
        number = operator.index(value)
    except TypeError:
        raise UserError(f"{name} is {reprlib.repr(value)}: it must be a whole number") from None
    if not least <= number < 2**63:
        raise UserError(f"{name} is {number}: it must be at least {least} and fit into 64 bits")
    return number
