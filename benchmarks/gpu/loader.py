"""What the loader delivers to the device, alone: by threads, and by how images are stored.

Decides how many cores data.num_workers=-1 leaves to the rest.
"""

from __future__ import annotations

import time
from contextlib import closing

import torch

from benchmarks.gpu.card import COPIES, LOADER, of_card
from benchmarks.gpu.data import JPEG, MIX, beton
from benchmarks.gpu.report import Report
from benchmarks.gpu.setting import Setting
from ffcv_prune import PrunedLoader
from ffcv_prune.data.beton import check_beton
from ffcv_prune.loading.pipelines import score_pipelines, train_pipelines
from ffcv_prune.machine import now

STORED = {MIX: "mix", JPEG: "jpeg"}


def run(setting: Setting, report: Report) -> None:
    for name, kind in STORED.items():
        speeds: dict[int, float] = {}
        for workers in setting.workers:
            speeds[workers] = images_a_second(train_loader(setting, name, workers), setting)
            expected = None if setting.small else LOADER[kind] * workers
            # Not judged: it depends on the processor, of which nothing is known.
            report.figure(f"train, {kind}, {workers} threads", speeds[workers], "images/s", expected, judge=False)
        best = max(speeds, key=lambda count: speeds[count])
        report.figure(f"train, {kind}: most images/s", best, f"of {max(speeds)} threads")
    report.figure(f"score, mix, {setting.spare} threads", images_a_second(score_loader(setting), setting), "images/s")
    expected = of_card(COPIES, "GB/s")
    report.figure("copies from pinned memory to the device", copy_speed(setting), "GB/s", expected, judge=False)


def train_loader(setting: Setting, name: str, workers: int, with_ids: bool = False) -> PrunedLoader:
    info = check_beton(beton(setting, name))
    pipelines = train_pipelines(info, "random_resized_crop", setting.scale.side, setting.device)
    batch = min(setting.scale.batch, info.num_samples // 4)
    return PrunedLoader(info.path, batch, workers, pipelines=pipelines, shuffle=True, with_ids=with_ids)


def score_loader(setting: Setting) -> PrunedLoader:
    info = check_beton(beton(setting, MIX))
    pipelines = score_pipelines(info, setting.scale.side, setting.device, ratio=0.875)
    batch = min(2 * setting.scale.batch, info.num_samples // 4)
    return PrunedLoader(info.path, batch, setting.spare, pipelines=pipelines, drop_last=False)


def images_a_second(loader: PrunedLoader, setting: Setting) -> float:
    """Over whole batches from the second one on, of as many epochs as it takes."""
    with closing(loader):
        next(iter(loader))  # compiles
        loader.close()
        served, start = 0, 0.0
        while True:
            for batch in loader:
                if not start:
                    start = now(setting.device)
                    continue
                served += len(batch[1])
                if time.perf_counter() - start >= setting.scale.seconds:
                    return served / (now(setting.device) - start)


def copy_speed(setting: Setting) -> float:
    """GB/s."""
    host = torch.empty(2**20 if setting.small else 2**26, dtype=torch.uint8, pin_memory=setting.cuda)
    target = torch.empty_like(host, device=setting.device)
    target.copy_(host, non_blocking=True)
    copies, start = 0, now(setting.device)
    while time.perf_counter() - start < setting.scale.seconds:
        target.copy_(host, non_blocking=True)
        now(setting.device)
        copies += 1
    return copies * len(host) / 1e9 / (now(setting.device) - start)
