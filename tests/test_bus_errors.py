"""The table of the files whose reads may fail, while a row of it is written: other threads read files meanwhile."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from mmap import PAGESIZE
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ffcv_prune.loading import bus_errors
from ffcv_prune.loading.bus_errors import Guard

ROOT = Path(__file__).resolve().parent.parent
PAGES = 64


class Watched(np.ndarray[Any, np.dtype[np.uint64]]):
    """The table, and its rows: `after_store` is called with a row after each word that is stored."""

    after_store: Callable[[Watched], object] = staticmethod(lambda row: None)

    def __setitem__(self, place: Any, value: Any) -> None:
        super().__setitem__(place, value)
        Watched.after_store(self)

    def fill(self, value: Any) -> None:
        """Word after word, as numpy's own does."""
        for place in range(len(self)):
            self[place] = value


def mapped(path: Path) -> np.memmap[Any, Any]:
    path.write_bytes(b"\1" * PAGES * PAGESIZE)
    return np.memmap(path, mode="r", dtype=np.uint8)


def fail_between_stores(change: str, folder: str) -> None:
    """Have reads of a file fail while the row of another one is written, or cleared: after each store.

    Prints which of the two is marked, and whether the handler could have put a row together that has it wrong. It
    reads the start before the end, and a store may come between.
    """
    failing, sound = sorted((mapped(Path(folder, name)) for name in "ab"), key=lambda file: file.ctypes.data)
    bus_errors._table = bus_errors._table.view(Watched)
    first = Guard(sound)  # of the row that the handler looks at first
    guard = Guard(failing)
    del first
    os.truncate(failing.filename, PAGESIZE)  # type: ignore[arg-type]
    pages = iter(range(PAGES - 1, 0, -1))  # backwards: the handler maps all that follows
    seen: list[list[int]] = []

    def fail(row: Watched) -> None:
        seen.append(row[:2].tolist())
        assert failing[next(pages) * PAGESIZE] == 0

    if change == "clear":
        other = Guard(sound)
        Watched.after_store = staticmethod(fail)
        del other
    else:
        Watched.after_store = staticmethod(fail)
        other = Guard(sound)
        assert not other.failed
    Watched.after_store = staticmethod(lambda row: None)
    address = failing.ctypes.data
    torn = any(start <= address < end for i, (start, _) in enumerate(seen) for _, end in seen[i:])
    print(len(seen) > 1, guard.failed, sound[0], torn)


@pytest.mark.parametrize("change", ["publish", "clear"])
def test_a_file_fails_while_another_one_is_opened_or_closed(change: str, tmp_path: Path) -> None:
    """Defect: half a row stood for all memory below the other file, and zeros were mapped over heap and libraries."""
    code = "import sys; from tests.test_bus_errors import fail_between_stores as run; run(*sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, change, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (done.returncode, done.stdout) == (0, "True True 1 False\n"), done.stderr
