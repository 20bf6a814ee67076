from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from ffcv.fields import BytesField, IntField, RGBImageField
from ffcv.writer import DatasetWriter
from hypothesis import given
from hypothesis import strategies as st

from ffcv_prune import PrunedLoader
from ffcv_prune.data.beton import check_beton
from ffcv_prune.loading import read_ahead
from ffcv_prune.loading.open_file import OpenFile, open_file
from ffcv_prune.loading.pipelines import score_pipelines
from ffcv_prune.loading.read_ahead import PAGE, ReadAhead, byte_ranges, windows
from tests.betons import Beton

SIDE = 64  # images of three pages


class Named:
    """Images with a name of a few bytes to some pages, the second field with data of its own."""

    def __len__(self) -> int:
        return 150

    def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray, int]:
        rng = np.random.default_rng(i)
        image = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        return image, rng.integers(0, 256, 1 + i * 97 % 9000, dtype=np.uint8), i


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> OpenFile:
    path = tmp_path_factory.mktemp("read_ahead") / "named.beton"
    fields = {"image": RGBImageField("raw"), "name": BytesField(), "label": IntField()}
    DatasetWriter(str(path), fields, num_workers=2).from_indexed_dataset(Named(), chunksize=7)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return open_file(path)


some_ids = st.lists(st.integers(0, 149), min_size=1, max_size=60)


@given(some_ids, st.sampled_from([["image"], ["name"], ["image", "name", "label"]]), st.sampled_from([0, 2 * PAGE]))
def test_ranges_hold_every_byte_of_the_samples(named: OpenFile, ids: list[int], fields: list[str], gap: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(read_ahead, "REQUEST_BYTES", gap)
        starts, ends = byte_ranges(named, fields, np.array(ids))
    assert (starts % PAGE == 0).all()
    assert (ends % PAGE == 0).all()
    assert (starts < ends).all()
    assert (starts[1:] - ends[:-1] > gap).all()
    # A naive twin: the pages of each sample, and of the gaps that are to be read along.
    metadata, manager = named.memory_manager.reader.metadata, named.memory_manager
    sizes = dict(zip(manager.ptrs.tolist(), manager.sizes.tolist(), strict=True))
    needed = set()
    for i in ids:
        found = {"image": metadata["f0"]["data_ptr"][i], "name": metadata["f1"]["ptr"][i]}
        for address in (int(found[field]) for field in fields if field in found):
            needed |= set(range(address // PAGE, (address + sizes[address] - 1) // PAGE + 1))
    pages = sorted(needed)
    for before, after in pairwise(pages):
        if (after - before - 1) * PAGE <= gap:
            needed |= set(range(before, after))
    asked = {page for start, end in zip(starts, ends, strict=True) for page in range(start // PAGE, end // PAGE)}
    assert asked == needed


@given(st.integers(0, 300), st.integers(1, 40), st.floats(1, 1e8))
def test_windows_are_the_batches_in_order(samples: int, batch: int, sample_bytes: float) -> None:
    ids = np.random.default_rng(0).permutation(samples)
    parts = windows(ids, batch, sample_bytes)
    np.testing.assert_array_equal(np.concatenate([ids[:0], *parts.values()]), ids)
    for first, part in parts.items():
        np.testing.assert_array_equal(part[:batch], ids[first * batch : first * batch + batch][: len(part)])
        assert len(part) <= batch or len(part) * sample_bytes <= read_ahead.WINDOW_BYTES


def missing(opened: OpenFile, ids: np.ndarray) -> int:
    """How many pages of the samples' images are not in memory."""
    count = 0
    for start, end in zip(*byte_ranges(opened, ["image"], ids), strict=True):
        for offset in range(start, end, PAGE):
            try:
                os.preadv(opened.descriptor, [bytearray(1)], offset, os.RWF_NOWAIT)
            except BlockingIOError:
                count += 1
    return count


def drop(opened: OpenFile) -> None:
    opened.memory_manager.context.mmap._mmap.madvise(mmap.MADV_DONTNEED)  # mapped pages would stay
    os.posix_fadvise(opened.descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


@pytest.mark.parametrize("told", [range(8), [0, 3, 3, 7], [7]])
def test_what_was_asked_for_comes_into_memory(
    named: OpenFile, told: Sequence[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_ahead, "WINDOW_BYTES", 1)  # a window is a batch
    ids = np.arange(0, 150, 2)
    drop(named)
    if missing(named, ids) < 100:
        pytest.skip("this file system keeps its files in memory")
    drop(named)
    ahead = ReadAhead(named, ["image"], ids, batch_size=10)
    ahead.start()
    for batch in told:
        ahead.decoding(batch)
    ahead.join(timeout=60)
    for _ in range(100):
        if not missing(named, ids):
            break
        threading.Event().wait(0.05)
    assert not missing(named, ids)


def test_only_what_is_not_in_memory_is_asked_for(named: OpenFile, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(ReadAhead, "_request", lambda self, starts, ends: asked.append(len(starts)))
    for ids in (np.arange(150), np.arange(3)):
        named.path.read_bytes()
        ahead = ReadAhead(named, ["image", "label"], ids, batch_size=10)
        ahead.start()
        ahead.stop()
    assert not asked
    nothing = ReadAhead(named, ["label"], np.arange(150), batch_size=10)  # in the metadata, which are in memory
    nothing.start()
    nothing.stop()
    assert not asked


@pytest.mark.parametrize("read_ahead", [True, False])
def test_an_epoch_from_the_disk(beton: Beton, read_ahead: bool) -> None:
    loader = PrunedLoader(
        beton.path, 32, pipelines=score_pipelines(check_beton(beton.path)), with_ids=True, read_ahead=read_ahead
    )
    drop(loader.file)
    for images, labels, ids in loader:
        np.testing.assert_array_equal(images.permute(0, 2, 3, 1).numpy(), beton.images[ids])
        np.testing.assert_array_equal(labels.numpy(), beton.labels[ids])
    epoch = iter(loader)
    next(epoch)
    epoch.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "ffcv_prune-read-ahead"]


def test_reading_ahead_follows_what_is_being_made(beton: Beton, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several batches are submitted at a time: what is read for the last of them is far ahead of a slow disk."""
    told: list[int] = []
    monkeypatch.setattr(ReadAhead, "decoding", lambda self, batch: told.append(batch))
    loader = PrunedLoader(beton.path, 16, pipelines=score_pipelines(check_beton(beton.path)))
    epoch = iter(loader)
    for being_made in (0, 2):
        monkeypatch.setattr(epoch._ring.workers, "taken", lambda number=being_made: number)
        next(epoch)
        assert set(told) == {being_made}
        told.clear()
    epoch.close()


def test_loaders_of_one_file_share_it(beton: Beton, tmp_path: Path) -> None:
    path = tmp_path / "copy.beton"
    path.write_bytes(beton.path.read_bytes())
    first = open_file(path)
    assert open_file(path) is first
    os.utime(path, (1, 1))
    assert open_file(path) is not first  # another file, as far as one can know
