"""Damaged files of torchvision's data sets: a line that says what to remove or to install again."""

from __future__ import annotations

import gzip
import re
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torchvision import datasets

from ffcv_prune.data.recipe import load_recipe
from ffcv_prune.data.sources import open_source
from ffcv_prune.errors import UserError
from tests.test_recipes import write_idx_files

IMAGES, LABELS = "train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"


def header(*numbers: int) -> Callable[[bytes], bytes]:
    """Replace the beginning by 32-bit numbers."""
    start = struct.pack(f">{len(numbers)}I", *numbers)
    return lambda content: start + content[len(start) :]


def flipped(place: int, bit: int = 0) -> Callable[[bytes], bytes]:
    return lambda content: content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        (IMAGES, lambda content: b""),
        (LABELS, lambda content: b""),
        (IMAGES, lambda content: content[:10]),
        (IMAGES, lambda content: content[:-1]),
        (IMAGES, header(0)),  # what torchvision asserts
        (IMAGES, header(0x801)),  # another number of dimensions
        (IMAGES, header(0x803, 2**31, 2**31, 2**31)),
        (IMAGES, header(0x803, 10, 28, 56)),  # fewer images than labels
        (LABELS, header(0x803)),
        *((IMAGES, flipped(2, bit)) for bit in range(8)),  # types of number, known and unknown ones
        (LABELS, flipped(8, 7)),  # a label that is no class
    ],
)
def test_unpacked_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, damage: Callable[[bytes], bytes]
) -> None:
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", ["http://127.0.0.1:9/"])  # nothing listens there
    raw = tmp_path / "FashionMNIST/raw"
    raw.mkdir(parents=True)
    images = write_idx_files(tmp_path)
    for packed in tmp_path.glob("*.gz"):
        (raw / packed.stem).write_bytes(gzip.decompress(packed.read_bytes()))
    recipe = load_recipe("fashion_mnist", {"source.idx_files": str(tmp_path / "not_there")})
    np.testing.assert_array_equal(np.array(open_source(recipe, tmp_path).splits["train"].load(3)), images[3])
    (raw / name).write_bytes(damage((raw / name).read_bytes()))
    with pytest.raises(
        UserError, match=rf"cannot read FashionMNIST in {re.escape(str(raw))} \(.+\); remove this folder"
    ) as caught:
        open_source(recipe, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        (IMAGES, lambda content: b""),
        (IMAGES, lambda content: content[: len(content) // 2]),
        (IMAGES, lambda content: content[:40] + bytes(200) + content[240:]),
        (
            IMAGES,
            lambda content: flipped(10, 1)(gzip.compress(gzip.decompress(content))),
        ),  # how the first block is coded
        (IMAGES, lambda content: flipped(10, 2)(gzip.compress(gzip.decompress(content)))),
        (IMAGES, flipped(-8)),  # gzip's checksum
        (IMAGES, lambda content: gzip.compress(b"")),
        (IMAGES, lambda content: gzip.compress(header(0)(gzip.decompress(content)))),
        (LABELS, lambda content: gzip.compress(flipped(8, 7)(gzip.decompress(content)))),
    ],
)
def test_packed_files(tmp_path: Path, name: str, damage: Callable[[bytes], bytes]) -> None:
    write_idx_files(tmp_path)
    packed = tmp_path / f"{name}.gz"
    packed.write_bytes(damage(packed.read_bytes()))
    recipe = load_recipe("fashion_mnist", {"source.idx_files": str(tmp_path)})
    with pytest.raises(UserError, match=r"does not hold FashionMNIST \(.+\); install it again") as caught:
        open_source(recipe, tmp_path / "empty")
    assert "\n" not in str(caught.value)
