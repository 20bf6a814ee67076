"""The statistics of every sample's loss over a run."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ffcv_prune.errors import UserError
from ffcv_prune.methods import kernels

MAX_NONFINITE_SHARE = 0.01
STATE_ARRAYS = ("mean", "var", "last", "last_scored")


@dataclass(frozen=True)
class Column:
    """Values that a part of a method remembers, one for each of n samples.

    Attributes:
        name: one name, one meaning, in all methods.
        dtype: of the array [n], or of [n, width] for a width above 1.
        start: the value before anything is known.
        length: of an array that is not by sample; 0: n.
    """

    name: str
    dtype: type
    start: float
    width: int = 1
    length: int = 0


# Of the columns that are not of one part alone: epochs that a sample was trained in, and the last of these epochs, −1
# for none, both without those of the current selection; whether the model was right, and its highest probability.
TRAINED_EPOCHS = Column("trained_epochs", np.int32, 0)
LAST_TRAINED = Column("last_trained", np.int32, -1)
CERTAINTY = (Column("correct", np.bool_, False), Column("confidence", np.float32, np.nan))


class NonFiniteLossError(UserError):
    """More than 1 % of the losses of a scoring pass are NaN or infinite: the model diverged."""


class ScoreTable:
    """Exponential moving mean and variance of the loss of each of n samples (paper, Eq. 2 and 3).

        var  ← (1−α)·var + α·(loss − mean)²    with the old mean; starts at 0
        mean ← α·loss + (1−α)·mean             starts at the first loss

    All statistics are float32, computed in float32.

    Attributes:
        mean, var: float32[n]. The mean of a sample never scored is NaN; selectors rank it above all others.
        last: float32[n], the latest loss; NaN: never scored.
        last_scored: int32[n], the index of the update that scored the sample last; −1: never.
        updates: how many updates were made.
        alpha: weight of the new loss, 0 < α ≤ 1.
        columns: by name, what the parts of the method remember beside all that.
        fixed: float32[n], scores made before training; None without. Not part of the state.
    """

    def __init__(self, n: int, alpha: float = 0.8) -> None:
        if n < 1:
            raise UserError(f"a score table needs at least one sample, not {n}")
        if not 0 < alpha <= 1:
            raise UserError(f"alpha = {alpha} is outside (0, 1]: it is the weight of the newest loss")
        self.n = int(n)
        self.alpha = float(alpha)
        self.mean: NDArray[np.float32] = np.full(n, np.nan, np.float32)
        self.var: NDArray[np.float32] = np.zeros(n, np.float32)
        self.last: NDArray[np.float32] = np.full(n, np.nan, np.float32)
        self.last_scored: NDArray[np.int32] = np.full(n, -1, np.int32)
        self.updates = 0
        self.columns: dict[str, NDArray[Any]] = {}
        self.fixed: NDArray[np.float32] | None = None

    def add(self, *columns: Column) -> None:
        """Remember these columns from now on; one that is there already stays as it is."""
        for column in columns:
            length = column.length or self.n
            shape = length if column.width == 1 else (length, column.width)
            self.columns.setdefault(column.name, np.full(shape, column.start, column.dtype))

    def update(
        self, losses: ArrayLike, ids: ArrayLike | None = None, most_nonfinite: float = MAX_NONFINITE_SHARE
    ) -> int:
        """Take in the losses of one scoring pass and return how many of them were not finite.

        `losses` is float32[m] or float64[m]: the losses of the samples `ids` int64[m] (unique, any order). When `ids`
        is None, they are the losses of all n samples in order. A loss that is not finite as float32 never enters the
        table: the sample keeps its old statistics and a warning is given. A larger share of them than
        `most_nonfinite` raises `NonFiniteLossError`, and anything malformed `UserError`, before any statistic has
        changed.
        """
        losses = self._checked_losses(losses)
        expected = self.n
        if ids is not None:
            ids = np.ascontiguousarray(_as_array(ids, "the ids of the losses"))
            kernels.check_ids(ids, self.n, "the ids of the losses")
            expected = ids.size
        if losses.size != expected:
            raise UserError(f"{losses.size} losses for {expected} samples: pass one loss a sample")

        nonfinite = kernels.count_nonfinite(losses)
        if nonfinite > most_nonfinite * losses.size:
            raise NonFiniteLossError(
                f"{nonfinite} of {losses.size} losses are NaN or infinite: the model diverged; "
                "lower the learning rate or train without mixed precision"
            )
        if nonfinite:
            finite = np.isfinite(losses)
            warnings.warn(
                f"{nonfinite} of {losses.size} losses are NaN or infinite: they are left out",
                RuntimeWarning,
                stacklevel=2,
            )
            ids, losses = np.flatnonzero(finite) if ids is None else ids[finite], losses[finite]
        statistics = self.mean, self.var, self.last, self.last_scored
        kernels.update_statistics(statistics, losses, ids, self.alpha, self.updates)
        self.updates += 1
        return nonfinite

    @staticmethod
    def _checked_losses(losses: ArrayLike) -> NDArray[np.float32]:
        losses = _as_array(losses, "losses")
        if losses.ndim != 1 or losses.dtype not in (np.float32, np.float64):
            raise UserError(
                f"losses must be a one-dimensional float32 or float64 array, not {losses.dtype} of shape {losses.shape}"
            )
        with np.errstate(over="ignore"):  # a float64 beyond float32 becomes inf and is counted as such
            return np.ascontiguousarray(losses, dtype=np.float32)

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of the table: arrays and plain numbers."""
        arrays = {name: array.copy() for name, array in self._arrays().items()}
        return {"n": self.n, "alpha": self.alpha, "updates": self.updates, **arrays}

    def read(self, name: str, among: NDArray[np.int64] | None) -> NDArray[Any]:
        """[m]: the statistic or column of this name for each sample in `among`, int64[m] (None: all)."""
        values = self.columns[name] if name in self.columns else getattr(self, name)
        return values if among is None else values[among]

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {name: getattr(self, name) for name in STATE_ARRAYS} | self.columns

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the `state_dict` of a table with the same n and alpha; any other raises `UserError`."""
        own = self._arrays()
        if set(state) != {"n", "alpha", "updates", *own}:
            raise UserError(f"not the state of a score table: it holds {sorted(map(str, state))}")
        for name in ("n", "alpha"):
            if _scalar(state, name) != getattr(self, name):
                raise UserError(
                    f"the stored score table has {name} = {state[name]}, this run has {getattr(self, name)}: "
                    "resume with the data and settings that it was made with"
                )
        updates = _scalar(state, "updates")
        if not (0 <= updates < 2**31 and updates == int(updates)):
            raise UserError(f'"updates" of the stored score table is {updates}: the state is damaged')
        for name, array in own.items():
            stored = state[name]
            if not isinstance(stored, np.ndarray):
                raise UserError(f'"{name}" of the stored score table is no array: the state is damaged')
            if stored.shape != array.shape or stored.dtype != array.dtype:
                raise UserError(
                    f'"{name}" of the stored score table is {stored.dtype} of shape {stored.shape}, '
                    f"expected {array.dtype} of shape {array.shape}: the state is damaged"
                )
        for name, array in own.items():
            array[:] = state[name]
        self.updates = int(updates)


def _as_array(values: ArrayLike, what: str) -> NDArray[Any]:
    try:
        return np.asarray(values)
    except (ValueError, OverflowError) as error:
        raise UserError(f"{what} must be a one-dimensional array, not this: {error}") from error


def _scalar(state: dict[str, Any], name: str) -> float:
    value = np.asarray(state[name])
    if value.shape != () or value.dtype.kind not in "iuf":
        raise UserError(f'"{name}" of the stored score table is no number: the state is damaged')
    return value.item()
