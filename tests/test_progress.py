"""The writer shows its progress on a terminal, and nowhere else."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from tests.data_helpers import write_images, write_recipe

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    write_images(tmp_path / "train", {"cat": 120, "dog": 60})
    write_images(tmp_path / "test", {"dog": 3})
    options = (f"--data-dir={tmp_path}", f"--out-dir={tmp_path / 'out'}", "--workers=2")
    return [sys.executable, str(ROOT / "write_datasets.py"), "--dataset", write_recipe(tmp_path), *options]


def read_terminal(master: int) -> str:
    """All that is written to a terminal until its last writer has closed it."""
    said = b""
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:  # EIO: how Linux says it
            piece = b""
        if not piece:
            return said.decode()
        said += piece


def test_on_a_terminal_a_bar_for_each_file_counts_its_images_to_the_end(command: list[str]) -> None:
    master, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))  # a new one has no columns
    try:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=terminal)
        os.close(terminal)
        said = read_terminal(master)
        assert process.wait(timeout=100) == 0, said
    finally:
        os.close(master)
    for name, images in (("train", 180), ("test", 3)):
        shown = re.findall(rf"small {name}: +(\d+)%\|.*?\| (\d+)/{images} \[[^\]]*(?:img/s|s/img)\]", said)
        assert shown[0] == ("0", "0") or name == "test", said
        assert shown[-1] == ("100", str(images)), said


def test_elsewhere_nothing_is_shown(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0 and done.stderr == ""
    assert "180 images" in done.stdout
