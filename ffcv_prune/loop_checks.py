"""What a `Pruner` notices of the loop around it: a warning, once each, and an error where the loop skips its part."""

from __future__ import annotations

import warnings

from ffcv_prune.errors import UserError
from ffcv_prune.protocols import SampleLoader
from ffcv_prune.scoring.batch_forward import BatchChooser


class LoopChecks:
    """Compares the calls of a pruner with the epochs of its loader.

    Args:
        loader: the training loader.
        chooser: of a method that chooses in batches.
        epochs: of the run; 0 for a method that does not prune: all samples are trained on, whatever the loop does.

    Attributes:
        epoch: that `begin_epoch` was called for last; -1: none.
        batch: of this epoch, which `choose` is given next.
    """

    def __init__(self, loader: SampleLoader, chooser: BatchChooser | None, epochs: int) -> None:
        self.loader, self.chooser, self.epochs = loader, chooser, epochs
        self.epoch, self.batch = -1, 0
        self._told_unbegun = self._told_idle = False
        # Since begin_epoch was first called for its epoch: whether the loader began one or a batch came back, and
        # whether one came to `choose`. True where neither is expected, as before the first call and after a resume.
        self._served = self._chose = True

    def begin(self, epoch: int) -> None:
        """The loader stands at this epoch, for which `begin_epoch` is called."""
        if self.epoch != epoch:
            self._served = self._chose = not len(self.loader)  # nothing to serve: it was resumed at its end
        self.epoch, self.batch = epoch, self.loader.first_batch

    def resume(self) -> None:
        """What came before is unknown."""
        self._served = self._chose = True

    def batch_came(self) -> None:
        """A batch came to `batch_loss`."""
        self._served = True

    def next_batch(self) -> int:
        """The number of the batch that came to `choose`."""
        self._served = self._chose = True
        self.batch += 1
        return self.batch - 1

    def end_last(self, epoch: int) -> None:
        """Warn, once, if the loader did not begin the epoch before this one.

        No error: a user may look at the selections of a run before training.

        Raises UserError if that epoch was trained on without a `choose` that was due.
        """
        if epoch <= self.epoch:  # called again, or set back
            return
        # A loader that is wrapped may not tell of its epochs; but iter() and set_epoch move its count.
        if self.epochs and not (self._served or self._told_idle) and self.loader.next_epoch == self.epoch:
            self._told_idle = True
            warnings.warn(
                f"the training loader has begun no epoch since begin_epoch({self.epoch}, model), so nothing was "
                "pruned: loop over the loader that was given to Pruner",
                stacklevel=3,
            )
        if self.chooser is not None and self._served and not self._chose:
            batches = range(self.batch, self.loader.num_batches(len(self.loader.selection)))
            if self.chooser.is_due(self.epoch, batches):
                name = self.chooser.state.method.name
                raise UserError(
                    f"method {name} was to choose in the batches of epoch {self.epoch}, and none came to it: "
                    f"use pruner.choose in your loop, from begin_epoch({self.epoch}, model) on"
                )

    def epoch_begins(self, epoch: int) -> None:
        """Warn, once, of an epoch of the run that `begin_epoch` was not called for.

        No error: a user may look at a batch before training.
        """
        self._served = True
        if epoch != self.epoch and epoch < self.epochs and not self._told_unbegun:
            self._told_unbegun = True
            warnings.warn(
                f"the training loader begins epoch {epoch} without begin_epoch({epoch}, model): it serves "
                f"{len(self.loader.selection)} of {self.loader.num_samples} samples as before; call it before each "
                "epoch of training",
                stacklevel=5,
            )
