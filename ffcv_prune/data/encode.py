"""One split through FFCV's writer: how images are encoded, and who watches the processes that do it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterable
from multiprocessing.connection import wait
from pathlib import Path
from queue import Empty
from typing import Any, Protocol

import ffcv_prune.ffcv_import  # noqa: F401 - before FFCV  # isort: skip
import cv2
import numpy as np
import torch
from ffcv.fields import RGBImageField
from ffcv.fields.base import Field
from ffcv.fields.rgb_image import IMAGE_MODES
from ffcv.writer import MIN_PAGE_SIZE, DatasetWriter
from PIL.Image import Image as Picture
from tqdm import tqdm

from ffcv_prune.data.allocator import SummingAllocator
from ffcv_prune.data.jpeg import can_be_kept, opened
from ffcv_prune.data.recipe import Image
from ffcv_prune.data.tables import checksums_bytes, write_checksums
from ffcv_prune.errors import UserError, first_line, uninterrupted

NAMED = 20  # broken images that one message names
CHUNK = 100  # samples handed to a worker at a time, as in FFCV
MAX_SIDE = 2**16 - 1  # the file stores height and width in 16 bits


class Readable(Protocol):
    """What is written: n samples of an image and a target, read in many processes."""

    @property
    def target(self) -> Field:
        """How the targets are stored."""

    def __len__(self) -> int: ...

    def read(self, i: int) -> tuple[Picture | bytes, Any]:
        """The image of a sample, or its file, and its target, as the field `target` takes it."""

    def describe(self, i: int) -> str:
        """The sample's name in an error message."""


def page_size(max_resolution: int, target_bytes: int = 0) -> int:
    """Return FFCV's default page size in bytes, or the smallest one that holds any image unpacked and its target."""
    size = 4 * MIN_PAGE_SIZE
    while size < 3 * max_resolution**2 + target_bytes:
        size *= 2
    return size


def shrunk(pixels: np.ndarray, limit: int) -> np.ndarray:
    """Shrink an image, uint8[h, w, 3], so that its longer side has at most `limit` pixels; 0: none.

    The size is that of FFCV's `resizer`, which fails where a side would keep no pixel, such as 900 x 2 with 400.
    """
    longer = max(pixels.shape[:2])
    if not 0 < limit < longer:
        return pixels
    height, width = (max(1, int(limit / longer * side)) for side in pixels.shape[:2])
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)


def encode_split(
    split: Readable, path: Path, image: Image, seed: int, num_workers: int, title: str
) -> tuple[list[float], list[float]]:
    """Write the samples to `path`; return mean and standard deviation per channel, in units of 0..1.

    `seed` draws the images that become JPEG; `title` names the progress bar. The result does not depend on
    `num_workers` (-1: one per core available). Raises `BrokenImages`, UserError for a worker that was killed,
    OSError for a full disk. The caller removes what was written until then.
    """
    n = len(split)
    samples = _Samples(split, image, seed)
    if num_workers == -1:
        num_workers = len(os.sched_getaffinity(0))
    encoder = _ImageEncoder(image.jpeg_quality)
    writer = _BetonWriter(path, encoder, split.target, samples.page_size, min(num_workers, -(-n // CHUNK)), title)
    writer.from_indexed_dataset(samples, chunksize=CHUNK)
    broken = np.flatnonzero(np.frombuffer(samples.broken, np.bool_))
    if len(broken):
        raise BrokenImages(broken, [f"{split.describe(i)} ({samples.why_broken(i)})" for i in broken.tolist()])
    return mean_and_std(writer.histogram)


def mean_and_std(histogram: np.ndarray) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation, in units of 0..1, of each row of counts by value, int64[3, 256]."""
    means, stds = [], []
    for row in histogram.tolist():  # Python's integers: exact at any number of pixels
        count = sum(row)
        first = sum(value * times for value, times in enumerate(row))
        second = sum(value * value * times for value, times in enumerate(row))
        means.append(first / count / 255)
        stds.append(((count * second - first * first) / count**2) ** 0.5 / 255)
    return means, stds


class BrokenImages(UserError):
    """Images that cannot be read: `ids`, int64[k], their places in the split; `reasons`, a text each; `named`, all."""

    def __init__(self, ids: np.ndarray, reasons: list[str]) -> None:
        self.ids, self.reasons = ids, reasons
        more = len(reasons) - NAMED
        self.named = f"{', '.join(reasons[:NAMED])}{f' and {more:,} more' if more > 0 else ''}"
        super().__init__(
            f"images that cannot be read: {self.named}; "
            "replace or remove them, or leave them out with --skip-broken, which lists all"
        )


class _Samples:
    """What FFCV's writer indexes: ``((pixels uint8[h, w, 3], whether to compress, JPEG file to keep), target)``.

    `broken` says, by sample, which images could not be read: the workers share it, go on, and store one pixel.
    """

    def __init__(self, split: Readable, image: Image, seed: int) -> None:
        self.split = split
        # Of a sample that cannot be read; its file is never kept.
        self.nothing = np.zeros(split.target.shape, split.target.dtype) if hasattr(split.target, "shape") else 0
        target_bytes = self.nothing.nbytes if isinstance(self.nothing, np.ndarray) else 0  # numbers are in no page
        self.max_resolution = image.max_resolution
        self.page_size = page_size(image.max_resolution, target_bytes)
        self.most_bytes = self.page_size - target_bytes  # of an image: FFCV puts a sample into one page
        self.keep_jpeg = image.keep_jpeg
        # FFCV's own mode "proportion" draws from an unseeded generator in each worker.
        share = {"raw": 0.0, "jpg": 1.0, "proportion": image.compress_probability}[image.mode]
        n = len(split)
        self.compress = np.zeros(n, dtype=bool)
        self.broken = multiprocessing.RawArray("b", n)
        self.compress[np.random.default_rng(seed).permutation(n)[: round(share * n)]] = True

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, i: int) -> tuple[tuple[np.ndarray, bool, bytes], Any]:
        try:
            pixels, kept, target = self._read(i)
        except Exception:  # whatever Pillow and OpenCV raise on a damaged or odd file
            self.broken[i] = True
            return (np.zeros((1, 1, 3), np.uint8), False, b""), self.nothing
        if max(pixels.shape) > MAX_SIDE or pixels.nbytes > self.most_bytes:
            raise UserError(
                f"{self.split.describe(i)} is too large ({pixels.shape[1]} x {pixels.shape[0]} pixels); "
                "shrink images with --image.max_resolution=N, or max_resolution=N of ffcv_prune.write"
            )
        return (pixels, bool(self.compress[i]), kept), target

    def _read(self, i: int) -> tuple[np.ndarray, bytes, Any]:
        """Pixels, the JPEG file if it is kept as it is, and target."""
        image, target = self.split.read(i)
        content = image if isinstance(image, bytes) else b""
        picture = opened(image) if isinstance(image, bytes) else image
        keep = self.keep_jpeg and self.compress[i]
        keep = keep and can_be_kept(content, picture, self.max_resolution or MAX_SIDE, self.most_bytes)
        if picture.mode.startswith(("I", "F")):  # Pillow would cut their values off at 255
            raise UserError(f"its channels have more than 8 bits (Pillow's mode {picture.mode}): convert them to 8")
        pixels = shrunk(np.array(picture.convert("RGB")), self.max_resolution)
        return pixels, content if keep else b"", target

    def why_broken(self, i: int) -> str:
        try:
            self._read(i)
        except Exception as error:
            return first_line(error)
        return "now it can be read"


class _ImageEncoder:
    """Takes the part of RGBImageField.encode in the workers: stores as told, and counts the pixel values.

    Pixels are counted as they are before JPEG compression.
    """

    def __init__(self, jpeg_quality: int) -> None:
        self.raw = RGBImageField(write_mode="raw")
        self.jpg = RGBImageField(write_mode="jpg", jpeg_quality=jpeg_quality)
        self.histogram = np.zeros((3, 256), dtype=np.int64)

    def encode(
        self, destination: np.ndarray, sample: tuple[np.ndarray, bool, bytes], malloc: Callable[[int], Any]
    ) -> None:
        pixels, compress, kept = sample
        if kept:
            destination["mode"] = IMAGE_MODES["jpg"]
            destination["height"], destination["width"] = pixels.shape[:2]
            destination["data_ptr"], storage = malloc(len(kept))
            storage[:] = np.frombuffer(kept, np.uint8)
        else:
            (self.jpg if compress else self.raw).encode(destination, pixels, malloc)
        for channel in range(3):
            counts = cv2.calcHist([pixels], [channel], None, [256], [0, 256])
            self.histogram[channel] += counts.ravel().astype(np.int64)


class _BetonWriter(DatasetWriter):
    """FFCV's DatasetWriter with a supervisor: the original hangs for ever when a worker fails or dies.

    The file is FFCV's own, from header to allocation table, with checksums where FFCV reads nothing (`data.tables`).
    `histogram`: counts by value, int64[3, 256].
    """

    def __init__(
        self, path: Path, encoder: _ImageEncoder, target: Field, page_size: int, num_workers: int, title: str
    ) -> None:
        super().__init__(str(path), {"image": RGBImageField(), "label": target}, page_size, num_workers)
        self.encoder = encoder
        self.title = title
        self.histogram = encoder.histogram

    def _write_common(
        self, num_samples: int, queue_content: Iterable[Any], work_fn: Callable[..., None], extra: tuple[Any]
    ) -> None:
        self.num_samples = num_samples
        with uninterrupted() as interrupts:  # from here on there is shared memory, and soon there are processes
            self._supervise(interrupts, queue_content, work_fn, extra)

    def _supervise(
        self, interrupts: list[int], queue_content: Iterable[Any], work_fn: Callable[..., None], extra: tuple[Any]
    ) -> None:
        self.prepare()
        fork = multiprocessing.get_context("fork")  # hands on the data set instead of pickling it
        todo, results = fork.Queue(), fork.Queue()
        done = fork.Value("Q", 0)
        histogram = fork.Array("q", self.histogram.size)
        checksums = multiprocessing.RawArray("I", self.num_samples)
        room = checksums_bytes(self.num_samples)
        records = self.metadata_sm.buf, self.metadata_type.itemsize
        allocator = SummingAllocator(self.fname, self.data_region_start + room, self.page_size, *records, checksums)
        fields = {"image": self.encoder, "label": self.fields["label"]}
        args = (todo, self.metadata_sm, self.metadata_type, fields, allocator, done, results, *extra)
        workers = [
            fork.Process(target=_work, args=(work_fn, args, self.encoder.histogram, histogram, results))
            for _ in range(self.num_workers)
        ]
        try:
            for worker in workers:
                worker.start()
            for item in (*queue_content, *[None] * self.num_workers):
                todo.put(item)
            self.finalize(self._collect(interrupts, workers, results, done))
            for worker in workers:
                worker.join()
            write_checksums(Path(self.fname), self.data_region_start, np.frombuffer(checksums, np.uint32))
            self.histogram = np.array(histogram[:], dtype=np.int64).reshape(3, 256)
        finally:
            todo.cancel_join_thread()
            for worker in workers:
                if worker.is_alive():
                    worker.terminate()
                    worker.join()
            self.metadata_sm.close()
            self.metadata_sm.unlink()

    def _collect(
        self, interrupts: list[int], workers: list[Any], results: Any, done: Any
    ) -> list[tuple[int, int, int]]:
        """Show progress until every worker has handed in its allocations; raise what a worker raised."""
        allocations: list[tuple[int, int, int]] = []
        missing = len(workers)
        with tqdm(total=self.num_samples, desc=self.title, unit="img", disable=None) as progress:
            while missing:
                if interrupts:
                    raise KeyboardInterrupt
                try:
                    result = results.get(timeout=0.1)
                except Empty:
                    result = None
                # Without its lock, which a killed worker may hold.
                progress.update(done.get_obj().value - progress.n)
                if isinstance(result, Exception):
                    raise result
                if result is not None:
                    allocations += result
                    missing -= 1
                for worker in workers:
                    if worker.exitcode:
                        raise UserError(
                            f"a process writing {self.title} was ended (exit code {worker.exitcode}); "
                            "if memory or /dev/shm was short, use fewer --workers"
                        )
        return allocations


def _work(work_fn: Callable[..., None], args: tuple[Any, ...], mine: np.ndarray, total: Any, results: Any) -> None:
    """Run FFCV's worker; hand its failure to the supervisor; end when the supervisor is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the supervisor answers it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)  # those that this process's parent had are not here, and OpenMP would wait for them
    try:
        work_fn(*args)
        with total.get_lock():
            sums = np.frombuffer(total.get_obj(), dtype=np.int64)
            sums += mine.ravel()
    except (UserError, OSError) as error:
        results.put(error)
    except Exception:
        results.put(RuntimeError(f"a writer process failed\n{traceback.format_exc()}"))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
