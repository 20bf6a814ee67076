"""FFCV's own loader, as it comes: what ours is measured against."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from queue import Empty
from typing import Any

import ffcv_prune.ffcv_import  # noqa: F401 - before FFCV  # isort: skip
from ffcv.fields.decoders import IntDecoder, SimpleRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.loader.epoch_iterator import EpochIterator
from ffcv.pipeline.operation import Operation
from ffcv.transforms import Squeeze, ToTensor, ToTorchImage


def stock_loader(path: Path | str, batch_size: int, decoder: Operation | None = None, **arguments: Any) -> Loader:
    """One that shuffles, with what `Loader` has for raw images of one size, or with another decoder."""
    image = [decoder or SimpleRGBImageDecoder(), ToTensor(), ToTorchImage()]
    pipelines = {"image": image, "label": [IntDecoder(), ToTensor(), Squeeze(1)]}
    made = {
        "num_workers": len(os.sched_getaffinity(0)),
        "os_cache": True,
        "order": OrderOption.RANDOM,
        "pipelines": pipelines,
    }
    return Loader(str(path), batch_size, **(made | arguments))


def end_stock_epoch(epoch: EpochIterator) -> None:
    """End FFCV's thread, which may be waiting for room to say that it is done."""
    epoch.close()
    while epoch.is_alive():
        with suppress(Empty):
            epoch.output_queue.get_nowait()
        epoch.join(timeout=0.01)
