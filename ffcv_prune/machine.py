"""The machine and the versions a result was made with, and the precision its hardware is good at."""

from __future__ import annotations

import os
import platform
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch

from ffcv_prune.errors import UserError

AmpDtype = torch.dtype | None | Literal["auto"]  # None: float32; "auto": as the hardware has it
PACKAGES = ("torch", "torchvision", "ffcv", "numba", "numpy")  # by distribution: ffcv.__version__ is wrong
CPU_INFO = Path("/proc/cpuinfo")
BF16_INSTRUCTIONS = {"avx512_bf16", "amx_bf16", "bf16"}  # x86, x86 with tiles, ARM


def describe() -> dict[str, Any]:
    """Return CPU, cores this process may use, memory in GB, GPUs and versions. No host name, no paths."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "os": platform.platform(terse=True),
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # FFCV is an extra
        return "not installed"


def default_amp_dtype(device: torch.device) -> torch.dtype | None:
    """Return the type for autocast that `device` computes in hardware, or None for full precision.

    bfloat16 on CUDA from compute capability 8.0 and on CPUs that have instructions for it (emulated, it is
    slower than float32); float16 on older CUDA.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    return torch.bfloat16 if device.type == "cpu" and _cpu_has_bf16() else None


def now(device: torch.device) -> float:
    """time.perf_counter, once the device's work is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def warn_if_busy() -> None:
    """Warn where other programs have cores that torch's threads wait for, spinning: it was imported too early.

    One thread waits for none, and a GPU leaves them little to do.
    """
    load, cores, threads = os.getloadavg()[0], len(os.sched_getaffinity(0)), torch.get_num_threads()
    if threads > 1 and load + threads > cores + 0.5 and not torch.cuda.is_available():
        warnings.warn(
            f"this machine is busy (load {load:.1f} on {cores} cores), where torch's threads can make training many "
            "times slower: import ffcv_prune before torch, or set GOMP_SPINCOUNT=1000",
            stacklevel=3,
        )


@contextmanager
def untuned(odd: bool) -> Iterator[None]:
    """Where the batch is of an `odd` size, take cuDNN's first guess of an algorithm.

    With `torch.backends.cudnn.benchmark` each new size tries out those of all convolutions, for a second or so. That
    never pays for a last batch, whose size is another one at each selection where a pass scores some samples only.
    """
    cudnn = torch.backends.cudnn
    if not (odd and cudnn.benchmark):
        yield
        return
    cudnn.benchmark = False
    try:
        yield
    finally:
        cudnn.benchmark = True


def _cpu() -> str:
    """``AMD EPYC with AVX512 and bfloat16``: virtual machines give one name to processors of very different speed."""
    name = _cpu_field("model name") or platform.machine()
    return f"{name} with {torch.backends.cpu.get_cpu_capability()}{' and bfloat16' if _cpu_has_bf16() else ''}"


def _cpu_has_bf16() -> bool:
    flags = _cpu_field("flags") or _cpu_field("Features")  # x86 or ARM
    return bool(BF16_INSTRUCTIONS & set(flags.split()))


def _cpu_field(name: str) -> str:
    """Return the first value of a /proc/cpuinfo field; empty where there is none."""
    if CPU_INFO.exists():
        for line in CPU_INFO.read_text().splitlines():
            field, _, value = line.partition(":")
            if field.strip() == name:
                return value.strip()
    return ""


def amp_dtype_of(device: torch.device, amp_dtype: AmpDtype) -> torch.dtype | None:
    """The type to compute in; None: float32. UserError for what is neither a type nor "auto"."""
    if amp_dtype is not None and amp_dtype != "auto" and not isinstance(amp_dtype, torch.dtype):
        raise UserError(f'amp_dtype={amp_dtype!r}: give torch.float16, torch.bfloat16, None for float32, or "auto"')
    return default_amp_dtype(device) if amp_dtype == "auto" else amp_dtype


def autocast(device: torch.device, amp_dtype: AmpDtype) -> torch.autocast:
    """Mixed precision in this type; None computes in float32, "auto" as the hardware has it."""
    dtype = amp_dtype_of(device, amp_dtype)
    return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)
