"""The checksums of samples: what the writer puts into a file, and what the check of a whole file says."""

from __future__ import annotations

import os
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ffcv.loader import Loader, OrderOption
from ffcv.reader import Reader
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ffcv_prune
from benchmarks.harness.training import noise
from ffcv_prune.data import checksums
from ffcv_prune.data.beton import check_beton, read_tables
from ffcv_prune.data.checksums import damaged_samples, verify
from ffcv_prune.data.encode import encode_split
from ffcv_prune.data.recipe import Image
from ffcv_prune.data.tables import CHECKSUMS_HEADER
from ffcv_prune.errors import UserError
from tests.betons import write_beton
from tests.test_crc32c import random_bytes, twin

N = 250
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Raw images of several sizes, with vectors as targets: two fields outside the metadata."""
    path = tmp_path_factory.mktemp("checksums") / "train.beton"
    shapes = [(3 + i % 7, 5 + i % 4, 3) for i in range(N)]
    pixels = [random_bytes(int(np.prod(shape)), i).reshape(shape) for i, shape in enumerate(shapes)]
    samples = [(image, np.arange(3.0) + i) for i, image in enumerate(pixels)]
    return ffcv_prune.write(samples, path, num_workers=2)  # type: ignore[arg-type]


@pytest.fixture
def copy(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(written, tmp_path / "train.beton"))


def checksums_of(path: Path) -> np.ndarray:
    found = read_tables(path).checksums
    assert found is not None
    return found


def find_damage(path: Path) -> list[int]:
    return damaged_samples(read_tables(path), checksums_of(path)).tolist()


def change(path: Path, place: int, how: Callable[[int], int] = lambda byte: byte ^ 4) -> None:
    with path.open("r+b") as file:
        byte = os.pread(file.fileno(), 1, place)[0]
        os.pwrite(file.fileno(), bytes([how(byte)]), place)


def test_what_a_checksum_is_made_of(written: Path) -> None:
    reader = Reader(str(written))
    content = written.read_bytes()
    expected = []
    for sample in range(N):
        table = reader.alloc_table[reader.alloc_table["sample_id"] == sample]
        sizes = dict(table[["ptr", "size"]].tolist())
        record = reader.metadata[sample]
        starts = record["f0"]["data_ptr"], record["f1"]
        own = b"".join(content[int(start) : int(start) + sizes[int(start)]] for start in starts)
        expected.append(twin(own + record.tobytes()))
    assert checksums_of(written).tolist() == expected
    assert find_damage(written) == []


@pytest.mark.parametrize(("image", "workers"), [(Image(), 1), (Image(), 2), (Image(mode="jpg"), 2)])
def test_files_of_many_pages(tmp_path: Path, image: Image, workers: int) -> None:
    path = tmp_path / "large.beton"
    encode_split(noise(300, 256), path, image, 0, workers, "large")
    assert read_tables(path).sizes.sum() > 2 * check_beton(path).page_size
    assert find_damage(path) == []
    place = int(read_tables(path).pointers["image"][299]) + 1000
    change(path, place)
    assert find_damage(path) == [299]


def test_a_sample_that_is_begun_again_in_the_next_page(tmp_path: Path) -> None:
    """Its image fits into what is left of the page, its target does not."""
    image, target = np.full((1024, 1364, 3), 7, np.uint8), np.ones(1100)
    path = ffcv_prune.write([(image, target)] * 3, tmp_path / "train.beton", num_workers=1)  # type: ignore[arg-type]
    tables = read_tables(path)
    page = tables.info.page_size
    assert 2 * image.nbytes + 4 * target.size <= page < 2 * image.nbytes + 8 * target.size
    assert len(np.unique(tables.pointers["image"] // np.uint64(page))) == 3
    assert find_damage(path) == []


def test_ffcv_reads_the_file_as_before(written: Path) -> None:
    loader = Loader(str(written), 50, num_workers=1, order=OrderOption.SEQUENTIAL, pipelines={"image": None})
    targets = np.concatenate([targets.numpy() for (targets,) in loader])
    np.testing.assert_array_equal(targets, np.arange(3.0) + np.arange(N)[:, None])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(data=st.data())
def test_any_damage_of_a_sample_is_noticed(copy: Path, data: st.DataObject) -> None:
    """Its pixels, its target, its record: what the check of the tables accepts is found, in that sample alone."""
    tables = read_tables(copy)
    sample = data.draw(st.integers(0, N - 1))
    where = data.draw(st.sampled_from(["image", "label", "record"]))
    if where == "record":
        size, start = tables.metadata.dtype.itemsize, copy.read_bytes().index(tables.metadata[sample].tobytes())
    else:
        start = int(tables.pointers[where][sample])
        size = int(tables.sizes[np.searchsorted(tables.addresses, np.uint64(start))])
    place, mask = start + data.draw(st.integers(0, size - 1)), data.draw(st.integers(1, 255))
    change(copy, place, lambda byte: byte ^ mask)
    try:
        assert find_damage(copy) == [sample]
    except UserError as error:  # a pointer or a size
        assert where == "record" and "is damaged" in str(error)
    finally:
        change(copy, place, lambda byte: byte ^ mask)


def test_damaged_checksums_are_no_damage_of_samples(copy: Path) -> None:
    place = copy.read_bytes().index(checksums_of(copy).tobytes())
    change(copy, place + 4 * 17)
    with pytest.raises(UserError, match="is damaged: its checksums are not what was written"):
        check_beton(copy)


def test_a_file_without_checksums_says_how_to_get_them(copy: Path, tmp_path: Path) -> None:
    stock = write_beton(tmp_path / "stock.beton", n=20).path
    place = copy.read_bytes().index(checksums_of(copy).tobytes()) - CHECKSUMS_HEADER.itemsize
    with copy.open("r+b") as file:  # as written before there were any
        os.pwrite(file.fileno(), bytes(CHECKSUMS_HEADER.itemsize + 4 * N), place)
    for path in (stock, copy):
        assert read_tables(path).checksums is None
        with pytest.raises(UserError, match=r"has no checksums: write it again with python write_datasets\.py"):
            verify(path)


def test_a_file_that_is_cut_short_while_it_is_checked(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checksums, "WINDOW_BYTES", 1000)
    tables = read_tables(copy)
    os.truncate(copy, int(tables.pointers["image"][N // 2]))
    with pytest.raises(UserError, match="was cut short while it was read"):
        damaged_samples(tables, np.zeros(N, np.uint32))


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["write_datasets.py", *map(str, arguments)])
        code = 0
        try:
            runpy.run_path(str(ROOT / "write_datasets.py"), run_name="__main__")
        except SystemExit as error:
            code = int(error.code or 0)
        return code, *capsys.readouterr()

    return run


def test_the_command(copy: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    assert command("--verify", copy)[:2] == (0, f"{copy}: {N} samples are as they were written\n")
    pointers = read_tables(copy).pointers["image"]
    for sample in (200, 17):
        change(copy, int(pointers[sample]) + 5)
    code, output, errors = command(f"--verify={copy}")
    assert (code, output) == (2, "sample 17\nsample 200\n")
    expected = f"error: {copy}: 2 of {N} samples are damaged: 17, 200; write it again with "
    assert errors.splitlines()[-1] == f"{expected}python write_datasets.py --dataset RECIPE"
    copy.with_suffix(".txt").write_text("".join(f"cat/{i}.jpg\n" for i in range(N)))
    assert command("--verify", copy)[1] == "sample 17 (cat/17.jpg)\nsample 200 (cat/200.jpg)\n"
    for sample in range(N):
        change(copy, int(pointers[sample]))
    assert ", 19 and 230 more; write" in command("--verify", copy)[2]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--verify"], "--verify needs a value"),
        (["--verify=none.beton"], "none.beton does not exist"),
        (["--verify=none.beton", "--dataset=cifar10"], "leave out the other options"),
        (["--verify=none.beton", "--image.mode=raw"], "leave out the other options"),
    ],
)
def test_the_command_refuses(arguments: list[str], expected: str, command: Callable[..., tuple[int, str, str]]) -> None:
    code, output, errors = command(*arguments)
    assert (code, output, errors.count("\n")) == (2, "", 1)
    assert expected in errors
