"""Thousands of damaged .beton files: none crashes or hangs the check, and what it accepts can be loaded.

Everything runs in a process of its own, which a crash would end; the file that it died of stays in its folder.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import ffcv_prune.ffcv_import  # noqa: F401 - before FFCV  # isort: skip
import numpy as np
import pytest
from ffcv.fields import BytesField, IntField, NDArrayField, RGBImageField
from ffcv.fields.decoders import CenterCropRGBImageDecoder
from ffcv.reader import Reader
from ffcv.transforms import ToTensor
from ffcv.types import FieldDescType, HeaderType
from ffcv.writer import MIN_PAGE_SIZE, DatasetWriter

from ffcv_prune import PrunedLoader
from ffcv_prune.data.beton import BetonInfo, check_beton
from ffcv_prune.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
N, SIDE = 60, 12
SECONDS_A_FILE = 30  # a hang ends the process
EXTREMES = np.array([0, 1, 2**8 - 1, 2**16 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1], np.uint64)

Bytes = np.ndarray  # uint8[m]


class Samples:
    """All kinds of fields; half of the images are JPEG."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> tuple[np.ndarray, int, np.ndarray, np.ndarray]:
        image = np.random.default_rng(i).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        return image, i % 7, np.arange(1 + i % 3, dtype=np.uint8), np.ones((2, 3), np.float32)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fuzz") / "sound.beton"
    fields = {
        "image": RGBImageField("proportion", compress_probability=0.5),
        "label": IntField(),
        "text": BytesField(),
        "vector": NDArrayField(np.dtype("float32"), (2, 3)),
    }
    DatasetWriter(str(path), fields, MIN_PAGE_SIZE, num_workers=1).from_indexed_dataset(Samples(), chunksize=20)
    return path


# ---- damage: functions of the content and the stretch [low, high) of it to damage --------------------------


def flip_bits(content: Bytes, low: int, high: int, rng: np.random.Generator) -> Bytes:
    content[rng.integers(low, high, rng.integers(1, 9))] ^= np.uint8(1 << rng.integers(8))
    return content


def set_integer(content: Bytes, low: int, high: int, rng: np.random.Generator) -> Bytes:
    """An extreme, or one near what stood there, of 1 to 8 bytes."""
    size = int(rng.choice([1, 2, 4, 8]))
    offset = int(rng.integers(low, max(low + 1, high - size)))
    old = np.frombuffer(content[offset : offset + 8].tobytes().ljust(8, b"\0"), np.uint64)
    with np.errstate(over="ignore"):
        new = rng.choice(EXTREMES) if rng.integers(2) else old[0] + np.uint64(rng.choice([1, 2**64 - 1], p=[0.5, 0.5]))
    changed = np.frombuffer(np.uint64(new).tobytes(), np.uint8)[:size]
    content[offset : offset + size] = changed[: len(content) - offset]
    return content


def truncate(content: Bytes, low: int, high: int, rng: np.random.Generator) -> Bytes:
    return content[: rng.integers(low, high)]


def delete(content: Bytes, low: int, high: int, rng: np.random.Generator) -> Bytes:
    start, stop = np.sort(rng.integers(low, high, 2))
    return np.delete(content, slice(start, stop + 1))


def insert(content: Bytes, low: int, high: int, rng: np.random.Generator) -> Bytes:
    noise = rng.integers(0, 256, rng.integers(1, 300), dtype=np.uint8)
    return np.insert(content, int(rng.integers(low, high)), noise)


def duplicate(content: Bytes, low: int, high: int, rng: np.random.Generator) -> Bytes:
    start, stop = np.sort(rng.integers(low, high, 2))
    return np.insert(content, int(stop), content[start:stop])


def overlay(content: Bytes, low: int, high: int, rng: np.random.Generator) -> Bytes:
    """Copy one part of the stretch over another: numbers that are plausible, in the wrong place."""
    size = int(min(rng.choice([8, 24, 32, 200]), high - low))
    source, target = rng.integers(low, high - size + 1, 2)
    content[target : target + size] = content[source : source + size].copy()
    return content


DAMAGES: list[Callable[[Bytes, int, int, np.random.Generator], Bytes]] = [
    flip_bits,
    set_integer,
    truncate,
    delete,
    insert,
    duplicate,
    overlay,
]


def stretches(path: Path) -> list[tuple[int, int]]:
    """Header, field descriptions, metadata, data and allocation table."""
    reader = Reader(str(path))
    metadata = HeaderType.itemsize + reader.num_fields * FieldDescType.itemsize
    ptrs, sizes = reader.alloc_table["ptr"], reader.alloc_table["size"]
    return [
        (0, HeaderType.itemsize),
        (HeaderType.itemsize, metadata),
        (metadata, metadata + reader.metadata.nbytes),
        (int(ptrs.min()), int((ptrs + sizes).max())),
        (int(reader.header["alloc_table_ptr"]), path.stat().st_size),
    ]


# ---- what runs in the child --------------------------------------------------------------------------------


def check_mutants(sound: str, folder: str, seed: str, count: str, loads: str) -> None:
    """Check `count` damaged files and load `loads` of those accepted; print what became of them."""
    content, parts = np.fromfile(sound, np.uint8), stretches(Path(sound))
    outcome = {"refused": 0, "accepted": 0, "loaded": 0, "refused by the loader": 0}
    mutant = Path(folder) / "mutant.beton"
    for i in range(int(count)):
        signal.alarm(SECONDS_A_FILE)
        rng = np.random.default_rng([int(seed), i])
        low, high = parts[rng.integers(len(parts))]
        damaged = DAMAGES[rng.integers(len(DAMAGES))](content.copy(), low, high, rng)
        damaged.tofile(mutant)
        try:
            info = check_beton(mutant)
        except UserError as error:
            assert "\n" not in str(error), error
            outcome["refused"] += 1
            continue
        outcome["accepted"] += 1
        if outcome["loaded"] < int(loads) and not np.array_equal(damaged, content):
            outcome["loaded" if load(info) else "refused by the loader"] += 1
    print(json.dumps(outcome))


def load(info: BetonInfo) -> bool:
    """Decode every field of every sample; False if the loader refuses to."""
    pipelines = {info.image_field: [CenterCropRGBImageDecoder((8, 8), 1.0), ToTensor()]}  # the others: FFCV's default
    try:
        loader = PrunedLoader(info.path, 16, pipelines=pipelines, num_workers=1, shuffle=False, drop_last=False)
    except UserError:
        return False
    served = 0
    for images, *_ in loader:
        served += len(images)
        images.sum().item()
    assert served == info.num_samples
    return True


def decode_mutants(path: str, seed: str, rounds: str) -> None:
    """Damage the data of all images at once, `rounds` times, under one loader; print how many looked different."""
    reader = Reader(path)
    sizes = dict(reader.alloc_table[["ptr", "size"]].tolist())
    ptrs = reader.metadata["f0"]["data_ptr"].tolist()
    loader = PrunedLoader(path, 32, shuffle=False, drop_last=False)
    sound = np.concatenate([images.numpy() for images, *_ in loader])
    state = os.stat(path)
    changed = 0
    with open(path, "r+b", buffering=0) as file:
        contents = [np.frombuffer(os.pread(file.fileno(), sizes[ptr], ptr), np.uint8) for ptr in ptrs]
        for i in range(int(rounds)):
            signal.alarm(SECONDS_A_FILE)
            rng = np.random.default_rng([int(seed), i])
            damages = [flip_bits, set_integer, overlay]
            for ptr, content in zip(ptrs, contents, strict=True):
                damaged = damages[rng.integers(len(damages))](content.copy(), 0, len(content), rng)
                os.pwrite(file.fileno(), damaged.tobytes(), ptr)
            os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))  # as decay on a disk: nobody wrote
            images = np.concatenate([images.numpy() for images, *_ in loader])
            changed += int((images != sound).any(axis=(1, 2, 3)).sum())
            if i == 0:  # one sound image among damaged ones is not touched by them
                os.pwrite(file.fileno(), contents[5].tobytes(), ptrs[5])
                os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
                assert (np.concatenate([images.numpy() for images, *_ in loader])[5] == sound[5]).all()
    print(changed)


def in_child(function: Callable[..., None], *arguments: object, timeout: float) -> str:
    code = f"import sys; from tests import test_fuzz_beton; test_fuzz_beton.{function.__name__}(*sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-W", "ignore", "-c", code, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stderr}"
    return done.stdout


# ---- the tests ---------------------------------------------------------------------------------------------


def check_all(sound: Path, folder: Path, seed: int, count: int, loads: int, timeout: float) -> None:
    outcome = json.loads(in_child(check_mutants, sound, folder, seed, count, loads, timeout=timeout))
    assert outcome["refused"] + outcome["accepted"] == count
    assert outcome["refused"] > count / 2
    assert outcome["loaded"] == loads  # damage that FFCV reads safely: pixels, labels, unused bytes


def test_damaged_files_are_refused_or_can_be_loaded(sound: Path, tmp_path: Path) -> None:
    check_all(sound, tmp_path, seed=0, count=600, loads=5, timeout=100)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_thousands_of_damaged_files_are_refused_or_can_be_loaded(seed: int, sound: Path, tmp_path: Path) -> None:
    check_all(sound, tmp_path, seed, count=5000, loads=100, timeout=1700)


def decode_all(sound: Path, folder: Path, seed: int, rounds: int, timeout: float) -> None:
    path = shutil.copy(sound, folder / "images.beton")
    assert int(in_child(decode_mutants, path, seed, rounds, timeout=timeout)) > N * rounds / 2


def test_damaged_pixels_change_pixels_and_nothing_else(sound: Path, tmp_path: Path) -> None:
    decode_all(sound, tmp_path, seed=0, rounds=100, timeout=100)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_million_damaged_images_do_not_crash(sound: Path, tmp_path: Path) -> None:
    decode_all(sound, tmp_path, seed=1, rounds=20_000, timeout=1700)
