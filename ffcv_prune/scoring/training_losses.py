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
    """The latest loss of each of n samples since the last `clear`, and facts beside it. No `record` waits for CUDA.

    With `distributed`, each rank records the samples that it trains on. All ranks must call `latest` and `state_dict`,
    which return the same on all ranks. For a sample that several ranks had, the loss of the latest batch counts.
    """

    def __init__(self, n: int, distributed: bool = False, facts: int = 0) -> None:
        self.distributed = distributed
        self._batches = 0  # recorded since the last `clear`; the same on all ranks
        self._recorded_at: NDArray[np.int64] = np.zeros(n, np.int64)  # the batch, from 1; 0: not recorded
        self._values = torch.zeros(1 + facts, n)  # float32, moves to the device of the losses

    def record(self, values: Tensor, ids: Tensor) -> None:
        """Take in losses and facts of the samples `ids`, int64[B] on the CPU: float32[1 + facts, B], no gradient."""
        self._values = self._values.to(values.device)
        self._values[:, ids.to(values.device, non_blocking=True)] = values
        self._batches += 1
        self._recorded_at[ids.numpy()] = self._batches

    def latest(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return (ids int64[m], ascending; losses and facts float32[1 + facts, m]) of what was recorded."""
        recorded_at, values = self._gather()
        ids = np.flatnonzero(recorded_at)
        return ids, values[:, torch.from_numpy(ids)].numpy()

    def clear(self) -> None:
        """Begin anew."""
        self._batches = 0
        self._recorded_at[:] = 0

    def _gather(self) -> tuple[NDArray[np.int64], Tensor]:
        """(recorded_at int64[n], values float32[1 + facts, n]) on the CPU, of all ranks. Waits for the device."""
        if not self.distributed:
            return self._recorded_at.copy(), self._values.cpu().clone()
        own = torch.from_numpy(self._recorded_at).to(self._values.device)
        latest = collectives.maximum(own)
        holds = own == latest  # more than one rank, after a resume or for a sample served as padding: their mean
        sums = torch.cat([torch.where(holds, self._values, 0.0), holds[None]]).double()  # float64 keeps means exact
        sums = collectives.total(sums)
        return latest.cpu().numpy(), (sums[:-1] / sums[-1]).float().cpu()

    def state_dict(self) -> dict[str, Any]:
        """A copy of what was recorded since the last `clear`."""
        recorded_at, values = self._gather()
        return {"batches": self._batches, "recorded_at": torch.from_numpy(recorded_at), "values": values}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._batches = state["batches"]
        self._recorded_at = state["recorded_at"].numpy().copy()
        self._values = state["values"].clone()
