"""What a result says about its machine, and which precision a CPU is given."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from ffcv_prune import machine


def test_description_is_json_without_host_name_and_paths() -> None:
    described = machine.describe()
    text = json.dumps(described)
    assert described["ffcv"] == version("ffcv")
    assert described["cores"] >= 1
    assert described["cpu"]
    assert str(Path.home()) not in text
    assert platform.node() not in described.values()


@pytest.mark.parametrize(
    ("cpu_info", "expected"),
    [
        ("model name\t: x\nflags\t\t: fpu avx512f avx512_bf16\n", torch.bfloat16),
        ("flags\t\t: fpu amx_bf16 amx_tile\n", torch.bfloat16),
        ("flags\t\t: fpu avx2 avx512f\n", None),
        ("Features\t: fp asimd bf16 i8mm\n", torch.bfloat16),
        ("Features\t: fp asimd\n", None),
        ("", None),
    ],
)
def test_cpu_gets_bf16_only_with_instructions_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpu_info: str, expected: torch.dtype | None
) -> None:
    monkeypatch.setattr(machine, "CPU_INFO", tmp_path / "cpuinfo")
    assert machine.default_amp_dtype(torch.device("cpu")) is None
    (tmp_path / "cpuinfo").write_text(cpu_info)
    assert machine.default_amp_dtype(torch.device("cpu")) is expected
    assert machine.describe()["cpu"].endswith(" and bfloat16") == (expected is torch.bfloat16)
    assert f" with {torch.backends.cpu.get_cpu_capability()}" in machine.describe()["cpu"]


@pytest.mark.cuda
def test_cuda_always_gets_mixed_precision() -> None:
    assert machine.default_amp_dtype(torch.device("cuda")) in (torch.bfloat16, torch.float16)
