"""Mutated JPEG images through the native code, built with AddressSanitizer:

    python -m tests.fuzz_native 10000

Each stored image ends where a page begins that nobody may touch, as libjpeg itself is not instrumented. The whole
image, a region and a resize are made of each; what is decoded of the region must be what the whole image has there.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ffcv_prune.loading import native_code
from tests.native_images import damaged, encoded, make, photograph, random_options, random_region

NATIVE = Path(native_code.__file__).with_name("native")
SANITIZED = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer")


class Guarded:
    """Room for an image of at most `most` bytes, right before a page that may not be read."""

    def __init__(self, most: int) -> None:
        page = mmap.PAGESIZE
        self.length = -(-most // page) * page
        self._map = mmap.mmap(-1, self.length + page)
        self._bytes = np.frombuffer(self._map, np.uint8)
        libc = ctypes.CDLL(None, use_errno=True)
        end = ctypes.c_void_p(self._bytes.ctypes.data + self.length)
        assert libc.mprotect(end, ctypes.c_size_t(page), 0) == 0

    def holding(self, stored: NDArray[np.uint8]) -> NDArray[np.uint8]:
        room = self._bytes[self.length - len(stored) : self.length]
        room[:] = stored
        return room


def build(folder: Path) -> Path:
    library = folder / "sanitized.so"
    sources = [str(path) for path in sorted(NATIVE.glob("*.c"))]
    compiler = sysconfig.get_config_var("CC").split()[0]
    subprocess.run([compiler, *SANITIZED, "-shared", "-fPIC", *sources, "-ljpeg", "-lm", "-o", library], check=True)
    return library


def fuzz(path: str, count: int, seed: int) -> None:
    library = native_code.bind(path)
    assert library is not None
    guarded = Guarded(1 << 20)
    for i in range(count):
        rng = np.random.default_rng([seed, i])
        image = photograph(rng, int(rng.integers(1, 150)), int(rng.integers(1, 150)))
        mode = "RGB" if rng.random() < 0.9 else ("L", "CMYK")[rng.integers(2)]
        stored = guarded.holding(damaged(rng, encoded(image, mode, **random_options(rng))))
        whole = make(stored, image.shape, (0, 0, *image.shape[:2]), image.shape[:2], using=library)
        top, left, h, w = random_region(rng, image.shape)
        crop = make(stored, image.shape, (top, left, h, w), (h, w), using=library)
        black = ~crop.any(axis=(1, 2))  # rows below the one where libjpeg gave up
        assert ((crop == whole[top : top + h, left : left + w]).all(axis=(1, 2)) | black).all(), (seed, i)
        size = (int(rng.integers(1, 100)), int(rng.integers(1, 100)))
        make(stored, image.shape, (top, left, h, w), size, scaled=True, flip=1, using=library)
    print(f"{count} mutants of seed {seed}: no error")


def main() -> None:
    count, seed = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    if len(sys.argv) > 3:
        fuzz(sys.argv[3], count, seed)
        return
    compiler = sysconfig.get_config_var("CC").split()[0]
    runtime = subprocess.check_output([compiler, "-print-file-name=libasan.so"], text=True).strip()
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"LD_PRELOAD": runtime, "ASAN_OPTIONS": "detect_leaks=0"}
        arguments = [str(count), str(seed), str(build(Path(folder)))]
        command = [sys.executable, "-m", "tests.fuzz_native", *arguments]
        sys.exit(subprocess.run(command, env=environment).returncode)


if __name__ == "__main__":
    main()
