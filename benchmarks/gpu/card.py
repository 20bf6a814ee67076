"""The card, its driver and clocks, and the versions; and what was expected of cards before any was seen."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import Any

import numba
import torch

from benchmarks.gpu.setting import Setting
from ffcv_prune.loading import native_code
from ffcv_prune.training.run_folder import provenance

ABOUT = ("driver_version", "clocks.max.sm", "clocks.max.mem", "power.limit")
LINK = ("pcie.link.gen.current", "pcie.link.width.current")
NOW = ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu")

Expected = dict[str, dict[str, float]]  # card -> mode -> number

# Images/s of training ResNet-18 at 224 px in batches of 1024 on a resident batch, by mode. A roofline of each layer,
# scaled so that it meets what ffcv-imagenet reports for an A100, and more cautiously on newer cards.
TRAINING: Expected = {
    "A100": {"bf16": 5_500, "fp16": 5_900, "fp16, compiled": 7_000},
    "H100": {"bf16": 12_000, "fp16": 13_000, "fp16, compiled": 16_000},
    "H200": {"bf16": 14_500, "fp16": 15_600, "fp16, compiled": 18_800},
}
# The same for CIFAR's ResNet-18 in batches of 128: bound by launching kernels, about 5 ms a step; of which the GPU
# needs 2.1 ms, where graphs launch them.
_CIFAR = {"bf16": 128 / 5e-3, "fp16": 128 / 5e-3, "fp16, CUDA graphs": 128 / 2.1e-3}
CIFAR_TRAINING: Expected = {"H100": _CIFAR, "H200": _CIFAR}
CIFAR_STEP = 5.0  # milliseconds of a step of a run that is not compiled
# Images/s of forward passes at 224 px, by network: the same roofline.
FORWARD: Expected = {"H100": {"resnet18": 49_000}}
# Images/s of one thread of the loader at 224 px, from CPU time before the loader had C code.
LOADER = {"mix": 17_000 / 15, "jpeg": 11_000 / 15}
SMALL_PASS = 8.0  # times as fast is a scoring pass at 80 px over a raw file of 128 px as at 224 px over the mix
JPEG_SCALED = 1 / 0.86e-3  # images/s of one thread that scores JPEG photographs at 80 px, decoded at a DCT scale
COPIES: Expected = {"H100": {"GB/s": 50}, "H200": {"GB/s": 50}}
BUSY = 95.0  # per cent of the time: with the mix, training is bound by the model
TESTS = 120.0  # seconds of the tests marked cuda: a minute, and another for those that compile
SAVE = 0.6  # seconds of a save of ResNet-18


def of_card(table: Expected, setting: Setting) -> dict[str, float]:
    """What a table expects of the card, by mode; empty where it does not know it, and where nothing is expected."""
    name = torch.cuda.get_device_name(setting.device) if setting.expects else ""
    return next((modes for card, modes in table.items() if card in name), {})


def describe(device: torch.device) -> dict[str, Any]:
    """The machine and its versions; the card, its driver, highest clocks and link. No host name, no paths."""
    numba.get_num_threads()  # starts its threads: until then the layer is not known
    about = provenance() | {
        "device": device.type,
        "decoder": "ours" if native_code.library() else "FFCV's",
        "numba_threading_layer": numba.threading_layer(),
    }
    if device.type != "cuda":
        return about
    properties = torch.cuda.get_device_properties(device)
    nccl = ".".join(map(str, torch.cuda.nccl.version())) if torch.distributed.is_nccl_available() else ""
    return about | {
        "card": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "card_memory_gb": round(properties.total_memory / 1e9, 1),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "nccl": nccl,
        **nvidia_smi(device, *ABOUT, *LINK),
    }


def nvidia_smi(device: torch.device, *fields: str) -> dict[str, str]:
    """What it says of the card; nothing where it is not there."""
    program, index = shutil.which("nvidia-smi"), device.index or 0
    if program is None or device.type != "cuda":
        return {}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    number = visible[index] if index < len(visible) and visible[index] else str(index)
    words = [program, f"--id={number}", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    values = [value.strip() for value in done.stdout.strip().split(",")]
    return dict(zip(fields, values, strict=True)) if len(values) == len(fields) else {}
