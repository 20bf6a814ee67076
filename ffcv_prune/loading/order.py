"""Which samples an epoch serves, and in which order."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ffcv_prune.errors import UserError


class PrunedOrder:
    """The order of a loader over a selection that can be exchanged between epochs.

    The order of epoch e is a permutation of *all* n samples, drawn from (seed, e), of which the selected ones remain.
    So samples that two selections share keep their relative order. The order depends on nothing else, hence not on
    workers or ranks. Without `shuffle` it is the order of the file, or of `indices`.

    With several ranks, rank r of w takes every w-th id of that order, starting with the r-th. What does not
    divide by w:

    * ``drop_last=True`` (training): the last k mod w ids of the epoch's order are left out;
    * ``shuffle=True, drop_last=False``: at most w - 1 of the first ids are served again, so that all ranks do the same
      number of steps;
    * ``shuffle=False, drop_last=False`` (scoring, evaluation): nothing is padded or dropped, each sample is
      served once, and the ranks' shares differ by at most one sample.
    """

    def __init__(
        self,
        loader: Any,
        num_samples: int,
        shuffle: bool,
        drop_last: bool,
        rank: int = 0,
        world_size: int = 1,
        indices: NDArray[np.int64] | None = None,
    ) -> None:
        self.loader = loader  # its seed may change between epochs
        self.indices = indices  # FFCV's argument: the samples that are served at all, in this order; None: all
        self.num_samples = num_samples
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.rank = rank
        self.world_size = world_size
        self.ids: NDArray[np.int64] | None = None  # the selection as `select` took it
        self._drawn: tuple[tuple[int, int], NDArray[np.int64]] | None = None  # seed and epoch, and their permutation

    @property
    def selection(self) -> NDArray[np.int64]:
        """int64[k], sorted: the selected dataset positions."""
        if self.ids is not None:
            return self.ids
        return np.arange(self.num_samples, dtype=np.int64) if self.indices is None else np.sort(self.indices)

    @property
    def num_selected(self) -> int:
        return self.count(self.ids)

    def count(self, ids: NDArray[np.int64] | None) -> int:
        """Number of the samples `ids`; None: of all."""
        served = self.indices if ids is None else ids
        return self.num_samples if served is None else len(served)

    def num_served(self, selected: int) -> int:
        """Number of ids that this rank's epoch of so many selected samples serves (before whole batches are cut)."""
        share, rest = divmod(selected, self.world_size)
        if self.drop_last:
            return share
        if self.shuffle:
            return share + (rest > 0)
        return share + (self.rank < rest)

    def checked(self, ids: ArrayLike) -> NDArray[np.int64]:
        """`validate_ids`, and UserError for an id that `indices` leave out."""
        checked = validate_ids(ids, self.num_samples)
        if self.indices is not None:
            left_out = checked[~self._among(self.indices)[checked]]
            if left_out.size:
                raise UserError(
                    f"id {left_out[0]} is not among the loader's indices ({left_out.size} of {checked.size} are not): "
                    "select from those, or build the loader without indices"
                )
        return checked

    def select(self, ids: NDArray[np.int64] | None) -> None:
        """Exchange the selection: sorted, valid int64 ids as `validate_ids` returns them, or None for all."""
        self.ids = ids

    def settings(self) -> dict[str, Any]:
        """What the order of an epoch depends on."""
        indices = None if self.indices is None else hashlib.blake2b(self.indices.tobytes(), digest_size=8).hexdigest()
        own = {"shuffle": self.shuffle, "drop_last": self.drop_last, "indices": indices}
        return {"num_samples": self.num_samples, "seed": self.loader.seed, **own}

    def draw_ahead(self, epoch: int) -> None:
        """Draw the permutation of an epoch before it begins: most of what its beginning takes. In any thread."""
        if self.shuffle:
            self._drawn = (self.loader.seed, epoch), self._permutation(epoch)

    def _permutation(self, epoch: int) -> NDArray[np.int64]:
        """int64[n], of (seed, epoch); not to be written to."""
        seed, drawn = self.loader.seed, self._drawn
        if drawn is not None and drawn[0] == (seed, epoch):
            return drawn[1]
        return np.random.default_rng([seed, epoch]).permutation(self.num_samples)

    def global_order(self, epoch: int, ids: NDArray[np.int64] | None) -> NDArray[np.int64]:
        """int64[k]: the order of the samples `ids` (None: all) over all ranks together, before sharding."""
        ids = self.indices if ids is None else ids
        if self.shuffle:
            order = self._permutation(epoch)
        elif self.indices is not None:
            order = self.indices
        else:
            return np.arange(self.num_samples, dtype=np.int64) if ids is None else ids
        # Not order[mask]: a mask at random, which no processor foresees, takes two to three times as long.
        return order if ids is None else order[np.flatnonzero(self._among(ids)[order])]

    def _among(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """bool[n]: whether each sample is one of `ids`."""
        among = np.zeros(self.num_samples, dtype=np.bool_)
        among[ids] = True
        return among

    def sample_order(self, epoch: int) -> NDArray[np.int64]:
        """The order of the selection, see `order_of`; FFCV's name for it."""
        return self.order_of(epoch, self.ids)

    def order_of(self, epoch: int, ids: NDArray[np.int64] | None) -> NDArray[np.int64]:
        """int64[num_served]: this rank's share of the samples `ids`, sorted (None: all), in the order of the epoch.

        C-contiguous and writeable, as FFCV's compiled code needs them.
        """
        order = self.global_order(epoch, ids)
        served = self.num_served(len(order))
        if self.world_size > 1 and self.shuffle and not self.drop_last:
            order = np.resize(order, served * self.world_size)  # repeats it from the start
        share = order[self.rank :: self.world_size][:served]
        return np.array(share, dtype=np.int64, order="C")


def validate_ids(ids: ArrayLike, num_samples: int) -> NDArray[np.int64]:
    """Return `ids` as a new sorted int64[k]; an id out of range would be a segmentation fault in native code.

    Raises:
        UserError: wrong dtype or shape, empty, out of range, negative or duplicate ids.
    """
    try:
        array = np.asarray(ids)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"a selection is a one-dimensional int64 array, not this: {error}") from error
    if array.dtype != np.int64 and array.size:
        remedies = {"b": "pass np.flatnonzero(mask)", "i": "convert with ids.astype(np.int64)"}
        remedy = remedies.get(array.dtype.kind, "pass whole numbers as an int64 array")
        raise UserError(f"a selection holds int64 dataset positions, not {array.dtype}: {remedy}")
    if array.ndim != 1 or array.size == 0:
        raise UserError(
            f"a selection is a non-empty one-dimensional array, not of shape {array.shape}: pass None for all samples"
        )
    ascending = bool((array[1:] > array[:-1]).all())  # as policies return them: sorting would cost most of a swap
    array = array.copy() if ascending else np.sort(array)
    if array[0] < 0 or array[-1] >= num_samples:
        bad = array[0] if array[0] < 0 else array[-1]
        raise UserError(f"id {bad} is outside the data set's positions 0 … {num_samples - 1}")
    repeated = np.flatnonzero(array[1:] == array[:-1]) if not ascending else np.empty(0, dtype=np.int64)
    if len(repeated):
        raise UserError(f"id {array[repeated[0]]} appears twice in the selection: pass each id once (np.unique)")
    return array
