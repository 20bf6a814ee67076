"""Each answer of docs/ffcv_questions.md is short, runs as it stands, and does what its question asked for."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ffcv_prune.ffcv_import import DEBIAN_PACKAGES
from tests.betons import Beton

PAGE = Path(__file__).resolve().parent.parent / "docs" / "ffcv_questions.md"
BEGINNING, *ANSWERS = PAGE.read_text(encoding="utf-8").split("\n## ")
ISSUES = ("152", "208", "344", "87", "343", "381", "77", "392", "164", "394")


def code(section: str, language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)
    return str(found)


def answer(issue: str, language: str = "python") -> str:
    (section,) = [section for section in ANSWERS if section.startswith(f"#{issue}:")]
    return code(section, language)


@pytest.fixture
def names(beton: Beton, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """What the beginning of the page defines, run on a small file of that name."""
    (tmp_path / "betons").mkdir()
    (tmp_path / "betons" / "train.beton").symlink_to(beton.path)
    monkeypatch.chdir(tmp_path)
    made: dict[str, Any] = {}
    exec(code(BEGINNING, "python"), made)
    yield made
    made["loader"].close()


def test_all_are_answered_in_at_most_three_lines() -> None:
    assert [section.split(":")[0] for section in ANSWERS] == [f"#{issue}" for issue in ISSUES]
    for issue in ISSUES:
        assert len(answer(issue, "bash" if issue == "394" else "python").splitlines()) <= 3


def test_152_serves_the_second_half(names: dict[str, Any], beton: Beton) -> None:
    exec(answer("152"), names)
    half = np.array_split(np.arange(203), 2)[1]
    assert sorted(names["labels"].tolist()) == sorted(beton.labels[half].tolist())


def test_208_serves_the_subset_and_its_length_is_true(names: dict[str, Any]) -> None:
    exec(answer("208"), names)
    assert (names["batches"], names["samples"]) == (4, 50)


def test_344_compiles_and_builds_nothing(names: dict[str, Any]) -> None:
    loader = names["loader"]
    next(iter(loader))
    code_before, ring_before = loader.code, loader.ring
    exec(answer("344"), names)
    assert names["samples"] == len(range(2, 203, 3))
    assert loader.code is code_before and loader.ring is ring_before


def test_87_and_343_tell_the_positions(names: dict[str, Any]) -> None:
    exec(answer("87"), names)
    assert names["ids"].dtype == torch.int64
    exec(answer("343"), names)
    chosen = {3, 12, 50, *range(100, 120)}
    seen = set(names["seen"].tolist())
    assert len(seen) == len(names["seen"]) == 16 and seen <= chosen  # the second batch of the 23 is not full
    names["with_ids"].close()


def test_381_serves_the_samples_that_are_named(names: dict[str, Any], beton: Beton) -> None:
    exec(answer("381"), names)
    assert names["found"].keys() == {3, 12, 50}
    for i, image in names["found"].items():
        np.testing.assert_array_equal(image.numpy(), beton.images[i])


def test_77_serves_two_crops_of_each_image(names: dict[str, Any], beton: Beton) -> None:
    exec(answer("77"), names)
    assert names["first"].shape == names["second"].shape == (16, 8, 8, 3)
    assert (names["first"] != names["second"]).flatten(1).any(1).float().mean() > 0.9


def test_392_and_164_repeat(names: dict[str, Any]) -> None:
    exec(answer("392"), names)
    assert names["first"].shape == (16, 8, 8, 3)
    exec(answer("164"), names)
    assert len(names["runs"][0]) == 203 // 16 * 16


def test_394_names_what_ffcv_is_compiled_with() -> None:
    packages, pip, check = answer("394", "bash").splitlines()
    assert packages == f"apt-get install {DEBIAN_PACKAGES}"
    assert pip == 'pip install ".[ffcv]"  # in a clone'
    (statement,) = re.findall(r'python -c "(.*)"', check)
    assert subprocess.run([sys.executable, "-c", statement], timeout=100).returncode == 0
