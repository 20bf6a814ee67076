"""check_beton: what FFCV wrote passes, whatever was done to the file afterwards ends in one line."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ffcv.fields import BytesField, IntField, NDArrayField, RGBImageField
from ffcv.reader import Reader
from ffcv.types import ALLOC_TABLE_TYPE, FieldDescType, HeaderType, get_metadata_type
from ffcv.writer import MIN_PAGE_SIZE, DatasetWriter

from ffcv_prune.data.beton import JPG, RAW, BetonInfo, check_beton
from ffcv_prune.errors import UserError

N = 120
FIELDS = {
    "image": RGBImageField("proportion", compress_probability=0.5),
    "label": IntField(),
    "text": BytesField(),
    "vector": NDArrayField(np.dtype("float32"), (2, 3)),
}
METADATA_TYPE = get_metadata_type(list(FIELDS.values()))
METADATA_START = HeaderType.itemsize + len(FIELDS) * FieldDescType.itemsize
TABLES_END = METADATA_START + N * METADATA_TYPE.itemsize


class Samples:
    """Images of different sizes, labels i % 7, texts of different lengths."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> tuple[np.ndarray, int, np.ndarray, np.ndarray]:
        image = np.random.default_rng(i).integers(0, 256, (8 + i % 5, 9, 3), dtype=np.uint8)
        return image, i % 7, np.arange(1 + i % 3, dtype=np.uint8), np.ones((2, 3), np.float32)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with all kinds of fields. Tests work on copies."""
    path = tmp_path_factory.mktemp("sound") / "train.beton"
    DatasetWriter(str(path), FIELDS, MIN_PAGE_SIZE, num_workers=1).from_indexed_dataset(Samples(), chunksize=20)
    return path


@pytest.fixture
def copy(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(sound, tmp_path / "train.beton"))


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        check_beton(path)
    message = str(caught.value)
    assert str(path) in message
    assert "write_datasets.py" in message
    assert "\n" not in message
    return message


def test_what_ffcv_wrote_passes(sound: Path) -> None:
    info = check_beton(sound)
    assert (info.num_samples, info.page_size, info.bytes) == (N, MIN_PAGE_SIZE, sound.stat().st_size)
    assert info.fields == {"image": 2, "label": 1, "text": 3, "vector": 4}
    assert (info.image_field, info.label_field) == ("image", "label")
    assert info.labels is not None
    np.testing.assert_array_equal(info.labels, np.arange(N) % 7)
    np.testing.assert_array_equal(info.image_heights, 8 + np.arange(N) % 5)
    assert set(info.image_widths) == {9}
    assert set(info.image_modes) == {RAW, JPG}


def test_missing_and_no_file(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "no.beton")
    assert "not a file" in refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "not a file" in refusal(tmp_path / "pipe")


def test_the_remedy_is_a_command_that_works(tmp_path: Path) -> None:
    """Defect: without --dataset the command that was named wrote nothing, but asked for one."""
    write = "write_datasets.py --dataset"
    assert refusal(tmp_path / "cifar10" / "no.beton").endswith(f"does not exist; write it with python {write} cifar10")
    for path in (tmp_path / "my" / "no.beton", Path("no.beton"), Path("../no.beton"), tmp_path / ("a" * 252) / "b"):
        assert refusal(path).endswith(f"python {write} RECIPE")
    damaged = tmp_path / "cifar10" / "train.beton"
    damaged.parent.mkdir()
    damaged.write_bytes(b"\x02\x00" + b"\x00" * 10_000)
    assert refusal(damaged).endswith(f"holds no samples; write it again with python {write} cifar10")


def test_a_file_of_another_kind_is_not_to_be_written_again(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    for content, what in (
        (b"# Read me\n" * 10, " of FFCV's format 2 (it says 8227)"),
        (b"# Read me", ", it has 9 bytes"),
    ):
        path.write_bytes(content)
        remedy = "name one that python write_datasets.py --dataset RECIPE has written"
        assert refusal(path) == f"{path} is not a .beton{what}: {remedy}"


@pytest.mark.parametrize("content", [b"", b"\x02", b"PK\x03\x04" * 100, b"\x02\x00" + b"\x00" * 10_000])
def test_foreign_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "foreign.beton"
    path.write_bytes(content)
    refusal(path)


def test_truncated_anywhere(copy: Path) -> None:
    size = copy.stat().st_size
    near_tables = [*range(0, HeaderType.itemsize + 2), METADATA_START - 1, METADATA_START, TABLES_END - 1]
    anywhere = np.random.default_rng(0).integers(0, size, 200).tolist()
    last_records = range(size - 2 * ALLOC_TABLE_TYPE.itemsize, size)
    for offset in sorted({*near_tables, *anywhere, *last_records}, reverse=True):
        os.truncate(copy, offset)
        refusal(copy)


def set_header(name: str, value: int) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        header = np.fromfile(path, HeaderType, 1)
        header[name] = value
        overwrite(path, 0, header.tobytes())

    return damage


def set_descriptor(field: int, name: str, value: bytes) -> Callable[[Path], None]:
    offset = HeaderType.itemsize + field * FieldDescType.itemsize + FieldDescType.fields[name][1]
    return lambda path: overwrite(path, offset, value)


def set_image(sample: int, **values: int) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        metadata = np.fromfile(path, METADATA_TYPE, N, offset=METADATA_START)
        for name, value in values.items():
            metadata["f0"][name][sample] = value
        overwrite(path, METADATA_START, metadata.tobytes())

    return damage


def set_allocation(record: int, name: str, value: int) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        start = int(np.fromfile(path, HeaderType, 1)["alloc_table_ptr"][0])
        table = np.fromfile(path, ALLOC_TABLE_TYPE, offset=start)
        table[name][record] = value
        overwrite(path, start, table.tobytes())

    return damage


def overwrite(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


HUGE = 2**64 - 1


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (set_header("version", 1), "format 2"),
        (set_header("num_samples", 0), "no samples"),
        (set_header("num_samples", HUGE), "truncated or damaged"),
        (set_header("num_samples", N + 1), "damaged"),
        (set_header("num_fields", 0), "no fields"),
        (set_header("num_fields", 65535), "field"),
        (set_header("page_size", 3 * MIN_PAGE_SIZE), "page size"),
        (set_header("page_size", 0), "page size"),
        (set_header("alloc_table_ptr", HUGE), "allocation table"),
        (set_header("alloc_table_ptr", 0), "allocation table"),
        (set_descriptor(0, "type_id", b"\x07"), "of type 7, which FFCV does not know"),
        (set_descriptor(0, "type_id", b"\x01"), "damaged"),
        (set_descriptor(1, "name", b"image"), "twice"),
        (set_descriptor(1, "name", b"\xff\xfe"), "not ASCII"),
        (set_descriptor(3, "arguments", b"\xff" * 400), "cannot be read"),
        (set_image(5, mode=2), "sample 5"),
        (set_image(5, height=0), "sample 5"),
        (set_image(5, width=65535, height=65535), "sample 5"),
        (set_image(5, data_ptr=HUGE), "sample 5"),
        (set_image(5, data_ptr=TABLES_END), "sample 5"),
        (set_allocation(0, "ptr", HUGE), "fit no page"),
        (set_allocation(0, "size", HUGE), "fit no page"),
        (set_allocation(0, "sample_id", N), "fit no page"),
        (set_allocation(1, "size", 7), "damaged"),
    ],
)
def test_damaged_tables(copy: Path, damage: Callable[[Path], None], expected: str) -> None:
    damage(copy)
    assert expected in refusal(copy)


def test_hole_where_a_jpeg_was(copy: Path) -> None:
    metadata = np.fromfile(copy, METADATA_TYPE, N, offset=METADATA_START)["f0"]
    sample = int(np.flatnonzero(metadata["mode"] == JPG)[3])
    overwrite(copy, int(metadata["data_ptr"][sample]), bytes(100))
    assert f"sample {sample} is no JPEG" in refusal(copy)


def assert_native_code_stays_inside(path: Path, info: BetonInfo) -> None:
    """Follow every pointer as FFCV's memory manager and decoders do, sample by sample."""
    reader = Reader(str(path))
    order = np.argsort(reader.alloc_table["ptr"])
    ptrs, sizes = reader.alloc_table["ptr"][order], reader.alloc_table["size"][order]
    assert len(reader.metadata) == info.num_samples

    def read(address: int) -> int:
        size = int(sizes[np.searchsorted(ptrs, address)])
        assert int(address) + size <= info.bytes
        return size

    for key, handler in zip(reader.metadata_type.names, reader.handlers.values(), strict=True):
        for value in reader.metadata[key]:
            if isinstance(handler, RGBImageField):
                size = read(value["data_ptr"])
                assert value["mode"] == JPG or size == 3 * int(value["height"]) * int(value["width"])
            elif isinstance(handler, BytesField):
                assert read(value["ptr"]) == value["size"]
            elif isinstance(handler, NDArrayField):
                assert read(value) == handler.element_size


@pytest.mark.filterwarnings("ignore")  # FFCV and numpy warn about what a damaged field description says
def test_thousands_of_mutations(copy: Path) -> None:
    """Bits flipped, numbers replaced and bytes shuffled in every table: a refusal, or a file safe to read."""
    rng = np.random.default_rng(0)
    table_start = int(np.fromfile(copy, HeaderType, 1)["alloc_table_ptr"][0])
    arguments = [METADATA_START - FieldDescType.itemsize + 17, METADATA_START - FieldDescType.itemsize + 400]
    regions = [(0, HeaderType.itemsize), arguments, (0, METADATA_START), (METADATA_START, TABLES_END)]
    regions.append((table_start, copy.stat().st_size))
    extremes = [0, 1, 2**31, 2**32, 2**63, HUGE, table_start, table_start - 1, copy.stat().st_size]
    accepted, messages = 0, set()
    with copy.open("r+b", buffering=0) as file:
        for _ in range(3000):
            low, high = regions[rng.integers(len(regions))]
            offset = int(rng.integers(low, high))
            file.seek(offset)
            before = file.read(int(rng.choice([1, 8, 64])))
            mutated = np.frombuffer(before, np.uint8).copy()
            kind = rng.integers(3)
            if kind == 0:
                mutated[rng.integers(len(mutated))] ^= 1 << rng.integers(8)
            elif kind == 1:
                extreme = int(extremes[rng.integers(len(extremes))]).to_bytes(8, "little")
                mutated[:8] = np.frombuffer(extreme, np.uint8)[: len(mutated)]
            else:
                rng.shuffle(mutated)
            file.seek(offset)
            file.write(mutated.tobytes())
            try:
                info = check_beton(copy)
            except UserError as error:
                messages.add(str(error))
            else:
                accepted += 1
                if accepted % 10 == 0:  # the naive walk is slow
                    assert_native_code_stays_inside(copy, info)
            file.seek(offset)
            file.write(before)
    check_beton(copy)
    assert not any("\n" in message for message in messages)
    assert accepted > 100  # labels, unused bytes: mutations that FFCV reads safely are not refused


def test_imagenet_count_is_fast(tmp_path: Path) -> None:
    """1.28 M images of one pixel, the tables written with numpy: below a second on one idle core."""
    n, page = 1_280_000, 2 * MIN_PAGE_SIZE
    path = tmp_path / "large.beton"
    descriptors = np.zeros(2, FieldDescType)
    descriptors["type_id"] = 2, 1
    descriptors["name"][0, :5] = np.frombuffer(b"image", np.uint8)
    descriptors["name"][1, :5] = np.frombuffer(b"label", np.uint8)
    metadata_type = get_metadata_type([RGBImageField(), IntField()])
    tables = HeaderType.itemsize + descriptors.nbytes + n * metadata_type.itemsize
    start = -(-tables // page) * page
    metadata = np.zeros(n, metadata_type)
    metadata["f0"]["mode"] = RAW
    metadata["f0"]["width"] = metadata["f0"]["height"] = 1
    per_page = page // 3
    ids = np.arange(n, dtype=np.uint64)
    metadata["f0"]["data_ptr"] = start + ids // per_page * page + ids % per_page * 3
    header = np.zeros(1, HeaderType)
    table_start = start + -(-n // per_page) * page
    header["version"], header["num_fields"], header["page_size"] = 2, 2, page
    header["num_samples"], header["alloc_table_ptr"] = n, table_start
    table = np.zeros(n, ALLOC_TABLE_TYPE)
    table["sample_id"], table["ptr"], table["size"] = ids, metadata["f0"]["data_ptr"], 3
    np.random.default_rng(0).shuffle(table)
    with path.open("wb") as file:
        file.write(header.tobytes() + descriptors.tobytes() + metadata.tobytes())
        file.seek(table_start)
        file.write(table.tobytes())
    began = time.process_time()
    assert check_beton(path).num_samples == n
    assert time.process_time() - began < 3  # generous: a shared machine
