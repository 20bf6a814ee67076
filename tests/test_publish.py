"""The files of a data set appear together: after a full disk at any of them, all are the old ones."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import ffcv_prune
from ffcv_prune.data.manifest import Manifest
from ffcv_prune.data.recipe import load_recipe
from ffcv_prune.data.writer import unfinished, write_dataset
from ffcv_prune.errors import UserError
from tests.data_helpers import write_images, write_recipe


def write_recipe_of(label: int, folder: Path) -> None:
    """Train and test of a recipe, 2 + `label` images each."""
    source = folder / f"source{label}"
    if not source.exists():
        for split in ("train", "test"):
            write_images(source / split, {f"class {label}": 2 + label})
    write_dataset(load_recipe(write_recipe(source)), source, folder / "out", 1, force=True)


def write_pairs_of(label: int, folder: Path) -> None:
    dataset = [(np.full((6, 6, 3), label, np.uint8), label)] * (2 + label)
    ffcv_prune.write(dataset, folder / "out/train.beton", num_workers=1, force=True)


def contents(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in (folder / "out").rglob("*.*")}


@pytest.mark.parametrize(("write", "files"), [(write_recipe_of, 6), (write_pairs_of, 3)])
def test_a_full_disk_at_any_file_leaves_all_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[int, Path], None], files: int
) -> None:
    """The disk says that it is full at the latest when a file is to reach it."""
    write(0, tmp_path)
    before = contents(tmp_path)
    assert len(before) == files
    sync = os.fsync
    for full_at in range(files):
        synced: list[int] = []

        def fill(number: int, synced: list[int] = synced, full_at: int = full_at) -> None:
            synced.append(number)
            if len(synced) > full_at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            sync(number)

        monkeypatch.setattr(os, "fsync", fill)
        with pytest.raises(UserError, match=r"cannot write .*: No space left on device; free some space"):
            write(1, tmp_path)
        assert len(synced) == full_at + 1
        assert contents(tmp_path) == before, f"file {full_at}"
    monkeypatch.setattr(os, "fsync", sync)
    write(1, tmp_path)
    after = contents(tmp_path)
    assert after.keys() == before.keys()
    assert all(after[file] != before[file] for file in before)
    assert {Manifest.load(file).samples for file in after if file.suffix == ".beton"} == {3}


def test_what_a_killed_writer_left_is_known_by_its_name_not_a_pattern(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    own, other = (tmp_path / f".{name}.beton.{ended.pid}.tmp" for name in ("a[1]", "a1"))
    own.touch()
    other.touch()
    with unfinished(tmp_path / "a[1].beton"):
        pass
    assert list(tmp_path.iterdir()) == [other]
