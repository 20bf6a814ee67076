"""Twenty loaders in a row leave no memory of a GPU behind."""

from __future__ import annotations

import gc

import pytest
import torch

from tests.betons import Beton
from tests.devices import BOTH, finish
from tests.test_cuda_loader import make_loader, serve


@pytest.mark.parametrize("device", BOTH)
def test_twenty_loaders_in_a_row_give_their_memory_back(device: str, beton: Beton) -> None:
    """Each in use when the next one is made would take twenty times as much."""
    gc.collect()
    before, held = torch.cuda.memory_allocated(), []
    for _ in range(20 if device == "cuda" else 2):  # the CPU has nothing to count
        loader = make_loader(beton, device)
        serve(loader, device, batches=5)
        finish(device)
        held.append(torch.cuda.memory_allocated() - before)
        loader.close()
        del loader
        gc.collect()
        assert torch.cuda.memory_allocated() == before
    assert max(held) == held[0] and (held[0] > 0) == (device == "cuda")
