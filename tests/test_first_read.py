"""The loader checks each sample when it reads it for the first time."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import ffcv_prune
from ffcv_prune import PrunedLoader
from ffcv_prune.data.beton import check_beton, read_tables
from ffcv_prune.errors import UserError
from ffcv_prune.loading import first_read, native_code
from ffcv_prune.loading.augment import Label
from ffcv_prune.loading.pipelines import score_pipelines, train_pipelines
from tests.betons import Beton, write_run
from tests.test_crc32c import random_bytes

N, BATCH = 203, 16
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module", params=["raw", "jpg"])
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    samples = [(random_bytes(16 * 16 * 3, i).reshape(16, 16, 3), i % 10) for i in range(N)]
    path = tmp_path_factory.mktemp("written") / "train.beton"
    return ffcv_prune.write(samples, path, mode=request.param, num_workers=1)  # type: ignore[arg-type]


@pytest.fixture
def copy(written: Path, tmp_path: Path) -> Path:
    shutil.copy(written.with_suffix(".txt"), tmp_path)
    return Path(shutil.copy(written, tmp_path / "train.beton"))


def flip(path: Path, sample: int, field: str = "image") -> None:
    """Change a byte of the sample that the check of the tables cannot see."""
    tables = read_tables(path)
    if field == "image":
        place = int(tables.pointers["image"][sample]) + 150
    else:  # the label, which ends the record
        record = tables.metadata[sample].tobytes()
        place = path.read_bytes().index(record) + len(record) - 8
    with path.open("r+b") as file:
        (byte,) = os.pread(file.fileno(), 1, place)
        os.pwrite(file.fileno(), bytes([byte ^ 1]), place)


def make_loader(path: Path, **options: Any) -> PrunedLoader:
    own: dict[str, Any] = {"num_workers": 1, "drop_last": False, "pipelines": score_pipelines(check_beton(path))}
    return PrunedLoader(path, BATCH, **own | options)


@pytest.fixture
def summed(monkeypatch: pytest.MonkeyPatch) -> list[NDArray[np.int64]]:
    """The ids whose sums were taken, call by call."""
    calls: list[NDArray[np.int64]] = []
    take = first_read.sample_sums

    def record(tables: Any, ids: NDArray[np.int64], *place: Any, **options: Any) -> Any:
        calls.append(ids)
        return take(tables, ids, *place, **options)

    monkeypatch.setattr(first_read, "sample_sums", record)
    return calls


def flip_unseen(path: Path, sample: int) -> None:
    """Change a byte of an image behind the back of whoever has the file open."""
    before = path.stat()
    flip(path, sample)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.fixture(params=["native", "numba"])
def code(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Who checks and decodes."""
    if request.param == "numba":
        monkeypatch.setattr(native_code, "library", lambda: None)
    return str(request.param)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("field", ["image", "label"])
@pytest.mark.usefixtures("code")
def test_a_damaged_sample_ends_the_epoch(copy: Path, workers: int, field: str) -> None:
    flip(copy, 100, field)
    loader = make_loader(copy, num_workers=workers)
    expected = f"{copy} is damaged: sample 100 (sample 100 of list) is not what was written; write it again"
    for _ in range(2):  # it is not taken for read
        served = 0
        with pytest.raises(UserError) as caught:
            for _ in loader:
                served += 1
        assert str(caught.value).startswith(expected)
        assert served == 100 // BATCH
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("ffcv_prune")]
    loader.set_selection(np.delete(np.arange(N), 100))
    assert sum(len(images) for images, _ in loader) == N - 1


def test_each_sample_is_checked_once_in_a_process(copy: Path, code: str, summed: list[NDArray[np.int64]]) -> None:
    loader = make_loader(copy, shuffle=True)
    loader.set_selection(np.arange(0, N, 2))
    list(loader)
    flip_unseen(copy, 100)  # which was read
    list(loader)
    training = make_loader(copy, pipelines=train_pipelines(check_beton(copy), "pad_crop_flip"), num_workers=2)
    list(training)
    assert sum(map(len, summed)) == (N if code == "numba" else 0)
    list(loader)


def test_a_sample_that_was_not_read_is_checked_by_the_next_loader(copy: Path, code: str) -> None:
    loader = make_loader(copy)
    loader.set_selection(np.arange(0, N, 2))
    list(loader)
    flip_unseen(copy, 101)
    list(loader)
    training = make_loader(copy, pipelines=train_pipelines(check_beton(copy), "pad_crop_flip"), num_workers=2)
    with pytest.raises(UserError, match="sample 101 "):
        list(training)


@pytest.mark.usefixtures("code")
def test_a_sample_of_several_fields_is_checked_whole(tmp_path: Path) -> None:
    samples = [(random_bytes(300, i).reshape(10, 10, 3), np.arange(i, i + 5, dtype=np.float32)) for i in range(40)]
    path = ffcv_prune.write(samples, tmp_path / "vectors.beton", num_workers=1)  # type: ignore[arg-type]
    sound, pointers = path.read_bytes(), read_tables(path).pointers
    assert len(pointers) == 2
    list(PrunedLoader(path, 8, num_workers=2))
    for places in pointers.values():
        place = int(places[17]) + 3
        path.write_bytes(sound[:place] + bytes([sound[place] ^ 4]) + sound[place + 1 :])
        with pytest.raises(UserError, match="sample 17 "):
            list(PrunedLoader(path, 8, num_workers=2))


def test_an_epoch_that_decodes_no_images_reads_none(copy: Path, summed: list[NDArray[np.int64]]) -> None:
    flip(copy, 100)
    labels = make_loader(copy, pipelines={"label": [Label()], "image": None})
    assert sum(len(batch) for (batch,) in labels) == N
    assert not summed


@pytest.mark.parametrize("written", ["raw"], indirect=True)
def test_a_run_ends_with_one_line(copy: Path, tmp_path: Path) -> None:
    flip(copy, 100)
    data = Beton(copy, np.empty(0, np.uint8), np.empty(0, np.int64))
    file = write_run(tmp_path / "small.yaml", data, epochs=1, run=f"out: {tmp_path / 'runs'}")
    done = subprocess.run(
        [sys.executable, str(ROOT / "train_imagenet.py"), "--config", str(file)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )
    lines = [line for line in done.stderr.splitlines() if not line.startswith("notice: ")]
    assert done.returncode == 2 and len(lines) == 1
    assert lines[0].startswith(f"error: {copy} is damaged: sample 100 ")
    assert "--verify" in lines[0]
