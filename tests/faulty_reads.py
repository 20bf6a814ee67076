"""What the tests of faults run in processes of their own, which a fault may end. Few imports: each costs seconds."""

from __future__ import annotations

import faulthandler
import os
import time
from pathlib import Path

import ffcv_prune.ffcv_import  # noqa: F401 - before FFCV  # isort: skip
import numpy as np
from ffcv.transforms import ToTorchImage

from ffcv_prune import PrunedLoader
from ffcv_prune.data.beton import check_beton
from ffcv_prune.errors import run_command
from ffcv_prune.loading.pipelines import score_pipelines


def make_loader(path: Path, batch_size: int = 8) -> PrunedLoader:
    pipelines = score_pipelines(check_beton(path))
    return PrunedLoader(path, batch_size, pipelines=pipelines, shuffle=False, drop_last=False)


def read_while_truncated(path: str, workers: str, thread: str) -> None:
    pipelines = score_pipelines(check_beton(path))
    if thread == "thread":
        pipelines["image"][-1] = ToTorchImage(channels_last=False)  # a copy, which the loader's thread makes

    def main() -> None:
        loader = PrunedLoader(path, 8, int(workers), pipelines=pipelines, drop_last=False)
        for batch, _ in enumerate(loader):
            if batch == 0:
                time.sleep(0.5)  # until the queue is full: batch 5 is decoded from what is no longer there
                os.truncate(path, int(loader.file.memory_manager.ptrs[5 * 8]))
            print(batch)

    run_command(main)


def read_where_the_disk_fails(path: str) -> None:
    loader = make_loader(Path(path))
    before = os.stat(path)
    content = Path(path).read_bytes()
    os.truncate(path, 0)
    assert loader.file.memory_manager.context.mmap[-1] == 0
    Path(path).write_bytes(content)  # nothing has changed: what failed was the reading
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    run_command(lambda: print(len(list(loader))))


def read_a_file_that_is_not_ours(path: str, fault_handler: str) -> None:
    if fault_handler == "before":
        faulthandler.enable()
    loader = make_loader(Path(path))
    if fault_handler == "after":
        faulthandler.enable()
    other = np.memmap(f"{path}.other", np.uint8, mode="w+", shape=(8192,))
    os.truncate(f"{path}.other", 0)
    print(len(list(loader)), flush=True)
    print(other[5000])
