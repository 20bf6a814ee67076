"""Losses that training has paid for already, collected on the device to serve as scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ffcv_prune import collectives


class TrainingLosses:
    """The latest loss of each of n samples since the last `clear`. No `record` waits for a CUDA device.

    With `distributed`, each rank records what it trains on, all ranks must call `latest` and `state_dict`, and
    these return the same on all: of a sample that several ranks had, the loss of the latest batch.
    """

    def __init__(self, n: int, distributed: bool = False) -> None:
        self.distributed = distributed
        self._batches = 0  # recorded since the last `clear`; the same on all ranks
        self._recorded_at: NDArray[np.int64] = np.zeros(n, np.int64)  # the batch, from 1; 0: not recorded
        self._losses = torch.zeros(n)  # float32, moves to the device of the losses

    def record(self, losses: Tensor, ids: Tensor) -> None:
        """Take in the losses float32[B], without gradient, of the samples `ids` int64[B], on the CPU."""
        self._losses = self._losses.to(losses.device)
        self._losses[ids.to(losses.device, non_blocking=True)] = losses
        self._batches += 1
        self._recorded_at[ids.numpy()] = self._batches

    def latest(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return (ids int64[m], ascending; losses float32[m]) of what was recorded."""
        recorded_at, losses = self._gather()
        ids = np.flatnonzero(recorded_at)
        return ids, losses[torch.from_numpy(ids)].numpy()

    def clear(self) -> None:
        """Begin anew."""
        self._batches = 0
        self._recorded_at[:] = 0

    def _gather(self) -> tuple[NDArray[np.int64], Tensor]:
        """(recorded_at int64[n], losses float32[n]) on the CPU, of all ranks. Waits for the device."""
        if not self.distributed:
            return self._recorded_at.copy(), self._losses.cpu().clone()
        own = torch.from_numpy(self._recorded_at).to(self._losses.device)
        latest = collectives.maximum(own)
        holds = own == latest  # more than one rank, after a resume or for a sample served as padding: their mean
        sums = torch.stack([torch.where(holds, self._losses, 0.0), holds]).double()  # [2, n]; float64 keeps means exact
        sums = collectives.total(sums)
        return latest.cpu().numpy(), (sums[0] / sums[1]).float().cpu()

    def state_dict(self) -> dict[str, Any]:
        """A copy of what was recorded since the last `clear`."""
        recorded_at, losses = self._gather()
        return {"batches": self._batches, "recorded_at": torch.from_numpy(recorded_at), "losses": losses}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._batches = state["batches"]
        self._recorded_at = state["recorded_at"].numpy().copy()
        self._losses = state["losses"].clone()
