"""What the loader delivers to the device: by threads, and by how images are stored.

Alone, and to a model that trains: the latter decides how many cores data.num_workers=-1 leaves to the rest.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial

import torch

from benchmarks.gpu.card import COPIES, JPEG_SCALED, LOADER, SMALL_PASS, of_card
from benchmarks.gpu.data import JPEG, MIX, SMALL, beton
from benchmarks.gpu.report import Report
from benchmarks.gpu.setting import Setting
from benchmarks.gpu.step import WARM_UP
from ffcv_prune import PrunedLoader
from ffcv_prune.data.beton import check_beton
from ffcv_prune.loading.pipelines import score_pipelines, train_pipelines
from ffcv_prune.machine import now
from ffcv_prune.models import build_model
from ffcv_prune.sections import Train
from ffcv_prune.training.epoch import Stepper, choose_amp_dtype, mean_loss

STORED = {MIX: "mix", JPEG: "jpeg"}
KINDS = STORED | {SMALL: "small raw file"}
Step = Callable[..., None]


def run(setting: Setting, report: Report) -> None:
    # No images/s are judged: they depend on the processor, of which nothing is known.
    for name, kind in STORED.items():
        alone = partial(train_loader, setting, name)
        _by_threads(
            setting, report, f"train, {kind}", alone, setting.workers, LOADER[kind] if setting.expects else None
        )
    for name, kind in STORED.items():
        beside = partial(train_loader, setting, name, with_ids=True)
        _by_threads(setting, report, f"train a model, {kind}", beside, setting.nearly_all, trains=True)
    side, small_side, threads = setting.scale.side, setting.scale.score_side, setting.spare
    mix = LOADER["mix"] * threads
    for name, pixels, expected in (
        (MIX, side, mix),
        (MIX, small_side, None),
        (JPEG, small_side, JPEG_SCALED * threads),
        (SMALL, small_side, SMALL_PASS * mix),
    ):
        speed = images_a_second(score_loader(setting, name, pixels), setting)
        title = f"score, {KINDS[name]} at {pixels} px, {threads} threads"
        report.figure(title, speed, "images/s", expected if setting.expects else None, judge=False)
    expected = of_card(COPIES, setting).get("GB/s")
    report.figure("copies from pinned memory to the device", copy_speed(setting), "GB/s", expected, judge=False)


def _by_threads(
    setting: Setting,
    report: Report,
    title: str,
    load: Callable[[int], PrunedLoader],
    counts: Sequence[int],
    expected: float | None = None,
    trains: bool = False,
) -> None:
    """A line for each number of threads, and which is best. `expected`: images/s of one thread."""
    speeds: dict[int, float] = {}
    for workers in counts:
        loader = load(workers)
        step = training_step(setting, loader) if trains else None
        speeds[workers] = images_a_second(loader, setting, step)
        wanted = None if expected is None else expected * workers
        report.figure(f"{title}, {workers} threads", speeds[workers], "images/s", wanted, judge=False)
    best = max(speeds, key=lambda count: speeds[count])
    report.figure(f"{title}: most images/s", best, f"of {max(speeds)} threads")


def training_step(setting: Setting, loader: PrunedLoader) -> Step:
    """A function that trains a network of `setting` on a batch of the loader."""
    torch.manual_seed(0)
    classes = int(loader.labels.max()) + 1
    model = build_model(setting.scale.model, classes, [0.5] * 3, [0.25] * 3).to(setting.device).train()
    settings = Train(epochs=1, batch_size=loader.batch_size)
    stepper = Stepper(model, settings, choose_amp_dtype("auto", setting.device))
    return partial(stepper.step, batch_loss=mean_loss, lr=1e-3)


def train_loader(setting: Setting, name: str, workers: int, with_ids: bool = False) -> PrunedLoader:
    info = check_beton(beton(setting, name))
    pipelines = train_pipelines(info, "random_resized_crop", setting.scale.side, setting.device)
    batch = min(setting.scale.batch, info.num_samples // 4)
    return PrunedLoader(info.path, batch, workers, pipelines=pipelines, shuffle=True, with_ids=with_ids)


def score_loader(setting: Setting, name: str, side: int) -> PrunedLoader:
    """As a run makes it. Below the side of training it decodes JPEG images at a DCT scale, as with data.score_size."""
    info, scale = check_beton(beton(setting, name)), setting.scale
    pipelines = score_pipelines(info, side, setting.device, ratio=0.875, scaled=side < scale.side)
    batch = min(2 * scale.batch, info.num_samples // 4)
    return PrunedLoader(info.path, batch, setting.spare, pipelines=pipelines, drop_last=False)


def images_a_second(loader: PrunedLoader, setting: Setting, step: Step | None = None) -> float:
    """Over whole batches from the second one on, of as many epochs as it takes. `step`: done with each batch."""
    with closing(loader):
        for _, batch in zip(range(1 if step is None else WARM_UP), loader, strict=False):  # compiles; cuDNN chooses
            if step is not None:
                step(*batch)
        loader.close()
        served, start = 0, 0.0
        while True:
            for batch in loader:
                if step is not None:
                    step(*batch)
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
