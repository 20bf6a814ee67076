"""A training step on a batch that is on the device: images/s by precision and compilation, and what they cost.

Decides whether train.amp=auto is fp16 on a GPU, and what train.compile brings.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.card import CIFAR_TRAINING, NOW, TRAINING, nvidia_smi, of_card
from benchmarks.gpu.report import Report
from benchmarks.gpu.setting import Setting
from ffcv_prune.machine import now
from ffcv_prune.models import build_model
from ffcv_prune.sections import Train
from ffcv_prune.training.epoch import Stepper, choose_amp_dtype, mean_loss

CLASSES = 100
WARM_UP = 5
GAIN = 1.05  # from which a change of a default is worth it
BF16, BF16_COMPILED, BF16_GRAPHS = "bf16", "bf16, compiled", "bf16, CUDA graphs"
FP16, FP16_COMPILED, FP16_GRAPHS = "fp16", "fp16, compiled", "fp16, CUDA graphs"
CUDA_MODES = {
    BF16: ("bf16", "off"),
    FP16: ("fp16", "off"),
    FP16_COMPILED: ("fp16", "default"),
    FP16_GRAPHS: ("fp16", "reduce-overhead"),
}
# Measured last: each compiles for a minute, and a run that is cut off can do without them.
LAST_MODES = {
    BF16_COMPILED: ("bf16", "default"),
    BF16_GRAPHS: ("bf16", "reduce-overhead"),
}
CPU_MODES = {"float32": ("off", "off")}
# Mode: the one it is held against, and the key that makes the difference.
RATIOS = {
    FP16: (BF16, "train.amp=fp16"),
    FP16_COMPILED: (FP16, "train.compile=default"),
    FP16_GRAPHS: (FP16, "train.compile=reduce-overhead"),
    BF16_COMPILED: (BF16, "train.compile=default"),
    BF16_GRAPHS: (BF16, "train.compile=reduce-overhead"),
}


@dataclass(frozen=True)
class Case:
    """A network, the side of its images, a batch, and the images/s expected of this card, by mode."""

    model: str
    side: int
    batch: int
    expected: Mapping[str, float]

    def __str__(self) -> str:
        return f"{self.model} {self.side} px x {self.batch}"


def run(setting: Setting, report: Report) -> None:
    scale = setting.scale
    cases = (
        Case(scale.model, scale.side, scale.batch, of_card(TRAINING, setting)),
        Case(scale.cifar_model, 32, scale.cifar_batch, of_card(CIFAR_TRAINING, setting)),
    )
    speeds: list[dict[str, float]] = [{} for _ in cases]
    for modes in (CUDA_MODES, LAST_MODES) if setting.cuda else (CPU_MODES,):
        for case, found in zip(cases, speeds, strict=True):
            for mode, (amp, compiled) in modes.items():
                with report.going_on(f"{case}, {mode}"):  # a mode that does not work here is a finding
                    found[mode] = measure(setting, report, case, mode, amp, compiled)
            compare(report, case, found, modes)


def measure(setting: Setting, report: Report, case: Case, mode: str, amp: str, compiled: str) -> float:
    """Images/s; adds the lines of one mode."""
    device, title = setting.device, f"{case}, {mode}"
    settings = replace(Train(epochs=1), batch_size=case.batch, amp=amp, compile=compiled)
    torch.compiler.reset()  # each mode compiles for itself
    torch.manual_seed(0)
    model = build_model(case.model, CLASSES, [0.5] * 3, [0.25] * 3).to(device)
    stepper = Stepper(model, settings, choose_amp_dtype(amp, device))
    images = torch.randint(0, 256, (case.batch, 3, case.side, case.side), dtype=torch.uint8, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    ids = torch.arange(case.batch)
    labels = (ids % CLASSES).to(device)

    def step() -> None:
        stepper.step(images, labels, ids, mean_loss, lr=1e-3)

    if setting.cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    model.train()
    start = time.perf_counter()
    for _ in range(WARM_UP):
        step()
    warm_up = now(device) - start
    steps, start, cpu = 0, now(device), time.process_time()  # of all threads: one of its own submits backward passes
    while time.perf_counter() - start < setting.scale.seconds:
        step()
        steps += 1
    cpu = time.process_time() - cpu
    speed = steps * case.batch / (now(device) - start)
    report.figure(title, speed, "images/s", case.expected.get(mode), f"first {WARM_UP} steps {warm_up:.1f} s")
    clocks = ", ".join(f"{name} {value}" for name, value in nvidia_smi(device, *NOW).items())
    events = f"{count_events(step, device)} events of the device in a step"
    report.figure(f"{title}: host", 1000 * cpu / steps, "CPU-ms a step", note=", ".join(filter(None, (events, clocks))))
    if setting.cuda:
        report.figure(f"{title}: peak memory", torch.cuda.max_memory_allocated(device) / 1e9, "GB")
    report.check(f"{title}: losses finite", math.isfinite(stepper.loss_sum.item()))
    return speed


def count_events(step: Callable[[], None], device: torch.device) -> int:
    """Kernels and copies in one step; on the CPU, operations."""
    with profile(activities=activities(device)) as profiler:
        step()
        now(device)
    return len(events_of(profiler, device))


def activities(device: torch.device) -> list[ProfilerActivity]:
    return [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]


def events_of(profiler: profile, device: torch.device) -> list[FunctionEvent]:
    """What the device did, without the names that stretch over several kernels and the gaps between them."""
    kind = DeviceType.CUDA if device.type == "cuda" else DeviceType.CPU
    return [event for event in profiler.events() if event.device_type == kind and not event.is_user_annotation]


def compare(report: Report, case: Case, found: Mapping[str, float], modes: Iterable[str]) -> None:
    """Ratios that decide a default or an option: those of `modes`, by all the images/s that were `found`."""
    for mode in modes:
        base, option = RATIOS.get(mode, ("", ""))
        if mode in found and base in found:
            ratio, note = found[mode] / found[base], f"{option} pays from {GAIN}"
            known = mode in case.expected and base in case.expected
            expected = case.expected[mode] / case.expected[base] if known else None
            report.figure(f"{case}: {mode} of {base}", ratio, "", expected, note, judge=False)
